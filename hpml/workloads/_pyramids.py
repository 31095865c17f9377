"""Necks of the localizer: from the levels of a backbone to one map of features.

Each takes the levels with 1/4, 1/8, 1/16 and 1/32 of the input's side, finest first, and answers [N, CHANNELS, H / stride, W / stride].
"""

from typing import List  # noqa: UP035 TorchScript of the oldest torch here

import torch
from torch import nn
from torch.nn import functional

CHANNELS = 64
REPEATS = 2  # of BiFPN's layer: EfficientDet-D0 has three, with as many channels
EPSILON = 1e-4  # BiFPN's, in the sum of the weights


def smoothed() -> nn.Sequential:
    """What every neck ends with."""
    return nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.SiLU())


class OneLevel(nn.Module):
    """No pyramid: the level of a sixteenth alone, deep enough to know a shuttle and not yet without its place."""

    stride = 16

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.lateral, self.smooth = nn.Conv2d(channels[2], CHANNELS, 1), smoothed()

    def forward(self, levels: List[torch.Tensor]):  # noqa: UP006
        return self.smooth(self.lateral(levels[2]))


class Fpn(nn.Module):
    """Feature pyramid (Lin et al., 2017, arXiv:1612.03144): coarse levels are enlarged and added to finer ones, the finest last."""

    stride = 4

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(channel, CHANNELS, 1) for channel in channels)
        self.smooth = smoothed()

    def forward(self, levels: List[torch.Tensor]):  # noqa: UP006
        sides = [levels[0]]  # TorchScript cannot make an empty list of tensors without a type
        for i, lateral in enumerate(self.laterals):
            sides.append(lateral(levels[i]))
        merged = sides[-1]
        for i in range(len(sides) - 2, 0, -1):
            merged = sides[i] + enlarged(merged, sides[i])
        return self.smooth(merged)


class Fusion(nn.Module):
    """BiFPN's fast normalised fusion: maps of one size, weighted by learnt shares that are not negative, then a separable convolution."""

    epsilon: torch.jit.Final[float] = EPSILON  # TorchScript knows no constants of a file

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.conv = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False),
                                  nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS))

    def shares(self):
        """What the inputs count, together almost 1."""
        weights = self.weights.relu()
        return weights / (weights.sum() + self.epsilon)

    def forward(self, maps: List[torch.Tensor]):  # noqa: UP006
        shares = self.shares()
        whole = maps[0] * shares[0]
        for i in range(1, len(maps)):
            whole = whole + maps[i] * shares[i]
        return self.conv(functional.silu(whole))


class BiFpnLayer(nn.Module):
    """One way down and one way up again over four levels; a level between the ends also sees its own input on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down4, self.down3, self.down2 = Fusion(2), Fusion(2), Fusion(2)
        self.up3, self.up4, self.up5 = Fusion(3), Fusion(3), Fusion(2)

    def forward(self, levels: List[torch.Tensor]):  # noqa: UP006
        level4 = self.down4([levels[2], enlarged(levels[3], levels[2])])
        level3 = self.down3([levels[1], enlarged(level4, levels[1])])
        level2 = self.down2([levels[0], enlarged(level3, levels[0])])
        level3 = self.up3([levels[1], level3, halved(level2)])
        level4 = self.up4([levels[2], level4, halved(level3)])
        return [level2, level3, level4, self.up5([levels[3], halved(level4)])]


class BiFpn(nn.Module):
    """Weighted pyramid of both directions, repeated (Tan et al., 2020, arXiv:1911.09070); its finest level is the answer."""

    stride = 4

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Sequential(nn.Conv2d(channel, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS))
                                      for channel in channels)
        self.layers = nn.ModuleList(BiFpnLayer() for _ in range(REPEATS))
        self.smooth = smoothed()

    def forward(self, levels: List[torch.Tensor]):  # noqa: UP006
        sides = [levels[0]]
        for i, lateral in enumerate(self.laterals):
            sides.append(lateral(levels[i]))
        sides = sides[1:]
        for layer in self.layers:
            sides = layer(sides)
        return self.smooth(sides[0])


NECKS = {"none": OneLevel, "fpn": Fpn, "bifpn": BiFpn}


def enlarged(small, like):
    """A map at the size of another one, each cell repeated."""
    return functional.interpolate(small, size=like.shape[-2:], mode="nearest")


def halved(large):
    """Half the side, rounded up, as the backbones' strides round."""
    return functional.max_pool2d(large, 3, stride=2, padding=1)
