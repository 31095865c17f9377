"""Designs of the localizer by name: what the knob `variant` selects, one frozen description for each model.

A name is a backbone with options: `base`, `small+bifpn`, `v2-b0+bifpn+offset+history+noise`. The ladder of benchmarks/shuttle_versions.py
describes simpler designs (one stage, no heat map) directly; they have no name here.
"""

from dataclasses import dataclass, replace

from hpml.env import HpmlError

BACKBONES = {"base": "efficientnet_b0", "small": "test_efficientnet", "v2-b0": "tf_efficientnetv2_b0", "v2-b3": "tf_efficientnetv2_b3"}
HISTORY = 3  # preceding frames, and the places in them
OPTIONS = {"bifpn": {"neck": "bifpn"}, "offset": {"decode": "offset"}, "history": {"history": HISTORY}, "noise": {"augment": "strong"}}


@dataclass(frozen=True)
class Design:
    """neck: none (one level of the backbone), fpn, bifpn. decode: regression (no heat map), argmax, soft-argmax, offset.
    augment: of training frames, by the names of hpml.data.frames.AUGMENTS."""

    backbone: str = "efficientnet_b0"
    stages: int = 2
    neck: str = "fpn"
    decode: str = "soft-argmax"
    visible: bool = True
    history: int = 0
    augment: str = "light"

    @property
    def channels(self) -> int:
        """Of the input: the frame, the preceding frames, and a map of the place in each of these."""
        return 3 + 4 * self.history


def design(name: str) -> Design:
    """The design that a variant's name means. Raises HpmlError for a name that is none."""
    backbone, *options = name.split("+")
    if backbone not in BACKBONES or any(option not in OPTIONS for option in options) or len(set(options)) < len(options):
        more = ", ".join("+" + one for one in OPTIONS)
        raise HpmlError(f"variant={name!r}: {', '.join(BACKBONES)} is expected, with any of {more} behind it")
    found = Design(BACKBONES[backbone])
    for option in options:
        found = replace(found, **OPTIONS[option])
    return found


def crop_side(width: int) -> int:
    """Side of the second network's crop: 224 of a frame 1280 pixels wide, a multiple of 32, at least 64."""
    return max(64, 32 * ((width * 224 + 1280 * 16) // (1280 * 32)))
