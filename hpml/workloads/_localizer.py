"""The two-stage localizer: one network finds the place in the frame, a second one refines it in a crop at full resolution.

Both are an EfficientNet of timm with a neck (_pyramids.py) whose map of features becomes a heat map, of which a place is read
(_decoding.py). Beside it stand the simpler designs that the ladder of versions begins with.
"""

from typing import Optional

import torch
from timm import create_model
from torch import nn
from torch.nn import functional

from hpml.workloads._decoding import DECODINGS, Always, Seen, expected, map_loss
from hpml.workloads._designs import Design, crop_side
from hpml.workloads._pyramids import CHANNELS, NECKS

__all__ = ["Find", "Localizer", "OneStage", "Pooled", "Refine", "build", "corner_of", "crop_side", "cut", "expected", "map_loss"]
SHRINK = 2  # the first network sees the frame at half its side
JITTER = 0.3  # of the crop's side: how far its centre is from the truth in training, at most
OWN_SHARE = 0.25  # of the training crops lie where the first network looks, as all of them do later
REGRESSION_PX = 0.01  # of the frame's width, the unit in which a regressed place's error is counted


def build(design: Design) -> nn.Module:
    """The model of a design: frames [N, channels, H, W] -> [N, 3], and in training with the truth its losses; see Localizer."""
    if design.decode == "regression":
        return Pooled(design)
    return Localizer(design) if design.stages == 2 else OneStage(design)


def features_of(design: Design, levels: tuple[int, ...]) -> nn.Module:
    """The design's backbone with random weights, giving `levels` of its features; its first layer takes the design's channels."""
    return create_model(design.backbone, pretrained=False, features_only=True, out_indices=levels, in_chans=design.channels)


class Stage(nn.Module):
    """[N, channels, H, W] -> (heat map's logits [N, H / stride, W / stride], the features behind it [N, 64, H / stride, W / stride])."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.backbone = features_of(design, (1, 2, 3, 4))
        self.neck = NECKS[design.neck](self.backbone.feature_info.channels())
        self.heat = nn.Conv2d(CHANNELS, 1, 1)

    def forward(self, x):
        features = self.neck(self.backbone(x))
        return self.heat(features)[:, 0], features


class Localizer(nn.Module):
    """frames [N, channels, H, W] -> [N, 3]: x, y in the frame's own pixels and the logit of being visible.

    In training with `truth` [N, 3] (x, y, visible) it returns each sample's losses instead, [N, 3]: heat map of the first network, heat
    map of the second, visibility; a place that is not there has no heat-map loss. It needs no size: the crop's side follows from the frame.
    """

    shrink: torch.jit.Final[int] = SHRINK  # TorchScript knows no constants of a file
    stride: torch.jit.Final[int]
    jitter: torch.jit.Final[float] = JITTER
    own_share: torch.jit.Final[float] = OWN_SHARE

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.find, self.refine = Stage(design), Stage(design)
        self.place, self.spot = DECODINGS[design.decode](), DECODINGS[design.decode]()
        self.visible = Seen() if design.visible else Always()
        self.stride = NECKS[design.neck].stride

    def forward(self, frames, truth: Optional[torch.Tensor] = None):  # noqa: UP045 TorchScript
        coarse, seen = self.find(functional.avg_pool2d(frames, self.shrink))
        place = self.place(coarse, seen) * (self.stride * self.shrink)
        side = crop_side(frames.shape[-1])
        if truth is None:
            corner = corner_of(place, frames, side)
        else:
            corner = corner_of(self._looked_at(place.detach(), truth, side), frames, side)
        fine, features = self.refine(cut(frames, corner, side))
        logit = self.visible(features)
        if truth is None:
            return torch.cat((corner + self.spot(fine, features) * self.stride, logit), dim=1)
        point, there = truth[:, :2] - corner, truth[:, 2]
        inside = there * ((point >= 0) & (point < side)).all(1)
        first = self.place.loss(coarse, seen, truth[:, :2] / (self.stride * self.shrink)) * there
        second = self.spot.loss(fine, features, point / self.stride) * inside
        return torch.stack((first, second, self.visible.loss(logit, inside)), dim=1)

    def _looked_at(self, place, truth, side: int):
        """Centres of the training crops: near the truth, or where the first network looks, as where nothing is visible."""
        drawn = torch.rand(len(truth), 3, device=truth.device)
        near = truth[:, :2] + (2 * drawn[:, :2] - 1) * self.jitter * side
        own = (drawn[:, 2:] < self.own_share) | (truth[:, 2:] == 0)
        return torch.where(own, place, near)


class OneStage(nn.Module):
    """The first network alone, with an answer of its own; inputs, outputs and losses as Localizer's, the second loss 0."""

    shrink: torch.jit.Final[int] = SHRINK
    scale: torch.jit.Final[int]

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.find, self.place = Stage(design), DECODINGS[design.decode]()
        self.visible = Seen() if design.visible else Always()
        self.scale = NECKS[design.neck].stride * SHRINK

    def forward(self, frames, truth: Optional[torch.Tensor] = None):  # noqa: UP045
        coarse, features = self.find(functional.avg_pool2d(frames, self.shrink))
        logit = self.visible(features)
        if truth is None:
            return torch.cat((self.place(coarse, features) * self.scale, logit), dim=1)
        first = self.place.loss(coarse, features, truth[:, :2] / self.scale) * truth[:, 2]
        return torch.stack((first, torch.zeros_like(first), self.visible.loss(logit, truth[:, 2])), dim=1)


