"""From values to partial Gram matrices, piece by piece: difference first, multiply second.

The Gram matrix is taken of the rows θ_0, Δ_1, …, Δ_T, where Δ_k = θ_k − θ_{k−1}: the same cost
as of the θ_k, and no cancellation (docs/method.md, §1). Products are float32 over at most PIECE
elements, sums beyond that float64, in the order of the pieces.

On the CPU the product is NumPy's: it knows `a @ a.T` for a symmetric product and does half the
work (measured on one core, 64 to 935 rows: 160-225 against 95-105 GFLOP/s of torch.mm), and no
process-wide precision setting reaches it. Elsewhere it is torch's, with TF32 off. Parts of few
weights, and pieces whose squares float32 cannot hold, are done in float64; float32 sums of weights
stored in more than 16 bits are shorter.

Letters: K rows (checkpoints or increments), M elements of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from pipeline.checkpoint.roles import Part
from pipeline.numerics.joint import parents
from pipeline.statistics.partial import DIGEST_WORDS, PartialGram
from pipeline.statistics.pieces import CHUNK, PIECE
from pipeline.statistics.rounding import (
    COARSEST_FIRST,
    MIN_SAMPLED,
    NUM_SUMS,
    SAMPLED_EVERY,
    exponent_sums,
    represented,
)

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip

_HALF = {name for name, dtype in TORCH_DTYPES.items() if dtype.itemsize <= 2}

LEAST_MEAN_SQUARE = 1e-30
"""Below it squares of single elements near float32's smallest normal number, 1.2e-38: the piece is
done in float64."""

LEAST_IN_FLOAT32 = 32 * PIECE
"""Weights of a part that float32 products serve. The error of one of them is 3e-7 to 6e-7 of a cosine
(512 to 16,384 columns of 8 to 935 rows, OpenBLAS's kernels for Haswell and SkylakeX, oneMKL alike),
and averages out over pieces: smaller parts, which cost little, are done in float64."""

SHORT_SUM = 512
"""Elements of one float32 sum where weights are stored in more than 16 bits. Small steps of float32
weights are small multiples of one power of two, and squares of integers are 0 or 1 modulo 4: such
sums are rounded down more often than up. Relative cosines of 2²⁰ weights on a smooth path in relative
steps of 1e-5 (SkylakeX kernel) were off by 8e-8 with sums of 512, 1.7e-7 with 1,024, 2.7e-7 with
16,384; of weights in 16 bits never by more than 1.4e-8. It costs 15 % of a product of 64 to 154 rows,
31 % with 935; float64 would cost 55 to 90 %."""

EXACT_COLUMNS = PIECE // 8  # columns of one float64 product: bounds what that route allocates


@contextmanager
def one_thread_products() -> Iterator[None]:
    """Pin what decides the bits of a product, for this process, and restore it.

    One BLAS thread: with 65 rows 1-3 threads agree in bits but 4 differ. No TF32 on a card, whatever
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
    """Working memory for the pieces of one thread."""

    def __init__(self, num_checkpoints: int, device: torch.device) -> None:
        self.num_checkpoints = num_checkpoints
        self.device = device
        self._values: dict[torch.dtype, Tensor] = {}
        self._increments = self._flat(torch.float32)
        self.product = torch.empty((num_checkpoints, num_checkpoints), device=device)

    def values(self, dtype: torch.dtype, length: int) -> Tensor:
        """Return an uninitialised (K, length) table of values."""
        if dtype not in self._values:
            self._values[dtype] = self._flat(dtype)
        return self._shaped(self._values[dtype], length)

    def increments(self, length: int) -> Tensor:
        """Return an uninitialised (K, length) table of float32 rows of the increment basis."""
        return self._shaped(self._increments, length)

    def _flat(self, dtype: torch.dtype) -> Tensor:
        return torch.empty(self.num_checkpoints * PIECE, dtype=dtype, device=self.device)

    def _shaped(self, flat: Tensor, length: int) -> Tensor:
        return flat[: self.num_checkpoints * length].view(self.num_checkpoints, length)


def decoded(rows: Sequence[Tensor] | Tensor, scratch: Scratch) -> Tensor:
    """Return the (K, M) values of a piece in float32, or float64 where any checkpoint stores that.

    Args:
        rows: as stored: (K, M), or K rows of M where the formats differ.
    """
    if isinstance(rows, Tensor):
        if rows.dtype in (torch.float32, torch.float64):
            return rows
        return scratch.values(torch.float32, rows.shape[1]).copy_(rows)
    wide = any(row.dtype == torch.float64 for row in rows)
    values = scratch.values(torch.float64 if wide else torch.float32, len(rows[0]))
    for target, row in zip(values, rows, strict=True):
        target.copy_(row)
    return values


class PartAccumulator:
    """Adds up one part of one fragment, slice after slice in ascending order."""

    def __init__(
        self, part: Part, numel: int, dtypes: Sequence[str], firsts: Sequence[int] = (0,)
    ) -> None:
        """`numel` and `dtypes` are the whole tensor's: its elements and format per checkpoint.

        `firsts`: where each path begins, if there are several.
        """
        count = len(dtypes)
        self._parents = parents(firsts, count)
        self._later_firsts = list(firsts[1:])
        self._part = part
        self._exact = numel // part.period * (part.stop - part.start) < LEAST_IN_FLOAT32
        self._sum_length = PIECE if set(dtypes) <= _HALF else SHORT_SUM
        self._stored = dtypes[0] if len(set(dtypes)) == 1 else None
        self._dtypes = dtypes
        self._every = SAMPLED_EVERY if numel >= MIN_SAMPLED else 1
        self._gram = np.zeros((count, count))
        self._non_finite = np.zeros(count, np.int64)
        self._sums = np.zeros((count, NUM_SUMS))
        self._represented = np.ones((count, len(COARSEST_FIRST)), bool)
        self._numel = self._sampled = 0
        self._digests = np.zeros((count, DIGEST_WORDS), np.uint64)
        self._hashers: list[xxhash.xxh3_128] = []
        self._chunk = -1

    def add_values(self, values: Tensor, first: int, scratch: Scratch) -> None:
        """Add the Gram matrix of a piece; if this fails, nothing was added.

        Args:
            values: (K, M), from `decoded`: the elements [first, first + M) of the tensor.
            first: index in the tensor of the first element.
        """
        columns = _columns(self._part, first, first + values.shape[1])
        if columns is None:
            return
        if isinstance(columns, slice):
            values = values[:, columns]
        else:
            values = values.index_select(1, columns.to(values.device))
        gram, non_finite = None, 0
        if not self._exact:
            increments = self._increments(values, scratch)
            gram = _float32_gram(increments, scratch.product, self._sum_length)
        if gram is None:
            gram, finite, non_finite = _exact_gram(values, self._parents)
            if non_finite.any():
                values = torch.where(finite.to(values.device), values, 0)
        sample = values[:, :: self._every]
        sums, represented = exponent_sums(sample, self._dtypes), self._still_represented(sample)
        # What may find no memory is done.
        self._gram += gram
        self._non_finite += non_finite
        self._numel += values.shape[1]
        self._sampled += sample.shape[1]
        self._sums += sums
        self._represented = represented

    def add_bytes(self, rows: Sequence[NDArray[np.uint8]], first: int) -> None:
        """Add the stored bytes of the elements [first, …) of the tensor to the digests.

        A digest is the sum over chunks of elements of xxh3-128, seeded by the chunk's number.
        """
        sizes = [TORCH_DTYPES[dtype].itemsize for dtype in self._dtypes]
        stop = first + len(rows[0]) // sizes[0]
        start = first
        while start < stop:
            end = min(stop, start - start % CHUNK + CHUNK)
            if start // CHUNK != self._chunk:
                self._finish_chunk()
                self._chunk = start // CHUNK
                self._hashers = [xxhash.xxh3_128(seed=self._chunk) for _ in rows]
            runs = _runs(self._part, start, end)
            for hasher, row, size in zip(self._hashers, rows, sizes, strict=True):
                for run_first, run_stop in runs:
                    run = slice((run_first - first) * size, (run_stop - first) * size)
                    hasher.update(row[run].data)
            start = end

    def result(self) -> PartialGram:
        """Return the sum over everything added."""
        self._finish_chunk()
        return PartialGram(
            self._gram,
            self._digests,
            self._non_finite,
            self._sums,
            self._represented,
            self._numel,
            self._sampled,
        )

    def _finish_chunk(self) -> None:
        for row, hasher in enumerate(self._hashers):
            self._digests[row] += np.frombuffer(hasher.digest(), ">u8").astype(np.uint64)
        self._hashers = []

    def _increments(self, values: Tensor, scratch: Scratch) -> Tensor:
        increments = scratch.increments(values.shape[1])
        increments[0] = values[0]
        if values.dtype == torch.float64:
            increments[1:] = values[1:] - values[:-1]
        else:
            torch.sub(values[1:], values[:-1], out=increments[1:])
        for first in self._later_firsts:
            increments[first] = values[first] - values[0]
        return increments

    def _still_represented(self, sample: Tensor) -> NDArray[np.bool_]:
        """Return (K, 4): which formats represent all that was sampled, this included."""
        if self._stored is not None:
            return represented(sample, self._stored, self._represented)
        rows = zip(sample.split(1), self._dtypes, self._represented, strict=True)
        return np.concatenate(
            [represented(row, dtype, before[None]) for row, dtype, before in rows]
        )


def _columns(part: Part, start: int, end: int) -> slice | Tensor | None:
    """Return which columns of the tensor's elements [start, end) belong to the part."""
    if part.stop - part.start == part.period:
        return slice(None)
    if end <= part.period:  # no repetition in reach: a run, or nothing
        first, last = max(start, part.start), min(end, part.stop)
        return slice(first - start, last - start) if first < last else None
    offsets = np.arange(start, end) % part.period
    found = np.flatnonzero((offsets >= part.start) & (offsets < part.stop))
    if not found.size:
        return None
    if found[-1] - found[0] + 1 == found.size:
        return slice(int(found[0]), int(found[-1]) + 1)
    return torch.from_numpy(found)


def _runs(part: Part, start: int, end: int) -> list[tuple[int, int]]:
    """Return the runs of the tensor's elements [start, end) that belong to the part."""
    if part.stop - part.start == part.period:
        return [(start, end)]
    base = start - start % part.period
    runs = (
        (max(start, origin + part.start), min(end, origin + part.stop))
        for origin in range(base, end, part.period)
    )
    return [run for run in runs if run[0] < run[1]]


def _float32_gram(increments: Tensor, product: Tensor, sum_length: int) -> NDArray[Any] | None:
    """Return the (K, K) product in float32, or None where float32 cannot hold it.

    That is where a diagonal entry is not finite (a value is not, or a square overflows) or so
    small that squares underflow. Sums beyond `sum_length` elements are float64.
    """
    with np.errstate(all="ignore"):  # looked for below
        if increments.shape[1] <= sum_length:
            gram = _symmetric_product(increments, product)
        else:
            gram = _sum_of_products(increments, product, sum_length)
    diagonal = np.diagonal(gram)
    if not np.isfinite(diagonal).all():
        return None
    tiny = np.flatnonzero(diagonal < LEAST_MEAN_SQUARE * increments.shape[1])
    if tiny.size and bool(increments[torch.from_numpy(tiny).to(increments.device)].any()):
        return None
    return gram


def _symmetric_product(rows: Tensor, product: Tensor | None = None) -> NDArray[Any]:
    """Return rows @ rows.T, (K, K), in the precision of the rows; `product` is memory for it."""
    if rows.device.type != "cpu":
        return torch.mm(rows, rows.T, out=product).cpu().numpy()
    values = rows.numpy()
    return np.matmul(values, values.T, out=None if product is None else product.numpy())


def _sum_of_products(rows: Tensor, product: Tensor, length: int) -> NDArray[Any]:
    """Return the float64 sum of the products of so many columns each."""
    whole = rows.shape[1] // length * length
    if rows.device.type != "cpu":  # one call for all: a launch takes longer than such a product
        parts = rows[:, :whole].unflatten(1, (-1, length)).transpose(0, 1)
        total = torch.bmm(parts, parts.transpose(1, 2)).sum(0, dtype=torch.float64)
        if whole < rows.shape[1]:
            total += torch.mm(rows[:, whole:], rows[:, whole:].T, out=product)
        return total.cpu().numpy()
    total = np.zeros(product.shape)
    for start in range(0, rows.shape[1], length):
        total += _symmetric_product(rows[:, start : start + length], product)
    return total


def _exact_gram(
    values: Tensor, parent: NDArray[np.int64]
) -> tuple[NDArray[Any], Tensor, NDArray[Any]]:
    """Return the (K, K) product in float64, which (K, 1) rows are finite, and (K,) counts.

    A checkpoint with a value that is not finite is absent: its row is zero, and the next
    increment is taken from the last finite checkpoint (docs/method.md, §3, `non_finite`).
    """
    non_finite = (~torch.isfinite(values)).sum(dim=1).cpu()
    present = torch.nonzero(non_finite == 0)[:, 0]
    gram = np.zeros((len(values), len(values)))
    if len(present):
        inner = np.zeros((len(present), len(present)))
        before = torch.from_numpy(_before(parent, present.numpy())).to(values.device)
        for start in range(0, values.shape[1], EXACT_COLUMNS):
            piece = values[:, start : start + EXACT_COLUMNS][present.to(values.device)].double()
            origins = torch.cat((torch.zeros_like(piece[:1]), piece))
            piece -= origins[before]
            inner += _symmetric_product(piece)
        rows = present.numpy()
        gram[np.ix_(rows, rows)] = inner
    return gram, (non_finite == 0)[:, None], non_finite.numpy()


def _before(parent: NDArray[np.int64], present: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, of each present checkpoint, 1 + which of them its increment starts from, or 0."""
    place = {int(k): number for number, k in enumerate(present, 1)}
    found = []
    for k in present:
        before = int(parent[k])
        while before >= 0 and before not in place:
            before = int(parent[before])
        found.append(place.get(before, 0))
    return np.array(found)
