"""Following one small thing from frame to frame: where to look next, which answers to believe, when it is lost and found again.

Between two hits a shuttle flies smoothly, so its next place is predicted by a Kalman filter with constant acceleration (Bar-Shalom, Li and
Kirubarajan, Estimation with Applications to Tracking and Navigation, 2001, chapter 6). The second stage looks there first. Where it sees
nothing that fits, the first stage searches the whole frame. An answer that fits no motion, a hit or a false alarm, is believed when the
next frames confirm it, and then for the frames in between as well. Lengths are shares of the frame's width, times are frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

STEP = np.array([[1, 1, 0.5], [0, 1, 1], [0, 0, 1]])  # place, speed and acceleration one frame later
JERK = np.array([1 / 6, 1 / 2, 1])  # what a constant change of the acceleration adds to them


@dataclass(frozen=True)
class Settings:
    """What is believed. Of the gates 3, 4 and 6 the widest is the best in benchmarks/shuttle_tracker.py."""

    noise: float = 0.0015  # standard deviation of an answer's place: 2 pixels of 1280
    jerk: float = 0.004  # of the change of acceleration from frame to frame
    speed: float = 0.03  # of what is not known when a track begins
    acceleration: float = 0.01
    gate: float = 6.0  # standard deviations between prediction and answer that still fit
    found: float = 0.6  # probability of being visible from which something new is believed
    kept: float = 0.35  # and from which what is followed is believed to be still there
    confirm: int = 2  # frames in a row that a new motion needs
    patience: int = 5  # frames without an answer after which a track is lost


@dataclass
class Motion:
    """A Kalman filter; both axes share one covariance, since they have the same noise and are seen together."""

    settings: Settings
    state: np.ndarray  # [3, 2]: place, speed, acceleration by x, y
    covariance: np.ndarray  # [3, 3]
    frames: list[int] = field(default_factory=list)  # that it was seen in
    missed: int = 0

    @classmethod
    def at(cls, settings: Settings, place: np.ndarray, frame: int) -> Motion:
        """A motion that begins at a place of which nothing else is known."""
        spread = np.diag(np.square([settings.noise, settings.speed, settings.acceleration]))
        return cls(settings, np.array([place, (0, 0), (0, 0)], float), spread, [frame])

    def predict(self) -> np.ndarray:
        """One frame further; returns the place [2] to look at."""
        self.state = STEP @ self.state
        self.covariance = STEP @ self.covariance @ STEP.T + self.settings.jerk**2 * np.outer(JERK, JERK)
        return self.state[0]

    def fits(self, place: np.ndarray) -> bool:
        """Whether the place lies within the gate around the prediction."""
        spread = self.covariance[0, 0] + self.settings.noise**2
        return float(np.square(place - self.state[0]).sum()) <= self.settings.gate**2 * spread

    def correct(self, place: np.ndarray, frame: int) -> None:
        """Take the place as seen in `frame`."""
        gain = self.covariance[:, 0] / (self.covariance[0, 0] + self.settings.noise**2)
        self.state = self.state + np.outer(gain, place - self.state[0])
        self.covariance = self.covariance - np.outer(gain, self.covariance[0])
        self.frames.append(frame)
        self.missed = 0


@dataclass
class Row:
    """The answer for one frame: place in pixels, probability of being visible, whether it is believed, whether the frame was searched."""

    x: float
    y: float
    confidence: float
    visible: bool
    searched: bool


class Tracker:
    """Follows one thing through frames of `width` x `height` pixels; `rows` holds the answers, one for each frame so far.

    The newest `settings.confirm - 1` rows may still turn visible, when the next frame confirms them.
    """

    def __init__(self, width: int, height: int, settings: Settings | None = None) -> None:
        self.width, self.height, self.settings = width, height, settings or Settings()
        self.track: Motion | None = None
        self.candidate: Motion | None = None
        self.rows: list[Row] = []
        self.spent_s = 0.0  # in `step`, with both stages

    def step(self, search: Callable[[], np.ndarray], refine: Callable[[np.ndarray], np.ndarray]) -> Row:
        """The next frame. `search()` -> place [2] in the whole frame, the first stage; `refine(place)` -> [3] x, y and the logit of being
        visible in a crop around a place, the second. All in pixels. The first stage runs only where the track does not answer."""
        started = time.perf_counter()
        centre, searched = self._predict(), False
        answer = None if centre is None else np.asarray(refine(centre), float)
        if answer is None or not self._fitting(answer):
            answer, searched = np.asarray(refine(np.asarray(search(), float)), float), True
        row = self._take(answer, searched)
        self.spent_s += time.perf_counter() - started
        return row

    def _predict(self) -> np.ndarray | None:
        """Where to look, in pixels; None where nothing is followed. A new motion comes first: it is what was seen last."""
        places = [motion.predict() * self.width for motion in (self.candidate, self.track) if motion]
        return np.clip(places[0], 0, (self.width - 1, self.height - 1)) if places else None

    def _fitting(self, answer: np.ndarray) -> Motion | None:
        """The motion that an answer belongs to: the track, or a new one, which asks for more certainty."""
        place, certain = answer[:2] / self.width, probability(answer[2])
        for motion, least in ((self.track, self.settings.kept), (self.candidate, self.settings.found)):
            if motion and certain >= least and motion.fits(place):
                return motion
        return None

    def _take(self, answer: np.ndarray, searched: bool) -> Row:
        frame, place, certain = len(self.rows), answer[:2] / self.width, probability(answer[2])
        motion, before = self._fitting(answer), self.track
        if motion:
            motion.correct(place, frame)
        if motion is not self.candidate:  # it was not confirmed
            self.candidate = None
        if motion is None and certain >= self.settings.found:
            self.candidate = Motion.at(self.settings, place, frame)
        self.rows.append(Row(float(answer[0]), float(answer[1]), certain, motion is not None and motion is self.track, searched))
        if self.candidate and len(self.candidate.frames) >= self.settings.confirm:
            self.track, self.candidate = self.candidate, None
            for seen in self.track.frames:
                self.rows[seen].visible = True
        if self.track is before and motion is not before and before is not None:
            before.missed += 1
            outside = (before.state[0] < -0.05).any() or (before.state[0] * self.width > (1.05 * self.width, 1.05 * self.height)).any()
            if before.missed > self.settings.patience or outside:
                self.track = None
        return self.rows[-1]


def probability(logit: float) -> float:
    """Of a logit."""
    return float(1 / (1 + np.exp(-np.clip(logit, -30, 30))))
