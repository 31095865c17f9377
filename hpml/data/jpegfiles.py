"""Sets of JPEG files: where each image lies (a file of its own, or inside a tar), and how a sample is decoded from it when it is read."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpml.data.images import EVAL_CROP, MIN_CROP_AREA, ImageDataset, ImageSet, made_once, say
from hpml.data.mapped import PickledByPath
from hpml.env import HpmlError, cache_dir

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images, as in torchvision
FULL_SIDE = 224
FULL_MIN_AREA = 0.08  # ImageNet's recipe (Szegedy et al., 2015); of a small input it would leave too few pixels: MIN_CROP_AREA there
MAX_ARRAYS_GIB = 8
ASIDE = "set_aside"  # where `hpml data check --fix` moves bad files
NOT_DECODED = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error)  # what Pillow raises for bytes that are no image


@dataclass(frozen=True, eq=False)
class FileSet(ImageSet):
    """An ImageSet whose images are files. `train_images` and `test_images` are arrays of places: fields name (bytes, as it is listed),
    archive (number in `archives`, -1: a file of its own below `root`), offset and size in bytes."""

    root: str = ""
    archives: tuple[str, ...] = ()
    informative: bool = True  # whether the test images can tell how good a model is

    def read(self, place: np.void) -> bytes:
        """The bytes of one image. Raises OSError."""
        return read_place(self.root, self.archives, place)

    def picture(self, place: np.void) -> Image.Image:
        """One image, decoded, as RGB. Raises one of NOT_DECODED for what is no image."""
        return decoded(self.read(place))


def read_place(root: str, archives: tuple[str, ...], place: np.void) -> bytes:
    """The bytes at a place of a FileSet."""
    if place["archive"] < 0:
        with open(os.path.join(root, place["name"].decode()), "rb", buffering=0) as file:
            return file.read()
    with open(archives[place["archive"]], "rb") as file:
        file.seek(int(place["offset"]))
        return file.read(int(place["size"]))


def decoded(content: bytes) -> Image.Image:
    """The image in `content` as RGB: grey, CMYK and palettes are converted. Raises one of NOT_DECODED."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None


def fault(files: FileSet, place: np.void, kinds: tuple[str, ...] = ("JPEG",)) -> tuple[str | None, str | None]:
    """(why an image is bad or None, its mode); `kinds`: the formats, in Pillow's names, that its files may have."""
    from PIL import Image

    try:
        content = files.read(place)
        if not content:
            return "empty file", None
        with Image.open(io.BytesIO(content)) as picture:
            if picture.format not in kinds:
                return f"{picture.format} ({picture.mode}), not {' or '.join(kinds)}", None
            try:
                picture.load()
            except NOT_DECODED as error:
                return f"truncated or damaged ({error})", None
            return None, picture.mode
    except Image.DecompressionBombError:
        return "more pixels than Pillow opens", None
    except NOT_DECODED:
        return "no image", None


def moved_aside(path: Path, file: str) -> bool:
    """Move one file of the set at `path` to its folder ASIDE; False where it is no file of its own."""
    if not (path / file).is_file():
        return False
    target = path / ASIDE / file
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path / file, target)
    return True


