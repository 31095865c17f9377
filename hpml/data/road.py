"""A stand-in of driving frames: rendered roads with weather, scene and time of day, for machines without BDD100K.

Made to be learnable and not easy: light, density of rain and snow and the height of houses come from ranges that overlap; dusk can be
nearly night, light rain nearly an overcast sky. It serves the same code path and a quality that means something; it says nothing
about what a model sees in photographs.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING

from hpml.data.captions import name
from hpml.data.images import ImageSet, made_once
from hpml.env import cache_dir

if TYPE_CHECKING:
    import numpy as np

RECIPE = 2  # raised whenever other pixels come out, so that old caches and records are not taken for new ones
SIDE = 64
WEATHER = ("clear", "overcast", "rainy", "snowy")
SCENES = ("city street", "highway", "residential")
TIMES = ("daytime", "dawn/dusk", "night")
CLASSES = tuple(name(*values) for values in itertools.product(WEATHER, SCENES, TIMES))
LIGHT = {"daytime": (0.8, 1.1), "dawn/dusk": (0.45, 0.75), "night": (0.2, 0.38)}  # of a surface's colour that is seen
# Share of cloud in the sky's colour, and how bright the cloud is.
GREY = {"clear": (0, 0.3), "overcast": (0.7, 1), "rainy": (0.8, 1), "snowy": (0.7, 1)}
CLOUD = {"clear": (0.6, 0.8), "overcast": (0.6, 0.8), "rainy": (0.4, 0.65), "snowy": (0.7, 0.9)}
NOISE = (0.01, 0.04)  # standard deviation, of 1


def load(n_train: int = 3600, n_test: int = 720, seed: int = 0) -> ImageSet:
    """`n_train` + `n_test` frames of 64x64 RGB, equal for equal arguments; the 36 combinations of attributes take turns.

    Rendered once (seconds), then memory-mapped. Raises HpmlError when the cache cannot be written.
    """
    checksum = hashlib.sha256(f"road recipe {RECIPE}, {n_train} + {n_test}, seed {seed}".encode()).hexdigest()

    def make() -> tuple[dict, dict]:
        arrays = {}
        for stream, (part, n) in enumerate((("train", n_train), ("test", n_test))):
            arrays[f"{part}_images"], arrays[f"{part}_labels"] = render(n, seed=seed, stream=stream)
        return arrays, {"checksum": checksum}

    _, arrays = made_once(cache_dir() / f"road-{checksum[:12]}", make, "rendering the stand-in of driving frames")
    return ImageSet(name="standin", title="rendered roads", origin="stand-in", classes=list(CLASSES), checksum=checksum,
                    note="generated, not photographs", **arrays)


def render(n: int, *, seed: int, stream: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`n` frames uint8 [n, 64, 64, 3] and classes int64 [n], 0 to 35 in turn; each depends on seed, stream and its number alone."""
    import numpy as np

    labels = np.arange(n, dtype=np.int64) % len(CLASSES)
    frames = np.empty((n, SIDE, SIDE, 3), np.uint8)
    for i in range(n):
        frames[i] = _frame(np.random.default_rng([seed, stream, i]), *CLASSES[labels[i]].split(", "))
    return frames, labels


