"""Image sets: what one is, how its arrays are kept on disk, and how a sample is read from it."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpml.data.mapped import PickledByPath
from hpml.env import HpmlError, cache_dir

if TYPE_CHECKING:
    import numpy as np

CROP_PADDING_PX = 4
JPEG_QUALITY = 90
MIN_CROP_AREA = 0.25  # ImageNet's 0.08 would leave 9 of CIFAR's own 32 pixels
EVAL_CROP = 224 / 256  # the usual share of an image's side that is looked at when testing
STALE_S = 3600  # a temporary folder untouched for so long belongs to a process that is gone


@dataclass(frozen=True, eq=False)
class ImageSet(PickledByPath):
    """Labelled images of one size. Arrays may be memory maps: those are pickled by their path."""

    name: str  # "cifar10"
    title: str  # "CIFAR-10"
    origin: str  # "real", "embedded" (real, comes with a library) or "stand-in" (generated)
    classes: list[str]
    train_images: np.ndarray  # uint8 [N, height, width, 3]
    train_labels: np.ndarray  # int64 [N]
    test_images: np.ndarray
    test_labels: np.ndarray
    checksum: str  # hex; the identity of the source, also of a subset of it
    note: str = ""  # what has to be known about it, in a few words
    mirror_ok: bool = True  # a mirrored image still belongs to its class (not so for digits)
    tokenizer: str = ""  # which one made the ids of its captions; set where it has some
    tokenizer_file: str = ""


# ---- converted once, mapped later


def store(folder: Path, arrays: dict[str, np.ndarray], facts: dict) -> None:
    """Write arrays and facts as one folder, all or nothing: another process sees the whole of it or none of it."""
    import numpy as np

    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for old in folder.parent.glob(f".{folder.name}-*.tmp"):
            if time.time() - old.stat().st_mtime > STALE_S:
                shutil.rmtree(old, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".tmp", dir=folder.parent))
        temporary.chmod(0o755)
        for name, array in arrays.items():
            with (temporary / f"{name}.npy").open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        sizes = {path.name: path.stat().st_size for path in temporary.glob("*.npy")}
        (temporary / "meta.json").write_text(json.dumps({**facts, "files": sizes}, indent=1))
        if folder.exists() and read_stored(folder) is None:
            shutil.rmtree(folder)
        try:
            os.replace(temporary, folder)
        except OSError as error:  # another process was first: its folder is as good
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or read_stored(folder) is None:
                raise
    except OSError as error:
        raise HpmlError(f"cannot write the cache {folder}: {error.strerror or error}; "
                        "make room or name another folder in HPML_CACHE") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def read_stored(folder: Path) -> tuple[dict, dict[str, np.ndarray]] | None:
    """(facts, memory-mapped arrays) of a folder that `store` wrote; None where it is absent or not whole."""
    import numpy as np

    try:
        facts = json.loads((folder / "meta.json").read_text())
        if any((folder / name).stat().st_size != size for name, size in facts["files"].items()):
            return None
        return facts, {Path(name).stem: np.load(folder / name, mmap_mode="r") for name in facts["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def made_once(folder: Path, make: Callable[[], tuple[dict[str, np.ndarray], dict]], doing: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(facts, memory-mapped arrays) of `folder`; what is not there is made by `make` (arrays, facts), stored, and said with its seconds.

    Raises HpmlError when the cache cannot be written or read back.
    """
    stored = read_stored(folder)
    if stored is None:
        began = time.perf_counter()
        store(folder, *make())
        say(f"{doing} once: {time.perf_counter() - began:.1f} s")
        stored = read_stored(folder)
        if stored is None:
            raise HpmlError(f"the cache {folder} cannot be read back; delete it and try again")
    return stored


def say(text: str) -> None:
    """One plain line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


# ---- choosing


def subset(image_set: ImageSet, n_train: int, n_test: int, seed: int) -> ImageSet:
    """A deterministic, class-balanced part of an image set; n <= 0 or more than there is means all, unchanged.

    Classes take turns: every prefix is balanced too, and a smaller subset of one seed is the start of a larger one.
    """
    def part(images: np.ndarray, labels: np.ndarray, n: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
        if n <= 0 or n >= len(labels):
            return images, labels
        chosen = balanced(labels, len(image_set.classes), n, seed, stream)
        return images[chosen], labels[chosen]

    train_images, train_labels = part(image_set.train_images, image_set.train_labels, n_train, 0)
    test_images, test_labels = part(image_set.test_images, image_set.test_labels, n_test, 1)
    return replace(image_set, train_images=train_images, train_labels=train_labels,
                   test_images=test_images, test_labels=test_labels)


def balanced(groups: np.ndarray, n_groups: int, n: int, seed: int, stream: int) -> np.ndarray:
    """Indices of `n` samples in which the groups (0 to n_groups - 1, one a sample) take turns; shuffled within each by the seed."""
    import numpy as np

    rng = np.random.default_rng([seed, stream])
    groups = np.asarray(groups)
    members = [rng.permutation(np.flatnonzero(groups == g)) for g in range(n_groups)]
    turn = rng.permutation(len(members))
    order = np.lexsort((np.concatenate([np.full(len(m), t) for m, t in zip(members, turn, strict=True)]),
                        np.concatenate([np.arange(len(m)) for m in members])))
    return np.concatenate(members)[order][:n]


def mean_std(images: np.ndarray, limit: int = 5000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of uint8 images on the 0..1 scale, from at most `limit` of them."""
    import numpy as np

    # By chance and not every k-th one: classes take turns in several sets, and a step of 10 would see one class only.
    chosen = np.random.default_rng(0).permutation(len(images))[:limit]
    pixels = (images[np.sort(chosen)].astype(np.float32) / 255).reshape(-1, 3)
    return tuple(map(float, pixels.mean(0, dtype=np.float64))), tuple(map(float, pixels.std(0, dtype=np.float64)))


