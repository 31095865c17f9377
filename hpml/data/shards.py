"""WebDataset shards: images in tar files of one size, with an index of their sizes and checksums.

A sample is two members, `00000042.cls` (the class number) and `00000042.jpg`; 42 is its place in the set that was packed.
Format: https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hpml.env import HpmlError, cores

FORMAT = 1  # of the index and of what lies in a shard
INDEX = "index.json"
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


def verify(folder: Path) -> list[str]:
    """What is wrong with the shards in `folder`, one line each; empty when each is there and as it was packed."""
    index = read_index(folder)
    with ThreadPoolExecutor(cores()) as pool:
        faults = list(pool.map(lambda shard: fault(folder, shard), index.shards))
    known = {shard.name for shard in index.shards}
    wrong = [f"{shard.name}: {reason}" for shard, reason in zip(index.shards, faults, strict=True) if reason]
    return wrong + [f"{path.name}: not in the index" for path in sorted(folder.glob("*.tar")) if path.name not in known]
