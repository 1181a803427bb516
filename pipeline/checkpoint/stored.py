"""Where a tensor lies in the files of a checkpoint: what every header reader returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

MAX_EXTENTS = 1 << 20
"""Of all tensors of one file: 100 MB of records, whatever a few bytes of it say; a vocabulary cut by
columns has 250,000."""


class Extent(NamedTuple):
    """Elements of a tensor that lie side by side in a file; they end where the next extent begins."""

    first: int
    """Index of its first element in the tensor."""
    file: int
    """Which file it lies in, counted from the file that the tensor is listed with."""
    start: int
    """Absolute offset of its first byte."""


class Scales(NamedTuple):
    """What a tensor's codes are multiplied with, and where it lies."""

    file: int
    """As of `Extent`."""
    dtype: str
    start: int
    """Absolute offset of the first byte."""
    extents: tuple[Extent, ...]
    """Where there are several."""
    shape: tuple[int, ...]
    """One scale for each block, in as many dimensions as the tensor has."""
    blocks: tuple[int, ...]
    """Elements of each dimension that share a scale; the last ones may be fewer."""
    factor: float = 1.0
    """What all of them are multiplied with."""
    scales: Scales | None = None
    """Scales of the scales, which these are multiplied with."""
    divide: bool = False
    """They are divided by those instead."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Absolute offset of the first byte."""
    stop: int
    """Absolute offset one past the last byte."""
    order: tuple[int, ...] = ()
    """Dimensions by descending stride where that is not their order: a transposed tensor. (-1,)
    where hardly any two elements lie side by side. Empty for a plain tensor."""
    extents: tuple[Extent, ...] = ()
    """Its extents where it has several: a slice of a larger tensor, or chunks in several files."""
    unreadable: str = ""
    """Why its values are no weights."""
    lost: bool = False
    """It holds weights all the same, in a form that is not decoded."""
    ranks: int = 1
    """How many ranks hold its columns: its elements lie rank by rank then, each one's by rows."""
    scales: Scales | None = None
    """What its values are to be multiplied with."""

    @property
    def is_in_order(self) -> bool:
        """True if its elements follow each other as in the tensor."""
        return not self.order and self.ranks == 1

    @property
    def numel(self) -> int:
        return math.prod(self.shape)
