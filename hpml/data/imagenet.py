"""ImageNet-1k in the layouts that its publishers ship: where it is found, what is wrong with its files, and its index.

Folders (torchvision's ImageFolder: train/<wnid>/*.JPEG, val/<wnid>/*.JPEG or a flat val/), the official archives
(ILSVRC2012_img_train.tar, a tar of 1,000 tars, and ILSVRC2012_img_val.tar), read where they are without unpacking, and a sample of
one image a class (labels.csv beside a tar). Classes are numbered as torchvision does: by wnid, always 1,000 of them.
Source: O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import os
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from hpml.data.images import read_stored, say, store
from hpml.data.jpegfiles import ASIDE, FileSet, fault, moved_aside
from hpml.env import HpmlError, Unavailable, cache_dir, cores, data_dir

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1  # of what the cache holds; raised when the index made from the same files changes
TITLE = "ImageNet-1k"
FOLDERS = ("imagenet", "imagenet1k_one_per_class")  # below the data folder
TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT, SOLUTION = "ILSVRC2012_devkit_t12", "LOC_val_solution.csv"
TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
SAMPLE = "imagenet_sample*.tar"
WNID = re.compile(r"n\d{8}")
ENDINGS = (".jpeg", ".jpg", ".png", ".gif")
HELD_OUT = 5  # without a val part, every fifth image of a class tests
KEPT = {"L": "grey", "CMYK": "CMYK"}  # modes that are converted to RGB when they are read


def classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(wnids in torchvision's order, first name of each), 1,000 of them, from the lists that come with timm."""
    spec = importlib.util.find_spec("timm")  # timm itself is not imported: it would bring torch
    if spec is None or not spec.origin:
        raise Unavailable("ImageNet's class list comes with timm, which is not installed: pip install timm")
    folder = Path(spec.origin).parent / "data" / "_info"
    wnids = tuple((folder / "imagenet_synsets.txt").read_text().split())
    lemmas = dict(line.split("\t", 1) for line in (folder / "imagenet_synset_to_lemma.txt").read_text().splitlines())
    return wnids, tuple(lemmas[wnid].split(",")[0] for wnid in wnids)


def find(name: str = "imagenet") -> Path | None:
    """The folder that holds one of the layouts."""
    return next((folder for folder in (*(data_dir() / known for known in FOLDERS), data_dir()) if layout(folder)), None)


def one_a_class(path: Path) -> bool:
    """Whether the files at `path` are a sample of one image a class, which can train but not test."""
    return layout(path) == "sample"


def load(name: str = "imagenet", path: Path | None = None) -> FileSet:
    """The set at `path` or where `find` sees it; its index is made on first use. Images are decoded when they are read.

    Without a val part every fifth image of a class tests; where classes have no five, the training images stand in for the test and
    the set says that they cannot test. Raises Unavailable when nothing is there, HpmlError that names a damaged or missing file.
    """
    path = path or find()
    if path is None:
        raise Unavailable("ImageNet is not on this machine: `hpml data fetch imagenet` says how to get it")
    wnids, names = classes()
    try:
        stamp = _stamp(path)
        folder = cache_dir() / f"imagenet-{hashlib.sha256(f'{FORMAT} {stamp}'.encode()).hexdigest()[:12]}"
        stored = read_stored(folder)
        if stored is None:
            facts, arrays = _indexed(path, {wnid: number for number, wnid in enumerate(wnids)})
            store(folder, arrays, facts)
            stored = read_stored(folder) or (facts, arrays)
    except OSError as error:
        raise HpmlError(f"{error.filename or path}: {error.strerror or error}") from None
    facts, arrays = stored
    return FileSet(name="imagenet", title=TITLE, origin="real", classes=list(names), checksum=facts["checksum"], note=facts["note"],
                   root=str(path), archives=tuple(facts["archives"]), informative=facts["informative"], **arrays)


def identity(path: Path) -> str:
    """What the files at `path` are right now, without opening them."""
    return f"{path.name} {hashlib.sha256(_stamp(path).encode()).hexdigest()[:16]}"


