"""Hard examples: samples that were answered badly are drawn more often in the next epoch.

Online hard example mining (Shrivastava et al., 2016, arXiv:1604.03540) trains on the worst alone; here every sample keeps a chance, because
the worst of labels are often wrong ones, and a sample that was answered well is forgotten when it never comes again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

HARD_SHARE = 0.5  # of the draws that go by error; the rest is even
MOST = 8.0  # times the mean sample: one of them does not become the epoch


def chances(errors: np.ndarray, hard_share: float = HARD_SHARE) -> np.ndarray:
    """The probability [N] with which each sample is drawn in the next epoch, of its error [N] in the last one, at least 0.

    Samples without an error yet (not a number) count as the mean one. Equal errors are drawn evenly.
    """
    import numpy as np

    errors = np.asarray(errors, float)
    known = errors[np.isfinite(errors)]
    mean = known.mean() if known.size else 0.0
    if mean <= 0:
        return np.full(len(errors), 1 / len(errors))
    weights = np.minimum(hard_share * np.where(np.isfinite(errors), errors, mean) / mean + 1 - hard_share, MOST)
    return weights / weights.sum()
