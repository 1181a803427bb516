"""One piece of one part: what every statistic is given, decoded once.

Letters: K checkpoints, M elements of the piece that belong to the part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from pipeline.checkpoint.dtypes import WEIGHT_DTYPES
from pipeline.checkpoint.parts import Part
from pipeline.numerics import joint
from pipeline.statistics.pieces import PIECE, sampled_offsets

TORCH_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, dtype.torch) for name, dtype in WEIGHT_DTYPES.items()
}
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

    def table(self, purpose: str, dtype: torch.dtype, length: int, most: int = PIECE) -> Tensor:
        """Return an uninitialised (K, length) table, the same memory for each purpose."""
        flat = self._flat.get((purpose, dtype))
        if flat is None:
            flat = torch.empty(self.num_checkpoints * most, dtype=dtype, device=self.device)
            self._flat[purpose, dtype] = flat
        return flat[: self.num_checkpoints * length].view(self.num_checkpoints, length)

    def product(self, dtype: torch.dtype) -> Tensor:
        """Return memory for a (K, K) product."""
        return self.table("product", dtype, self.num_checkpoints, self.num_checkpoints)


class TensorFacts:
    """What pieces of one part have in common."""

    def __init__(
        self,
        part: Part,
        numel: int,
        dtypes: tuple[str, ...],
        firsts: tuple[int, ...] = (0,),
        parents: NDArray[np.int64] | None = None,
    ) -> None:
        """`numel` and `dtypes` are the tensor's; `firsts`: where each path begins."""
        self.part, self.dtypes = part, dtypes
        self.part_numel = numel // part.period * (part.stop - part.start)
        # the format of all checkpoints, or None; whether all have 16 bits or fewer; (K,) bytes each
        self.stored, self.half, self.sizes = _of_formats(dtypes)
        self.firsts = firsts
        """Where each path begins among the checkpoints."""
        self.parents = joint.parents(firsts, len(dtypes)) if parents is None else parents


@cache
def _of_formats(dtypes: tuple[str, ...]) -> tuple[str | None, bool, NDArray[np.int64]]:
    """Return the one format, if it is one; whether all have 16 bits or fewer; (K,) bytes of an element."""
    formats = set(dtypes)
    sizes = np.array([WEIGHT_DTYPES[dtype].itemsize for dtype in dtypes])
    return dtypes[0] if len(formats) == 1 else None, formats <= HALF, sizes


class Piece:
    """The elements [first, stop) of a tensor, as far as they belong to a part, of all checkpoints."""

    def __init__(
        self,
        facts: TensorFacts,
        first: int,
        stop: int,
        values: Tensor,
        columns: slice | NDArray[np.int64],
        rows: Sequence[memoryview],
        begins: NDArray[np.int64],
        scratch: Scratch,
    ) -> None:
        """`values`: (K, M), decoded; `columns`: which of [first, stop) they are.

        `rows`: the stored bytes of each checkpoint, in which [first, stop) begins at `begins`, (K,).
        """
        self.facts, self.first, self.stop = facts, first, stop
        self.values, self.scratch = values, scratch
        self.columns, self._rows, self._begins = columns, rows, begins
        self._finite = False
        """True once a product of all values has shown them to be finite."""

    @property
    def number(self) -> int:
        """Which piece of its tensor this is, from 0."""
        return self.first // PIECE

    def stored_bytes(self) -> Iterator[list[memoryview]]:
        """Yield each checkpoint's bytes of the part, run after run."""
        sizes, begins = self.facts.sizes.tolist(), self._begins.tolist()
        if isinstance(self.columns, slice):
            first, stop = self.columns.start, self.columns.stop
            for row, begin, size in zip(self._rows, begins, sizes, strict=True):
                yield [row[begin + first * size : begin + stop * size]]
            return
        breaks = np.flatnonzero(np.diff(self.columns) != 1) + 1
        runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(self.columns, breaks)]
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

    @cached_property
    def non_finite(self) -> NDArray[np.int64]:
        """(K,) how many values are NaN or infinite."""
        if self._finite:
            return np.zeros(len(self.values), np.int64)
        return (~torch.isfinite(self.values)).sum(dim=1).cpu().numpy()

    @cached_property
    def present_values(self) -> Tensor:
        """The values, those of a checkpoint that holds NaN or infinity replaced by zeros."""
        if not self.non_finite.any():
            return self.values
        present = torch.from_numpy(self.non_finite == 0)[:, None]
        return torch.where(present.to(self.values.device), self.values, 0)

    @cached_property
    def sample(self) -> Tensor:
        """(K, S) the sixteenth of `present_values` that stands for all; all of a small part."""
        offsets = sampled_offsets(self.facts.part_numel, self.number)
        if offsets is None:
            return self.present_values
        start = self.first - self.number * PIECE
        offsets = offsets[(offsets >= start) & (offsets < start + self.stop - self.first)] - start
        if isinstance(self.columns, slice):
            inside = (offsets >= self.columns.start) & (offsets < self.columns.stop)
            places = offsets[inside] - self.columns.start
        else:
            places = np.flatnonzero(np.isin(self.columns, offsets))
        return self.present_values.index_select(1, torch.from_numpy(places).to(self.values.device))

    @cached_property
    def increments(self) -> Tensor:
        """(K, M) float32 rows of the increment basis."""
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