def check(name: str, path: Path, *, fix: bool = False) -> list[str]:
    """What is wrong with the files at `path`, one line each; empty when nothing is. Every image is decoded.

    Grey and CMYK images are converted when they are read: they are counted on stderr and stay. `fix` moves bad files to the folder
    `set_aside` and deletes nothing; a member of an archive stays there, the loader skips it.
    """
    files = load(name, path)
    kept: dict[str, list[str]] = {}
    wrong = list(_left_out(path))
    # Where the set cannot test, its test images are its training images.
    places = [*files.train_images, *(files.test_images if files.informative else ())]
    with ThreadPoolExecutor(cores()) as pool:  # Pillow decodes without Python's lock
        for place, (reason, mode) in zip(places, pool.map(lambda place: fault(files, place), places), strict=True):
            if reason:
                wrong.append((place["name"].decode(), reason))
            elif mode in KEPT:
                kept.setdefault(KEPT[mode], []).append(place["name"].decode())
    say(f"{name}: {files.note}; {len(places):,} images decoded")
    for what, members in kept.items():
        say(f"{name}: {len(members):,} {what}, converted to RGB when read: {', '.join(members[:5])}{', ...' * (len(members) > 5)}")
    if fix:
        moved = {file for file, _ in wrong if moved_aside(path, file)}
        say(f"{name}: {len(moved)} files moved to {path / ASIDE}" if moved else f"{name}: nothing to move")
        wrong = [(file, reason) for file, reason in wrong if file not in moved]
    return [f"{file}: {reason}" for file, reason in wrong]


# ---- layouts


def layout(path: Path) -> str | None:
    """Which layout lies at `path`: folders, archives or sample; None for none of them."""
    if (path / "train").is_dir() and any(WNID.fullmatch(entry.name) for entry in os.scandir(path / "train")):
        return "folders"
    if (path / TRAIN_TAR).is_file():
        return "archives"
    return "sample" if (path / "labels.csv").is_file() and any(path.glob(SAMPLE)) else None


def _stamp(path: Path) -> str:
    """Names, sizes and times of the archives, and the time of each class folder, which changes with its list of files."""
    parts = [*path.glob("*.tar"), *path.glob("*.csv"), *path.glob(f"{DEVKIT}*")]
    parts += [folder for part in ("train", "val") if (path / part).is_dir() for folder in (path / part, *(path / part).iterdir())
              if folder.is_dir()]
    facts = [(str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in sorted(parts)]
    return repr([str(path.resolve()), facts])


Found = tuple[str, int, int, int, int]  # name, archive, offset, size, class


def _indexed(path: Path, number: dict[str, int]) -> tuple[dict, dict[str, np.ndarray]]:
    """(facts, arrays) of the set at `path`: the places and labels of its two parts."""
    import numpy as np

    archives: list[str] = []
    kind = layout(path)
    if kind == "sample":
        parts = {"train": list(_sample(path, archives, number)), "test": []}
    elif kind == "archives":
        parts = {"train": list(_train_tar(path, archives, number)), "test": []}
    else:
        parts = {"train": list(_folder(path, "train", number)), "test": list(_folder(path, "val", number))}
    if not parts["test"] and kind != "sample":
        parts["test"] = list(_flat_val(path, archives, number))
    if not parts["train"]:
        raise HpmlError(f"{path}: no training image in it")
    counts = np.bincount([label for *_, label in parts["train"]], minlength=len(number))
    note, informative = f"{(counts > 0).sum():,} of {len(number):,} classes", True
    if not parts["test"] and counts.max() >= HELD_OUT:
        note += f", no val part: every {HELD_OUT}th image of a class tests"
        seen = [0] * len(number)
        every, parts = parts["train"], {"train": [], "test": []}
        for found in every:
            seen[found[-1]] += 1
            parts["test" if seen[found[-1]] % HELD_OUT == 0 else "train"].append(found)
    elif not parts["test"]:
        informative = False
        most = "one image each" if counts.max() == 1 else f"at most {counts.max()} images each"
        note += f", {most}, split not stated: scores are on the training images and say nothing about quality"
    arrays = {}
    for part, listed in parts.items():
        listed = listed or parts["train"]
        width = max(len(name.encode()) for name, *_ in listed)
        kind = np.dtype([("name", f"S{width}"), ("archive", "i4"), ("offset", "i8"), ("size", "i8")])
        arrays[f"{part}_images"] = np.array([(name.encode(), *rest) for name, *rest, _ in listed], kind)
        arrays[f"{part}_labels"] = np.array([label for *_, label in listed], np.int64)
    content = "".join(f"{name} {size} {label}\n" for part in parts.values() for name, _, _, size, label in part)
    return {"format": FORMAT, "note": note, "informative": informative, "archives": archives,
            "checksum": hashlib.sha256(content.encode()).hexdigest()}, arrays


def _folder(path: Path, part: str, number: dict[str, int]) -> Iterator[Found]:
    """Images of <part>/<wnid>/, classes and files by name."""
    top = path / part
    for folder in sorted(top.iterdir()) if top.is_dir() else ():
        if folder.name in number and folder.is_dir():
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if entry.name.lower().endswith(ENDINGS) and not entry.name.startswith("."):
                    yield f"{part}/{folder.name}/{entry.name}", -1, 0, entry.stat().st_size, number[folder.name]


def _left_out(path: Path) -> Iterator[tuple[str, str]]:
    """(file, reason) of what lies among the class folders and is not taken."""
    wnids = set(classes()[0])
    for part in ("train", "val"):
        for folder in sorted((path / part).iterdir()) if (path / part).is_dir() else ():
            if folder.is_dir() and folder.name not in wnids:
                yield f"{part}/{folder.name}", "no class of ImageNet-1k, its images are not used"
            for entry in sorted(folder.iterdir()) if folder.is_dir() and folder.name in wnids else ():
                if not entry.name.lower().endswith(ENDINGS) or entry.name.startswith("."):
                    yield f"{part}/{folder.name}/{entry.name}", "not named as an image"


def _members(path: Path, file=None) -> Iterator[tarfile.TarInfo]:
    """The regular files of an uncompressed tar. Raises HpmlError for one that is cut or damaged."""
    try:
        with tarfile.open(path, "r:", fileobj=file) as archive:
            yield from (member for member in archive if member.isfile())
    except (tarfile.TarError, EOFError) as error:
        raise HpmlError(f"{path} is cut or damaged ({error}): fetch it again") from None


def _train_tar(path: Path, archives: list[str], number: dict[str, int]) -> Iterator[Found]:
    """Images inside the tar of tars: their places are those in the outer file, so nothing is unpacked."""
    archives.append(str(path / TRAIN_TAR))
    with open(archives[-1], "rb") as file:
        for outer in _members(path / TRAIN_TAR):
            wnid = outer.name.removesuffix(".tar")
            if wnid in number:
                for inner in _members(path / TRAIN_TAR / outer.name, _Part(file, outer.offset_data, outer.size)):
                    yield f"{wnid}/{inner.name}", len(archives) - 1, outer.offset_data + inner.offset_data, inner.size, number[wnid]


class _Part(io.RawIOBase):
    """A stretch of an open file, as a file."""

    def __init__(self, file, start: int, size: int) -> None:
        self.file, self.start, self.size, self.at = file, start, size, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + {0: 0, 1: self.at, 2: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer) -> int:
        self.file.seek(self.start + self.at)
        content = self.file.read(max(0, min(len(buffer), self.size - self.at)))
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)


