"""Pieces of parts that are worked on together: what every statistic is given, decoded once.

Letters: K checkpoints, B pieces, M elements of each piece that belong to its part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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


@contextmanager
def one_thread_products() -> Iterator[None]:
    """Pin what decides the bits of a product, for this process, and restore it.

    One BLAS thread: with 65 rows 1-3 threads agree in bits but 4 differ. No TF32 on a GPU, whatever
    the process had set: every product there is of float32. The older name sets the newer one, too, and torch
    compares both before each product. Cores are filled with tiles side by side instead.
    """
    matmul = torch.backends.cuda.matmul
    threads, precision = torch.get_num_threads(), matmul.fp32_precision
    older: str | None = None
    with suppress(RuntimeError):  # only the newer one was set
        older = torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)
        if older is not None:
            torch.set_float32_matmul_precision(older)
        matmul.fp32_precision = precision


class Scratch:
    """Working memory for the pieces of one thread; tables are made when they are first asked for."""

    def __init__(self, num_checkpoints: int, device: torch.device, on_gpu: bool = False) -> None:
        """`on_gpu`: it holds the batches that a GPU works on, which are larger."""
        self.num_checkpoints = num_checkpoints
        self.device = device
        self._batch_elements = batch_elements(num_checkpoints, on_gpu)
        self._flat: dict[tuple[str, torch.dtype], Tensor] = {}

    def table(
        self, purpose: str, dtype: torch.dtype, length: int, most: int | None = None
    ) -> Tensor:
        """Return an uninitialised (K, length) table, the same memory for each purpose."""
        most = self._batch_elements if most is None else most
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
        name: str = "",
    ) -> None:
        """`numel`, `dtypes` and `scales` are the tensor's; `firsts`: where each path begins.

        `name`: of the part (`sketch.part_name`).
        """
        self.part, self.dtypes, self.scales = part, dtypes, scales or {}
        self.numel, self.name = numel, name
        self.part_numel = numel // part.period * (part.stop - part.start)
        # the format of all checkpoints, or None; (K,) bytes of an element of each
        self.stored, self.sizes = _of_formats(dtypes)
        self.firsts = firsts
        """Where each path begins among the checkpoints."""
        self.parents = joint.parents(firsts, len(dtypes)) if parents is None else parents


@cache
def _of_formats(dtypes: tuple[str, ...]) -> tuple[str | None, NDArray[np.int64]]:
    """Return the one format, if it is one; (K,) bytes of an element of each checkpoint."""
    sizes = np.array([WEIGHT_DTYPES[dtype].itemsize for dtype in dtypes])
    return dtypes[0] if len(set(dtypes)) == 1 else None, sizes


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


Stored = Tensor | Sequence[Tensor]
"""(K, N) values as stored, or K rows of N where the formats differ."""


class OfGpu(NamedTuple):
    """What a GPU makes of pieces of large parts."""

    products: NDArray[np.float64]
    """(B, K, K), of their increments."""
    moved: NDArray[np.bool_]
    """(B, K): whether any element of an increment is not zero."""
    sample: Tensor
    """(K, B, S), of the values."""


class Pieces:
    """Pieces of one length and kind that lie side by side, of all checkpoints.

    Of one part, one after the other, or of parts of equal size.
    """

    def __init__(
        self,
        places: Sequence[PiecePlace],
        stored: Stored,
        scratch: Scratch,
        values: Tensor | None = None,
        spacing: Tensor | None = None,
        of_gpu: OfGpu | None = None,
    ) -> None:
        """`stored`: what is decoded with them.

        `values`: (K, B M), decoded; without them it is done when they are asked for.
        `spacing`: of codes with scales, (K, B M), the power of two at each value's code times its scale.
        """
        self.places, self.facts = places, places[0].facts
        self.spacing, self.of_gpu, self.scratch = spacing, of_gpu, scratch
        self.length = num_columns(places[0])
        self._stored, self._decoded = stored, values
        self._finite = False
        """True once products of all values have shown them to be finite."""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def values(self) -> Tensor:
        """(K, B M), decoded."""
        if self._decoded is None:
            self._decoded = decoded(columns_of_places(self._stored, self.places), self.scratch)
        return self._decoded

    @property
    def stored(self) -> Stored:
        """(K, B M) as stored, or K rows of B M where the formats differ."""
        return columns_of_places(self._stored, self.places)

    def one(self, number: int) -> Pieces:
        """Return one of them alone."""
        of_one = slice(number * self.length, (number + 1) * self.length)
        alone = Pieces(
            [self.places[number]],
            self._stored,
            self.scratch,
            None if self._decoded is None else self._decoded[:, of_one],
            None if self.spacing is None else self.spacing[:, of_one],
        )
        alone._finite = self._finite
        return alone

    @property
    def first_of_path(self) -> NDArray[np.int64]:
        """(K,) the checkpoint that begins each one's path."""
        firsts = np.array(self.facts.firsts)
        return firsts[np.searchsorted(firsts, np.arange(len(self.facts.dtypes)), side="right") - 1]

    def seen_finite(self) -> None:
        """Take note that every value is finite."""
        self._finite = True

    def apart(self, rows: Tensor) -> Tensor:
        """Return (K, B, M) of (K, B M)."""
        return rows.view(len(rows), len(self), self.length)  # unflatten takes 40 µs of Python

    @_Lazy
    def non_finite(self) -> NDArray[np.int64]:
        """(B, K) how many values are NaN or infinite."""
        if self._finite:
            return np.zeros((len(self), len(self.facts.dtypes)), np.int64)
        if self.of_gpu is not None:  # piece by piece: that is what scratch memory holds
            return np.concatenate([self.one(n).non_finite for n in range(len(self))])
        return (~self.apart(self.values).isfinite()).sum(dim=2).T.numpy()

    @_Lazy
    def present_values(self) -> Tensor:
        """(K, B, M) values, those of a checkpoint that holds NaN or infinity in a piece replaced by zeros."""
        values = self.apart(self.values)
        if not self.non_finite.any():
            return values
        return torch.where(torch.from_numpy(self.non_finite.T == 0)[..., None], values, 0)

    @_Lazy
    def sample(self) -> Tensor:
        """(K, B, S) the sixteenth of `present_values` that stands for all; all of small parts."""
        if self.of_gpu is None:
            return self._sample_of(self.present_values)
        if not self.non_finite.any():
            return self.of_gpu.sample
        # piece by piece: that is what scratch memory holds
        return torch.cat([self.one(n).sample for n in range(len(self))], dim=1)

    @_Lazy
    def sample_spacing(self) -> Tensor | None:
        """(K, B, S) of the sample, zero where a checkpoint is absent; None where values are as stored."""
        if self.spacing is None:
            return None
        present = torch.from_numpy(self.non_finite.T == 0)[..., None]
        return self._sample_of(torch.where(present, self.apart(self.spacing), 0))

    def _sample_of(self, rows: Tensor) -> Tensor:
        if self.facts.part_numel < MIN_SAMPLED:
            return rows
        columns = torch.from_numpy(sampled_columns(self.places))
        sample = rows.flatten(1).index_select(1, columns)
        return sample.view(len(rows), len(self), -1)

    @property
    def moved(self) -> NDArray[np.bool_]:
        """(B, K) whether any element of an increment is not zero."""
        if self.of_gpu is not None:
            return self.of_gpu.moved
        return self.apart(self.increments).ne(0).any(2).T.numpy()

    @_Lazy
    def increments(self) -> Tensor:
        """(K, B M) float32 rows of the increment basis, until they are turned for their product."""
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


