"""The two-stage localizer: one network finds the place in the frame, a second one refines it in a crop at full resolution.

Both are an EfficientNet of timm with an FPN (Lin et al., 2017, arXiv:1612.03144) whose finest level becomes a heat map. The place is the
mean of the map's softmax (soft-argmax; Nibali et al., 2018, arXiv:1801.07372), so that it lies between cells and changes smoothly.
"""

from typing import Optional

import torch
from timm import create_model
from torch import nn
from torch.nn import functional

STRIDE = 4  # of both heat maps, in pixels of their network's input
SHRINK = 2  # the first network sees the frame at half its side
SHARPNESS = 4.0  # the soft-argmax takes the softmax of so many times the map: a second, weaker peak then hardly pulls
SPREAD = 1.0  # standard deviation of the target's Gaussian, in cells
CHANNELS = 64  # of the FPN
JITTER = 0.3  # of the crop's side: how far its centre is from the truth in training, at most
OWN_SHARE = 0.25  # of the training crops lie where the first network looks, as all of them do later


class Stage(nn.Module):
    """[N, 3, H, W] -> (heat map's logits [N, H / 4, W / 4], the finest features [N, 64, H / 4, W / 4])."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = create_model(backbone, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4))
        self.laterals = nn.ModuleList(nn.Conv2d(channels, CHANNELS, 1) for channels in self.backbone.feature_info.channels())
        self.smooth = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.SiLU())
        self.heat = nn.Conv2d(CHANNELS, 1, 1)

    def forward(self, x):
        found = self.backbone(x)
        levels = [x]  # TorchScript cannot make an empty list of tensors without a type
        for i, lateral in enumerate(self.laterals):
            levels.append(lateral(found[i]))
        merged = levels[-1]
        for i in range(len(levels) - 2, 0, -1):
            merged = levels[i] + functional.interpolate(merged, size=levels[i].shape[-2:], mode="nearest")
        features = self.smooth(merged)
        return self.heat(features)[:, 0], features


class Localizer(nn.Module):
    """frames [N, 3, H, W] -> [N, 3]: x, y in the frame's own pixels and the logit of being visible.

    In training with `truth` [N, 3] (x, y, visible) it returns each sample's losses instead, [N, 3]: heat map of the first network, heat
    map of the second, visibility; a place that is not there has no heat-map loss. It needs no size: the crop's side follows from the frame.
    """

    shrink: torch.jit.Final[int] = SHRINK  # TorchScript knows no constants of a file
    stride: torch.jit.Final[int] = STRIDE
    jitter: torch.jit.Final[float] = JITTER
    own_share: torch.jit.Final[float] = OWN_SHARE

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.find, self.refine = Stage(backbone), Stage(backbone)
        self.visible = nn.Linear(CHANNELS, 1)

    def forward(self, frames, truth: Optional[torch.Tensor] = None):  # noqa: UP045 TorchScript
        coarse, _ = self.find(functional.avg_pool2d(frames, self.shrink))
        place = expected(coarse) * (self.stride * self.shrink)
        side = crop_side(frames.shape[-1])
        if truth is None:
            corner = corner_of(place, frames, side)
        else:
            corner = corner_of(self._looked_at(place.detach(), truth, side), frames, side)
        fine, features = self.refine(cut(frames, corner, side))
        logit = self.visible(features.amax((2, 3))).float()
        if truth is None:
            return torch.cat((corner + expected(fine) * self.stride, logit), dim=1)
        point, there = truth[:, :2] - corner, truth[:, 2]
        inside = there * ((point >= 0) & (point < side)).all(1)
        first = map_loss(coarse, truth[:, :2] / (self.stride * self.shrink)) * there
        second = map_loss(fine, point / self.stride) * inside
        seen = functional.binary_cross_entropy_with_logits(logit[:, 0], inside, reduction="none")
        return torch.stack((first, second, seen), dim=1)

    def _looked_at(self, place, truth, side: int):
        """Centres of the training crops: near the truth, or where the first network looks, as where nothing is visible."""
        drawn = torch.rand(len(truth), 3, device=truth.device)
        near = truth[:, :2] + (2 * drawn[:, :2] - 1) * self.jitter * side
        own = (drawn[:, 2:] < self.own_share) | (truth[:, 2:] == 0)
        return torch.where(own, place, near)


class Find(nn.Module):
    """The first network alone: frames [N, 3, H, W] -> places [N, 2] in pixels of the frame."""

    def __init__(self, whole: Localizer) -> None:
        super().__init__()
        self.find, self.shrink, self.scale = whole.find, SHRINK, STRIDE * SHRINK

    def forward(self, frames):
        return expected(self.find(functional.avg_pool2d(frames, self.shrink))[0]) * self.scale


class Refine(nn.Module):
    """The second network alone: crops [N, 3, side, side] -> [N, 3], the place in pixels of the crop and the logit of being visible."""

    def __init__(self, whole: Localizer) -> None:
        super().__init__()
        self.refine, self.visible, self.stride = whole.refine, whole.visible, STRIDE

    def forward(self, crops):
        fine, features = self.refine(crops)
        return torch.cat((expected(fine) * self.stride, self.visible(features.amax((2, 3))).float()), dim=1)


def crop_side(width: int) -> int:
    """Side of the second network's crop: 224 of a frame 1280 pixels wide, a multiple of 32, at least 64."""
    return max(64, 32 * ((width * 224 + 1280 * 16) // (1280 * 32)))


def expected(logits, sharpness: float = SHARPNESS):
    """Soft-argmax of heat maps [N, h, w]: the mean place (x, y) in cells, [N, 2]; cell i reaches from i to i + 1.

    Over the flat map: from sums by rows and columns OpenVINO 2026.4 makes another function where the batch is dynamic.
    """
    height, width = logits.shape[1:]
    share = (sharpness * logits.float()).flatten(1).softmax(1)
    cells = torch.arange(height * width, device=logits.device)
    return torch.stack(((share * (cells % width + 0.5)).sum(1), (share * (cells // width + 0.5)).sum(1)), dim=1)


def corner_of(centre, frames, side: int):
    """Upper left corners [N, 2], whole pixels as float, of the crops around `centre`, moved so that they lie in the frame."""
    corner = (centre - side / 2).floor()
    return torch.stack((corner[:, 0].clamp(0, frames.shape[-1] - side), corner[:, 1].clamp(0, frames.shape[-2] - side)), dim=1)


def cut(frames, corner, side: int):
    """Crops [N, 3, side, side], pixel by pixel: one index into the flat frames exports with any batch and interpolates nothing."""
    n, channels, height, width = frames.shape
    steps = torch.arange(side, device=frames.device)
    columns, rows = corner[:, :1].long() + steps, corner[:, 1:].long() + steps
    planes = torch.arange(n * channels, device=frames.device).view(n, channels, 1, 1) * (height * width)
    index = planes + rows[:, None, :, None] * width + columns[:, None, None, :]
    return frames.reshape(-1).index_select(0, index.reshape(-1)).view(n, channels, side, side)


def map_loss(logits, point, spread: float = SPREAD):
    """Cross-entropy [N] between the softmax of heat maps [N, h, w] and a Gaussian around `point` [N, 2] (x, y in cells)."""
    logits = logits.float()
    across = torch.arange(logits.shape[2], device=logits.device) + 0.5 - point[:, :1]
    down = torch.arange(logits.shape[1], device=logits.device) + 0.5 - point[:, 1:]
    target = (-(down[:, :, None] ** 2 + across[:, None, :] ** 2) / (2 * spread**2)).flatten(1).softmax(1)
    return -(target * logits.flatten(1).log_softmax(1)).sum(1)
