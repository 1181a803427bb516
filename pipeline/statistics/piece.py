"""Pieces of parts that are worked on together: what every statistic is given, decoded once.

Letters: K checkpoints, B pieces, M elements of each piece that belong to its part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from pipeline.checkpoint.aligned_scales import AlignedScales
from pipeline.checkpoint.dtypes import WEIGHT_DTYPES
from pipeline.checkpoint.parts import Part
from pipeline.numerics import joint
from pipeline.statistics.parts import PartKey
from pipeline.statistics.pieces import MIN_SAMPLED, PIECE, batch_elements, sampled_offsets

TORCH_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, dtype.torch) for name, dtype in WEIGHT_DTYPES.items()
}
T = TypeVar("T")
HALF = frozenset(name for name, dtype in WEIGHT_DTYPES.items() if dtype.itemsize <= 2)
"""Formats of 16 bits or fewer."""


@contextmanager
def one_thread_products() -> Iterator[None]:
    """Pin what decides the bits of a product, for this process, and restore it.

    One BLAS thread: with 65 rows 1-3 threads agree in bits but 4 differ. No TF32 on a GPU, whatever
    the process had set: every product there is of float32 or float64, and `fp32_precision` is what
    torch reads before each (what is set by older names shows in it, but reading those raises once
    both were used). Cores are filled with tiles side by side instead.
    """
    matmul = torch.backends.cuda.matmul
    threads, precision = torch.get_num_threads(), matmul.fp32_precision
    torch.set_num_threads(1)
    matmul.fp32_precision = "ieee"
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)
        matmul.fp32_precision = precision


class Scratch:
    """Working memory for the pieces of one thread; tables are made when they are first asked for."""

    def __init__(self, num_checkpoints: int, device: torch.device) -> None:
        self.num_checkpoints = num_checkpoints
        self.device = device
        self._flat: dict[tuple[str, torch.dtype], Tensor] = {}

    def table(
        self, purpose: str, dtype: torch.dtype, length: int, most: int | None = None
    ) -> Tensor:
        """Return an uninitialised (K, length) table, the same memory for each purpose."""
        most = batch_elements(self.num_checkpoints) if most is None else most
        flat = self._memory(purpose, dtype, self.num_checkpoints * most)
        return flat[: self.num_checkpoints * length].view(self.num_checkpoints, length)

    def products(self, purpose: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return memory for (count, K, K) products."""
        shape = count, self.num_checkpoints, self.num_checkpoints
        numel = count * self.num_checkpoints**2
        return self._memory(purpose, dtype, numel)[:numel].view(shape)

    def _memory(self, purpose: str, dtype: torch.dtype, numel: int) -> Tensor:
        flat = self._flat.get((purpose, dtype))
        if flat is None or len(flat) < numel:
            flat = torch.empty(numel, dtype=dtype, device=self.device)
            self._flat[purpose, dtype] = flat
        return flat


class TensorFacts:
    """What pieces of one part have in common."""

    def __init__(
        self,
        part: Part,
        numel: int,
        dtypes: tuple[str, ...],
        firsts: tuple[int, ...] = (0,),
        parents: NDArray[np.int64] | None = None,
        scales: Mapping[int, AlignedScales] | None = None,
    ) -> None:
        """`numel`, `dtypes` and `scales` are the tensor's; `firsts`: where each path begins."""
        self.part, self.dtypes, self.scales = part, dtypes, scales or {}
        self.part_numel = numel // part.period * (part.stop - part.start)
        # the format of all checkpoints, or None; whether all have 16 bits or fewer; (K,) bytes each
        self.stored, self.half, self.sizes = _of_formats(dtypes)
        self.half = self.half and not self.scales  # a code times its scale has more bits
        self.firsts = firsts
        """Where each path begins among the checkpoints."""
        self.parents = joint.parents(firsts, len(dtypes)) if parents is None else parents


@cache
def _of_formats(dtypes: tuple[str, ...]) -> tuple[str | None, bool, NDArray[np.int64]]:
    """Return the one format, if it is one; whether all have 16 bits or fewer; (K,) bytes of an element."""
    formats = set(dtypes)
    sizes = np.array([WEIGHT_DTYPES[dtype].itemsize for dtype in dtypes])
    return dtypes[0] if len(formats) == 1 else None, formats <= HALF, sizes


