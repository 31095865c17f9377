"""A stand-in of badminton video: rendered rallies seen by a broadcast's main camera, with the shuttle's exact place in every frame.

A clip is some frames of one scene: a hall, two players, one camera, one rally (rally.py flies the shuttle, arena.py draws the rest).
The shuttle is blurred along its way by half a frame's exposure and drawn with the share of each pixel that it covers: its place is known
exactly. It is called visible where its centre lies in the frame and at least half of it is not behind a player, the net's tape or the
score; high shots leave the frame at the top. White lines, shoes, boards, flashes among the people and the score have its colour or its
size. Light flickers, the sensor is noisy, and every frame has been through a JPEG of the scene's quality. It serves the same code path as
real frames and a pixel error that means something; it says nothing about broadcasts.
"""

from __future__ import annotations

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from hpml.data import arena
from hpml.data import rally as play
from hpml.data.images import made_once
from hpml.env import cache_dir, cores

if TYPE_CHECKING:
    import numpy as np

RECIPE = 4  # raised whenever other pixels come out
# Frames of one clip are nearly one: a network that has seen a hall answers where its shuttle was, and has learnt little of shuttles. So
# training has many halls and no more frames of each than a window of three preceding ones needs; a test clip is long enough to track in.
CLIP_FRAMES = {"train": 4, "test": 12}
N_TRAIN, N_TEST = 960, 240  # frames, where nobody asks for another number
RADIUS = 0.034  # metres: a shuttle's skirt
HALF_LENGTH = 0.022  # metres from its middle to those of cork and skirt
SOFT = 1.6  # pixels over which its edge fades
EXPOSURE = 0.5  # of the time between two frames
NOISE = (1.5, 5.0)  # standard deviation, of 255
QUALITY = (45, 88)  # of JPEG, for the blocks that a video's compression leaves
FLICKER = 0.012  # standard deviation of a frame's brightness, as a share
FLASHES = 0.15  # share of frames with a camera's flash among the people


def load(width: int, n_train: int = 0, n_test: int = 0, seed: int = 0) -> tuple[dict, str]:
    """(arrays {train_images, train_labels, test_images, test_labels}, checksum), equal for equal arguments; 0 frames: N_TRAIN, N_TEST.

    Images are uint8 [N, width * 9 // 16, width, 3], labels float32 [N, 3]: x, y in pixels of the frame and visible (0 or 1). Frame i
    belongs to clip i // CLIP_FRAMES[part], and fewer frames are the first of more. Rendered once, then memory-mapped. Raises
    HpmlError when the cache cannot be written.
    """
    counts = {"train": n_train or N_TRAIN, "test": n_test or N_TEST}
    checksum = hashlib.sha256(f"court recipe {RECIPE}, {width} pixels, {counts}, seed {seed}".encode()).hexdigest()

    def make() -> tuple[dict, dict]:
        arrays = {}
        for stream, (part, count) in enumerate(counts.items()):
            drawn = render(count, width=width, seed=seed, stream=stream, clip=CLIP_FRAMES[part])
            arrays[f"{part}_images"], arrays[f"{part}_labels"] = drawn
        return arrays, {"checksum": checksum}

    _, arrays = made_once(cache_dir() / f"court{width}-{checksum[:12]}", make, f"rendering the stand-in of badminton at {width} pixels")
    return arrays, checksum