def transform(*, train: bool, image: int, tall: bool = False, mean: tuple = MEAN, std: tuple = STD):
    """What is done to a decoded image: to float32 [3, image, image]; see FileDataset."""
    import torch
    from torchvision.transforms import v2

    least = FULL_MIN_AREA if image >= FULL_SIDE else MIN_CROP_AREA
    steps = [v2.RandomResizedCrop(image, scale=(least, 1.0)), v2.RandomHorizontalFlip()] if train else [
        v2.Resize(round(image / EVAL_CROP)), v2.CenterCrop(image)]
    if tall:
        steps = [v2.Resize(image), *([v2.RandomCrop(image), v2.RandomHorizontalFlip()] if train else [v2.CenterCrop(image)])]
    return v2.Compose([*steps, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


class FileDataset(PickledByPath):
    """A map-style data set for torch's loader: index -> (float32 tensor [3, image, image], int label), decoded at each read.

    train: random resized crop and mirroring; else the shorter side to 256/224 of `image` and the centre. `tall`: squares of the full
    height, in training at a random place, where a part of a picture would not show what it is called after (CLIP's augmentation). All
    randomness comes from torch's default generator. An image that cannot be read is marked in `bad`, which loader workers share,
    and the next good one takes its place. Raises HpmlError where no image can be read.
    """

    def __init__(self, files: FileSet, *, train: bool, image: int, tall: bool = False, mean: tuple = MEAN, std: tuple = STD) -> None:
        import torch

        self.root, self.archives, self.train = files.root, files.archives, train
        self.images, self.labels = (files.train_images, files.train_labels) if train else (files.test_images, files.test_labels)
        self.bad = torch.zeros(len(self.labels), dtype=torch.uint8).share_memory_()
        self.transform = transform(train=train, image=image, tall=tall, mean=mean, std=std)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple:
        index = range(len(self))[index]
        for step in range(len(self)):
            at = (index + step) % len(self)
            if self.bad[at]:
                continue
            try:
                picture = decoded(read_place(self.root, self.archives, self.images[at]))
            except NOT_DECODED:
                self.bad[at] = 1
                continue
            return self.transform(picture), int(self.labels[at])
        raise HpmlError(f"none of the {len(self)} images can be read, the first is {self.images[0]['name'].decode()}")

    @property
    def skipped(self) -> list[str]:
        """Names of the images that could not be read so far."""
        return [place["name"].decode() for place in self.images[self.bad.numpy() > 0]]


def dataset(files: FileSet, *, train: bool, image: int, storage: str, tall: bool = False, mean: tuple = MEAN, std: tuple = STD):
    """The data set of a FileSet. storage "jpeg" decodes the file at each read, "array" keeps decoded squares of the training images in the
    cache; test images are always read from their files, so that quality is one thing whatever the storage."""
    if train and storage == "array":
        pixels, labels = squares(files, round(image / EVAL_CROP))
        return ImageDataset(pixels, labels, train=True, image=image, flip=files.mirror_ok, mean=mean, std=std)
    return FileDataset(files, train=train, image=image, tall=tall, mean=mean, std=std)


def squares(files: FileSet, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The training images as uint8 [N, side, side, 3] with their labels: shorter side to `side`, centre kept; made once, then mapped.

    Images that cannot be read are left out, with a line. Raises HpmlError where the arrays would be larger than MAX_ARRAYS_GIB.
    """
    import numpy as np
    from PIL import ImageOps

    count = len(files.train_labels)
    if (size_gib := count * side * side * 3 / 2**30) > MAX_ARRAYS_GIB:
        raise HpmlError(f"storage=array would need {size_gib:.0f} GiB for {count:,} images of {side} pixels: take storage=jpeg")
    digest = hashlib.sha256(f"squares {side} {files.checksum}".encode() + np.ascontiguousarray(files.train_images).tobytes())
    folder = cache_dir() / f"squares{side}-{digest.hexdigest()[:12]}"

    def make() -> tuple[dict, dict]:
        pixels, labels = [], []
        for place, label in zip(files.train_images, files.train_labels, strict=True):
            try:
                pixels.append(np.asarray(ImageOps.fit(files.picture(place), (side, side))))
                labels.append(int(label))
            except NOT_DECODED as error:
                say(f"{place['name'].decode()}: left out ({error})")
        if not pixels:
            raise HpmlError(f"none of the {count} images can be read")
        return {"pixels": np.stack(pixels), "labels": np.asarray(labels, np.int64)}, {}

    _, arrays = made_once(folder, make, f"decoding {count:,} images to {side} pixels")
    return arrays["pixels"], arrays["labels"]
