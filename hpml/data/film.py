"""The rendered court as video files with their truth: to try a tracker on, to time one, and to have a set where no labelled match is.

The folder has TrackNet's form, `video/<clip>.mp4` and `csv/<clip>_ball.csv` (Frame,Visibility,X,Y in pixels), which `hpml data
shuttle-prepare` reads. A clip may hold several scenes with a cut between them, as a broadcast does: hall, camera and rally change at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hpml.data import court, rally, video
from hpml.data.images import say
from hpml.data.labelling import put
from hpml.env import HpmlError

STREAM = 2  # of the court's generator: other scenes than those of its training and test frames
LEAST_WIDTH = 64
COLUMNS = "Frame,Visibility,X,Y"


def film(target: Path, *, clips: int = 1, frames: int = 300, cuts: int = 0, width: int = 1280, seed: int = 0) -> list[Path]:
    """Writes `clips` videos of `frames` frames, `width` x `width` * 9 / 16, with `cuts` cuts in each, and returns their paths.

    Equal arguments give equal places. Run again, a clip that is there with its truth is kept. Raises HpmlError for numbers out of range,
    for a clip that is there with other settings, and where files would be overwritten.
    """
    import numpy as np

    if seed < 0:
        raise HpmlError(f"seed {seed}: must be 0 or more")
    if clips < 1 or cuts < 0 or frames < 2 * (cuts + 1) or width < LEAST_WIDTH:
        raise HpmlError(f"{clips} clips of {frames} frames, {width} wide, with {cuts} cuts: give at least 1 clip, 2 frames between cuts "
                        f"and {LEAST_WIDTH} pixels")
    made, lengths = [], [len(part) for part in np.array_split(np.arange(frames), cuts + 1)]
    for clip in range(clips):
        scenes = (court.Scene(np.random.default_rng([seed, STREAM, clip, number]), width, length) for number, length in enumerate(lengths))
        path, truth = target / "video" / f"clip{clip}.mp4", target / "csv" / f"clip{clip}_ball.csv"
        made.append(path)
        if path.exists() and truth.exists():
            if not _same(path, truth, width, lengths, scenes):
                raise HpmlError(f"{path} is there, made with other settings (or by another version): give another folder")
            say(f"{path} is there")
            continue
        rows = [COLUMNS]
        with video.writer(path, fps=rally.FPS) as add:
            for scene, length in zip(scenes, lengths, strict=True):
                for i in range(length):
                    frame, place = scene.frame(i)
                    add(frame)
                    rows.append(_row(len(rows) - 1, *place))
        put(truth, ("\n".join(rows) + "\n").encode())
        say(f"{path}: {frames} frames")
    return made


def _row(number: int, x: float, y: float, visible: float) -> str:
    return f"{number},1,{x:.3f},{y:.3f}" if visible else f"{number},0,0,0"


def _same(path: Path, truth: Path, width: int, lengths: list[int], scenes: Iterable[court.Scene]) -> bool:
    """Whether a film and its truth are of these settings: its width, its number of frames, and the places that begin and end each scene,
    which tell cuts and seeds apart. Drawing only these takes a moment, drawing all of it minutes."""
    rows, at = truth.read_text().splitlines(), 0
    if len(rows) != 1 + sum(lengths) or video.facts(path).width != width + width % 2:  # as the writer makes it even
        return False
    for scene, length in zip(scenes, lengths, strict=True):
        if any(rows[1 + at + i] != _row(at + i, *scene.frame(i)[1]) for i in (0, length - 1)):
            return False
        at += length
    return True
