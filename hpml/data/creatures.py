"""A stand-in of the pets' shape: rendered four-legged animals on textured ground with exact masks and a boundary band.

Made to be learnable and not easy: fur and ground come from overlapping ranges of colour, both are textured, and boxes and blobs
without legs stand in the picture as distractors. Masks are exact; the boundary band is wider than the published one, because a
network whose features are an eighth of the picture's side cannot see a band of one pixel. It serves the same code path and a
quality that means something; it says nothing about photographs.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from hpml.data.images import made_once
from hpml.env import cache_dir

if TYPE_CHECKING:
    import numpy as np

RECIPE = 4  # raised whenever other pixels come out, so that old caches and records are not taken for new ones
SIDE = 128
BAND = 0.14  # width of the boundary band, of half the picture's side
NOISE = (0.02, 0.06)  # standard deviation, of 1
FUR_HUE = ((0.64, 0.42, 0.20), 0.11)  # mean colour and its spread: fur is warm, as with most pets
GROUND_HUE = ((0.36, 0.46, 0.42), 0.11)


def load(n_train: int = 600, n_test: int = 200, seed: int = 0) -> tuple[dict, str]:
    """(arrays {train_images, train_labels, test_images, test_labels}, checksum), equal for equal arguments.

    Images are uint8 [N, 128, 128, 3], labels uint8 [N, 128, 128] with 0 pet, 1 background, 2 boundary. Rendered once (seconds),
    then memory-mapped. Raises HpmlError when the cache cannot be written.
    """
    checksum = hashlib.sha256(f"creatures recipe {RECIPE}, {n_train} + {n_test}, seed {seed}".encode()).hexdigest()
    folder = cache_dir() / f"creatures-{checksum[:12]}"

    def make() -> tuple[dict, dict]:
        arrays = {}
        for stream, (part, n) in enumerate((("train", n_train), ("test", n_test))):
            arrays[f"{part}_images"], arrays[f"{part}_labels"] = render(n, seed=seed, stream=stream)
        return arrays, {"checksum": checksum}

    _, arrays = made_once(folder, make, "rendering the stand-in of pets")
    return arrays, checksum


def render(n: int, *, seed: int, stream: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`n` images uint8 [n, 128, 128, 3] and masks uint8 [n, 128, 128]; each depends on seed, stream and its number alone."""
    import numpy as np

    images, masks = np.empty((n, SIDE, SIDE, 3), np.uint8), np.empty((n, SIDE, SIDE), np.uint8)
    for i in range(n):
        images[i], masks[i] = _rendered(np.random.default_rng([seed, stream, i]))
    return images, masks


def _rendered(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    axis = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    picture = _colour(rng, *GROUND_HUE) + _cloud(rng, 3, 0.12) + _cloud(rng, 14, 0.07) + _cloud(rng, 48, 0.05)
    for _ in range(rng.integers(1, 4)):  # furniture and stones: not the animal's colour range, nor its shape
        u, v = _turned(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1), rng.uniform(0, np.pi))
        half = rng.uniform(0.08, 0.35, 2)
        thing = np.hypot(u / half[0], v / half[1]) - 1 if rng.random() < 0.5 else np.maximum(np.abs(u) / half[0], np.abs(v) / half[1]) - 1
        cover = _cover(thing * half.min())
        picture = picture * (1 - cover) + cover * (_colour(rng, *GROUND_HUE) + rng.uniform(-0.2, 0.2) + _cloud(rng, 10, 0.06))

    scale, side = rng.uniform(0.7, 1.0), rng.choice((-1, 1))
    u, v = _turned(side * (x - rng.uniform(-0.2, 0.2)), y - rng.uniform(-0.2, 0.2), rng.uniform(-0.35, 0.35))
    distance = _animal(rng, u / scale, v / scale) * scale
    fur = _colour(rng, *FUR_HUE) + _cloud(rng, 6, 0.06) + _cloud(rng, 64, 0.09)
    pattern, dark = rng.integers(3), rng.uniform(0.1, 0.25)
    if pattern == 0:  # stripes across the body
        fur = fur - dark * (np.sin(u / scale * rng.uniform(12, 22) + 2 * v) > 0.2)[..., None]
    elif pattern == 1:  # patches
        fur = fur + dark * np.sign(_cloud(rng, 5, 1.0))
    cover = _cover(distance)
    picture = picture * (1 - cover) + cover * fur
    picture = picture + rng.uniform(-0.08, 0.08) + rng.normal(size=picture.shape) * rng.uniform(*NOISE)
    mask = np.where(distance < -BAND / 2, 0, np.where(distance > BAND / 2, 1, 2)).astype(np.uint8)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8), mask


def _animal(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to a body with head, ears, legs and tail, below 0 inside; in units of half its length, nearly."""
    import numpy as np

    def capsule(start: tuple, end: tuple, radius: float) -> np.ndarray:
        along = (u - start[0]) * (end[0] - start[0]) + (v - start[1]) * (end[1] - start[1])
        length = (end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2
        t = np.clip(along / length, 0, 1)
        return np.hypot(u - start[0] - t * (end[0] - start[0]), v - start[1] - t * (end[1] - start[1])) - radius

    lift, thick = rng.uniform(-0.1, 0.1), rng.uniform(0.32, 0.44)
    head = (rng.uniform(0.6, 0.75), -0.42 + lift)
    parts = [capsule((-0.4, 0), (0.4, 0.02), thick), capsule((0.4, -0.05), head, 0.22), capsule(head, (head[0] + 0.02, head[1]), 0.29)]
    for way in (-1, 1):  # pointed ears stand up, hanging ones fall beside the head
        up = rng.uniform(0.25, 0.42) if rng.random() < 0.6 else rng.uniform(-0.15, 0.0)
        parts.append(capsule((head[0] + 0.14 * way, head[1] - 0.1), (head[0] + 0.24 * way, head[1] - 0.1 - up), 0.11))
    for at in (-0.45, -0.25, 0.25, 0.45):
        parts.append(capsule((at, 0.15), (at + rng.uniform(-0.18, 0.18), 0.8), 0.14))
    parts.append(capsule((-0.6, -0.1), (-0.95 + rng.uniform(-0.1, 0.15), -0.1 + rng.uniform(-0.6, 0.3)), 0.11))
    return np.min(parts, axis=0)


def _turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    import math

    return math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x


def _colour(rng: np.random.Generator, mean: tuple, spread: float) -> np.ndarray:
    return rng.normal(mean, spread).astype("float32")


def _cover(distance: np.ndarray) -> np.ndarray:
    """0..1 per pixel [side, side, 1]: how much of it lies inside."""
    import numpy as np

    return np.clip(0.5 - distance * SIDE / 2, 0, 1)[..., None]


def _cloud(rng: np.random.Generator, cells: int, size: float) -> np.ndarray:
    """Smooth noise [side, side, 1] of `cells` cells a side and standard deviation about `size`."""
    import numpy as np
    from PIL import Image

    grid = Image.fromarray(rng.normal(0, size, (cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((SIDE, SIDE), Image.Resampling.BICUBIC))[..., None]
