"""Folders of images as torchvision's ImageFolder has them: <class>/*.jpg, or train/<class>/*.jpg beside val/ or test/."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from hpml.data import imagenet, rendered
from hpml.data.jpegfiles import FileSet
from hpml.env import HpmlError


def source(name: str) -> FileSet:
    """What can be packed: "imagenet" (where it lies here), "standin" (rendered), or a folder in one of ImageNet's layouts or ImageFolder's.

    Raises HpmlError for what is none of them, Unavailable for ImageNet that is not here.
    """
    if name == "imagenet":
        return imagenet.load()
    if name == "standin":
        return rendered.load()
    path = Path(name).expanduser()
    if not path.is_dir():
        raise HpmlError(f"{name}: no such folder; give a folder of images (train/<class>/*.jpg), imagenet or standin")
    return imagenet.load(path=path) if imagenet.layout(path) else load(path)


def load(path: Path) -> FileSet:
    """The images of an ImageFolder, classes and files in the order of their names. Raises HpmlError where there are none."""
    import numpy as np

    tops = {"train": path / "train" if (path / "train").is_dir() else path,
            "test": next((path / part for part in ("val", "test") if (path / part).is_dir() and (path / "train").is_dir()), None)}
    try:
        classes = sorted(entry.name for entry in os.scandir(tops["train"]) if entry.is_dir() and not entry.name.startswith("."))
        found = {part: list(_images(path, top, classes)) if top else [] for part, top in tops.items()}
    except OSError as error:
        raise HpmlError(f"{error.filename or path}: {error.strerror}") from None
    if not found["train"]:
        raise HpmlError(f"{path}: no images in it; expected are train/<class>/*.jpg or <class>/*.jpg")
    content = "".join(f"{name} {size} {label}\n" for part in found.values() for name, size, label in part)
    arrays = {}
    for part, listed in found.items():
        listed = listed or found["train"]
        width = max(len(name.encode()) for name, *_ in listed)
        kind = np.dtype([("name", f"S{width}"), ("archive", "i4"), ("offset", "i8"), ("size", "i8")])
        arrays[f"{part}_images"] = np.array([(name.encode(), -1, 0, size) for name, size, _ in listed], kind)
        arrays[f"{part}_labels"] = np.array([label for *_, label in listed], np.int64)
    return FileSet(name=path.resolve().name, title=f"images of {path.resolve().name}", origin="real", classes=classes, root=str(path),
                   checksum=hashlib.sha256(content.encode()).hexdigest(), note=f"{len(classes)} classes",
                   informative=bool(found["test"]), **arrays)


def _images(path: Path, top: Path, classes: list[str]):
    """(name below `path`, bytes, class number) of the images in class folders."""
    for number, name in enumerate(classes):
        for entry in sorted(os.scandir(top / name), key=lambda entry: entry.name) if (top / name).is_dir() else ():
            if entry.name.lower().endswith(imagenet.ENDINGS) and not entry.name.startswith(".") and entry.is_file():
                yield os.path.relpath(entry.path, path), entry.stat().st_size, number