def sampled_columns(places: Sequence[PiecePlace]) -> NDArray[np.int64]:
    """Return the elements in the sample, (B S,), of pieces of a large part, among those that belong to it."""
    if num_columns(places[0]) == PIECE:
        offsets = sampled_offsets([place.number for place in places])
        return (offsets + PIECE * np.arange(len(places))[:, None]).reshape(-1)
    (place,) = places
    (offsets,) = sampled_offsets([place.number]) + place.number * PIECE - place.start
    offsets = offsets[(offsets >= 0) & (offsets < place.stop - place.start)]
    if isinstance(place.columns, slice):
        first, stop = place.columns.start, place.columns.stop
        return offsets[(offsets >= first) & (offsets < stop)] - first
    return np.flatnonzero(np.isin(place.columns, offsets))


def num_columns(place: PiecePlace) -> int:
    """Return how many elements of a piece belong to its part."""
    columns = place.columns
    return columns.stop - columns.start if isinstance(columns, slice) else len(columns)


def columns_of_places(table: Stored, places: Sequence[PiecePlace]) -> Stored:
    """Return the elements of pieces, of what is decoded with them."""
    first, last = places[0].columns, places[-1].columns
    if isinstance(first, slice) and isinstance(last, slice):
        of_pieces = slice(places[0].offset + first.start, places[-1].offset + last.stop)
        if isinstance(table, Tensor):
            return table[:, of_pieces]
        return [row[of_pieces] for row in table]
    assert isinstance(first, np.ndarray) and len(places) == 1
    index = torch.from_numpy(first + places[0].offset)
    if isinstance(table, Tensor):
        return table.index_select(1, index.to(table.device))
    return [row.index_select(0, index.to(row.device)) for row in table]


def decoded(rows: Stored, scratch: Scratch) -> Tensor:
    """Return the (K, N) values in float32, or float64 where any checkpoint stores that."""
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