class PiecePlace(NamedTuple):
    """One piece of one part, and where its elements lie among those that are decoded with it."""

    key: PartKey
    facts: TensorFacts
    start: int
    stop: int
    """Elements [start, stop) of the tensor."""
    columns: slice | NDArray[np.int64]
    """Which of them belong to the part, counted from `start`."""
    offset: int
    """Elements before `start` that are decoded with it."""

    @property
    def number(self) -> int:
        """Which piece of its tensor this is, from 0."""
        return self.start // PIECE

    def continued_by(self, other: PiecePlace) -> bool:
        """Return whether another piece is of the same length and kind, and begins where this one ends."""
        columns, next_columns = self.columns, other.columns
        if not isinstance(columns, slice) or not isinstance(next_columns, slice):
            return False
        numel, length = self.facts.part_numel, columns.stop - columns.start
        return (
            numel == other.facts.part_numel
            and length == next_columns.stop - next_columns.start
            and self.offset + columns.stop == other.offset + next_columns.start
            and (length == PIECE or numel < MIN_SAMPLED)  # else their samples differ in size
        )


class _Lazy(Generic[T]):
    """An attribute that is made when it is first asked for.

    `functools.cached_property` of Python 3.11 makes those of all instances under one lock: of two threads one
    waited for a fifth of its time.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make, self.__doc__ = make, make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> T:
        made = instance.__dict__[self._name] = self._make(instance)
        return made


class Pieces:
    """Pieces of one length and kind that lie side by side, of all checkpoints.

    Of one part, one after the other, or of parts of equal size.
    """

    def __init__(
        self,
        places: Sequence[PiecePlace],
        values: Tensor,
        rows: Sequence[memoryview],
        begins: NDArray[np.int64],
        scratch: Scratch,
        spacing: Tensor | None = None,
    ) -> None:
        """`values`: (K, B M), decoded.

        `spacing`: of codes with scales, (K, B M), the power of two at each value's code times its scale.
        `rows`: the stored bytes of each checkpoint, in which what is decoded with them begins at
        `begins`, (K,).
        """
        self.places, self.facts = places, places[0].facts
        self.values, self.scratch, self.spacing = values, scratch, spacing
        self.length = values.shape[1] // len(places)
        self._rows, self._begins = rows, begins
        self._finite = False
        """True once products of all values have shown them to be finite."""

    def __len__(self) -> int:
        return len(self.places)

    def one(self, number: int) -> Pieces:
        """Return one of them alone."""
        first = number * self.length
        values = self.values[:, first : first + self.length]
        spacing = self.spacing
        if spacing is not None:
            spacing = spacing[:, first : first + self.length]
        place = self.places[number]
        alone = Pieces([place], values, self._rows, self._begins, self.scratch, spacing)
        alone._finite = self._finite
        return alone

    def stored_bytes(self, number: int) -> Iterator[list[memoryview]]:
        """Yield each checkpoint's bytes of one of them, run after run.

        Codes say nothing without their scales: of these it is the values' bytes.
        """
        if self.facts.scales:
            first = number * self.length
            for row in self.values[:, first : first + self.length].cpu().numpy():
                yield [np.ascontiguousarray(row).data.cast("B")]
            return
        place = self.places[number]
        sizes = self.facts.sizes.tolist()
        begins = (self._begins + place.offset * self.facts.sizes).tolist()
        if isinstance(place.columns, slice):
            first, stop = place.columns.start, place.columns.stop
            for row, begin, size in zip(self._rows, begins, sizes, strict=True):
                yield [row[begin + first * size : begin + stop * size]]
            return
        breaks = np.flatnonzero(np.diff(place.columns) != 1) + 1
        runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(place.columns, breaks)]
        for row, begin, size in zip(self._rows, begins, sizes, strict=True):
            yield [row[begin + a * size : begin + b * size] for a, b in runs]

    @property
    def first_of_path(self) -> NDArray[np.int64]:
        """(K,) the checkpoint that begins each one's path."""
        firsts = np.array(self.facts.firsts)
        return firsts[np.searchsorted(firsts, np.arange(len(self.values)), side="right") - 1]

    def seen_finite(self) -> None:
        """Take note that every value is finite."""
        self._finite = True

    def apart(self, rows: Tensor) -> Tensor:
        """Return (K, B, M) of (K, B M)."""
        return rows.unflatten(1, (len(self), self.length))

    @_Lazy
    def non_finite(self) -> NDArray[np.int64]:
        """(B, K) how many values are NaN or infinite."""
        if self._finite:
            return np.zeros((len(self), len(self.values)), np.int64)
        return (~self.apart(self.values).isfinite()).sum(dim=2).T.cpu().numpy()

    @_Lazy
    def present_values(self) -> Tensor:
        """(K, B, M) values, those of a checkpoint that holds NaN or infinity in a piece replaced by zeros."""
        values = self.apart(self.values)
        if not self.non_finite.any():
            return values
        present = torch.from_numpy(self.non_finite.T == 0)[..., None]
        return torch.where(present.to(values.device), values, 0)

    @_Lazy
    def sample(self) -> Tensor:
        """(K, B, S) the sixteenth of `present_values` that stands for all; all of small parts."""
        return self._sample_of(self.present_values)

    @_Lazy
    def sample_spacing(self) -> Tensor | None:
        """(K, B, S) of the sample, zero where a checkpoint is absent; None where values are as stored."""
        if self.spacing is None:
            return None
        present = torch.from_numpy(self.non_finite.T == 0)[..., None].to(self.spacing.device)
        return self._sample_of(torch.where(present, self.apart(self.spacing), 0))

    def _sample_of(self, rows: Tensor) -> Tensor:
        if self.facts.part_numel < MIN_SAMPLED:
            return rows
        chosen = torch.from_numpy(
            np.concatenate(
                [number * self.length + _sampled(each) for number, each in enumerate(self.places)]
            )
        )
        values = rows.flatten(1)
        sample = values.index_select(1, chosen.to(values.device))
        return sample.unflatten(1, (len(self), len(chosen) // len(self)))

    @_Lazy
    def increments(self) -> Tensor:
        """(K, B M) float32 rows of the increment basis."""
        values = self.values
        rows = self.scratch.table("increments", torch.float32, values.shape[1])
        rows[0] = values[0]
        if values.dtype == torch.float64:
            rows[1:] = values[1:] - values[:-1]
        else:
            torch.sub(values[1:], values[:-1], out=rows[1:])
        for first in self.facts.firsts[1:]:
            rows[first] = values[first] - values[0]
        return rows


def _sampled(place: PiecePlace) -> NDArray[np.int64]:
    """Return which elements of a piece of a large part, counted among its part's, are in the sample."""
    offsets = sampled_offsets(place.number) + place.number * PIECE - place.start
    offsets = offsets[(offsets >= 0) & (offsets < place.stop - place.start)]
    if isinstance(place.columns, slice):
        first, stop = place.columns.start, place.columns.stop
        return offsets[(offsets >= first) & (offsets < stop)] - first
    return np.flatnonzero(np.isin(place.columns, offsets))


def decoded(rows: Sequence[Tensor] | Tensor, scratch: Scratch) -> Tensor:
    """Return the (K, M) values of a piece in float32, or float64 where any checkpoint stores that.

    Args:
        rows: as stored: (K, M), or K rows of M where the formats differ.
    """
    if isinstance(rows, Tensor):
        if rows.dtype in (torch.float32, torch.float64):
            return rows
        return scratch.table("values", torch.float32, rows.shape[1]).copy_(rows)
    wide = any(row.dtype == torch.float64 for row in rows)
    dtype = torch.float64 if wide else torch.float32
    values = scratch.table("values", dtype, len(rows[0]))
    for target, row in zip(values, rows, strict=True):
        target.copy_(row)
    return values


def columns_of(part: Part, start: int, end: int) -> slice | NDArray[np.int64] | None:
    """Return which of a tensor's elements [start, end) belong to a part, counted from `start`."""
    if part.stop - part.start == part.period:
        return slice(0, end - start)
    if end <= part.period:  # no repetition in reach: a run, or nothing
        first, last = max(start, part.start), min(end, part.stop)
        return slice(first - start, last - start) if first < last else None
    offsets = np.arange(start, end) % part.period
    columns = np.flatnonzero((offsets >= part.start) & (offsets < part.stop))
    if not columns.size:
        return None
    if columns[-1] - columns[0] + 1 == columns.size:
        return slice(int(columns[0]), int(columns[-1]) + 1)
    return columns
