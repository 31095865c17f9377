"""A stand-in of CIFAR's shape: rendered shapes and textures of ten classes, for machines without real images.

Made to be learnable and not easy: classes that lie close to each other (disc and ellipse, cross and star), low
contrast, noise, an occluding bar and a distractor; colour helps a little, as it does with photographs. Labels are
always true. It serves the same code path and a quality that means something; it says nothing about photographs.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from hpml.data.images import ImageSet, made_once
from hpml.env import cache_dir

if TYPE_CHECKING:
    import numpy as np

RECIPE = 1  # raised whenever other pixels come out, so that old caches and records are not taken for new ones
SIDE = 32
CLASSES = ("disc", "ellipse", "square", "triangle", "ring", "crescent", "cross", "star", "stripes", "checks")
CONTRAST = (0.25, 0.9)  # distance of a shape's colour from its background's, of 1
NOISE = (0.02, 0.09)  # standard deviation, of 1
TURN_RAD = 0.6  # how far a shape is turned, either way
HUE_SPREAD_RAD = 1.0  # a class has a tendency of colour, as frogs are often green; neighbours on the circle overlap
CHUNK = 1000


def load(n_train: int = 5000, n_test: int = 1000, seed: int = 0) -> ImageSet:
    """`n_train` + `n_test` images of 32x32 RGB, equal for equal arguments; classes take turns.

    Rendered once (seconds), then memory-mapped. Raises HpmlError when the cache cannot be written.
    """
    checksum = hashlib.sha256(f"shapes recipe {RECIPE}, {n_train} + {n_test}, seed {seed}".encode()).hexdigest()
    folder = cache_dir() / f"standin-{checksum[:12]}"

    def make() -> tuple[dict, dict]:
        arrays = {}
        for stream, (part, n) in enumerate((("train", n_train), ("test", n_test))):
            arrays[f"{part}_images"], arrays[f"{part}_labels"] = render(n, seed=seed, stream=stream)
        return arrays, {"checksum": checksum}

    _, arrays = made_once(folder, make, "rendering the stand-in")
    return ImageSet(name="standin", title="rendered shapes", origin="stand-in", classes=list(CLASSES),
                    checksum=checksum, note="generated, not photographs", **arrays)


def render(n: int, *, seed: int, stream: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`n` images uint8 [n, 32, 32, 3] and labels int64 [n]: 0 to 9 in turn; streams of one seed share nothing."""
    import numpy as np

    rng = np.random.default_rng([seed, stream])
    labels = np.arange(n, dtype=np.int64) % len(CLASSES)
    images = np.empty((n, SIDE, SIDE, 3), np.uint8)
    for start in range(0, n, CHUNK):
        images[start : start + CHUNK] = _rendered(labels[start : start + CHUNK], rng)
    return images, labels


def _rendered(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    import numpy as np

    n = len(labels)

    def draw(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)

    def colours(distance: np.ndarray) -> np.ndarray:  # a step of that length in a random direction of colour space
        step = rng.normal(size=(n, 1, 1, 3)).astype(np.float32)
        return step / np.linalg.norm(step, axis=3, keepdims=True) * distance[..., None]

    axis = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    angle, radius = draw(-TURN_RAD, TURN_RAD), draw(0.45, 0.8)
    dx, dy = x[None] - draw(-0.2, 0.2), y[None] - draw(-0.2, 0.2)
    u, v = (np.cos(angle) * dx + np.sin(angle) * dy) / radius, (np.cos(angle) * dy - np.sin(angle) * dx) / radius
    inside = _coverage(labels, u, v, radius, rng)

    tilt = draw(0, 2 * np.pi)
    gradient = (np.cos(tilt) * x + np.sin(tilt) * y) * draw(0, 0.25)
    base = rng.uniform(0.3, 0.7, (n, 1, 1, 3)).astype(np.float32)
    hue = labels[:, None, None] * (2 * np.pi / len(CLASSES)) + rng.normal(0, HUE_SPREAD_RAD, (n, 1, 1))
    tint = np.stack([np.cos(hue), np.cos(hue - 2 * np.pi / 3), np.cos(hue + 2 * np.pi / 3)], axis=3).astype(np.float32)
    bright = rng.uniform(-0.6, 0.6, (n, 1, 1, 1)).astype(np.float32)
    picture = base + gradient[..., None] + inside[..., None] * draw(*CONTRAST)[..., None] * (tint + bright) / 1.3

    spot = np.clip((draw(0, 0.25) - np.hypot(x[None] - draw(-1, 1), y[None] - draw(-1, 1))) * SIDE / 2 + 0.5, 0, 1)
    picture += spot[..., None] * colours(draw(0.1, 0.45))
    tilt = draw(0, np.pi)
    away = np.abs(np.cos(tilt) * x + np.sin(tilt) * y - draw(-0.7, 0.7))
    bar = np.clip((draw(-0.1, 0.15) - away) * SIDE / 2 + 0.5, 0, 1)[..., None]
    picture = picture * (1 - bar) + bar * rng.uniform(0.2, 0.8, (n, 1, 1, 3)).astype(np.float32)

    picture += rng.normal(size=picture.shape).astype(np.float32) * draw(*NOISE)[..., None]
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _coverage(labels: np.ndarray, u: np.ndarray, v: np.ndarray, radius: np.ndarray,
              rng: np.random.Generator) -> np.ndarray:
    """0..1 per pixel [n, 32, 32]: how much of it the shape of the label covers; u, v in units of the shape's radius."""
    import numpy as np

    n = len(labels)
    vary = rng.uniform(0, 1, (4, n, 1, 1)).astype(np.float32)
    far, around = np.hypot(u, v), np.arctan2(v, u)
    disc = 1 - far
    bite = np.hypot(u - (0.35 + 0.3 * vary[0]), v) - (0.62 + 0.15 * vary[1])
    half_width = 0.2 + 0.15 * vary[0]
    wave = 0.38 + 0.22 * vary[0]  # half a period
    star = 0.72 + 0.26 * np.cos((4 + np.round(2 * vary[2])) * around)

    def stripe(t: np.ndarray, phase: np.ndarray) -> np.ndarray:
        return wave * (0.5 - np.abs(((t / wave + 2 * phase) % 2) - 1))

    distance = np.stack([  # > 0 inside, in units of the radius
        disc,
        (1 - np.hypot(u, v / (0.55 + 0.2 * vary[0]))) * 0.75,
        0.85 - np.maximum(np.abs(u), np.abs(v)),
        np.minimum(0.5 - v * 0.9, 0.5 - np.abs(u) * 0.78 + v * 0.45),
        np.minimum(disc, far - (0.4 + 0.2 * vary[0])),
        np.minimum(disc, bite),
        np.minimum(0.95 - np.maximum(np.abs(u), np.abs(v)), half_width - np.minimum(np.abs(u), np.abs(v))),
        star - far,
        np.minimum(disc, stripe(u, vary[1])),
        np.minimum(disc, np.where(stripe(u, vary[1]) * stripe(v, vary[2]) > 0, 1, -1)
                   * np.minimum(np.abs(stripe(u, vary[1])), np.abs(stripe(v, vary[2])))),
    ])[labels, np.arange(n)]
    return np.clip(distance * radius * SIDE / 2 + 0.5, 0, 1)
