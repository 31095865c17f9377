"""Captions of driving frames, made from their attributes by templates, and the data set of (frame, caption).

A class is one combination of attributes, written "weather, scene, timeofday" in BDD100K's words; "undefined" is left out of a caption.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpml.data.mapped import PickledByPath

if TYPE_CHECKING:
    import numpy as np

UNKNOWN = "undefined"
ATTRIBUTES = {  # the vocabulary of BDD100K (Yu et al., 2020, arXiv:1805.04687)
    "weather": ("clear", "overcast", "partly cloudy", "rainy", "snowy", "foggy", UNKNOWN),
    "scene": ("city street", "highway", "residential", "parking lot", "tunnel", "gas stations", UNKNOWN),
    "timeofday": ("daytime", "dawn/dusk", "night", UNKNOWN),
}
WORDS = {"residential": "a residential road", "gas stations": "a gas station", UNKNOWN: "a road", "daytime": "during the day",
         "dawn/dusk": "at dawn or dusk", "night": "at night"}
# A part whose attribute is not known falls away; the scene always stands there, as "a road" if need be.
TEMPLATES = (("a photo of {scene}", "{timeofday}", "in {weather} weather"),
             ("a dashcam picture of {scene}", "in {weather} weather", "{timeofday}"),
             ("driving on {scene}", "{timeofday},", "{weather} weather"), ("{weather} weather", "on {scene}", "{timeofday}"))


def name(weather: str, scene: str, timeofday: str) -> str:
    """The class of a frame."""
    return f"{weather}, {scene}, {timeofday}"


def attributes(of: str) -> dict[str, str]:
    """The attributes that a class's name holds."""
    return dict(zip(ATTRIBUTES, of.split(", "), strict=True))


def captions(of: str) -> list[str]:
    """The captions of a class, one for each template."""
    known = attributes(of)
    scene = known["scene"]
    words = {"weather": known["weather"], "scene": WORDS.get(scene, f"a {scene}"), "timeofday": WORDS[known["timeofday"]]}
    absent = [f"{{{key}}}" for key in ("weather", "timeofday") if known[key] == UNKNOWN]
    return [" ".join(part.format(**words) for part in template if not any(key in part for key in absent)) for template in TEMPLATES]


def every() -> list[str]:
    """All captions that there can be, sorted."""
    return sorted({text for values in itertools.product(*ATTRIBUTES.values()) for text in captions(name(*values))})


def prompts(attribute: str, value: str) -> list[str]:
    """Captions that say one attribute and nothing else: what zero-shot classification compares a frame with."""
    return captions(name(*(value if key == attribute else UNKNOWN for key in ATTRIBUTES)))


class CaptionDataset(PickledByPath):
    """Map-style: index -> (float32 tensor [3, image, image], int64 tensor [length] of a caption, class index).

    `frames`: a data set of (tensor, class index). In training one of the class's captions is drawn by torch's default generator, else the
    first one is taken. The captions of a class are tokenized once.
    """

    def __init__(self, frames, classes: Sequence[str], tokenizer_file: str, length: int, *, train: bool) -> None:
        from hpml.data.bpe import encode, open_tokenizer

        self.frames, self.train = frames, train
        tokenizer = open_tokenizer(tokenizer_file, length)
        self.ids: np.ndarray = encode(tokenizer, [text for one in classes for text in captions(one)])
        self.ids = self.ids.reshape(len(classes), len(TEMPLATES), length)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple:
        import torch

        frame, label = self.frames[index]
        which = int(torch.randint(len(TEMPLATES), ())) if self.train else 0
        return frame, torch.from_numpy(self.ids[label, which]), label

    @property
    def skipped(self) -> list[str]:
        """Names of the frames that could not be read so far."""
        return getattr(self.frames, "skipped", [])