def _flat_val(path: Path, archives: list[str], number: dict[str, int]) -> Iterator[Found]:
    """Validation images without class folders (the archive, or unpacked): their classes come from the devkit or Kaggle's list."""
    if (path / VAL_TAR).is_file():
        archives.append(str(path / VAL_TAR))
        found = [(member.name, len(archives) - 1, member.offset_data, member.size) for member in _members(path / VAL_TAR)]
    else:
        found = [(f"val/{file.name}", -1, 0, file.stat().st_size) for file in (path / "val").glob("*") if file.suffix.lower() in ENDINGS]
    truth = _truth(path) if found else {}
    for name, *place in sorted(found):
        wnid = truth.get(Path(name).stem)
        if wnid not in number:
            raise HpmlError(f"{path}: no class is listed for the validation image {name}")
        yield name, *place, number[wnid]


def _truth(path: Path) -> dict[str, str]:
    """wnid of each validation image by its name. The devkit numbers classes in an order of its own, which its meta.mat translates."""
    if (path / SOLUTION).is_file():
        with (path / SOLUTION).open(newline="") as file:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    try:
        if (path / DEVKIT).is_dir():
            truth, meta = ((path / DEVKIT / name).read_bytes() for name in (TRUTH, META))
        elif (path / f"{DEVKIT}.tar.gz").is_file():
            with tarfile.open(path / f"{DEVKIT}.tar.gz") as archive:
                truth, meta = (archive.extractfile(f"{DEVKIT}/{name}").read() for name in (TRUTH, META))
        else:
            raise HpmlError(f"{path}: the classes of the validation images are missing: put {DEVKIT}.tar.gz or {SOLUTION} there")
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise HpmlError(f"{path / DEVKIT} cannot be read ({error})") from None
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    return {f"ILSVRC2012_val_{place:08d}": wnids[int(line)] for place, line in enumerate(truth.split(), 1)}


def _sample(path: Path, archives: list[str], number: dict[str, int]) -> Iterator[Found]:
    """Images of a flat tar whose classes stand in labels.csv (file, wnid)."""
    with (path / "labels.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        if not {"file", "wnid"} <= set(rows.fieldnames or ()):
            raise HpmlError(f"{path / 'labels.csv'}: columns file and wnid are expected, found {', '.join(rows.fieldnames or ())}")
        wnids = {row["file"]: row["wnid"] for row in rows}
    for archive in sorted(path.glob(SAMPLE)):
        archives.append(str(archive))
        for member in _members(archive):
            wnid = wnids.get(Path(member.name).name)
            if wnid in number:
                yield member.name, len(archives) - 1, member.offset_data, member.size, number[wnid]
