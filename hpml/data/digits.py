"""Handwritten digits: 1,797 real images that come with scikit-learn, so that something real is always there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hpml.data.images import ImageSet
from hpml.env import HpmlError, Unavailable

if TYPE_CHECKING:
    import numpy as np

SIDE = 32
N_IMAGES, N_TEST = 1797, 360


def find(name: str = "digits") -> Path | None:
    """The file inside scikit-learn, or None; scikit-learn is not imported to find it."""
    import importlib.util

    spec = importlib.util.find_spec("sklearn") if name == "digits" else None
    if spec is None or not spec.origin:
        return None
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return path if path.is_file() else None


def load(path: Path | None = None) -> ImageSet:
    """1,437 + 360 images, 8x8 greys upsampled bilinearly to 32x32 RGB; one fixed split, every digit in proportion.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
    Raises Unavailable without scikit-learn, HpmlError for a damaged file.
    """
    import gzip
    import hashlib

    import numpy as np

    path = path or find()
    if path is None:
        raise Unavailable("handwritten digits come with scikit-learn, which is not installed: pip install scikit-learn")
    try:
        packed = path.read_bytes()  # read as a file: importing scikit-learn for it takes a second
        lines = gzip.decompress(packed).decode("ascii").split()
        table = np.array([line.split(",") for line in lines], np.int64)
    except (OSError, EOFError, ValueError) as error:
        raise HpmlError(f"{path} is damaged ({error}); install scikit-learn again") from None
    if table.shape != (N_IMAGES, 8 * 8 + 1) or table.min() < 0 or table[:, :64].max() > 16 or table[:, 64].max() > 9:
        raise HpmlError(f"{path} does not hold {N_IMAGES:,} digits of 8x8 pixels; install scikit-learn again")

    grey = _upsampled(table[:, :64].reshape(-1, 8, 8).astype(np.float32) / 16)
    images = np.repeat(np.round(grey * 255).astype(np.uint8)[..., None], 3, axis=3)
    labels = table[:, 64]

    # Every class's images, in random order, are spread evenly over one line, whose last 360 are the test part:
    # stratified by construction, and every stretch of either part holds all digits.
    rng = np.random.default_rng(0)
    place = np.empty(N_IMAGES)
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(labels == digit))
        place[members] = (np.arange(len(members)) + 0.5 + digit / 100) / len(members)
    order = np.argsort(place, kind="stable")
    train, test = order[:-N_TEST], order[-N_TEST:]
    return ImageSet(name="digits", title="handwritten digits", origin="embedded", classes=list("0123456789"),
                    train_images=images[train], train_labels=labels[train],
                    test_images=images[test], test_labels=labels[test],
                    checksum=hashlib.sha256(packed).hexdigest(), note="8x8 upsampled to 32x32", mirror_ok=False)


def _upsampled(grey: np.ndarray) -> np.ndarray:
    """[N, 8, 8] -> [N, 32, 32], bilinear, pixel centres kept (as align_corners=False)."""
    import numpy as np

    side = grey.shape[1]
    at = np.clip((np.arange(SIDE) + 0.5) * side / SIDE - 0.5, 0, side - 1)
    low = np.floor(at).astype(int)
    weights = np.zeros((SIDE, side), np.float32)
    weights[np.arange(SIDE), low] += 1 - (at - low)
    weights[np.arange(SIDE), np.minimum(low + 1, side - 1)] += at - low
    return np.einsum("ij,njk,lk->nil", weights, grey, weights)
