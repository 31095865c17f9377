"""Small folders of JPEG files and the shards made of them, for the tests of packing and of reading."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from hpml.data import imagefolder, packing
from hpml.data.shards import Index


def jpeg(value: int = 0, size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    """Noise that differs by `value`."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(value).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def folder(top: Path, *, classes: int = 3, each: int = 8) -> Path:
    """train/<class>/<number>.jpg, each of another size."""
    for label in range(classes):
        place = top / "train" / f"class{label}"
        place.mkdir(parents=True)
        for i in range(each):
            (place / f"{i:03d}.jpg").write_bytes(jpeg(100 * label + i, (32 + i, 30 + label)))
    return top


def packed(top: Path, *, classes: int = 3, each: int = 8, shard_mib: float = 0.02, **options) -> tuple[Path, Index]:
    """(folder of several small shards, their index)."""
    files = imagefolder.load(folder(top / "images", classes=classes, each=each))
    return top / "shards", packing.pack(files, top / "shards", shard_mib=shard_mib, **options)
