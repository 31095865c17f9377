"""BDD100K: frames with weather, scene and time of day, in the layouts that are in circulation.

The published one: images/100k/{train,val}/*.jpg with labels/det_20/det_{train,val}.json (Scalabel's form) or, older,
labels/bdd100k_labels_images_{train,val}.json. The published val part is the test part; frames of the published test part have no labels.
And a folder of single frames: images/*.jpg with one attributes*.csv (name, weather, scene, timeofday), which states no split. In both,
train.txt, val.txt and test.txt beside the folder `images` may state one by name, as studies on a part of the frames do (10,005 as 7,005,
1,000 and 2,000): then only frames that are listed count, and test.txt tests. val.txt's train too: nothing is chosen on them here.
Source: F. Yu et al., "BDD100K: A Diverse Driving Dataset for Heterogeneous Multitask Learning", CVPR 2020, arXiv:1805.04687.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hpml.data import drives
from hpml.data.captions import ATTRIBUTES, UNKNOWN
from hpml.data.drives import Frame, Listing
from hpml.data.jpegfiles import FileSet
from hpml.env import HpmlError, Unavailable, data_dir

TITLE = "BDD100K"
FOLDERS = ("bdd100k", "bdd100k/bdd100k", "bdd100k_ten")  # below the data folder; the archives unpack to bdd100k/
IMAGES = "images/100k"
PARTS = {"train": "train", "test": "val"}  # ours and the publisher's
LABELS = ("labels/det_20/det_{}.json", "labels/bdd100k_labels_images_{}.json")
LISTS = {"train.txt": "train", "val.txt": "train", "test.txt": "test"}  # one frame a line, by name or path, and which part it is of
PUBLISHED = "published split, val tests"
VIDEO = re.compile(r"[0-9a-f]{8}-[0-9a-f]{8}")  # what a frame's name starts with: the video that it was taken from
ENDINGS = (".jpg", ".jpeg")
CHUNK = 1 << 20  # characters of a label file that are read at once; the old one for training has 1.4 GB


def find(source: str = "bdd100k") -> Path | None:
    """The folder that holds one of the layouts; the published one first."""
    places = [*(data_dir() / known for known in FOLDERS), data_dir()]
    return next((folder for kind in ("published", "single") for folder in places if layout(folder) == kind), None)


def layout(path: Path) -> str | None:
    """"published", "single" (frames with a table of attributes) or None."""
    if (path / IMAGES / "train").is_dir() or (path / IMAGES / "val").is_dir():
        return "published"
    return "single" if (path / "images").is_dir() and any(path.glob("attributes*.csv")) else None


def load(source: str = "bdd100k", path: Path | None = None) -> FileSet:
    """The set at `path` or where `find` sees it; frames are decoded when they are read.

    Raises Unavailable when nothing is there, HpmlError that names a label file that is missing or damaged, or has another schema.
    """
    path = path or find()
    if path is None:
        raise Unavailable("BDD100K is not on this machine: `hpml data fetch bdd100k` says how to get it")
    return drives.load("bdd100k", TITLE, path, _stamp(path), _listing)


def check(source: str, path: Path, *, fix: bool = False) -> list[str]:
    """What is wrong with the files at `path`, one line each; empty when nothing is. Every frame is decoded."""
    facts, _ = drives.index("bdd100k", path, _stamp(path), _listing)
    return drives.check(source, path, load(source, path), facts["skipped"], ("JPEG",), fix=fix)


def identity(path: Path) -> str:
    """What the files at `path` are right now, without opening them."""
    return f"{path.name} {hashlib.sha256(_stamp(path).encode()).hexdigest()[:16]}"


def entries(path: Path) -> Iterator[dict]:
    """The frames of a label file one by one: a list, or Scalabel's {"frames": list}; never the whole of it in memory.

    Raises HpmlError that names the file where it is no such list or ends in the middle.
    """
    decoder, text, at, ended = json.JSONDecoder(), "", 0, False
    with path.open(encoding="utf-8") as file:
        text = file.read(CHUNK)
        start = re.match(r'\s*\[|\s*\{.*?"frames"\s*:\s*\[', text, re.DOTALL)
        if not start:
            raise HpmlError(f"{path}: another schema: a list of frames is expected, it starts with {text[:40]!r}")
        at = start.end()
        while True:
            at = re.compile(r"[\s,]*").match(text, at).end()
            if text[at : at + 1] == "]":
                return
            try:
                one, at = decoder.raw_decode(text, at)
            except ValueError:
                more = "" if ended else file.read(CHUNK)
                if not more:
                    raise HpmlError(f"{path}: cut or damaged after {file.tell():,} bytes; unpack it again") from None
                text, at, ended = text[at:] + more, 0, len(more) < CHUNK
                continue
            if not isinstance(one, dict) or not isinstance(one.get("name"), str):
                raise HpmlError(f"{path}: another schema: a frame without a name")
            yield one


def _stamp(path: Path) -> str:
    """Sizes and times of the label files, and the time of each image folder, which changes with its list of files."""
    parts = [path / IMAGES / part for part in PARTS.values()] if layout(path) == "published" else [path / "images"]
    parts += [path / known.format(part) for known in LABELS for part in PARTS.values()] + sorted(path.glob("attributes*.csv"))
    parts += [path / known for known in LISTS]
    facts = [(str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in parts if part.exists()]
    return repr([str(path.resolve()), facts])


def _listing(path: Path) -> Listing:
    found = (_published if layout(path) == "published" else _single)(path)
    return _by_lists(path, found) if (path / "test.txt").is_file() else found


def _by_lists(path: Path, found: Listing) -> Listing:
    """The frames that the lists name, in the parts that these say. Raises HpmlError for a frame that two lists name."""
    part, count = {}, {}
    for file in (path / known for known in LISTS if (path / known).is_file()):
        names = [Path(line).stem for line in file.read_text(encoding="utf-8").split()]
        if twice := part.keys() & names:
            raise HpmlError(f"{file}: {min(twice)} is in another list too ({len(twice):,} frames): a split has each frame once")
        part |= dict.fromkeys(names, LISTS[file.name])
        count[file.stem] = len(names)
    frames = [replace(frame, part=part[stem]) for frame in found.frames if (stem := Path(frame.file).stem) in part]
    absent = part.keys() - {Path(frame.file).stem for frame in frames}
    skipped = [(f"{min(absent)}.jpg", f"in a list and not here, with {len(absent) - 1:,} others")] if absent else []
    note = "split by list, " + " + ".join(f"{n:,} {name}" for name, n in count.items())
    own = "" if found.note == PUBLISHED else found.note  # the split that the lists replace
    return Listing(frames, [*found.skipped, *skipped], "; ".join(filter(None, (note, own))))


def _published(path: Path) -> Listing:
    found, skipped = [], []
    for part, theirs in PARTS.items():
        if not (path / IMAGES / theirs).is_dir():
            continue
        files = {entry.name: entry.stat().st_size for entry in sorted(os.scandir(path / IMAGES / theirs), key=lambda entry: entry.name)
                 if entry.is_file()}
        labels = next((path / known.format(theirs) for known in LABELS if (path / known.format(theirs)).is_file()), None)
        if labels is None:
            raise HpmlError(f"{path}: the labels of {IMAGES}/{theirs} are missing: put {LABELS[0].format(theirs)} there")
        listed, absent = set(), []
        for one in entries(labels):
            listed.add(one["name"])
            if one["name"] not in files:
                absent.append(one["name"])
                continue
            file = f"{IMAGES}/{theirs}/{one['name']}"
            known = one.get("attributes") or {}
            found.append(Frame(file, part, _sequence(one["name"]), {key: known.get(key) or UNKNOWN for key in ATTRIBUTES},
                               size=files[one["name"]]))
        if absent:
            skipped.append((str(labels.relative_to(path)), f"{len(absent):,} of its frames are not here, the first {absent[0]}"))
        for file in files.keys() - listed:
            reason = f"no entry in {labels.relative_to(path)}" if file.lower().endswith(ENDINGS) else "not named as an image"
            skipped.append((f"{IMAGES}/{theirs}/{file}", reason))
    return Listing(found, sorted(skipped), PUBLISHED)


def _single(path: Path) -> Listing:
    """Frames whose attributes stand in a table. It says nothing of a split, so none is made up."""
    table = sorted(path.glob("attributes*.csv"))[0]
    with table.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not {"name", *ATTRIBUTES} <= set(rows.fieldnames or ()):
            raise HpmlError(f"{table}: columns name, {', '.join(ATTRIBUTES)} are expected, found {', '.join(rows.fieldnames or ())}")
        attributes = {row["name"]: {key: row[key] or UNKNOWN for key in ATTRIBUTES} for row in rows}
    files = {file.name: file.stat().st_size for file in sorted((path / "images").iterdir()) if file.is_file()}
    found = [Frame(f"images/{file}", "train", _sequence(file), attributes[file], size=size) for file, size in files.items()
             if file in attributes]
    skipped = [(f"images/{file}", f"not in {table.name}") for file in files if file not in attributes]
    skipped += [(f"images/{file}", f"listed in {table.name} and not here") for file in attributes if file not in files]
    official = "eyeballed" not in table.name
    return Listing(found, skipped, "" if official else "attributes judged by eye, not the official labels")


def _sequence(file: str) -> str:
    """The video that a frame was taken from."""
    video = VIDEO.match(file)
    return video[0] if video else Path(file).stem