def render(n: int, *, width: int, seed: int, stream: int = 0, clip: int = CLIP_FRAMES["test"]) -> tuple[np.ndarray, np.ndarray]:
    """`n` frames, `clip` to a scene, and their labels as in `load`; each scene depends on seed, stream, its number and `clip` alone, its
    places not on the width.

    Clips are drawn by as many threads as there are cores: most of the time goes to Pillow and NumPy, which let others work.
    """
    import numpy as np

    images, labels = np.empty((n, width * 9 // 16, width, 3), np.uint8), np.empty((n, 3), np.float32)

    def draw(start: int) -> None:
        scene = Scene(np.random.default_rng([seed, stream, start // clip]), width, clip)
        for i in range(start, min(n, start + clip)):
            images[i], labels[i] = scene.frame(i - start)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(draw, range(0, n, clip)))
    return images, labels


class Scene:
    """What the frames of one clip share: camera, hall, players, the rally, and how the picture is spoilt."""

    def __init__(self, rng: np.random.Generator, width: int, frames: int = CLIP_FRAMES["test"]) -> None:
        import numpy as np
        from PIL import Image

        self.width, self.height = width, width * 9 // 16
        motion, hall = rng.spawn(2)
        self.camera = play.camera(motion)
        self.rally = play.rally(motion, frames)
        self.looks = {side: arena.look(hall) for side in (-1, 1)}
        self.gain, self.gamma = hall.uniform(0.95, 1.3) * hall.uniform(0.95, 1.05, 3), hall.uniform(0.85, 1.15)
        self.white, self.quality = hall.uniform(225, 255), int(hall.integers(*QUALITY))
        self.seed = int(hall.integers(2**31))
        self.score = (hall.uniform(0.02, 0.05), hall.uniform(0.02, 0.05)) if hall.random() < 0.7 else None
        self.background = np.asarray(arena.hall(hall, self.camera, width))
        self.net = arena.net(hall, self.camera, width)
        self.board = self._board(hall) if self.score else None
        grain = 128 + hall.normal(0, hall.uniform(*NOISE), (self.height + 64, width + 64))
        self.grain = Image.merge("RGB", (Image.fromarray(grain.clip(0, 255).round().astype("uint8")),) * 3)

    def place(self, number: float) -> tuple[float, float, float]:
        """Where the shuttle appears at this frame: column and row in units of the width, and how wide a metre is there."""
        return tuple(map(float, self.camera.see(self.rally.at(number))))

    def frame(self, number: int, *, shuttle: bool = True, coded: bool = True) -> tuple[np.ndarray, tuple[float, float, float]]:
        """(uint8 [height, width, 3], (x, y, visible)) of one frame; without `shuttle`, the same frame as if nobody played; not `coded`:
        before noise and compression."""
        import numpy as np
        from PIL import Image, ImageChops

        rng = np.random.default_rng([self.seed, number])
        canvas = self.background.copy()
        if rng.random() < FLASHES:
            self._flash(canvas, rng)
        here, cover = self.rally.at(number), self._cover(number)
        share = np.ones_like(cover[1])
        layers = [(float(here[1]), None), (0.0, self.net)]
        for side in (-1, 1):
            layers.append((self.rally.player(side, number)[1],
                           arena.player(self.looks[side], self.rally, self.camera, side, number, self.width, EXPOSURE)))
        in_front = False
        for _, layer in [*sorted(layers, key=lambda one: -one[0]), *([(0, self.board)] if self.board else [])]:
            if layer is None:
                in_front = True
                if shuttle:
                    arena.over(canvas, cover)
                continue
            arena.over(canvas, layer)
            if in_front and cover[1].size:
                share *= 1 - _opacity(layer, cover)
        total = float(cover[1].sum())
        seen = float((cover[1] * share).sum()) / total if total else 0.0
        x, y = (value * self.width for value in self.place(number)[:2])
        truth = x, y, float(0 <= x < self.width and 0 <= y < self.height and seen >= 0.5)
        if not coded:
            return canvas, truth
        gain = self.gain * (1 + FLICKER * rng.normal())
        table = np.concatenate([255 * (np.arange(256) / 255) ** self.gamma * one for one in gain]).clip(0, 255).round().astype(int)
        left, top = (int(value) for value in rng.integers(0, 64, 2))
        noise = self.grain.crop((left, top, left + self.width, top + self.height))
        picture, content = ImageChops.add(Image.fromarray(canvas).point(table.tolist()), noise, offset=-128), io.BytesIO()
        picture.save(content, "JPEG", quality=self.quality, subsampling="4:2:0")
        return np.array(Image.open(content)), truth

    def _cover(self, number: int) -> arena.Layer:
        """The blurred shuttle as a layer: how much of each pixel it covers within the exposure, exact in its middle."""
        import numpy as np

        times = [number + part * EXPOSURE / 2 for part in (-1, 0, 1)]
        before, middle, after = self.camera.see(np.array([self.rally.at(time) for time in times])) * self.width
        radius = max(RADIUS * middle[2], 0.7)
        way = after[:2] - before[:2]
        long = float(np.hypot(*way))
        # it points where it flies, so that its middle stays the middle; at a stroke its way has a corner
        axis = way / long * HALF_LENGTH * middle[2] if long > 1e-6 else np.array([0.0, HALF_LENGTH * middle[2]])
        corners = np.array([before[:2] - axis, middle[:2], after[:2] + axis])
        low, high = np.floor(corners.min(0) - radius - 2).astype(int), np.ceil(corners.max(0) + radius + 2).astype(int)
        low, high = np.maximum(low, 0), np.minimum(high, (self.width, self.height))
        if (low >= high).any():
            return np.zeros((0, 0, 3), np.float32), np.zeros((0, 0, 1), np.float32), 0, 0
        u, v = np.arange(low[0], high[0])[None, :] + 0.5, np.arange(low[1], high[1])[:, None] + 0.5
        away = np.minimum(*(_distance(u, v, a, b) for a, b in ((corners[0], corners[1]), (corners[1], corners[2]))))
        size = 2 * (radius + float(np.hypot(*axis)))
        strength = 0.25 + 0.72 * min(1.0, size / (size + long))  # the same light on a longer way
        opacity = (strength * np.clip(0.5 + (radius - away) / SOFT, 0, 1))[..., None].astype(np.float32)
        tone = np.where(away < 0.6 * radius, 1.0, 0.86)[..., None]  # the skirt's rim is darker
        return (opacity * self.white * tone).astype(np.float32), opacity, int(low[0]), int(low[1])

    def _flash(self, canvas: np.ndarray, rng: np.random.Generator) -> None:
        """A white spot of about a shuttle's size in the stands."""
        import numpy as np

        x, y, radius = rng.uniform(0, self.width), rng.uniform(0, 0.3 * self.height), rng.uniform(0.0015, 0.004) * self.width
        x0, y0 = max(int(x - radius - 1), 0), max(int(y - radius - 1), 0)
        part = canvas[y0 : int(y + radius + 2), x0 : int(x + radius + 2)]
        rows, columns = np.mgrid[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] + 0.5
        spot = np.clip(0.5 + radius - np.hypot(columns - x, rows - y), 0, 1)[..., None]
        part[:] = np.rint(part + spot * (255.0 - part))

    def _board(self, rng: np.random.Generator) -> arena.Layer:
        """The score, laid over the picture."""
        import numpy as np
        from PIL import Image, ImageDraw, ImageFont

        wide, high = max(4, round(0.17 * self.width)), max(2, round(0.055 * self.width))
        picture = Image.new("RGB", (4 * wide, 4 * high), tuple(map(int, rng.integers(5, 70, 3))))
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=max(4, round(1.5 * high)))
        for row in range(2):
            name = "".join(map(chr, rng.integers(65, 91, 6)))
            draw.text((0.3 * high, 2 * high * row), name, fill=(235, 235, 235), font=font)
            draw.text((3.1 * wide, 2 * high * row), str(int(rng.integers(0, 22))), fill=(250, 240, 190), font=font)
        pixels = np.asarray(picture.reduce(4), np.float32)
        return pixels, np.ones((*pixels.shape[:2], 1), np.float32), round(self.score[0] * self.width), round(self.score[1] * self.width)


def _distance(u: np.ndarray, v: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of pixels' middles from the line between two points."""
    import numpy as np

    way = b - a
    t = np.clip(((u - a[0]) * way[0] + (v - a[1]) * way[1]) / max(float(way @ way), 1e-9), 0, 1)
    return np.hypot(u - a[0] - t * way[0], v - a[1] - t * way[1])


def _opacity(layer: arena.Layer, cover: arena.Layer) -> np.ndarray:
    """How opaque a layer is where the cover lies."""
    import numpy as np

    found = np.zeros_like(cover[1])
    x0, y0 = max(layer[2], cover[2]), max(layer[3], cover[3])
    x1 = min(layer[2] + layer[1].shape[1], cover[2] + found.shape[1])
    y1 = min(layer[3] + layer[1].shape[0], cover[3] + found.shape[0])
    if x0 < x1 and y0 < y1:
        there = layer[1][y0 - layer[3] : y1 - layer[3], x0 - layer[2] : x1 - layer[2]]
        found[y0 - cover[3] : y1 - cover[3], x0 - cover[2] : x1 - cover[2]] = there
    return found
