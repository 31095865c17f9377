"""CIFAR-10 and CIFAR-100: where they are found, how they are checked, and their one conversion to memory-mapped arrays.

Pickled batches are opened only after their published md5 matched: a pickle from anyone else could run any code.
Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; md5s as in torchvision.datasets.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import pickle
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpml.data.images import ImageSet, read_stored, say, store
from hpml.env import HpmlError, Unavailable, cache_dir, data_dir

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1  # of what the cache holds; raised when the arrays made from the same files change
SIDE = 32
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Files:
    """The published files of one set: names, checksums and how many images of each class they hold."""

    title: str
    folder: str
    archive: str
    archive_md5: str
    train: tuple[tuple[str, str], ...]  # (file, md5)
    test: tuple[tuple[str, str], ...]
    meta: tuple[str, str]
    labels_key: str
    names_key: str
    n_classes: int
    per_class: tuple[int, int]  # train, test
    jpeg_archive: str | None = None
    jpeg_sha256: str | None = None


SETS = {
    "cifar10": Files(
        title="CIFAR-10", folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz", archive_md5="c58f30108f718f92721af3b95e74349a",
        train=(("data_batch_1", "c99cafc152244af753f735de768cd75f"),
               ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
               ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
               ("data_batch_4", "634d18415352ddfa80567beed471001a"),
               ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb")),
        test=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
        meta=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        labels_key="labels", names_key="label_names", n_classes=10, per_class=(5000, 1000),
        jpeg_archive="cifar10_jpg_60k.tar.xz",
        jpeg_sha256="4b9c921b4e7204610fe6059cf77f8b5146d1f3869637820cd504d085aa7938c3"),
    "cifar100": Files(
        title="CIFAR-100", folder="cifar-100-python",
        archive="cifar-100-python.tar.gz", archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        train=(("train", "16019d7e3df5f24257cddd939b257f8d"),), test=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
        meta=("meta", "7973b15100ade9c7d40fb424638fde48"),
        labels_key="fine_labels", names_key="fine_label_names", n_classes=100, per_class=(500, 100)),
}


def find(name: str, files: Files | None = None) -> Path | None:
    """The first of the unpacked batches, the official archive, the JPEG archive; in the data folder or its `name`."""
    files = files or SETS[name]
    for member in filter(None, (files.folder, files.archive, files.jpeg_archive)):
        for folder in (data_dir() / name, data_dir()):
            if (folder / member).exists():
                return folder / member
    return None


def load(name: str = "cifar10", path: Path | None = None, *, files: Files | None = None) -> ImageSet:
    """The set as memory maps, from `path` or where `find` sees it; converted on first use.

    Classes take turns in the JPEG form, whose own order is lost; the official form keeps its order. Raises Unavailable
    when nothing is there, HpmlError (naming the file, and the member) when it is damaged or not what was published.
    """
    files = files or SETS[name]
    path = path or find(name, files)
    if path is None:
        raise Unavailable(f"{files.title} is not on this machine: `hpml data fetch {name}`, or put {files.archive} or "
                          f"the folder {files.folder} in {data_dir() / name}, or name its folder in HPML_DATA")
    try:
        stamp = _stamp(path, files)
        stored = _cached(name, stamp) or _converted(name, path, files, stamp)
    except OSError as error:
        raise HpmlError(f"{path}: {error.strerror or error}") from None
    facts, arrays = stored
    return ImageSet(name=name, title=files.title, origin="real", classes=facts["classes"], checksum=facts["checksum"],
                    note=facts["note"], **arrays)


def problems(name: str, path: Path, *, files: Files | None = None) -> list[str]:
    """What is wrong with the files at `path`, one line each, by their published checksums; empty when nothing is."""
    files = files or SETS[name]
    try:
        if path.name == files.folder:
            for member, md5 in (*files.train, *files.test, files.meta):
                _checked((path / member).read_bytes(), md5, path / member)
        elif path.name == files.jpeg_archive:
            _digest(path, "sha256", files.jpeg_sha256)
        else:
            _digest(path, "md5", files.archive_md5)
    except HpmlError as error:
        return [str(error)]
    except OSError as error:
        return [f"{error.filename or path}: {error.strerror or error}"]
    return []


# ---- the cache


def _stamp(path: Path, files: Files) -> list:
    """What tells, without reading it, that a source is the one that was converted: path, size and time of each file."""
    parts = [path / member for member, _ in (*files.train, *files.test, files.meta)] if path.is_dir() else [path]
    for part in parts:
        if not part.is_file():
            raise HpmlError(f"{part} is missing; put the whole of {files.archive} there again")
    return [[str(part), part.stat().st_size, part.stat().st_mtime_ns] for part in parts]


def _cached(name: str, stamp: list) -> tuple[dict, dict[str, np.ndarray]] | None:
    for folder in sorted(cache_dir().glob(f"{name}-*")):
        stored = read_stored(folder)
        if stored and stored[0].get("format") == FORMAT and stored[0].get("source") == stamp:
            return stored
    return None


def _converted(name: str, path: Path, files: Files, stamp: list) -> tuple[dict, dict[str, np.ndarray]]:
    began = time.perf_counter()
    if path.name == files.jpeg_archive:
        checksum = _digest(path, "sha256", files.jpeg_sha256)
    else:  # the batches' md5s are the identity, so that the folder and the archive of one content are one data set
        if path.is_file():
            _digest(path, "md5", files.archive_md5)
        listed = (*files.train, *files.test, files.meta)
        checksum = hashlib.sha256("".join(f"{member} {md5}\n" for member, md5 in listed).encode()).hexdigest()
    folder = cache_dir() / f"{name}-{checksum[:12]}"
    stored = read_stored(folder)
    if stored and stored[0].get("format") == FORMAT:  # the same content elsewhere, or touched: only its stamp is new
        _restamp(folder, stamp)
        return stored

    if path.is_dir():
        arrays, classes = _from_batches(lambda member: (path / member).read_bytes(), path, files)
        note = ""
    elif path.name == files.jpeg_archive:
        arrays, classes = from_jpegs(path, classes=CIFAR10_CLASSES[: files.n_classes], per_class=files.per_class)
        note = "JPEG re-encoding"
    else:
        arrays, classes = _from_archive(path, files)
        note = ""
    if stored:  # of another format
        shutil.rmtree(folder, ignore_errors=True)
    facts = {"format": FORMAT, "classes": classes, "checksum": checksum, "note": note, "source": stamp}
    store(folder, arrays, facts)
    say(f"converting {files.title} once: {time.perf_counter() - began:.1f} s")
    return read_stored(folder) or (facts, arrays)


def _restamp(folder: Path, stamp: list) -> None:
    try:
        facts = json.loads((folder / "meta.json").read_text())
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        with open(handle, "w") as file:
            json.dump({**facts, "source": stamp}, file, indent=1)
        os.replace(temporary, folder / "meta.json")
    except OSError:
        return  # a cache that cannot be written to still serves; only the checksum is computed again next time


# ---- the official form


def _digest(path: Path, kind: str, expected: str | None) -> str:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if expected and found != expected:
        raise HpmlError(f"{path} is damaged or another file: {kind} {found}, published is {expected}; "
                        "delete it and fetch it again")
    return found


def _checked(content: bytes, md5: str, where: Path | str) -> bytes:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise HpmlError(f"{where} is damaged or another file: md5 {found}, published is {md5}; it is not opened")
    return content


def _from_archive(path: Path, files: Files) -> tuple[dict[str, np.ndarray], list[str]]:
    try:
        with tarfile.open(path, "r:gz") as archive:
            def read(member: str) -> bytes:
                file = archive.extractfile(f"{files.folder}/{member}")
                if file is None:
                    raise KeyError(member)
                return file.read()

            return _from_batches(read, path, files)
    except (tarfile.TarError, EOFError, zlib.error, OSError, KeyError) as error:
        raise HpmlError(f"{path} cannot be unpacked ({error}); delete it and fetch it again") from None


def _from_batches(read: Callable[[str], bytes], path: Path, files: Files) -> tuple[dict[str, np.ndarray], list[str]]:
    import numpy as np

    def opened(member: str, md5: str) -> dict:
        return pickle.loads(_checked(read(member), md5, f"{path}: {member}"), encoding="latin1")

    arrays = {}
    classes = list(opened(*files.meta)[files.names_key])
    parts = zip(("train", "test"), (files.train, files.test), files.per_class, strict=True)
    for part, listed, per_class in parts:
        batches = [opened(member, md5) for member, md5 in listed]
        images = np.concatenate([np.asarray(batch["data"], np.uint8).reshape(-1, 3, SIDE, SIDE) for batch in batches])
        labels = np.concatenate([np.asarray(batch[files.labels_key], np.int64) for batch in batches])
        counts = np.bincount(labels, minlength=files.n_classes).tolist()
        if len(images) != len(labels) or counts != [per_class] * files.n_classes:
            raise HpmlError(f"{path}: {part} holds {len(images):,} images, "
                            f"{per_class:,} of each of {files.n_classes} classes are expected")
        arrays[f"{part}_images"] = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        arrays[f"{part}_labels"] = labels
    return arrays, classes


# ---- the JPEG form


def from_jpegs(path: Path, *, classes: tuple[str, ...] = CIFAR10_CLASSES,
               per_class: tuple[int, int] = (5000, 1000)) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays from a tar of train/<class>/0000.jpg and test/<class>/0000.jpg, read straight from it; classes take turns.

    Raises HpmlError for an archive that is cut or damaged, a member that is no 32x32 JPEG, and counts that differ.
    """
    import numpy as np
    from PIL import Image

    label = {name: at for at, name in enumerate(classes)}
    n = {"train": per_class[0], "test": per_class[1]}
    images = {part: np.empty((count * len(classes), SIDE, SIDE, 3), np.uint8) for part, count in n.items()}
    seen = {part: np.zeros(count * len(classes), bool) for part, count in n.items()}
    try:
        with tarfile.open(path, "r|*") as archive:  # a stream: every byte is read once, in order
            for member in archive:
                if not member.name.endswith(".jpg"):  # folders and the archive's README
                    continue
                where = f"{path}: {member.name}"
                part, name, number = _place(member, where)
                at = number * len(classes) + label.get(name, -1)
                if name not in label or part not in n or number >= n[part]:
                    raise HpmlError(f"{where} has no place among {per_class[0]:,} + {per_class[1]:,} images "
                                    f"of each of {len(classes)} classes")
                if seen[part][at]:
                    raise HpmlError(f"{where} is there twice")
                content = archive.extractfile(member).read()
                try:
                    with Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
                        if picture.size != (SIDE, SIDE):
                            raise HpmlError(f"{where} has {picture.width}x{picture.height} pixels, "
                                            f"{SIDE}x{SIDE} are expected")
                        images[part][at] = np.asarray(picture.convert("RGB"))
                except (OSError, ValueError, SyntaxError):
                    raise HpmlError(f"{where} is no readable JPEG image") from None
                seen[part][at] = True
    except (tarfile.TarError, lzma.LZMAError, EOFError, zlib.error, OSError) as error:
        raise HpmlError(f"{path} is cut or damaged ({error}); delete it and fetch it again") from None
    for part, mask in seen.items():
        if not mask.all():
            raise HpmlError(f"{path}: {part} holds {int(mask.sum()):,} images, {len(mask):,} are expected")
    arrays = {f"{part}_images": images[part] for part in n}
    arrays |= {f"{part}_labels": np.tile(np.arange(len(classes)), count) for part, count in n.items()}
    return arrays, list(classes)


def _place(member: tarfile.TarInfo, where: str) -> tuple[str, str, int]:
    parts = Path(member.name).parts
    if not member.isfile() or len(parts) != 3 or not parts[2][:-4].isdecimal():
        raise HpmlError(f"{where} is not of the form train/<class>/0000.jpg")
    return parts[0], parts[1], int(parts[2][:-4])
