"""Packing: images into WebDataset shards, in parallel, with equal bytes for equal input, and from where it stopped.

Samples are shuffled by a seed before they are packed, so a reader that takes shards in order meets all classes at once. Which sample goes
into which shard follows from sizes alone, so the bytes do not depend on how many threads pack.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpml.data.images import say
from hpml.data.jpegfiles import NOT_DECODED, FileSet, decoded, read_place
from hpml.data.recode import Recode, extension, readable, share_of_bytes
from hpml.data.shards import BLOCK, FORMAT, INDEX, PARTS, Index, Shard, fault, locked, read_index
from hpml.env import HpmlError, cores

if TYPE_CHECKING:
    import numpy as np

JOURNAL = "packing.json"
SHARD_MIB = 64
SAMPLE = 16  # images that tell how much smaller encoding again makes them
PROGRESS_S = 2.0
JPEG_START, JPEG_END, END_BYTES = b"\xff\xd8\xff", b"\xff\xd9", 4096  # the marks of a whole JPEG; a few bytes may follow the last
NOTHING, END = bytes(BLOCK), bytes(2 * BLOCK)  # what a member is padded with; what a tar ends with
# A tar header without name and size, to be filled in: for a checksum, the sum of its bytes, what stands there counts as blanks.
PLAIN = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
PLAIN_SUM = sum(PLAIN[:124] + PLAIN[135:148] + b" " * 8 + PLAIN[156:])


def pack(files: FileSet, target: Path, *, shard_mib: float = SHARD_MIB, recode: Recode | None = None, threads: int = 0, seed: int = 0,
         parts: tuple[str, ...] = ("train",), check: bool = False) -> Index:
    """Pack the images of `files` into shards of about `shard_mib` in the folder `target`; returns the index, which is written last.

    What cannot be read as an image is left out and listed in the index; `check` decodes every image to find out, else only those whose
    bytes look unlike a whole JPEG. A shard appears when it is whole. Started again, it keeps the shards that are finished and right.
    `threads=0`: all cores. Raises HpmlError for a size or seed that cannot be used and for a target that holds something else, cannot be
    written or is full.
    """
    if unknown := set(parts) - set(PARTS):
        raise HpmlError(f"parts {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    planned = _plan(files, shard_mib, recode, seed, parts)
    facts = {"name": files.name, "title": files.title, "origin": files.origin, "note": files.note, "checksum": files.checksum, "seed": seed,
             "shard_mib": shard_mib, "recode": asdict(recode) if recode else None}
    if recode:
        import PIL

        facts["encoder"] = f"Pillow {PIL.__version__}"
    ids = hashlib.sha256(b"".join(part.tobytes() for job in planned for part in (job.ids, job.labels, job.places))).hexdigest()
    recipe = hashlib.sha256(json.dumps([FORMAT, facts, parts, check, ids], sort_keys=True).encode()).hexdigest()
    with locked(target, wait=True):  # and then finds what the first one has made
        done = _kept(target, recipe)
        if done:
            say(f"{target}: {len(done)} of {len(planned)} shards are there and right")
        with _said(target):
            _pack_missing(files, target, planned, done, recipe, recode, check, threads or cores())
            shards = tuple(shard for job in planned if (shard := done[job.name][0]))
            left_out = tuple(entry for job in planned for entry in done[job.name][1])
            if not shards:
                raise HpmlError(f"{files.title}: none of the {len(left_out)} images can be read, the first is {left_out[0]['name']}")
            index = Index(shards, tuple(files.classes), facts, left_out, recipe)
            _write(target / INDEX, {**vars(index), "shards": [vars(shard) for shard in shards]})
            (target / JOURNAL).unlink(missing_ok=True)
    return index


def _pack_missing(files: FileSet, target: Path, planned: list[_Job], done: dict, recipe: str, recode: Recode | None, check: bool,
                  threads: int) -> None:
    """Pack what `done` has not, and write down in it and in the journal what is finished, also where something stops the packing."""
    missing = [job for job in planned if job.name not in done]
    mib, packed_mib = sum(job.mib for job in missing), 0.0
    began = said = time.monotonic()

    def journal() -> None:
        entries = {name: [shard and vars(shard), left_out] for name, (shard, left_out) in done.items()}
        _write(target / JOURNAL, {"recipe": recipe, "done": entries})

    try:
        for job, packed in _packed(files, target, missing, recode, check, threads):
            done[job.name] = packed
            packed_mib += job.mib
            if time.monotonic() - said > PROGRESS_S:
                said = time.monotonic()
                journal()
                say(f"{target}: {len(done)} of {len(planned)} shards, {packed_mib:,.0f} of {mib:,.0f} MiB, "
                    f"{packed_mib / (said - began):,.0f} MiB/s")
    except BaseException:
        with contextlib.suppress(OSError):  # where the disk is full, it may be too full for this
            journal()
        raise


@dataclass(frozen=True, eq=False)
class _Job:
    """One shard before it is packed: which samples of which part, in their order, and where their files lie."""

    name: str
    part: str
    ids: np.ndarray
    places: np.ndarray
    labels: np.ndarray

    @property
    def mib(self) -> float:
        return int(self.places["size"].sum()) / 2**20


def _plan(files: FileSet, shard_mib: float, recode: Recode | None, seed: int, parts: tuple[str, ...]) -> list[_Job]:
    """Which sample goes into which shard: from sizes alone, so that shards can be made in any order."""
    import numpy as np

    if not (math.isfinite(shard_mib) and shard_mib * 2**20 >= BLOCK):
        raise HpmlError(f"shard-mib {shard_mib:g}: must be above 0, at least one block of a tar ({BLOCK} bytes)")
    if seed < 0:
        raise HpmlError(f"seed {seed}: must be 0 or more")
    jobs = []
    for number, part in enumerate(parts):
        places, labels = (files.train_images, files.train_labels) if part == "train" else (files.test_images, files.test_labels)
        order = np.random.default_rng([seed, number]).permutation(len(places))
        sizes = places["size"][order].astype(np.int64)
        ratio = share_of_bytes(readable(files, places[order[:SAMPLE]]), recode) if recode else 1.0
        padded = -(-(sizes * ratio).astype(np.int64) // BLOCK) * BLOCK + 3 * BLOCK  # two headers and the class number
        ends = np.cumsum(padded)
        shard_of = (ends - padded) // int(min(shard_mib * 2**20, 2**62))
        for count, shard in enumerate(np.unique(shard_of)):
            ids = order[shard_of == shard]
            jobs.append(_Job(f"{part}-{count:06d}.tar", part, ids, np.asarray(places[ids]), np.asarray(labels[ids])))
    return jobs


def _packed(files: FileSet, target: Path, jobs: list[_Job], recode: Recode | None, check: bool, threads: int) -> Iterator[tuple]:
    """(job, (shard or None without a sample, what was left out)) as shards become finished. Threads are enough: reading, hashing, writing
    and Pillow's work leave Python's lock free."""
    if min(threads, len(jobs)) <= 1:
        for job in jobs:
            yield job, _one(files.root, files.archives, target, job, recode, check)
        return
    with ThreadPoolExecutor(min(threads, len(jobs))) as pool:
        going = {pool.submit(_one, files.root, files.archives, target, job, recode, check): job for job in jobs}
        try:
            for future in as_completed(going):
                yield going[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _one(root: str, archives: tuple[str, ...], target: Path, job: _Job, recode: Recode | None,
         check: bool) -> tuple[Shard | None, list[dict]]:
    """Write one shard: (it, or None without a single image; what was left out). Raises OSError where it cannot be written."""
    skipped, samples, part, digest = [], 0, target / f"{job.name}.part", hashlib.sha256()
    try:
        with part.open("wb", buffering=0) as file:
            out = file.fileno()
            for number, place, label in zip(job.ids.tolist(), job.places, job.labels.tolist(), strict=True):
                content, kind, reason = _sample(root, archives, place, recode, check)
                if reason:
                    skipped.append({"name": place["name"].decode(), "reason": reason})
                    continue
                samples += 1
                said = str(label).encode()
                head = _header(f"{number:08d}.cls", len(said)) + said.ljust(BLOCK, b"\0") + _header(f"{number:08d}.{kind}", len(content))
                for piece in (pieces := (head, content, NOTHING[: -len(content) % BLOCK])):
                    digest.update(piece)
                _written(out, pieces)
            digest.update(END)
            _written(out, (END,))
            size = file.tell()
        if not samples:
            return None, skipped
        part.replace(target / job.name)
        return Shard(job.name, job.part, samples, size, digest.hexdigest()), skipped
    finally:
        part.unlink(missing_ok=True)


def _written(out: int, pieces: tuple[bytes, ...]) -> None:
    """Write the pieces one after another to an open file, all of them."""
    done, size = os.writev(out, pieces), sum(map(len, pieces))
    while done < size:
        done += os.write(out, b"".join(pieces)[done:])


def _header(name: str, size: int) -> bytes:
    """The header of a tar's member, which depends on name and size alone: no owner, no time.

    It is tarfile's with two fields filled in: made anew by tarfile it would take longer than reading the file.
    """
    named, length = name.encode(), f"{size:011o}".encode()
    checksum = f"{PLAIN_SUM + sum(named) + sum(length):06o}".encode()
    return named.ljust(100, b"\0") + PLAIN[100:124] + length + PLAIN[135:148] + checksum + PLAIN[154:]


def _sample(root: str, archives: tuple[str, ...], place, recode: Recode | None, check: bool) -> tuple[bytes, str, str | None]:
    """(bytes, extension, None), or why an image is left out: what `decoded` refuses is, so a reader of the files leaves out the same."""
    try:
        content = read_place(root, archives, place)
        if not content:
            return b"", "", "empty file"
        if recode:
            return (*recode.apply(content), None)
        whole = content.startswith(JPEG_START) and JPEG_END in content[-END_BYTES:]
        if check or not whole:
            decoded(content)
    except NOT_DECODED as error:
        return b"", "", " ".join(f"{getattr(error, 'strerror', None) or error}".split()) or type(error).__name__
    return content, "jpg" if whole else extension(content), None


def _kept(target: Path, recipe: str) -> dict[str, tuple[Shard | None, list[dict]]]:
    """What an earlier packing of the same recipe left whole. Raises HpmlError where the folder holds shards of something else."""
    found, other = {}, None
    try:
        journal = json.loads((target / JOURNAL).read_text())
        other = journal["recipe"]
        found = {name: (entry and Shard(**entry), skipped) for name, (entry, skipped) in journal["done"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        if (target / INDEX).exists():
            index = read_index(target)
            other = index.recipe
            found = {shard.name: (shard, []) for shard in index.shards}
            if found:  # which shard left out what is no longer known: the list as a whole stays
                found[index.shards[0].name] = (index.shards[0], list(index.skipped))
    if other not in (None, recipe):
        raise HpmlError(f"{target} holds shards of something else (other images or other settings): name another folder, or delete it")
    return {name: (shard, skipped) for name, (shard, skipped) in found.items() if shard is None or fault(target, shard) is None}


def _write(path: Path, facts: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(facts, indent=1) + "\n")
    part.replace(path)


@contextlib.contextmanager
def _said(target: Path) -> Iterator[None]:
    """What stops the packing, as one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise HpmlError(f"{target}: no space left; "
                            "make room, then run it again: finished shards are kept") from None
        raise HpmlError(f"cannot write to {target}: {error.strerror or error}") from None
