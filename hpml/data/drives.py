"""Driving frames with attributes, as sets of files: the index made from what a layout lists, its split, and what is wrong with it.

What the readers (bdd100k, camvid) share: a listed frame is used where at least one of its attributes is known and in the vocabulary,
and a sequence stands on one side of the split only: frames of a tested sequence are left out of the training part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hpml.data import jpegfiles
from hpml.data.captions import ATTRIBUTES, UNKNOWN, name
from hpml.data.images import read_stored, say, store
from hpml.data.jpegfiles import FileSet
from hpml.env import HpmlError, cache_dir, cores

FORMAT = 1  # of what the cache holds; raised when the index made from the same files changes
LEAST_TEST = 100  # of fewer frames no score says anything: one frame more or less is a point
TABLES = (".json", ".csv")  # what lists frames is not moved aside when one of them is missing
LISTED = 1000  # unusable frames that are kept with their reason; all are counted


@dataclass(frozen=True)
class Frame:
    """One frame that a layout lists. `part`: train or test; `archive` -1: a file of its own."""

    file: str
    part: str
    sequence: str
    attributes: dict[str, str]
    archive: int = -1
    offset: int = 0
    size: int = 0


@dataclass
class Listing:
    """What a layout holds: its frames, (file, reason) of what cannot be used, and what has to be known about it."""

    frames: Iterable[Frame]
    skipped: list[tuple[str, str]]
    note: str = ""
    archives: tuple[str, ...] = ()


def load(source: str, title: str, path: Path, stamp: str, read: Callable[[Path], Listing]) -> FileSet:
    """The set at `path`, whose index is made by `read` on first use; `stamp` tells the state of the files."""
    facts, arrays = index(source, path, stamp, read)
    return FileSet(name=source, title=title, origin="real", classes=facts["classes"], checksum=facts["checksum"], note=facts["note"],
                   root=str(path), archives=tuple(facts["archives"]), informative=facts["informative"], **arrays)


def index(source: str, path: Path, stamp: str, read: Callable[[Path], Listing]) -> tuple[dict, dict]:
    """(facts, arrays) from the cache, or made. Raises HpmlError in one line for what cannot be read."""
    folder = cache_dir() / f"{source}-{hashlib.sha256(f'{FORMAT} {stamp}'.encode()).hexdigest()[:12]}"
    try:
        stored = read_stored(folder)
        if stored is None:
            facts, arrays = _indexed(path, read(path))
            store(folder, arrays, facts)
            stored = read_stored(folder) or (facts, arrays)
    except OSError as error:
        raise HpmlError(f"{error.filename or path}: {error.strerror or error}") from None
    return stored


def check(name_: str, path: Path, files: FileSet, skipped: list, kinds: tuple[str, ...], *, fix: bool = False) -> list[str]:
    """What is wrong, one line each: what the index left out, and every frame that does not decode as one of `kinds`.

    `fix` moves files of their own to the folder `set_aside` and deletes nothing. Grey frames are converted when they are read.
    """
    wrong, grey = [tuple(one) for one in skipped], 0
    places = [*files.train_images, *(files.test_images if files.informative or len(files.test_images) != len(files.train_images) else ())]
    with ThreadPoolExecutor(cores()) as pool:  # Pillow decodes without Python's lock
        faults = pool.map(lambda place: jpegfiles.fault(files, place, kinds), places)
        for place, (reason, mode) in zip(places, faults, strict=True):
            grey += mode == "L"
            if reason:
                wrong.append((place["name"].decode(), reason))
    say(f"{name_}: {files.note}; {len(places):,} frames decoded" + (f", {grey} grey ones made RGB when read" if grey else ""))
    if fix:
        moved = {file for file, _ in wrong if not file.endswith(TABLES) and jpegfiles.moved_aside(path, file)}
        say(f"{name_}: {len(moved)} files moved to {path / jpegfiles.ASIDE}" if moved else f"{name_}: nothing to move")
        wrong = [(file, reason) for file, reason in wrong if file not in moved]
    return [f"{file}: {reason}" for file, reason in wrong]


def _indexed(path: Path, listing: Listing) -> tuple[dict, dict]:
    import numpy as np

    skipped, parts, seen = listing.skipped, {"train": [], "test": []}, set()
    for frame in listing.frames:
        fault = f"listed twice in {frame.part}" if (frame.part, frame.file) in seen else _fault(frame.attributes)
        seen.add((frame.part, frame.file))
        if fault:
            skipped.append((frame.file, fault))
        else:
            parts[frame.part].append(frame)
    tested = {frame.sequence for frame in parts["test"]}
    kept = [frame for frame in parts["train"] if frame.sequence not in tested]
    leaking, parts["train"] = len(parts["train"]) - len(kept), kept  # no fault of the files: said in the note
    if not any(parts.values()):
        first = ": ".join(skipped[0]) if skipped else "nothing is listed"
        raise HpmlError(f"{path}: no usable frame ({len(skipped)} skipped, the first {first})")
    informative = bool(parts["train"]) and len(parts["test"]) >= LEAST_TEST
    notes = [listing.note] if listing.note else []
    if leaking:
        notes.append(f"{leaking:,} training frames of tested sequences left out")
    if not parts["train"] or not parts["test"]:
        parts = dict.fromkeys(parts, parts["train"] or parts["test"])
        notes.append("split not stated: scores are on the training frames and say nothing about quality")
    elif not informative:
        notes.append(f"{len(parts['test'])} test frames are too few to tell how good a model is")
    classes = sorted({name(*frame.attributes.values()) for part in parts.values() for frame in part})
    arrays = {}
    for part, listed in parts.items():
        width = max(len(frame.file.encode()) for frame in listed)
        kind = np.dtype([("name", f"S{width}"), ("archive", "i4"), ("offset", "i8"), ("size", "i8")])
        arrays[f"{part}_images"] = np.array([(f.file.encode(), f.archive, f.offset, f.size) for f in listed], kind)
        arrays[f"{part}_labels"] = np.array([classes.index(name(*f.attributes.values())) for f in listed], np.int64)
    content = "".join(f"{part} {f.file} {f.size} {name(*f.attributes.values())}\n" for part, listed in parts.items() for f in listed)
    if skipped:
        notes.append(f"{len(skipped):,} files or frames skipped")
    return {"classes": classes, "note": "; ".join(notes), "informative": informative, "archives": list(listing.archives),
            "skipped": skipped[:LISTED], "checksum": hashlib.sha256(content.encode()).hexdigest()}, arrays


def _fault(attributes: dict[str, str]) -> str | None:
    """Why a frame with these attributes cannot be used, or None."""
    for key, known in ATTRIBUTES.items():
        if attributes[key] not in known:
            return f"{key} {attributes[key]!r} is none of {', '.join(known)}"
    return None if set(attributes.values()) != {UNKNOWN} else "neither weather nor scene nor time of day is given"
