"""WebDataset shards: images in tar files of one size, with an index of their sizes and checksums.

A sample is two members, `00000042.cls` (the class number) and `00000042.jpg`; 42 is its place in the set that was packed.
Format: https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hpml.env import HpmlError, cores

FORMAT = 1  # of the index and of what lies in a shard
INDEX = "index.json"
LOCK = ".packing.lock"  # beside the shards; whoever writes into the folder holds it
PARTS = ("train", "test")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*\.tar")  # a plain file name: an index from elsewhere opens no other file
BLOCK = 512  # bytes of a tar's header, and what members are padded to


@dataclass(frozen=True)
class Shard:
    """One tar file of the index."""

    name: str
    part: str  # train or test
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What `index.json` says: the shards in the order in which they are packed, the classes by number, where the samples are from."""

    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    origin: dict
    skipped: tuple[dict, ...] = ()  # name and reason of what could not be packed
    recipe: str = ""  # equal for equal input and settings
    format: int = FORMAT

    def part(self, name: str) -> tuple[Shard, ...]:
        """The shards of one part."""
        return tuple(shard for shard in self.shards if shard.part == name)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)


def parsed(text: str | bytes, where: str) -> Index:
    """The index in `text`. Raises HpmlError, with `where` and the reason, for one that cannot be used."""
    try:
        facts = json.loads(text)
        if facts["format"] != FORMAT:
            raise HpmlError(f"{where}: format {facts['format']!r}; this version reads format {FORMAT}")
        shards = tuple(Shard(**entry) for entry in facts["shards"])
        index = Index(shards, tuple(facts["classes"]), dict(facts["origin"]), tuple(facts.get("skipped", ())), facts.get("recipe", ""))
        wrong = next((s.name for s in shards if not NAME.fullmatch(s.name) or s.part not in PARTS or min(s.samples, s.bytes) < 1
                      or not re.fullmatch("[0-9a-f]{64}", s.sha256)), None)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise HpmlError(f"{where}: not an index of shards ({type(error).__name__}: {error})") from None
    if wrong or not shards or len({shard.name for shard in shards}) < len(shards):
        raise HpmlError(f"{where}: not an index of shards ({f'entry {wrong!r} is not valid' if wrong else 'no shard, or one twice'})")
    return index


def read_index(folder: Path) -> Index:
    """The index of a folder. Raises HpmlError where there is none or it is damaged."""
    try:
        return parsed((folder / INDEX).read_bytes(), str(folder / INDEX))
    except OSError as error:
        raise HpmlError(f"{folder / INDEX}: {error.strerror}; `hpml data shard SRC {folder}` makes one") from None


def fault(folder: Path, shard: Shard) -> str | None:
    """What is wrong with one shard of a folder, or None. All of it is read."""
    try:
        size = (folder / shard.name).stat().st_size
        if size != shard.bytes:
            return f"{'truncated' if size < shard.bytes else 'too long'}: {size:,} of {shard.bytes:,} bytes"
        with (folder / shard.name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if found == shard.sha256 else f"corrupt or tampered with: sha256 {found[:12]}..., the index says {shard.sha256[:12]}..."


def members(file: IO[bytes], path: Path, shard: Shard, classes: int) -> list[tuple[int, int, int, int]]:
    """(sample's number, offset and bytes of its image, class number) of each sample of a shard, of its open file.

    Not by tarfile: it takes ten times as long, 80 ms for 64 MiB, and each worker opens each shard. A checksum says that the file is the
    index's, not that either is honest, so nothing read here is trusted. Raises HpmlError, with the path, for what is not packed as shards
    are, another number of samples than the index says and a class that the index has not.
    """
    found, number, label, at = [], None, None, 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
        try:
            while tar[at : at + 1] not in (b"\0", b""):
                name, _, kind = tar[at : at + 100].rstrip(b"\0").decode().partition(".")
                size, data = _number(tar[at + 124 : at + 136].strip(b" \0").decode(), base=8), at + BLOCK
                if data + size > len(tar):
                    raise ValueError(f"{name}.{kind} is longer than the file")
                if kind == "cls":
                    number, label = _number(name), _number(tar[data : data + min(size, 20)].decode())
                    if label >= classes:
                        raise HpmlError(f"{path}: sample {name} has class {label}, the index has classes 0 to {classes - 1}")
                elif number == _number(name):
                    if len(found) == shard.samples:
                        raise HpmlError(f"{path}: more samples than the {shard.samples} of the index")
                    found.append((number, data, size, label))
                else:
                    raise ValueError(f"{name} has no class")
                at = data + -(-size // BLOCK) * BLOCK
        except ValueError as error:
            raise HpmlError(f"{path}: not packed by hpml data shard ({error})") from None
    if len(found) < shard.samples:
        raise HpmlError(f"{path}: {len(found)} samples in it, the index says {shard.samples}")
    return found


def _number(text: str, *, base: int = 10) -> int:
    """What digits say; int() alone would take signs, blanks and underscores too. Raises ValueError."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ValueError(f"{text[:40]!r} is not a number")
    return int(text, base)


def verify(folder: Path) -> list[str]:
    """What is wrong with the shards in `folder`, one line each; empty when each is there and as it was packed, and holds what the index
    says. Images are not decoded. Raises HpmlError where there is no index that can be used."""
    index = read_index(folder)

    def wrong_with(shard: Shard) -> str | None:
        if reason := fault(folder, shard):
            return reason
        try:
            with (folder / shard.name).open("rb") as file:
                members(file, folder / shard.name, shard, len(index.classes))
        except HpmlError as error:
            return str(error).removeprefix(f"{folder / shard.name}: ")
        return None

    with ThreadPoolExecutor(cores()) as pool:
        faults = list(pool.map(wrong_with, index.shards))
    known = {shard.name for shard in index.shards}
    wrong = [f"{shard.name}: {reason}" for shard, reason in zip(index.shards, faults, strict=True) if reason]
    return wrong + [f"{path.name}: not in the index" for path in sorted(folder.glob("*.tar")) if path.name not in known]


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """One writer at a time in a folder of shards, which is made where it is not there. A second one waits, or is refused where `wait` is
    False. Raises HpmlError for that, and where the folder cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise HpmlError(f"cannot write to {folder}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise HpmlError(f"{folder}: another process is pulling or packing into this folder; wait for it, or name another "
                            "folder") from None
        yield
