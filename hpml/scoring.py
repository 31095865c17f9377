"""Figures of predictions beyond one score: by class, by confidence, at outlines, and differences over paired seeds."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpml import compare

if TYPE_CHECKING:
    import numpy as np

BINS = 10  # of confidence


def paired_difference(one: Sequence[float], other: Sequence[float]) -> dict:
    """Mean of `other` minus `one` over seeds that both were run with, and its 95 % Student interval; one seed bounds nothing."""
    gains = [b - a for a, b in zip(one, other, strict=True)]
    mean, low, high = compare.mean_interval(gains) if len(gains) > 1 else (gains[0], -math.inf, math.inf)
    return {"mean": mean, "low": low, "high": high, "n": len(gains)}


def by_confidence(right: "np.ndarray", sure: "np.ndarray", bins: int = BINS) -> dict:
    """Accuracy and mean confidence of the answers [N] in bins of equal width, and the expected calibration error: their distance weighted
    by the answers (Guo et al., 2017, arXiv:1706.04599)."""
    import numpy as np

    place, rows = np.minimum((np.asarray(sure) * bins).astype(int), bins - 1), []
    for b in np.unique(place):
        own = place == b
        rows.append({"from": b / bins, "to": (b + 1) / bins, "n": int(own.sum()), "right": float(right[own].mean()),
                     "confidence": float(sure[own].mean())})
    return {"bins": rows, "ece": sum(row["n"] * abs(row["right"] - row["confidence"]) for row in rows) / len(place)}


def rim(mask: "np.ndarray", width: int) -> "np.ndarray":
    """The pixels of a mask bool [H, W] within `width` pixels of its outline; what lies beyond the picture is not part of the outline."""
    import numpy as np
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=1)


def boundary_iou(true: "np.ndarray", said: "np.ndarray", width: int) -> float | None:
    """IoU of the rims of two masks bool [H, W], which a large inside hides (Cheng et al., 2021, arXiv:2103.16562); None without any rim."""
    one, other = rim(true, width), rim(said, width)
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else None


def mask_ious(true: "np.ndarray", said: "np.ndarray", classes: int) -> "np.ndarray":
    """IoU by picture and class, [N, classes], of masks [N, H, W]; nan where a class stands in neither."""
    import numpy as np

    found = np.full((len(true), classes), np.nan)
    for c in range(classes):
        a, b = (true == c).reshape(len(true), -1), (said == c).reshape(len(true), -1)
        union = (a | b).sum(1)
        found[:, c] = np.where(union > 0, (a & b).sum(1) / np.maximum(union, 1), np.nan)
    return found
