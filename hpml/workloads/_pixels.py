"""Figures of a localizer: pixel errors where something is visible, and TrackNet's count of right and wrong answers over all frames.

TrackNetV2 (Sun et al., 2020, doi:10.1109/ICPAI51961.2020.00051) calls an answer right within 4 pixels. Four pixels of a small frame are
more of the picture than four of a large one, so the counts take WITHIN_PX at REFERENCE_WIDTH and scale it by the frame's own width:
`limit(640)` is 2 pixels of a frame 640 wide, `limit(1920)` 6 of a full-HD one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

WITHIN_PX = 4.0
REFERENCE_WIDTH = 1280  # of TrackNet's frames, in pixels
OUTCOMES = ("TP", "FP1", "FP2", "FN", "TN")


def limit(width: int) -> float:
    """WITHIN_PX of a frame 1280 wide, in pixels of one `width` wide."""
    return WITHIN_PX * width / REFERENCE_WIDTH


def pixel_errors(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Distances in pixels [n] between places [N, 2 or more] and labels [N, 3] on the n frames with a visible shuttle."""
    import numpy as np

    seen = labels[:, 2] > 0
    return np.hypot(*(answers[seen, :2] - labels[seen, :2]).T)


def outcomes(answers: np.ndarray, labels: np.ndarray, within_px: float) -> dict[str, int]:
    """Frames by TrackNet's five outcomes: TP visible and found within `within_px`, FP1 visible but found farther away, FP2 found where
    nothing is visible, FN visible and not found, TN nothing visible and nothing found.

    answers [N, 3] (x, y, logit: found where it is positive), labels [N, 3] (x, y, visible).
    """
    import numpy as np

    found, there = answers[:, 2] > 0, labels[:, 2] > 0
    near = np.hypot(*(answers[:, :2] - labels[:, :2]).T) <= within_px
    counts = (found & there & near, found & there & ~near, found & ~there, ~found & there, ~found & ~there)
    return {name: int(rows.sum()) for name, rows in zip(OUTCOMES, counts, strict=True)}


def rates(counts: dict[str, int]) -> dict[str, float]:
    """precision TP / (TP + FP1 + FP2), recall TP / (TP + FN) and F1 of `outcomes`, as TrackNetV2 and V3 compute them; 0 for 0 of 0.

    A place that is too far away costs precision, not recall: the shuttle was seen.
    """
    right = counts["TP"]
    answered, seen = right + counts["FP1"] + counts["FP2"], right + counts["FN"]
    precision, recall = right / answered if answered else 0.0, right / seen if seen else 0.0
    return {"precision": precision, "recall": recall, "F1": 2 * precision * recall / (precision + recall) if right else 0.0}


def visibility_f1(answers: np.ndarray, labels: np.ndarray) -> float:
    """F1 of the answer "visible?" alone, wherever the place is."""
    there, found = labels[:, 2] > 0, answers[:, 2] > 0
    both, either = int((there & found).sum()), int(there.sum() + found.sum())
    return 2 * both / either if either else 0.0


def scores(answers: np.ndarray, labels: np.ndarray, width: int) -> dict[str, float]:
    """All figures by name: mean, median and P95 error in the frame's own pixels, the share of visible frames within 4 px at 1280 pixels
    (scaled, whether they were called visible or not), TrackNet's rates under the same limit, and "visible?" alone."""
    import numpy as np

    errors = pixel_errors(answers, labels)
    known = errors if errors.size else np.zeros(1)
    right = (answers[:, 2] > 0) == (labels[:, 2] > 0)
    return {"mean error px": float(known.mean()), "median error px": float(np.median(known)),
            "P95 error px": float(np.percentile(known, 95)),
            "within 4 px at 1280": float((errors <= limit(width)).mean()) if errors.size else 0.0,
            **rates(outcomes(answers, labels, limit(width))), "visible or not": float(right.mean()),
            "always visible": float((labels[:, 2] > 0).mean()), "visibility F1": visibility_f1(answers, labels)}
