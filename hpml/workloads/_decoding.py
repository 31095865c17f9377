"""From a heat map to a place: what is read, and the loss that teaches it. And whether anything is there to read.

Places are in cells of the map: cell i reaches from i to i + 1.
"""

import torch
from torch import nn
from torch.nn import functional

from hpml.workloads._pyramids import CHANNELS

SHARPNESS = 4.0  # the soft-argmax takes the softmax of so many times the map: a second, weaker peak then hardly pulls
SPREAD = 1.0  # standard deviation of the target's Gaussian, in cells
ALWAYS = 10.0  # the logit of a design that cannot say "not visible"


class SoftArgmax(nn.Module):
    """The mean of the map's softmax (Nibali et al., 2018, arXiv:1801.07372): it lies between cells and changes smoothly."""

    def forward(self, logits, features):
        return expected(logits)

    def loss(self, logits, features, point):
        """[N], of a truth `point` [N, 2] in cells."""
        return map_loss(logits, point)


class Argmax(nn.Module):
    """The middle of the largest cell, which is up to half a cell away."""

    def forward(self, logits, features):
        return middle_of(logits.flatten(1).argmax(1), logits.shape[2])

    def loss(self, logits, features, point):
        """As SoftArgmax's."""
        return map_loss(logits, point)


class Offset(nn.Module):
    """The largest cell and a learnt way from its middle to the place (Zhou et al., 2019, arXiv:1904.07850)."""

    def __init__(self) -> None:
        super().__init__()
        self.way = nn.Conv2d(CHANNELS, 2, 1)

    def forward(self, logits, features):
        best = logits.flatten(1).argmax(1)
        ways = self.way(features).float().flatten(2)
        return middle_of(best, logits.shape[2]) + ways.gather(2, best[:, None, None].expand(-1, 2, 1))[:, :, 0]

    def loss(self, logits, features, point):
        """The map's loss and the error of the ways, in cells, over the cells around the truth as the target weighs them: the largest
        cell may be a neighbour of the right one."""
        height, width = logits.shape[1:]
        cells = torch.arange(height * width, device=logits.device)
        wanted = point[:, :, None] - middle_of(cells, width).T
        wrong = functional.smooth_l1_loss(self.way(features).float().flatten(2), wanted, reduction="none", beta=0.1).sum(1)
        return map_loss(logits, point) + (hill(point, height, width) * wrong).sum(1)


DECODINGS = {"soft-argmax": SoftArgmax, "argmax": Argmax, "offset": Offset}


class Seen(nn.Module):
    """The logit [N, 1] of something being visible, off the strongest of each feature."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(CHANNELS, 1)

    def forward(self, features):
        return self.line(features.amax((2, 3))).float()

    def loss(self, logit, there):
        """[N], of the truth `there` [N], 0 or 1."""
        return functional.binary_cross_entropy_with_logits(logit[:, 0], there, reduction="none")


class Always(nn.Module):
    """A design that answers a place whatever it sees."""

    logit: torch.jit.Final[float] = ALWAYS  # TorchScript knows no constants of a file

    def forward(self, features):
        return torch.full_like(features[:, :1, 0, 0], self.logit).float()

    def loss(self, logit, there):
        """Nothing is learnt."""
        return torch.zeros_like(there)


def middle_of(cells, width: int):
    """The middles (x, y) [N, 2] of cells [N] of a flat map."""
    return torch.stack((cells % width + 0.5, torch.div(cells, width, rounding_mode="floor") + 0.5), dim=1)


def expected(logits, sharpness: float = SHARPNESS):
    """Soft-argmax of heat maps [N, h, w]: the mean place (x, y) in cells, [N, 2]; cell i reaches from i to i + 1.

    Over the flat map: from sums by rows and columns OpenVINO 2026.4 makes another function where the batch is dynamic.
    """
    height, width = logits.shape[1:]
    share = (sharpness * logits.float()).flatten(1).softmax(1)
    cells = torch.arange(height * width, device=logits.device)
    return torch.stack(((share * (cells % width + 0.5)).sum(1), (share * (cells // width + 0.5)).sum(1)), dim=1)


def hill(point, height: int, width: int, spread: float = SPREAD):
    """A Gaussian around `point` [N, 2] (x, y in cells) over a flat map, [N, h * w], of sum 1."""
    across = torch.arange(width, device=point.device) + 0.5 - point[:, :1]
    down = torch.arange(height, device=point.device) + 0.5 - point[:, 1:]
    return (-(down[:, :, None] ** 2 + across[:, None, :] ** 2) / (2 * spread**2)).flatten(1).softmax(1)


def map_loss(logits, point, spread: float = SPREAD):
    """Cross-entropy [N] between the softmax of heat maps [N, h, w] and a Gaussian around `point` [N, 2] (x, y in cells)."""
    logits = logits.float()
    return -(hill(point, logits.shape[1], logits.shape[2], spread) * logits.flatten(1).log_softmax(1)).sum(1)
