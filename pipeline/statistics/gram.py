"""The Gram matrix of the increment basis: difference first, multiply second.

It is taken of the rows θ_0, Δ_1, …, Δ_T, where Δ_k = θ_k − θ_{k−1}: the same cost as of the θ_k, and
no cancellation (docs/method.md, §1). Products are float32 over at most PIECE elements, sums beyond
that float64, in the order of the pieces.

On the CPU the product is NumPy's: it knows `a @ a.T` for a symmetric product and does half the
work (measured on one core, 64 to 935 rows: 160-225 against 95-105 GFLOP/s of torch.mm), and no
process-wide precision setting reaches it. Elsewhere it is torch's, with TF32 off. Parts of few
weights, and pieces whose squares float32 cannot hold, are done in float64; float32 sums of weights
stored in more than 16 bits are shorter.

Letters: K checkpoints, M elements of a piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.statistics.pieces import PIECE
from pipeline.statistics.statistic import ArraySpec

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.statistics.piece import Piece

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

EXACT_COLUMNS = PIECE // 8
"""Columns of one float64 product: bounds what that route allocates."""


class Gram:
    """S, the Gram matrix of the increment basis."""

    name = "gram"
    scratch = 0

    def arrays(self, num_checkpoints: int) -> tuple[ArraySpec, ...]:
        shape = num_checkpoints, num_checkpoints
        return (ArraySpec("gram.increments", shape, "f8", symmetric=True),)

    def of_piece(self, piece: Piece) -> dict[str, Any]:
        gram = None
        if piece.facts.part_numel >= LEAST_IN_FLOAT32:
            gram = _in_float32(piece, PIECE if piece.facts.half else SHORT_SUM)
        if gram is None:
            gram = _of_present(piece) if piece.values.device.type != "cpu" else _on_cpu(piece)
        return {"gram.increments": gram}


def _in_float32(piece: Piece, sum_length: int) -> NDArray[Any] | None:
    """Return the (K, K) product in float32, or None where float32 cannot hold it.

    That is where a diagonal entry is not finite (a value is not, or a square overflows) or so
    small that squares underflow. Sums beyond `sum_length` elements are float64.
    """
    import torch

    increments, product = piece.increments, piece.scratch.product(torch.float32)
    with np.errstate(all="ignore"):  # looked for below
        if increments.shape[1] <= sum_length:
            gram = _symmetric_product(increments, product)
        else:
            gram = _sum_of_products(increments, product, sum_length)
    diagonal = np.diagonal(gram)
    if not np.isfinite(diagonal).all():
        return None
    piece.seen_finite()
    tiny = np.flatnonzero(diagonal < LEAST_MEAN_SQUARE * increments.shape[1])
    if tiny.size and bool(increments[torch.from_numpy(tiny).to(increments.device)].any()):
        return None
    return gram


def _symmetric_product(rows: Tensor, product: Tensor | None = None) -> NDArray[Any]:
    """Return rows @ rows.T, (K, K), in the precision of the rows; `product` is memory for it."""
    import torch

    if rows.device.type != "cpu":
        return torch.mm(rows, rows.T, out=product).cpu().numpy()
    values = rows.numpy()
    return np.matmul(values, values.T, out=None if product is None else product.numpy())


def _sum_of_products(rows: Tensor, product: Tensor, length: int) -> NDArray[Any]:
    """Return the float64 sum of the products of so many columns each."""
    import torch

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


def _on_cpu(piece: Piece) -> NDArray[np.float64]:
    """Return the (K, K) product in float64, in memory that stays.

    A diagonal that is finite shows that all values are: each row adds its increment to the row
    that it starts from.
    """
    import torch

    values, scratch = piece.values, piece.scratch
    total = scratch.table("sum", torch.float64, scratch.num_checkpoints, scratch.num_checkpoints)
    gram, product = total.numpy(), scratch.product(torch.float64).numpy()
    with np.errstate(all="ignore"):  # looked for below
        for start in range(0, values.shape[1], EXACT_COLUMNS):
            length = min(EXACT_COLUMNS, values.shape[1] - start)
            wide = scratch.table("wide", torch.float64, length, EXACT_COLUMNS)
            wide.copy_(values[:, start : start + length])
            theta = wide.numpy()
            rows = scratch.table("wide increments", torch.float64, length, EXACT_COLUMNS).numpy()
            rows[0] = theta[0]
            np.subtract(theta[1:], theta[:-1], out=rows[1:])
            for first in piece.facts.firsts[1:]:
                np.subtract(theta[first], theta[0], out=rows[first])
            if start:
                gram += np.matmul(rows, rows.T, out=product)
            else:
                np.matmul(rows, rows.T, out=gram)
    if np.isfinite(np.diagonal(gram)).all():
        piece.seen_finite()
        return gram
    return _of_present(piece)


def _of_present(piece: Piece) -> NDArray[np.float64]:
    """Return the (K, K) product in float64 where values may not be finite.

    A checkpoint with a value that is not finite is absent: its row is zero, and the next
    increment is taken from the last finite checkpoint (docs/method.md, §3, `non_finite`).
    """
    import torch

    values = piece.values
    present = np.flatnonzero(piece.non_finite == 0)
    gram = np.zeros((len(values), len(values)))
    if present.size:
        rows = torch.from_numpy(present).to(values.device)
        inner = np.zeros((len(present), len(present)))
        before = torch.from_numpy(_before(piece.facts.parents, present)).to(values.device)
        for start in range(0, values.shape[1], EXACT_COLUMNS):
            theta = values[:, start : start + EXACT_COLUMNS][rows].double()
            origins = torch.cat((torch.zeros_like(theta[:1]), theta))
            theta -= origins[before]
            inner += _symmetric_product(theta)
        gram[np.ix_(present, present)] = inner
    return gram


def _before(parent: NDArray[np.int64], present: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, of each present checkpoint, 1 + which of them its increment starts from, or 0."""
    place = {int(k): number for number, k in enumerate(present, 1)}
    starts = []
    for k in present:
        before = int(parent[k])
        while before >= 0 and before not in place:
            before = int(parent[before])
        starts.append(place.get(before, 0))
    return np.array(starts)
