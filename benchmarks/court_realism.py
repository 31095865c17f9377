"""How the rendered court moves beside labelled matches: speeds, places, flights, what is out of sight; and how fast it is rendered.

    python benchmarks/court_realism.py [--scenes 24] [--frames 430] [--width 320]

Real: every TrackNet label file of whole rallies below HPML_DATA (pixels of 1280x720, rounded there); without them, rally.REAL, which this
file once printed. Rendered: as many scenes, their places scaled to 1280 and rounded as the labels are. A hit is a change of motion of more
than 12 pixels a frame, the largest within 5 frames.
"""

import argparse
import time

import numpy as np

from hpml.data import court, points, rally, shuttle
from hpml.env import data_dir

QUANTILES = (10, 50, 90, 99)
LEAST = 100  # frames of a clip that is a rally


def statistics(clips: list[np.ndarray]) -> dict[str, tuple]:
    """rally.REAL's entries for clips of places float [n, 2], not a number where nothing is visible."""
    speed, change, flights, hidden = [], [], [], []
    for places in clips:
        seen = ~np.isnan(places[:, 0])
        step = np.diff(places, axis=0)
        for values, into in ((step, speed), (np.diff(step, axis=0), change)):
            into.extend((length := np.hypot(*values.T))[~np.isnan(length)])
        edges = np.flatnonzero(np.diff(np.concatenate([[1], seen, [1]])))
        runs = edges.reshape(-1, 2)  # from where it is lost to where it is seen again
        hidden.extend(int(b - a) for a, b in runs if a > 0 and b < len(seen))
        every = np.arange(len(seen))
        filled = np.stack([np.interp(every, every[seen], places[seen, axis]) for axis in (0, 1)])
        bend = np.hypot(*np.diff(filled, 2, axis=1))
        hits = [i for i in range(1, len(bend) - 1) if bend[i] > 12 and bend[i] >= bend[max(0, i - 5) : i + 6].max()]
        flights.extend(np.diff(hits))
    where = np.concatenate(clips)
    where = where[~np.isnan(where[:, 0])]
    found = {"pixels a frame": speed, "change of it": change, "column": where[:, 0], "row": where[:, 1], "frames between hits": flights,
             "frames out of sight": hidden}
    share = len(where) / sum(map(len, clips))
    return {"share visible": share, **{name: tuple(np.percentile(values, QUANTILES)) for name, values in found.items()}}


def real() -> list[np.ndarray]:
    """Rallies of the label files on this machine."""
    clips = []
    for folder in shuttle.FOLDERS:
        for file in sorted((data_dir() / folder).rglob("*_ball.csv")):
            table, _ = points.read(file, clip=file.stem)
            if len(table) >= LEAST:
                clips.append(table[["x", "y"]].to_numpy())
    return clips


def rendered(scenes: int, frames: int, width: int) -> tuple[list[np.ndarray], float, float]:
    """(places as above, seconds a scene, seconds a frame), all drawn."""
    clips, making, drawing = [], 0.0, 0.0
    for number in range(scenes):
        began = time.perf_counter()
        scene = court.Scene(np.random.default_rng([1, number]), width, frames)
        making += time.perf_counter() - began
        began = time.perf_counter()
        truth = np.array([scene.frame(i)[1] for i in range(frames)])
        drawing += time.perf_counter() - began
        clips.append(np.where(truth[:, 2:] > 0, np.rint(truth[:, :2] * 1280 / width), np.nan))
    return clips, making / scenes, drawing / (scenes * frames)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--scenes", type=int, default=24)
    asked.add_argument("--frames", type=int, default=430, help="of a scene; the mean of the real rallies is 436")
    asked.add_argument("--width", type=int, default=320)
    asked = asked.parse_args()
    labelled = real()
    print(f"real: {sum(map(len, labelled)):,} frames of {len(labelled)} rallies" if labelled else "real: rally.REAL (no label files here)")
    known = statistics(labelled) if labelled else rally.REAL
    clips, scene_s, frame_s = rendered(asked.scenes, asked.frames, asked.width)
    made = statistics(clips)
    print(f"{'':22}" + "".join(f"{f'{kind} {q} %':>15}" for q in QUANTILES for kind in ("real", "rendered")))
    for name in rally.REAL:
        pairs = [(known[name], made[name])] if name == "share visible" else list(zip(known[name], made[name], strict=True))
        print(f"{name:22}" + "".join(f"{value:15.3g}" for pair in pairs for value in pair))
    print(f"{asked.width} pixels wide: {1 / frame_s:.0f} frames/s, and {scene_s * 1000:.0f} ms for each new scene, in one process")


if __name__ == "__main__":
    main()