class Pooled(nn.Module):
    """No map at all: the mean of the deepest features, and a line to x and y as shares of the frame. Where, is averaged away."""

    shrink: torch.jit.Final[int] = SHRINK
    unit: torch.jit.Final[float] = REGRESSION_PX

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.backbone = features_of(design, (4,))
        self.line = nn.Linear(self.backbone.feature_info.channels()[-1], 2)
        self.visible = Always()

    def forward(self, frames, truth: Optional[torch.Tensor] = None):  # noqa: UP045
        features = self.backbone(functional.avg_pool2d(frames, self.shrink))[0]
        width = frames.shape[-1]
        share = self.line(features.mean((2, 3))).float().sigmoid()
        place = torch.stack((share[:, 0] * width, share[:, 1] * frames.shape[-2]), dim=1)
        logit = self.visible(features)
        if truth is None:
            return torch.cat((place, logit), dim=1)
        wrong = functional.smooth_l1_loss(place, truth[:, :2], reduction="none", beta=self.unit * width).sum(1) / (self.unit * width)
        return torch.stack((wrong * truth[:, 2], torch.zeros_like(wrong), self.visible.loss(logit, truth[:, 2])), dim=1)


class Find(nn.Module):
    """The first network alone: frames [N, channels, H, W] -> places [N, 2] in pixels of the frame."""

    def __init__(self, whole: Localizer) -> None:
        super().__init__()
        self.find, self.place, self.shrink, self.scale = whole.find, whole.place, SHRINK, whole.stride * SHRINK

    def forward(self, frames):
        coarse, features = self.find(functional.avg_pool2d(frames, self.shrink))
        return self.place(coarse, features) * self.scale


class Refine(nn.Module):
    """The second network alone: crops [N, channels, side, side] -> [N, 3], place in pixels of the crop and logit of being visible."""

    def __init__(self, whole: Localizer) -> None:
        super().__init__()
        self.refine, self.spot, self.visible, self.stride = whole.refine, whole.spot, whole.visible, whole.stride

    def forward(self, crops):
        fine, features = self.refine(crops)
        return torch.cat((self.spot(fine, features) * self.stride, self.visible(features)), dim=1)


def corner_of(centre, frames, side: int):
    """Upper left corners [N, 2], whole pixels as float, of the crops around `centre`, moved so that they lie in the frame."""
    corner = (centre - side / 2).floor()
    return torch.stack((corner[:, 0].clamp(0, frames.shape[-1] - side), corner[:, 1].clamp(0, frames.shape[-2] - side)), dim=1)


def cut(frames, corner, side: int):
    """Crops [N, channels, side, side], pixel by pixel: one index into the flat frames exports with any batch and interpolates nothing."""
    n, channels, height, width = frames.shape
    steps = torch.arange(side, device=frames.device)
    columns, rows = corner[:, :1].long() + steps, corner[:, 1:].long() + steps
    planes = torch.arange(n * channels, device=frames.device).view(n, channels, 1, 1) * (height * width)
    index = planes + rows[:, None, :, None] * width + columns[:, None, None, :]
    return frames.reshape(-1).index_select(0, index.reshape(-1)).view(n, channels, side, side)
