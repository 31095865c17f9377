"""Images with masks: how a sample for segmentation is read, image and mask cut and mirrored alike."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from hpml.data.images import jpegs
from hpml.data.mapped import PickledByPath
from hpml.env import HpmlError

if TYPE_CHECKING:
    import numpy as np

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which published backbones were trained with
MIN_CROP_AREA = 0.5  # a smaller part of a picture often holds no outline of the animal


class MaskDataset(PickledByPath):
    """A map-style data set for torch's loader: index -> (float32 tensor [3, image, image], uint8 tensor [image, image]).

    train: one random crop and mirroring for image and mask together; all randomness comes from torch's default generator. Masks are
    resized by the nearest pixel, so that no value arises between two classes. storage "jpeg" decodes a JPEG of `jpeg_side` pixels for
    each sample. Picklable under fork, spawn and forkserver; memory maps are pickled by path. Raises HpmlError on arrays that do not fit.
    """

    def __init__(self, images: np.ndarray, masks: np.ndarray, *, train: bool, image: int, storage: str = "array",
                 jpeg_side: int = 256) -> None:
        import numpy as np

        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise HpmlError(f"images: uint8 [N, height, width, 3] is expected, got {images.dtype} {list(images.shape)}")
        if masks.shape != images.shape[:3] or masks.dtype != np.uint8:
            raise HpmlError(f"masks: uint8 {list(images.shape[:3])} is expected, got {masks.dtype} {list(masks.shape)}")
        self.masks, self.train, self.image, self.storage = masks, train, image, storage
        if storage == "jpeg":
            self.encoded, self.offsets = jpegs(images, jpeg_side)
        else:
            self.images = images

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> tuple:
        import numpy as np
        import torch
        from PIL import Image

        index = range(len(self))[index]
        crop, mirrored = (0.0, 0.0, 1.0, 1.0), False
        if self.train:
            draws = torch.rand(4).tolist()
            share = (MIN_CROP_AREA + (1 - MIN_CROP_AREA) * draws[0]) ** 0.5  # of a side
            left, top = draws[1] * (1 - share), draws[2] * (1 - share)
            crop, mirrored = (left, top, left + share, top + share), draws[3] < 0.5
        if self.storage == "jpeg":
            picture = Image.open(io.BytesIO(self.encoded[self.offsets[index] : self.offsets[index + 1]].tobytes()))
        else:
            picture = Image.fromarray(np.asarray(self.images[index]))
        mask = Image.fromarray(np.asarray(self.masks[index]))
        size = (self.image, self.image)
        pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=[c * picture.width for c in crop]))
        classes = np.asarray(mask.resize(size, Image.Resampling.NEAREST, box=[c * mask.width for c in crop]))
        if mirrored:
            pixels, classes = pixels[:, ::-1], classes[:, ::-1]
        scale, shift = np.float32(1 / (255 * np.array(STD))), np.float32(-np.array(MEAN) / np.array(STD))
        normal = pixels.transpose(2, 0, 1).astype(np.float32, order="C") * scale[:, None, None] + shift[:, None, None]
        return torch.from_numpy(normal), torch.from_numpy(classes.copy())
