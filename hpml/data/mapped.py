"""Memory maps travel by their path: a spawned loader worker would otherwise get hundreds of megabytes through a pipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class PickledByPath:
    """What is pickled with the place of its memory-mapped arrays instead of their contents."""

    def __getstate__(self) -> dict:
        return _pack(self.__dict__)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(_unpack(state))


@dataclass(frozen=True)
class _Mapped:
    path: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


def _pack(state: dict) -> dict:
    import numpy as np

    return {key: _mapped(value) if isinstance(value, np.ndarray) else value for key, value in state.items()}


def _unpack(state: dict) -> dict:
    import numpy as np

    def opened(value: object) -> object:
        if not isinstance(value, _Mapped):
            return value
        return np.memmap(value.path, dtype=value.dtype, mode="r", offset=value.offset, shape=value.shape)

    return {key: opened(value) for key, value in state.items()}


def _mapped(array: np.ndarray) -> np.ndarray | _Mapped:
    """Where `array` lies in a mapped file; the array itself when it lies in memory or has gaps."""
    import mmap

    import numpy as np

    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    whole = isinstance(owner, np.memmap) and isinstance(owner.base, mmap.mmap) and owner.filename is not None
    if not whole or not array.size or not array.flags.c_contiguous:
        return array
    offset = owner.offset + array.ctypes.data - owner.ctypes.data
    return _Mapped(str(owner.filename), array.dtype, array.shape, offset)