# ---- reading a sample


def jpegs(images: np.ndarray, side: int | tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Every image resized to `side` pixels (or width, height) as a JPEG: (uint8 bytes one after another, int64 offsets [N + 1]).

    Made once per content and kept in the cache as memory maps, because each measured process reads the same images.
    """
    import numpy as np
    import PIL
    from PIL import Image

    digest = hashlib.sha256(f"{side} {JPEG_QUALITY} {PIL.__version__} {images.shape}".encode())
    for start in range(0, len(images), 4096):
        digest.update(np.ascontiguousarray(images[start : start + 4096]))
    size = (side, side) if isinstance(side, int) else side
    folder = cache_dir() / f"jpeg{size[0]}-{digest.hexdigest()[:12]}"

    def make() -> tuple[dict, dict]:
        encoded = []
        for image in images:
            file = io.BytesIO()
            larger = Image.fromarray(np.asarray(image)).resize(size, Image.Resampling.BICUBIC)
            larger.save(file, "JPEG", quality=JPEG_QUALITY)
            encoded.append(file.getvalue())
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return {"bytes": np.frombuffer(b"".join(encoded), np.uint8), "offsets": offsets}, {}

    _, arrays = made_once(folder, make, f"encoding {len(images):,} JPEGs of {side} pixels")
    return arrays["bytes"], arrays["offsets"]


class ImageDataset(PickledByPath):
    """A map-style data set for torch's loader: index -> (float32 tensor [3, image, image], int label).

    train: random crop (4 pixels of padding, at native resolution; with storage "jpeg" a random resized crop) and, with
    `flip`, random mirroring. All randomness comes from torch's default generator, which the loader seeds in each
    worker: equal seeds with equal numbers of workers give equal batches. storage "jpeg" keeps each image as a JPEG of
    `jpeg_side` pixels that is decoded per sample: the decode cost of an ImageNet-like pipeline. mean, std: of the 0..1
    scale, see `mean_std`. Picklable under fork, spawn and forkserver; memory maps are pickled by path. Raises HpmlError
    on arguments that do not fit.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, train: bool, image: int = 32, flip: bool = True,
                 storage: str = "array", jpeg_side: int = 256, mean: Iterable[float] = (0.5, 0.5, 0.5),
                 std: Iterable[float] = (0.25, 0.25, 0.25)) -> None:
        import numpy as np

        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise HpmlError(f"images: uint8 [N, height, width, 3] is expected, got {images.dtype} {list(images.shape)}")
        if len(images) != len(labels):
            raise HpmlError(f"{len(images)} images but {len(labels)} labels")
        if storage not in ("array", "jpeg"):
            raise HpmlError(f"storage {storage!r}: choose array or jpeg")
        if image < 1 or jpeg_side < 1:
            raise HpmlError(f"image {image}, jpeg_side {jpeg_side}: at least 1 pixel")
        self.labels = labels
        self.train, self.image, self.flip, self.storage = train, image, flip, storage
        if storage == "jpeg":
            self.encoded, self.offsets = jpegs(images, jpeg_side)
        else:
            self.images = images
        mean, std = np.asarray([*mean], np.float32), np.asarray([*std], np.float32)
        if mean.shape != (3,) or std.shape != (3,) or not (std > 0).all():
            raise HpmlError(f"mean {mean.tolist()}, std {std.tolist()}: three of each, std above 0")
        self.scale = (1 / (255 * std))[:, None, None]
        self.shift = (-mean / std)[:, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple:
        import numpy as np
        import torch

        draws = torch.rand(5).tolist() if self.train else None
        pixels = self._decoded(index, draws) if self.storage == "jpeg" else self._cropped(index, draws)
        if draws and self.flip and draws[4] < 0.5:
            pixels = pixels[:, ::-1]
        tensor = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32, order="C") * self.scale + self.shift)
        size = (self.image, self.image)
        if tensor.shape[1:] != size:
            tensor = torch.nn.functional.interpolate(tensor[None], size=size, mode="bilinear", antialias=True)[0]
        return tensor, int(self.labels[index])

    def _cropped(self, index: int, draws: list[float] | None) -> np.ndarray:
        import numpy as np

        native = np.asarray(self.images[index])
        if not draws:
            return native
        height, width, _ = native.shape
        padded = np.zeros((height + 2 * CROP_PADDING_PX, width + 2 * CROP_PADDING_PX, 3), np.uint8)
        padded[CROP_PADDING_PX : CROP_PADDING_PX + height, CROP_PADDING_PX : CROP_PADDING_PX + width] = native
        top, left = (int(draw * (2 * CROP_PADDING_PX + 1)) for draw in draws[:2])
        return padded[top : top + height, left : left + width]

    def _decoded(self, index: int, draws: list[float] | None) -> np.ndarray:
        import numpy as np
        from PIL import Image

        index = range(len(self))[index]
        with Image.open(io.BytesIO(self.encoded[self.offsets[index] : self.offsets[index + 1]].tobytes())) as picture:
            side = picture.width
            if draws:  # random resized crop: area, then shape, then place
                area = side * side * (MIN_CROP_AREA + (1 - MIN_CROP_AREA) * draws[0])
                ratio = (3 / 4) * (16 / 9) ** draws[1]
                width, height = min(side, (area * ratio) ** 0.5), min(side, (area / ratio) ** 0.5)
                left, top = draws[2] * (side - width), draws[3] * (side - height)
            else:
                width = height = side * EVAL_CROP
                left = top = (side - width) / 2
            box = (left, top, left + width, top + height)
            return np.asarray(picture.resize((self.image, self.image), Image.Resampling.BILINEAR, box=box))
