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

PAST_SPREAD = 0.01  # standard deviation of a past place's mark in its map, of the frame's width
PAST_ERROR, PAST_LOST = 0.005, 0.3  # in training a past place is off by so much of the width, and missing so often: later it is an answer


@dataclass(frozen=True)
class Augment:
    """What happens to a training frame; a window's frames share all but the noise. Shares are drawn evenly from -value to value."""

    mirror: bool = True  # half of the time, place and frame together
    gain: float = 0.2  # contrast, and half of it brightness
    colour: float = 0.0  # each channel's own contrast: other lamps, other cameras
    noise: float = 0.0  # Gaussian, of 255; its standard deviation is drawn from 0 to this
    frozen: bool = False  # the same noise for a sample in every epoch: a mistake that can be made on purpose (notebook 15)


AUGMENTS = {"none": Augment(mirror=False, gain=0.0), "light": Augment(), "strong": Augment(gain=0.3, colour=0.15, noise=10.0)}


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


def preceding(clips: tuple[str, ...], numbers: tuple[int, ...], length: int) -> np.ndarray:
    """Rows [N, length] of the `length` frames before each one, the nearest first; -1 where the clip has none of that number here."""
    import numpy as np

    rows = {place: row for row, place in enumerate(zip(clips, numbers, strict=True))}
    found = [[rows.get((clip, number - k), -1) for k in range(1, length + 1)] for clip, number in zip(clips, numbers, strict=True)]
    return np.array(found, int).reshape(len(numbers), length)


def normalised(frame: np.ndarray, gain: np.ndarray | float = 1.0, shift: float = 0.0) -> np.ndarray:
    """A frame uint8 [height, width, 3] as the model takes it: float32 [3, height, width] by ImageNet's mean and deviation, brighter by
    `gain` (or one for each channel) and `shift` (of 1)."""
    import numpy as np

    scale = np.float32(gain / (255 * np.array(STD)))[:, None, None]
    offset = np.float32((shift - np.array(MEAN)) / np.array(STD))[:, None, None]
    return frame.transpose(2, 0, 1).astype(np.float32, order="C") * scale + offset


def mark(place: np.ndarray, height: int, width: int) -> np.ndarray:
    """The map float32 [1, height, width] of a past place (x, y, visible): a Gaussian of height 1 around it, all 0 where it was not seen."""
    import numpy as np

    drawn, spread = np.zeros((1, height, width), np.float32), PAST_SPREAD * width
    if place[2] > 0:
        (left, top), (right, low) = (np.floor(place[:2] - 3 * spread).astype(int), np.ceil(place[:2] + 3 * spread).astype(int))
        columns, rows = np.arange(max(left, 0), min(right, width)), np.arange(max(top, 0), min(low, height))
        away = (rows[:, None] + 0.5 - place[1]) ** 2 + (columns[None] + 0.5 - place[0]) ** 2
        drawn[0, max(top, 0):min(low, height), max(left, 0):min(right, width)] = np.exp(-away / (2 * spread**2))
    return drawn


class FrameDataset(PickledByPath):
    """A map-style data set for torch's loader: index -> (float32 tensor [channels, height, width], float32 tensor [3] of x, y, visible).

    train: changed as `augment` says; all randomness comes from torch's default generator, but for frozen noise. storage "jpeg" decodes the
    frame's JPEG for each sample, as a folder of pictures asks for. `previous` [N, k]: rows of the frames before each one (`preceding`);
    the channels are then the frame's, those of the k frames before it (where one is missing, of the next one after it again) and k maps
    of the places in them (`mark`), which are `past` [N, 3], by default the labels: whoever evaluates puts answers there. Picklable under
    fork, spawn and forkserver; memory maps are pickled by path.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, train: bool, storage: str = "array", augment: Augment | None = None,
                 previous: np.ndarray | None = None) -> None:
        import numpy as np

        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or labels.shape != (len(images), 3):
            raise HpmlError(f"frames: uint8 [N, height, width, 3] with labels [N, 3] are expected, got {images.dtype} {list(images.shape)} "
                            f"with {list(labels.shape)}")
        self.labels, self.past, self.train, self.storage = labels, labels, train, storage
        self.augment, self.previous = augment or Augment(), previous
        if storage == "jpeg":
            self.encoded, self.offsets = jpegs(images, images.shape[2:0:-1])
        else:
            self.images = images

    def __len__(self) -> int:
        return len(self.labels)

    def _pixels(self, row: int) -> np.ndarray:
        import numpy as np
        from PIL import Image

        if self.storage == "jpeg":
            return np.asarray(Image.open(io.BytesIO(self.encoded[self.offsets[row]:self.offsets[row + 1]].tobytes())))
        return np.asarray(self.images[row])

    def __getitem__(self, index: int) -> tuple:
        import numpy as np
        import torch

        index = range(len(self))[index]
        before = [] if self.previous is None else [row if row < len(self) else -1 for row in self.previous[index]]
        truth, frames = np.array(self.labels[index], np.float32), [self._pixels(index)]
        for row in before:
            frames.append(self._pixels(row) if row >= 0 else frames[-1])
        places = [np.array(self.past[row], np.float32) if row >= 0 else np.zeros(3, np.float32) for row in before]
        gain, shift, width, mirrored = 1.0, 0.0, frames[0].shape[1], False
        if self.train:
            own = self.augment
            draws = torch.rand(3).tolist()
            gain, shift = 1 + own.gain * (2 * draws[0] - 1), own.gain * (draws[1] - 0.5)
            if own.colour:
                gain = gain * (1 + own.colour * (2 * torch.rand(3).numpy() - 1))
            mirrored = own.mirror and draws[2] < 0.5
            for place in places:
                place[:2] += PAST_ERROR * width * torch.randn(2).numpy()
                place[2] *= float(torch.rand(1)) >= PAST_LOST
        if mirrored:
            frames = [frame[:, ::-1] for frame in frames]
            for place in (truth, *places):
                place[0] = width - place[0]
        channels = [normalised(frame, gain, shift) for frame in frames]
        if self.train and self.augment.noise:
            self._add_noise(channels, index)
        channels += [mark(place, *frames[0].shape[:2]) for place in places]
        return torch.from_numpy(channels[0] if len(channels) == 1 else np.concatenate(channels)), torch.from_numpy(truth)

    def _add_noise(self, channels: list[np.ndarray], index: int) -> None:
        import numpy as np
        import torch

        source = torch.Generator().manual_seed(index) if self.augment.frozen else None
        strength = float(torch.rand(1, generator=source)) * self.augment.noise / 255
        for frame in channels:
            frame += torch.randn(frame.shape, generator=source).numpy() * np.float32(strength / np.array(STD))[:, None, None]
