"""What the tracker adds to single frames, on real trajectories with simulated answers of both stages.

    HPML_DATA=FOLDER python benchmarks/shuttle_tracker.py [--seeds 3]

The places are the labels of real rallies (TrackNet's tables below $HPML_DATA/ball_frames); no picture is needed. Where the shuttle is
visible the first stage finds it with a stated chance, else it answers something else in the frame; the second stage answers in its crop
with noise of a pixel and a certainty that overlaps with that of nothing. Printed: precision, recall and F1 by TrackNet's
rule, frame by frame and tracked, and the share of frames that the first stage has to search.
"""

import argparse
from pathlib import Path

import numpy as np

from hpml.apps.tracker import Settings, Tracker
from hpml.data import points
from hpml.env import data_dir
from hpml.workloads import _pixels
from hpml.workloads._designs import crop_side

WIDTH, HEIGHT = points.SIZE
CERTAIN, NOTHING, ALARM = (2.0, 1.2), (-2.5, 1.2), (0.5, 1.0)  # mean and deviation of the logit: of the shuttle, of no shuttle, of a double
CHANCES = ((0.95, 0.02), (0.85, 0.05), (0.7, 0.1))  # that stage 1 finds the shuttle, and that a double of it stands somewhere in a frame


class Answers:
    """Both stages for one frame."""

    def __init__(self, rng: np.random.Generator, place: np.ndarray | None, chance: float, double: float) -> None:
        self.rng, self.place = rng, place
        self.double = rng.uniform((0, 0), (WIDTH, HEIGHT)) if rng.random() < double else None
        found = place is not None and rng.random() < chance
        elsewhere = self.double if self.double is not None else rng.uniform((0, 0), (WIDTH, HEIGHT))
        self.first = place + rng.normal(0, 8, 2) if found else elsewhere

    def search(self) -> np.ndarray:
        return self.first

    def refine(self, centre: np.ndarray) -> np.ndarray:
        for place, logit in ((self.place, CERTAIN), (self.double, ALARM)):
            if place is not None and np.abs(place - centre).max() < crop_side(WIDTH) / 2:
                return np.array([*(place + self.rng.normal(0, 1, 2)), self.rng.normal(*logit)])
        return np.array([*centre, self.rng.normal(*NOTHING)])


def rallies() -> list[np.ndarray]:
    """The labels [N, 3] of every rally."""
    files = sorted((data_dir() / "ball_frames").rglob("*_ball.csv"))
    tables = [points.read(file, clip=file.stem)[0] for file in files]
    return [np.nan_to_num(rows[["x", "y", "visible"]].to_numpy(float)) for rows in tables]


def compared(labels: list[np.ndarray], chance: float, double: float, seed: int, settings: Settings | None = None) -> dict:
    """Outcomes frame by frame and tracked, and the searched frames, over all rallies; both see the same answers of the first stage."""
    alone, tracked, searched = [], [], 0
    for number, rally in enumerate(labels):
        rng, tracker = np.random.default_rng([seed, number]), Tracker(WIDTH, HEIGHT, settings)
        for x, y, visible in rally:
            answers = Answers(rng, np.array([x, y]) if visible else None, chance, double)
            alone.append(answers.refine(answers.search()))
            tracker.step(answers.search, answers.refine)
        tracked += [[row.x, row.y, 1.0 if row.visible else -1.0] for row in tracker.rows]
        searched += sum(row.searched for row in tracker.rows)
    truth, limit = np.concatenate(labels), _pixels.limit(WIDTH)
    return {"frame by frame": _pixels.outcomes(np.array(alone), truth, limit), "tracked": _pixels.outcomes(np.array(tracked), truth, limit),
            "searched": searched / len(truth)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    labels = rallies()
    if not labels:
        raise SystemExit(f"no TrackNet tables (*_ball.csv) below {Path(data_dir()) / 'ball_frames'}")
    print(f"{sum(map(len, labels)):,} frames of {len(labels)} rallies, {asked.seeds} seeds")
    for chance, double in CHANCES:
        runs = [compared(labels, chance, double, seed) for seed in range(asked.seeds)]
        print(f"stage 1 finds {chance:.0%}, doubles in {double:.0%} of the frames:")
        for way in ("frame by frame", "tracked"):
            rates = [_pixels.rates(run[way]) for run in runs]
            shown = ", ".join(f"{name} {np.mean([rate[name] for rate in rates]):.1%}" for name in ("precision", "recall", "F1"))
            print(f"  {way:<15} {shown}" + (f"; {np.mean([run['searched'] for run in runs]):.0%} searched" if way == "tracked" else ""))


if __name__ == "__main__":
    main()