def _frame(rng: np.random.Generator, weather: str, scene: str, time: str) -> np.ndarray:
    import numpy as np

    axis = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    horizon, centre = rng.uniform(-0.25, 0.1), rng.uniform(-0.25, 0.25)
    grey = rng.uniform(*GREY[weather])
    sky = (1 - grey) * np.array((0.35, 0.6, 0.95)) + grey * rng.uniform(*CLOUD[weather])
    picture = np.broadcast_to(sky, (SIDE, SIDE, 3)).astype(np.float32) + 0.12 * (y[..., None] - horizon)
    ground = np.array({"city street": (0.5, 0.48, 0.46), "highway": (0.42, 0.48, 0.28), "residential": (0.3, 0.5, 0.25)}[scene])
    snow = rng.uniform(0.45, 0.95) if weather == "snowy" else 0
    below = y > horizon
    picture[below] = (1 - snow) * (ground + rng.normal(0, 0.05, 3)) + snow * 0.92
    lamps = _houses(rng, picture, x, y, horizon, scene, snow)
    depth = np.clip((y - horizon) / (1 - horizon), 0, 1)
    half = {"city street": rng.uniform(0.7, 1.1), "highway": rng.uniform(0.95, 1.5), "residential": rng.uniform(0.45, 0.8)}[scene]
    side = (x - centre * (1 - depth)) / np.maximum(half * depth, 1e-3)
    road = below & (np.abs(side) < 1)
    picture[road] = rng.uniform(0.28, 0.42) - (0.1 if weather == "rainy" else 0) + 0.4 * snow * (np.abs(side[road]) > 0.6)[:, None]
    lanes = {"city street": (0.0,), "highway": (-0.33, 0.33, -0.92, 0.92), "residential": ()}[scene]
    for lane in lanes:
        dashed = (np.sin(14 / (depth + 0.2) + rng.uniform(0, 6)) > 0) | (abs(lane) > 0.9)
        picture[road & (np.abs(side - lane) < 0.05) & dashed] = 0.85
    lamps += _cars(rng, picture, x, y, horizon, centre, half)
    picture *= rng.uniform(*LIGHT[time])
    if time == "dawn/dusk":  # warm near the horizon, where the sun is
        warm = rng.uniform(0.1, 0.35) * (1 - 0.6 * grey) * np.exp(-((y - horizon) / 0.5) ** 2)
        picture += warm[..., None] * np.array((1.0, 0.45, 0.1))
    if time == "night" or (time == "dawn/dusk" and rng.random() < 0.5):
        for at_x, at_y, colour in lamps:
            glow = np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / 0.004)
            picture += glow[..., None] * np.array(colour) * rng.uniform(0.4, 0.9)
    _falling(rng, picture, weather)
    picture += rng.normal(size=picture.shape) * rng.uniform(*NOISE)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _houses(rng: np.random.Generator, picture: np.ndarray, x: np.ndarray, y: np.ndarray, horizon: float, scene: str,
            snow: float) -> list[tuple]:
    """Draw what stands beside the road; returns lamps (x, y, colour) that shine when it is dark."""
    import numpy as np

    lamps = []
    count = {"city street": rng.integers(4, 8), "highway": rng.integers(0, 3), "residential": rng.integers(3, 7)}[scene]
    for _ in range(count):
        at, wide = rng.choice((-1, 1)) * rng.uniform(0.3, 1), rng.uniform(0.12, 0.3)
        tall = rng.uniform(0.35, 1.0) if scene == "city street" else rng.uniform(0.15, 0.45)
        body = (np.abs(x - at) < wide) & (y < horizon + 0.08) & (y > horizon - tall)
        if scene == "residential" and rng.random() < 0.5:  # a tree
            body = np.hypot((x - at) / 0.8, y - horizon + tall * 0.6) < wide * 0.9
            picture[body] = (1 - snow) * np.array((0.15, 0.35, 0.15)) + 0.7 * snow
            continue
        if scene == "residential":  # a roof
            roof = (np.abs(x - at) < wide * 1.15 * (y - horizon + tall + 0.2) / 0.2) & (y <= horizon - tall) & (y > horizon - tall - 0.2)
            picture[roof] = (1 - snow) * np.array((0.5, 0.25, 0.2)) + 0.9 * snow
        if scene == "highway":  # a sign
            body = (np.abs(x - at) < 0.16) & (np.abs(y - horizon + 0.3) < 0.08)
            picture[body] = (0.1, 0.4, 0.2)
            continue
        picture[body] = rng.uniform(0.3, 0.65) + rng.normal(0, 0.04, 3)
        panes = body & (np.sin(x * 40) > 0.2) & (np.sin(y * 34) > 0.2)
        picture[panes] *= 0.6
        lamps.append((at, horizon - tall * rng.uniform(0.2, 0.9), (1.0, 0.85, 0.5)))
    return lamps


def _cars(rng: np.random.Generator, picture: np.ndarray, x: np.ndarray, y: np.ndarray, horizon: float, centre: float,
          half: float) -> list[tuple]:
    """Draw up to three cars seen from behind; returns their rear lamps."""
    import numpy as np

    lamps = []
    for depth in sorted(rng.uniform(0.15, 0.8, rng.integers(0, 4))):
        at, level, wide = centre * (1 - depth) + rng.uniform(-0.6, 0.6) * half * depth, horizon + depth * (1 - horizon), 0.22 * depth + 0.03
        body = (np.abs(x - at) < wide) & (np.abs(y - level + wide * 0.6) < wide * 0.6)
        picture[body] = rng.uniform(0.05, 0.8, 3)
        lamps += [(at + way * wide * 0.7, level - wide * 0.5, (1.0, 0.15, 0.1)) for way in (-1, 1)]
    return lamps


def _falling(rng: np.random.Generator, picture: np.ndarray, weather: str) -> None:
    """Rain as slanted streaks, snow as flakes, in place."""
    import numpy as np

    if weather not in ("rainy", "snowy"):
        return
    count, bright = int(rng.integers(25, 80)), rng.uniform(0.2, 0.45)
    rows, columns, slant = rng.integers(0, SIDE, count), rng.integers(0, SIDE, count), rng.uniform(-0.5, 0.5)
    for step in range(int(rng.integers(4, 9)) if weather == "rainy" else 2):
        at = (rows + step) % SIDE, (columns + round(step * slant)) % SIDE
        picture[at] += bright * (1 if weather == "rainy" else 1.5) * np.array((0.9, 0.95, 1.0))
