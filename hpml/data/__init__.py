"""Image data: which set a name means here, and what it is in words."""

from __future__ import annotations

from hpml.data.images import ImageDataset, ImageSet, mean_std, subset
from hpml.env import HpmlError, Unavailable

__all__ = ["SOURCES", "ImageDataset", "ImageSet", "describe", "identity", "mean_std", "open_images", "skipped", "stored_as", "subset",
           "summary"]

SOURCES = ("auto", "real", "standin", "cifar10", "cifar100", "digits", "imagenet")


def open_images(source: str = "auto") -> ImageSet:
    """The image set that `source` means on this machine.

    auto: CIFAR-10 or CIFAR-100 on disk, else the embedded digits, else the stand-in; real: the same without the
    stand-in; a name: that one. Nothing is downloaded. Raises Unavailable, with what to do, for a set that is not here,
    and HpmlError for an unknown name or damaged files.
    """
    from hpml.data import cifar, digits, imagenet, shapes

    if source not in SOURCES:
        raise HpmlError(f"data source {source!r} is unknown; choose one of: {', '.join(SOURCES)}")
    if source in ("cifar10", "cifar100"):
        return cifar.load(source)
    if source == "digits":
        return digits.load()
    if source == "imagenet":
        return imagenet.load()
    if source == "standin":
        return shapes.load()
    for name in ("cifar10", "cifar100"):
        if cifar.find(name):
            return cifar.load(name)
    try:
        return digits.load()
    except Unavailable as reason:
        if source == "auto":
            return shapes.load()
        raise Unavailable("no real images here: neither CIFAR-10 nor CIFAR-100 is on disk (hpml data fetch cifar10), "
                          f"and {reason}") from None


def describe(image_set: ImageSet) -> str:
    """One line, e.g. "CIFAR-10 (real, JPEG re-encoding), 50,000 + 10,000 images"."""
    what = ", ".join(filter(None, (image_set.origin, image_set.note)))
    return f"{image_set.title} ({what}), {len(image_set.train_labels):,} + {len(image_set.test_labels):,} images"


def summary(image_set: ImageSet) -> dict:
    """What a record says of the data it used."""
    made = {"tokenizer": image_set.tokenizer} if getattr(image_set, "tokenizer", "") else {}
    return {"name": image_set.name, "title": image_set.title, "origin": image_set.origin, "note": image_set.note,
            "n_train": len(image_set.train_labels), "n_test": len(image_set.test_labels), "unit": getattr(image_set, "unit", "images"),
            "checksum": image_set.checksum, **made}


def skipped(dataset) -> dict:
    """What a record says of samples that could not be read: their number and the first names; empty without any."""
    names = getattr(dataset, "skipped", None)
    return {"skipped": {"count": len(names), "files": names[:20]}} if names else {}


def stored_as(dataset) -> dict:
    """What a record says of the shards that were read; empty for other storages."""
    return {"shards": facts} if (facts := getattr(dataset, "actual", None)) else {}


def identity(source: str) -> str:
    """What a name stands for on this machine right now, without opening it: file, size and change time of a file."""
    from hpml.data import cifar, imagenet

    if source == "imagenet" and (path := imagenet.find()):
        return imagenet.identity(path)
    names = ("cifar10", "cifar100") if source in ("auto", "real") else (source,)
    for name in names:
        path = cifar.find(name) if name in ("cifar10", "cifar100") else None
        if path:
            facts = path.stat()
            return f"{name} {path.name} {facts.st_size} {facts.st_mtime_ns}"
    return source
