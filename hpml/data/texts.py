"""Texts in one array, and a set of reviews with their polarity: what every source of reviews gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpml.data.mapped import PickledByPath

if TYPE_CHECKING:
    import numpy as np

CLASSES = ("negative", "positive")


class Texts(PickledByPath, Sequence):
    """Texts as one array of UTF-8 bytes and the offsets between them: memory-mapped, so that 3.6 million cost no memory."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray, index: np.ndarray | None = None) -> None:
        self.data, self.offsets, self.index = data, offsets, index

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self.index is None else len(self.index)

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        place = range(len(self))[at] if self.index is None else self.index[at]
        return bytes(self.data[self.offsets[place] : self.offsets[place + 1]]).decode()

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Texts that hold these strings."""
        import numpy as np

        raw = [text.encode() for text in texts]
        return cls(np.frombuffer(b"".join(raw), np.uint8), np.cumsum([0, *map(len, raw)], dtype=np.int64))

    def at(self, index: np.ndarray) -> Texts:
        """A view of those with these numbers; the bytes are shared."""
        return Texts(self.data, self.offsets, index if self.index is None else self.index[index])


@dataclass(frozen=True, eq=False)
class ReviewSet:
    """Reviews with their polarity. A text is "title: text"."""

    name: str
    title: str
    origin: str  # "real" or "stand-in" (generated)
    train_texts: Sequence[str]
    train_labels: np.ndarray  # int64 [N], 0 negative, 1 positive
    test_texts: Sequence[str]
    test_labels: np.ndarray
    checksum: str  # hex; of the reviews themselves, so that both forms of one content are one data set
    note: str = ""
    classes: list[str] = field(default_factory=lambda: list(CLASSES))
    unit: str = "reviews"
    skipped: tuple[str, ...] = ()  # rows that could not be used, with the reason
    tokenizer: str = ""  # which one made the ids; set where texts become ids
    tokenizer_file: str = ""
