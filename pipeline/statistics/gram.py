"""The Gram matrix of the increment basis: difference first, multiply second.

It is taken of the rows θ_0, Δ_1, …, Δ_T, where Δ_k = θ_k − θ_{k−1}: the same cost as of the θ_k, and
no cancellation (docs/method.md, §1). Products are float32 over at most PIECE elements, sums beyond
that float64, in the order of the pieces. Before a float32 product, pairs of columns are turned (TURNS).

Products are NumPy's: it knows `a @ a.T` for a symmetric product and does half the work (measured on one
core, 64 to 935 rows: 160-225 against 95-105 GFLOP/s of torch.mm), and no process-wide precision setting
reaches it. A GPU's come from `gpu.py`. Parts of few weights, and pieces whose squares float32 cannot hold,
are done in float64.

Letters: K checkpoints, B pieces, M elements of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.statistics.pieces import EXACT_COLUMNS, PIECE, exact_columns
from pipeline.statistics.statistic import ArraySpec

if TYPE_CHECKING:
    from pipeline.statistics.piece import Pieces, TensorFacts

LEAST_MEAN_SQUARE = 1e-30
"""Below it squares of single elements near float32's smallest normal number, 1.2e-38: the piece is
done in float64."""

LEAST_IN_FLOAT32 = 32 * PIECE
"""Weights of a part that float32 products serve. The error of one of them is 3e-7 to 6e-7 of a cosine
(512 to 16,384 columns of 8 to 935 rows, OpenBLAS's kernels for Haswell and SkylakeX, oneMKL alike),
and averages out over pieces: smaller parts, which cost little, are done in float64."""

TURNS = np.exp(2j * np.pi * (np.arange(PIECE // 2) * ((5**0.5 - 1) / 2) % 1)).astype(np.complex64)
"""Two neighbouring columns are the parts of a complex number, which is turned by an angle of the pair's own: the
same one in all rows, so that no dot product changes. Stored weights and steps between them are small integers
times powers of two, whose squares are 0 or 1 modulo 4: float32 sums of these are not rounded up as often as
down. Squared lengths were off by -6.2e-7 (bfloat16), 2.9e-7 (float16) and, in relative steps of 1e-5 on a
straight path, -5.5e-7 (float32) of themselves, in every piece alike; cosines of bfloat16 weights with noise of
their own by 7.9e-7. Turned, all of them by less than 2e-8 (SkylakeX kernel, docs/decisions/precision.md). Angles in
the golden ratio: no two pairs share one. It costs 13 % of a product of 64 rows, 8 % of one of 154."""


class Gram:
    """S, the Gram matrix of the increment basis."""

    name = "gram"
    scratch = 0

    def arrays(self, num_checkpoints: int) -> tuple[ArraySpec, ...]:
        shape = num_checkpoints, num_checkpoints
        return (ArraySpec("gram.increments", shape, "f8", symmetric=True),)

    def of_pieces(self, pieces: Pieces) -> dict[str, Any]:
        if is_in_float32(pieces.facts):
            return {"gram.increments": _in_float32(pieces)}
        return {"gram.increments": _in_float64(pieces)}


def is_in_float32(facts: TensorFacts) -> bool:
    """Return whether float32 products serve the pieces of a part."""
    return facts.part_numel >= LEAST_IN_FLOAT32


def _in_float32(pieces: Pieces) -> NDArray[Any]:
    """Return the (B, K, K) products in float32, in float64 of pieces that float32 cannot hold.

    Those are where a diagonal entry is not finite (a value is not, or a square overflows) or so
    small that squares underflow.
    """
    grams = _float32_products(pieces) if pieces.of_gpu is None else pieces.of_gpu.products
    diagonals = np.diagonal(grams, axis1=1, axis2=2)
    unfit = ~np.isfinite(diagonals).all(axis=1)
    if not unfit.any():
        pieces.seen_finite()
    small = diagonals < LEAST_MEAN_SQUARE * pieces.length
    if small.any():
        unfit |= (small & pieces.moved).any(axis=1)
    if unfit.any():
        grams = grams.astype(np.float64)
        for number in np.flatnonzero(unfit).tolist():
            grams[number] = _in_float64(pieces.one(number))[0]
    return grams


def _float32_products(pieces: Pieces) -> NDArray[Any]:
    """Return the product of each piece's increments with their transpose; the increments are turned for it."""
    rows = pieces.apart(pieces.increments).numpy()
    products = pieces.scratch.products("products", pieces.increments.dtype, len(pieces)).numpy()
    pairs = pieces.length // 2
    with np.errstate(all="ignore"):  # looked for by whoever asks
        of_pairs = rows[:, :, : 2 * pairs].view(np.complex64)
        np.multiply(of_pairs, TURNS[:pairs], out=of_pairs)
        return np.matmul(rows.transpose(1, 0, 2), rows.transpose(1, 2, 0), out=products)


def _in_float64(pieces: Pieces) -> NDArray[np.float64]:
    """Return the (B, K, K) products in float64, in memory that stays.

    A diagonal that is finite shows that all values are: each row adds its increment to the row that it
    starts from.
    """
    import torch

    grams = pieces.scratch.products("sums", torch.float64, len(pieces)).numpy()
    at_once = max(1, exact_columns(len(pieces.facts.dtypes)) // pieces.length)
    with np.errstate(all="ignore"):  # looked for below
        for first in range(0, len(pieces), at_once):
            stop = min(first + at_once, len(pieces))
            _multiply_in_float64(pieces, first, stop, grams[first:stop])
    finite = np.isfinite(np.diagonal(grams, axis1=1, axis2=2)).all(axis=1)
    if finite.all():
        pieces.seen_finite()
    for number in np.flatnonzero(~finite).tolist():
        grams[number] = _of_present(pieces.one(number))
    return grams


def _multiply_in_float64(pieces: Pieces, first: int, stop: int, grams: NDArray[np.float64]) -> None:
    """Fill in the products of pieces [first, stop): of one, or of as many as `exact_columns` hold."""
    import torch

    scratch, most = pieces.scratch, exact_columns(len(pieces.facts.dtypes))
    begin, end = first * pieces.length, stop * pieces.length
    step = EXACT_COLUMNS if stop - first == 1 else most
    for start in range(begin, end, step):
        columns = min(start + step, end) - start
        wide = scratch.table("wide", torch.float64, columns, most)
        wide.copy_(pieces.values[:, start : start + columns])
        theta = wide.numpy()
        table = scratch.table("wide increments", torch.float64, columns, most).numpy()
        table[0] = theta[0]
        np.subtract(theta[1:], theta[:-1], out=table[1:])
        for origin in pieces.facts.firsts[1:]:
            np.subtract(theta[origin], theta[0], out=table[origin])
        rows = table.reshape(len(table), stop - first, -1).transpose(1, 0, 2)
        if start == begin:
            np.matmul(rows, rows.transpose(0, 2, 1), out=grams)
        else:
            product = scratch.products("product", torch.float64, 1).numpy()
            grams += np.matmul(rows, rows.transpose(0, 2, 1), out=product)


def _of_present(piece: Pieces) -> NDArray[np.float64]:
    """Return the (K, K) product of one piece in float64, where values may not be finite.

    A checkpoint with a value that is not finite is absent: its row is zero, and the next
    increment is taken from the last finite checkpoint (docs/method.md, §3, `non_finite`).
    """
    import torch

    values = piece.values
    present = np.flatnonzero(piece.non_finite[0] == 0)
    gram = np.zeros((len(values), len(values)))
    if present.size:
        rows = torch.from_numpy(present)
        inner = np.zeros((len(present), len(present)))
        before = torch.from_numpy(_before(piece.facts.parents, present))
        for start in range(0, values.shape[1], EXACT_COLUMNS):
            theta = values[:, start : start + EXACT_COLUMNS][rows].double()
            origins = torch.cat((torch.zeros_like(theta[:1]), theta))
            theta -= origins[before]
            of_columns = theta.numpy()
            inner += np.matmul(of_columns, of_columns.T)
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
