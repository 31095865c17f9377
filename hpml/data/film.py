"""The rendered court as video files with their truth: to try a tracker on, to time one, and to have a set where no labelled match is.

The folder has TrackNet's form, `video/<clip>.mp4` and `csv/<clip>_ball.csv` (Frame,Visibility,X,Y in pixels), which `hpml data
shuttle-prepare` reads. A clip may hold several scenes with a cut between them, as a broadcast does: hall, camera and rally change at once.
"""

from __future__ import annotations

from pathlib import Path

from hpml.data import court, rally, video
from hpml.data.images import say
from hpml.data.labelling import put
from hpml.env import HpmlError

STREAM = 2  # of the court's generator: other scenes than those of its training and test frames
LEAST_WIDTH = 64


def film(target: Path, *, clips: int = 1, frames: int = 300, cuts: int = 0, width: int = 1280, seed: int = 0) -> list[Path]:
    """Writes `clips` videos of `frames` frames, `width` x `width` * 9 / 16, with `cuts` cuts in each, and returns their paths.

    Equal arguments give equal places. Run again, a clip that is there with its truth is kept. Raises HpmlError for numbers out of range
    and where files would be overwritten.
    """
    import numpy as np

    if clips < 1 or cuts < 0 or frames < 2 * (cuts + 1) or width < LEAST_WIDTH:
        raise HpmlError(f"{clips} clips of {frames} frames, {width} wide, with {cuts} cuts: give at least 1 clip, 2 frames between cuts "
                        f"and {LEAST_WIDTH} pixels")
    made = []
    for clip in range(clips):
        path, truth = target / "video" / f"clip{clip}.mp4", target / "csv" / f"clip{clip}_ball.csv"
        made.append(path)
        if path.exists() and truth.exists():
            say(f"{path} is there")
            continue
        rows, lengths = ["Frame,Visibility,X,Y"], [len(part) for part in np.array_split(np.arange(frames), cuts + 1)]
        with video.writer(path, fps=rally.FPS) as add:
            for number, length in enumerate(lengths):
                scene = court.Scene(np.random.default_rng([seed, STREAM, clip, number]), width, length)
                for i in range(length):
                    frame, (x, y, visible) = scene.frame(i)
                    add(frame)
                    rows.append(f"{len(rows) - 1},1,{x:.3f},{y:.3f}" if visible else f"{len(rows) - 1},0,0,0")
        put(truth, ("\n".join(rows) + "\n").encode())
        say(f"{path}: {frames} frames")
    return made
