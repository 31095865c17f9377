"""A stand-in of badminton video: a court in perspective, players, bright things that are no shuttle, and the shuttle in flight.

A clip is CLIP_FRAMES frames of one scene with one camera. The shuttle flies from player to player with drag, is blurred along its way
by half a frame's exposure, and is drawn with the share of each pixel that it covers: its place is known exactly. It is called visible
where its centre lies in the frame and at least half of it is not behind the near player; high shots leave the frame at the top.
White lines, shoes, advertisements and lamps have its colour or its size. It serves the same code path as real frames and
a pixel error that means something; it says nothing about broadcasts.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from hpml.data.images import made_once
from hpml.env import cache_dir

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

RECIPE = 1  # raised whenever other pixels come out
CLIP_FRAMES = 6
N_TRAIN, N_TEST = 960, 240  # frames, where nobody asks for another number
HIGH = 9 / 16  # height of a frame in units of its width, which all lengths here have
RADIUS = (0.0032, 0.0046)  # of the shuttle: 4 to 6 pixels of 1280
EXPOSURE = 0.5  # of the time between two frames
NOISE = (2, 6)  # standard deviation, of 255


def load(width: int, n_train: int = 0, n_test: int = 0, seed: int = 0) -> tuple[dict, str]:
    """(arrays {train_images, train_labels, test_images, test_labels}, checksum), equal for equal arguments; 0 frames: N_TRAIN, N_TEST.

    Images are uint8 [N, width * 9 // 16, width, 3], labels float32 [N, 3]: x, y in pixels of the frame and visible (0 or 1). Frame i
    belongs to clip i // CLIP_FRAMES, and fewer frames are the first of more. Rendered once (seconds), then memory-mapped. Raises
    HpmlError when the cache cannot be written.
    """
    counts = {"train": n_train or N_TRAIN, "test": n_test or N_TEST}
    checksum = hashlib.sha256(f"court recipe {RECIPE}, {width} pixels, {counts}, seed {seed}".encode()).hexdigest()

    def make() -> tuple[dict, dict]:
        arrays = {}
        for stream, (part, count) in enumerate(counts.items()):
            arrays[f"{part}_images"], arrays[f"{part}_labels"] = render(count, width=width, seed=seed, stream=stream)
        return arrays, {"checksum": checksum}

    _, arrays = made_once(cache_dir() / f"court{width}-{checksum[:12]}", make, f"rendering the stand-in of badminton at {width} pixels")
    return arrays, checksum


def render(n: int, *, width: int, seed: int, stream: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`n` frames and their labels as in `load`; each clip depends on seed, stream and its number alone, its places not on the width."""
    import numpy as np

    images, labels = np.empty((n, width * 9 // 16, width, 3), np.uint8), np.empty((n, 3), np.float32)
    grain = grain_of(width, seed)
    for start in range(0, n, CLIP_FRAMES):
        scene = Scene(np.random.default_rng([seed, stream, start // CLIP_FRAMES]), width, grain)
        for i in range(start, min(n, start + CLIP_FRAMES)):
            images[i], labels[i] = scene.frame(i - start)
    return images, labels


def grain_of(width: int, seed: int) -> np.ndarray:
    """Sensor noise int16 [height + 64, width + 64, 3], of which each frame takes another part; standard deviation 32, 1 after 5 bits."""
    import numpy as np

    return np.random.default_rng(seed).normal(0, 32, (width * 9 // 16 + 64, width + 64, 1)).astype(np.int16).repeat(3, axis=2)


class Scene:
    """What the frames of one clip share: camera, court, players' walks, the shuttle's flight."""

    def __init__(self, rng: np.random.Generator, width: int, grain: np.ndarray) -> None:
        self.width, self.rng = width, rng
        self.grain = (grain * int(rng.integers(*NOISE))) >> 5
        self.near, self.far = rng.uniform(0.49, 0.53), rng.uniform(0.22, 0.27)  # rows of the base lines
        self.half = rng.uniform(0.36, 0.45), rng.uniform(0.19, 0.25)  # half widths there
        self.centre = 0.5 + rng.uniform(-0.04, 0.04)
        self.horizon = self.far - (self.near - self.far) * self.half[1] / (self.half[0] - self.half[1])
        self.background = self._background()
        self.players = [{"v": v, "u": rng.uniform(-0.5, 0.5), "du": rng.uniform(-0.05, 0.05), "dv": rng.uniform(-0.01, 0.01),
                         "shirt": tuple(map(int, rng.integers(20, 235, 3))), "phase": rng.uniform(0, 6.3)}
                        for v in (rng.uniform(0.7, 0.95), rng.uniform(0.05, 0.3))]
        heads = [self._at(one["u"], one["v"]) for one in self.players]
        self.ends = [(x, y - 0.13 * self._scale(y)) for x, y in heads]
        self.apex, self.drag = rng.uniform(0.04, 0.34), rng.uniform(0.5, 2.0)
        self.steps, self.start = rng.uniform(7, 18), rng.uniform(0, 1)  # frames of one flight, and where in it the clip begins
        self.radius, self.white = rng.uniform(*RADIUS), rng.uniform(215, 255)
        self.flip = rng.random() < 0.5

    def place(self, number: float) -> tuple[float, float]:
        """Where the shuttle is at this frame, in units of the width."""
        import math

        flight = self.start + number / self.steps
        turn, t = int(flight // 1), flight % 1
        (x0, y0), (x1, y1) = self.ends[::-1] if (turn + self.flip) % 2 else self.ends
        along = (1 - math.exp(-self.drag * t)) / (1 - math.exp(-self.drag))
        return x0 + (x1 - x0) * along, y0 + (y1 - y0) * along - 4 * self.apex * t * (1 - t)

    def frame(self, number: int, *, shuttle: bool = True) -> tuple[np.ndarray, tuple[float, float, float]]:
        """(uint8 [height, width, 3], (x, y, visible)) of one frame; without `shuttle`, the same frame as if nobody played."""
        import numpy as np
        from PIL import Image, ImageDraw

        picture = self.background.copy()
        self._player(ImageDraw.Draw(picture), self.players[0], number)
        near = Image.new("L", picture.size)
        self._player(ImageDraw.Draw(near), self.players[1], number, mask=True)
        rows, columns, cover = self._cover(number)
        share = 0.0
        if cover.size:
            box = (columns.start, rows.start, columns.stop, rows.stop)
            share = float((cover[..., 0] * (np.asarray(near.crop(box)) == 0)).sum() / max(cover.sum(), 1e-9))
            if shuttle:
                under = np.asarray(picture.crop(box), np.float32)
                picture.paste(Image.fromarray(np.round(under + cover * (self.white - under)).astype(np.uint8)), box[:2])
        self._player(ImageDraw.Draw(picture), self.players[1], number)  # nearer than the shuttle
        rng = np.random.default_rng([number, int(1e6 * self.start)])
        (top, left), light = rng.integers(0, 64, 2), rng.integers(-3, 4)
        pixels = np.asarray(picture).astype(np.int16)
        pixels += self.grain[top:top + pixels.shape[0], left:left + pixels.shape[1]] + np.int16(light)
        x, y = (value * self.width for value in self.place(number))
        inside = 0 <= x < self.width and 0 <= y < pixels.shape[0]
        return pixels.clip(0, 255).astype(np.uint8), (x, y, float(inside and share >= 0.5))

    def _cover(self, number: int) -> tuple[slice, slice, np.ndarray]:
        """(rows, columns, 0..1 [h, w, 1]): how much of each pixel the blurred shuttle covers."""
        import numpy as np

        (x0, y0), (x1, y1) = (np.array(self.place(number + side * EXPOSURE / 2)) * self.width for side in (-1, 1))
        x, y = np.array(self.place(number)) * self.width
        # the way is straight within an exposure; its middle is the place that the label says
        half = np.array([x1 - x0, y1 - y0]) / 2
        radius = self.radius * self.width
        reach = np.abs(half) + radius + 2
        low, high = np.floor([x, y] - reach).astype(int), np.ceil([x, y] + reach).astype(int)
        height = self.width * 9 // 16
        columns, rows = slice(max(low[0], 0), min(high[0], self.width)), slice(max(low[1], 0), min(high[1], height))
        if columns.start >= columns.stop or rows.start >= rows.stop:
            return slice(0, 0), slice(0, 0), np.zeros((0, 0, 1), np.float32)
        u = np.arange(columns.start, columns.stop)[None, :] + 0.5 - x
        v = np.arange(rows.start, rows.stop)[:, None] + 0.5 - y
        length = float(np.hypot(*half))
        t = np.clip((u * half[0] + v * half[1]) / max(length, 1e-6) ** 2, -1, 1)
        away = np.hypot(u - t * half[0], v - t * half[1])
        strength = min(1.0, 0.45 + radius / max(length, radius))  # the same light on a longer way
        return rows, columns, (strength * np.clip(0.5 + radius - away, 0, 1))[..., None].astype(np.float32)

    def _at(self, u: float, v: float) -> tuple[float, float]:
        """Where a point of the floor appears: u from -1 (left) to 1, v from 0 (near) to 1 (far)."""
        depth = (1 - v) / (self.near - self.horizon) + v / (self.far - self.horizon)
        y = self.horizon + 1 / depth
        return self.centre + u * self.half[0] * (y - self.horizon) / (self.near - self.horizon), y

    def _scale(self, y: float) -> float:
        return (y - self.horizon) / (self.near - self.horizon)

    def _background(self) -> Image.Image:
        """The scene without people, drawn at twice the size and shrunk."""
        import numpy as np
        from PIL import Image, ImageDraw

        rng, side = self.rng, 2 * self.width
        size = side, 2 * (self.width * 9 // 16)
        floor = np.array([rng.uniform(20, 120), rng.uniform(60, 140), rng.uniform(40, 130)])
        crowd = rng.normal(45, 22, (24, 64, 1)) + rng.normal(0, 12, (24, 64, 3))
        picture = Image.fromarray(crowd.clip(0, 160).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(picture)

        def line(a: tuple, b: tuple, wide: float, colour: tuple) -> None:
            draw.line([(a[0] * side, a[1] * side), (b[0] * side, b[1] * side)], fill=colour, width=max(1, round(wide * side)))

        def box(x: float, y: float, wide: float, high: float, colour: tuple) -> None:
            draw.rectangle([x * side, y * side, (x + wide) * side, (y + high) * side], fill=colour)

        def disc(x: float, y: float, radius: float, colour: tuple) -> None:
            draw.ellipse([(x - radius) * side, (y - radius) * side, (x + radius) * side, (y + radius) * side], fill=colour)

        around = tuple(map(int, (floor * rng.uniform(0.5, 0.9)).clip(0, 255)))
        box(0, self.far - 0.03, 1, 1, around)
        for at in np.arange(rng.uniform(0, 0.1), 1, 0.16):  # advertisements, with bright marks on them
            box(at, self.far - 0.07, 0.14, 0.035, tuple(map(int, rng.integers(20, 140, 3))))
            for k in range(int(rng.integers(1, 5))):
                disc(at + 0.03 * (k + 1), self.far - 0.052, rng.uniform(0.002, 0.006), (230, 230, 225))
        corners = [self._at(u, v) for u, v in ((-1, 0), (1, 0), (1, 1), (-1, 1))]
        draw.polygon([(x * side, y * side) for x, y in corners], fill=tuple(map(int, floor)))
        white = (int(rng.integers(190, 235)),) * 3
        for u in (-1, -0.87, 0, 0.87, 1):
            for v0, v1 in (((0, 0.35), (0.65, 1)) if u == 0 else ((0, 1),)):
                line(self._at(u, v0), self._at(u, v1), 0.003, white)
        for v in (0, 0.06, 0.35, 0.65, 0.94, 1):
            line(self._at(-1, v), self._at(1, v), 0.002, white)
        for _ in range(int(rng.integers(2, 7))):  # lamps and reflections
            disc(rng.uniform(0, 1), rng.uniform(0, HIGH), rng.uniform(0.5, 1.6) * RADIUS[1], (int(rng.integers(170, 255)),) * 3)
        (left, y), (right, _) = self._at(-1.05, 0.5), self._at(1.05, 0.5)
        top = y - 0.075 * self._scale(y)
        for k in range(1, 12):
            line((left, top + (y - top) * k / 12), (right, top + (y - top) * k / 12), 0.0007, (90, 90, 90))
        line((left, top), (right, top), 0.0028, (225, 225, 225))
        return picture.resize((self.width, self.width * 9 // 16), Image.Resampling.BOX)

    def _player(self, draw, one: dict, number: int, mask: bool = False) -> None:
        """Body, limbs, white shoes and a racket, in steps."""
        import math

        x, y = self._at(one["u"] + one["du"] * number, one["v"] + one["dv"] * number)
        s, width = 0.15 * self._scale(y), self.width
        swing = math.sin(one["phase"] + number)
        shirt, skin, shoe, racket = (255,) * 4 if mask else (one["shirt"], (190, 140, 110), (235, 235, 235), (60, 60, 60))

        def limb(a: tuple, b: tuple, wide: float, colour) -> None:
            draw.line([((x + s * a[0]) * width, (y + s * a[1]) * width), ((x + s * b[0]) * width, (y + s * b[1]) * width)], fill=colour,
                      width=max(1, round(wide * s * width)))

        def disc(at: tuple, radius: float, colour) -> None:
            draw.ellipse([(x + s * (at[0] - radius)) * width, (y + s * (at[1] - radius)) * width, (x + s * (at[0] + radius)) * width,
                          (y + s * (at[1] + radius)) * width], fill=colour)

        for way in (-1, 1):
            foot = (0.18 * way + 0.08 * swing * way, -0.03)
            limb((0.06 * way, -0.45), foot, 0.12, skin)
            disc(foot, 0.045, shoe)
        limb((0, -0.45), (0, -0.8), 0.24, shirt)
        limb((0, -0.78), (-0.25, -0.6 + 0.1 * swing), 0.08, skin)
        hand = (0.28, -0.85 - 0.2 * swing)
        limb((0, -0.78), hand, 0.08, skin)
        limb(hand, (hand[0] + 0.1, hand[1] - 0.25), 0.02, racket)
        disc((0, -0.93), 0.09, skin)
