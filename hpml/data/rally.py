"""A badminton rally in metres and seconds: strokes, the shuttle's flight with drag, where the players stand, and a camera that sees it.

x runs across the court, y along it (the camera stands at negative y, the net at 0), z upwards. A shuttle falls at TERMINAL at last, so its
drag is g * |v| v / TERMINAL^2 (Cohen et al., The physics of badminton, New J. Phys. 17, 2015). A stroke is chosen by how high the shuttle
is met; its speed is the least that carries it from there to a place on the other side, at its angle. STROKES and the camera's ranges were
chosen so that places in the picture move as those of REAL do; `benchmarks/court_realism.py` prints both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

FPS = 30  # of the labelled matches, and here
STEPS = 8  # of a path between two frames
GRAVITY, TERMINAL = 9.81, 6.8  # m/s^2, m/s
LENGTH, WIDTH, NET = 13.4, 6.1, 1.55  # metres: court, and the net's height at its posts (1.524 in the middle)
HOME = 3.2  # metres from the net, where a player waits
SPEEDS = (3.0, 115.0)  # m/s at the racket, of which 64 are tried
COARSE, LONGEST = 4, 165  # steps of a path between two that are computed, and how many are
# What is measured on 12,656 labelled frames of 29 rallies at 1280x720 (corrected test labels of the Shuttlecock Trajectory Dataset,
# github.com/qaz812345/TrackNetV3, MIT), by benchmarks/court_realism.py: quantiles at 10, 50, 90 and 99 %, in pixels and frames.
REAL = {"share visible": 0.844, "pixels a frame": (1.4, 9.4, 26.0, 65.1), "change of it": (1.0, 3.6, 14.0, 58.4),
        "column": (395, 615, 842, 920), "row": (84, 249, 396, 668), "frames between hits": (8, 24, 39, 57),
        "frames out of sight": (1, 13, 42, 53)}
# name: (weight where met high, weight where met low, metres behind the net, metres high there, degrees above the straight line)
STROKES = {
    "clear": (0.26, 0.00, (4.2, 6.2), (1.9, 2.7), (16, 36)),
    "drop": (0.26, 0.00, (1.0, 2.6), (0.4, 1.3), (9, 18)),
    "smash": (0.30, 0.00, (2.0, 5.0), (0.4, 1.2), (4, 10)),
    "drive": (0.18, 0.20, (2.0, 4.5), (1.0, 2.0), (8, 18)),
    "lift": (0.00, 0.40, (4.0, 6.2), (1.9, 2.7), (16, 38)),
    "net": (0.00, 0.40, (0.4, 1.6), (0.5, 1.2), (25, 50)),
}
HIGH_CONTACT = 1.7  # metres: what is met above is smashed, dropped or cleared
ENDS = 0.11  # share of strokes that are the last of their rally
PAUSE_S = (0.2, 1.2)  # the shuttle lies, and is held before the next serve


@dataclass(frozen=True, eq=False)
class Rally:
    """path: float [n, 3], STEPS to a frame; hits: (step, side -1 near or 1 far, contact [3]); calm: bool [n], held or lying."""

    path: np.ndarray
    hits: list[tuple[int, int, np.ndarray]]
    calm: np.ndarray

    def at(self, number: float) -> np.ndarray:
        """Where the shuttle is at this frame, also between two, in metres."""
        place = min(max(number * STEPS, 0.0), len(self.path) - 1.001)
        low = int(place)
        return self.path[low] + (place - low) * (self.path[low + 1] - self.path[low])

    def player(self, side: int, number: float) -> tuple[float, float, float, np.ndarray]:
        """(x, y, frames to the nearest own hit: below 0 before it, that hit's contact) of one player."""
        import numpy as np

        own = [(step / STEPS, contact) for step, who, contact in self.hits if who == side]
        if not own:
            return 0.0, side * HOME, -99.0, np.array([0.0, side * HOME, 1.2])
        knots = []
        for time, contact in own:
            stand = contact[0] - 0.45, contact[1] + 0.3 * side  # the racket is in the hand at the right of the picture
            if knots and time - knots[-1][0] > 16:
                knots.append((time - 8 - 0.4 * (time - 16 - knots[-1][0]), 0.4 * stand[0], side * HOME))
            knots.append((time, *stand))
        times, xs, ys = (np.array(one) for one in zip(*knots, strict=True))
        nearest = min(own, key=lambda one: abs(one[0] - number))
        return float(np.interp(number, times, xs)), float(np.interp(number, times, ys)), number - nearest[0], nearest[1]


def rally(rng: np.random.Generator, frames: int) -> Rally:
    """At least `frames` frames of play: serves, strokes and pauses, from a moment that the generator chooses."""
    import numpy as np

    skip = int(rng.integers(0, 90))
    steps = (frames + skip + 2) * STEPS
    parts, hits, calm, count, side = [], [], [], 0, int(rng.choice((-1, 1)))

    def add(points: np.ndarray, still: bool) -> None:
        nonlocal count
        parts.append(points)
        calm.append(np.full(len(points), still))
        count += len(points)

    while count < steps:
        here = np.array([rng.uniform(-1.5, 1.5), side * rng.uniform(2.0, 3.2), rng.uniform(0.9, 1.1)])
        add(np.repeat(here[None], _pause(rng), 0), True)
        stroke = "lift" if rng.random() < 0.4 else "net"  # a high or a low serve
        while count < steps:
            hits.append((count, side, here))
            flight, reaches = _flight(rng, here, side, stroke)
            last = rng.random() < ENDS
            if not last and reaches < len(flight):
                flight = flight[:reaches]
            add(flight, False)
            here, side = flight[-1], -side
            if last or here[2] < 0.1:
                add(np.repeat(np.array([here[0], here[1], 0.03])[None], _pause(rng), 0), True)
                break
            weights = np.array([one[0] if here[2] > HIGH_CONTACT else one[1] for one in STROKES.values()])
            stroke = str(rng.choice(list(STROKES), p=weights / weights.sum()))
    first = skip * STEPS
    return Rally(np.concatenate(parts)[first:], [(step - first, who, contact) for step, who, contact in hits],
                 np.concatenate(calm)[first:])


def _pause(rng: np.random.Generator) -> int:
    return int(rng.uniform(*PAUSE_S) * FPS) * STEPS


def _flight(rng: np.random.Generator, here: np.ndarray, side: int, stroke: str) -> tuple[np.ndarray, int]:
    """(path from `here` to the floor [n, 3], steps to the place where it is met): the least speed that clears the net and gets there."""
    import numpy as np

    _, _, deep, high, lift = STROKES[stroke]
    aim = np.array([0.45 * WIDTH * math.sin(rng.uniform(-0.5, 0.5) * math.pi), -side * rng.uniform(*deep), rng.uniform(*high)])
    way = aim[:2] - here[:2]
    distance = float(np.hypot(*way))
    to_net = distance * abs(here[1]) / max(abs(way[1]), 1e-6)
    straight = math.atan2(aim[2] - here[2], distance)
    angle = straight + math.radians(rng.uniform(*lift))
    while True:
        along, up = _fly(here[2], angle)
        arrives = [int(np.searchsorted(column, distance)) for column in along.T]
        good = [k for k, at in enumerate(arrives) if at < len(up) and up[at, k] >= aim[2]
                and np.interp(to_net, along[:, k], up[:, k]) > NET]
        if good or angle > 1.4:
            break
        angle += 0.07  # into the net: higher
    k = good[0] if good else along.shape[1] - 1
    floor = int(np.argmax(up[:, k] < 0.03)) or len(up)
    fine = np.arange(0, floor - 1, 1 / COARSE)
    share, height = (np.interp(fine, np.arange(floor), column[:floor, k]) for column in (along, up))
    path = np.column_stack([here[0] + share / distance * way[0], here[1] + share / distance * way[1], height])
    return path, min(arrives[k] * COARSE, len(path))


def _fly(height: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """(metres along, metres up), each [steps, speeds]: flights of all SPEEDS at one angle, a row for every COARSE-th step of a path."""
    import numpy as np

    speed = np.geomspace(*SPEEDS, 64)
    u, w = speed * math.cos(angle), speed * math.sin(angle)
    x, z, dt = np.zeros(64), np.full(64, height), COARSE / (FPS * STEPS)
    along, up = [x], [z]
    for _ in range(LONGEST):
        # the drag is taken at the end of the step, which stays stable where a smash loses a third of its speed within one
        damp = 1 + dt * GRAVITY / TERMINAL**2 * np.hypot(u, w)
        u, w = u / damp, (w - GRAVITY * dt) / damp
        x, z = x + u * dt, z + w * dt
        along.append(x)
        up.append(z)
    return np.array(along), np.array(up)


@dataclass(frozen=True)
class Camera:
    """A broadcast's main camera, high behind one end; lengths in the picture are in units of its width, from its left and upper edge."""

    away: float  # metres from the net
    high: float
    aside: float
    turn: float  # radians to the left
    tilt: float  # downwards
    focal: float  # in widths

    def see(self, points: np.ndarray) -> np.ndarray:
        """[..., 3] of metres -> [..., 3]: column, row, and how wide a metre is there."""
        import numpy as np

        x, y, z = points[..., 0] - self.aside, points[..., 1] + self.away, points[..., 2] - self.high
        side, ahead = x * math.cos(self.turn) + y * math.sin(self.turn), y * math.cos(self.turn) - x * math.sin(self.turn)
        depth = ahead * math.cos(self.tilt) - z * math.sin(self.tilt)
        drop = -z * math.cos(self.tilt) - ahead * math.sin(self.tilt)
        scale = self.focal / depth
        found = np.empty(points.shape)
        found[..., 0], found[..., 1], found[..., 2] = 0.5 + side * scale, 9 / 32 + drop * scale, scale
        return found


def camera(rng: np.random.Generator) -> Camera:
    """A camera that sees the whole court: its near end line at the lower edge, as wide as broadcasts show it."""
    away, high, aside = rng.uniform(19, 26), rng.uniform(4.8, 8.5), rng.uniform(-0.8, 0.8)
    focal = rng.uniform(0.32, 0.395) * (away - LENGTH / 2) / (WIDTH / 2)
    row = rng.uniform(0.52, 0.555)
    tilt = math.atan2(high, away - LENGTH / 2) - math.atan((row - 9 / 32) / focal)
    return Camera(away, high, aside, math.atan2(aside, away) + rng.uniform(-0.02, 0.02) / focal, tilt, focal)
