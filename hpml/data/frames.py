"""Frames with the place of one small thing: what a set of them is, a part of it, and how a sample is read."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hpml.data.images import ImageSet, balanced, jpegs
from hpml.data.jpegfiles import MEAN, STD
from hpml.data.mapped import PickledByPath
from hpml.env import HpmlError

if TYPE_CHECKING:
    import numpy as np

GAIN = 0.2  # brightness and contrast of training frames change by up to this share


@dataclass(frozen=True, eq=False)
class FrameSet(ImageSet):
    """An ImageSet of frames, uint8 [N, height, width, 3]; labels float32 [N, 3]: x, y in the frame's own pixels, visible (0 or 1)."""

    unit: str = "frames"
    train_clips: tuple[str, ...] = ()  # one name for each frame
    test_clips: tuple[str, ...] = ()
    train_numbers: tuple[int, ...] = ()  # of the frame in its clip
    test_numbers: tuple[int, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()  # (file, what was wrong and how it was decided)


def subset(frames: FrameSet, n_train: int, n_test: int, seed: int) -> FrameSet:
    """A deterministic part of the set in which clips take turns; n <= 0 or more than there is means all, unchanged."""
    import numpy as np

    changed = {}
    for stream, (part, n) in enumerate((("train", n_train), ("test", n_test))):
        clips = getattr(frames, f"{part}_clips")
        if not 0 < n < len(clips):
            continue
        known = sorted(set(clips))
        chosen = balanced(np.array([known.index(clip) for clip in clips]), len(known), n, seed, stream)
        changed |= {f"{part}_{what}": tuple(getattr(frames, f"{part}_{what}")[i] for i in chosen) for what in ("clips", "numbers")}
        changed |= {f"{part}_{what}": getattr(frames, f"{part}_{what}")[chosen] for what in ("images", "labels")}
    return replace(frames, **changed)


class FrameDataset(PickledByPath):
    """A map-style data set for torch's loader: index -> (float32 tensor [3, height, width], float32 tensor [3] of x, y, visible).

    train: mirrored half of the time, place and frame together, with another brightness and contrast; all randomness comes from torch's
    default generator. storage "jpeg" decodes the frame's JPEG for each sample, as a folder of pictures asks for. Picklable under fork,
    spawn and forkserver; memory maps are pickled by path.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, train: bool, storage: str = "array") -> None:
        import numpy as np

        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or labels.shape != (len(images), 3):
            raise HpmlError(f"frames: uint8 [N, height, width, 3] with labels [N, 3] are expected, got {images.dtype} {list(images.shape)} "
                            f"with {list(labels.shape)}")
        self.labels, self.train, self.storage = labels, train, storage
        if storage == "jpeg":
            self.encoded, self.offsets = jpegs(images, images.shape[2:0:-1])
        else:
            self.images = images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple:
        import numpy as np
        import torch
        from PIL import Image

        index = range(len(self))[index]
        truth = np.array(self.labels[index], np.float32)
        if self.storage == "jpeg":
            frame = np.asarray(Image.open(io.BytesIO(self.encoded[self.offsets[index]:self.offsets[index + 1]].tobytes())))
        else:
            frame = np.asarray(self.images[index])
        gain, shift = 1.0, 0.0
        if self.train:
            draws = torch.rand(3).tolist()
            gain, shift = 1 + GAIN * (2 * draws[0] - 1), GAIN * (draws[1] - 0.5)
            if draws[2] < 0.5:
                frame, truth[0] = frame[:, ::-1], frame.shape[1] - truth[0]
        scale = np.float32(gain / (255 * np.array(STD)))[:, None, None]
        offset = np.float32((shift - np.array(MEAN)) / np.array(STD))[:, None, None]
        return torch.from_numpy(frame.transpose(2, 0, 1).astype(np.float32, order="C") * scale + offset), torch.from_numpy(truth)
