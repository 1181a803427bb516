"""The products of pieces on a GPU: the one thing that is computed there.

Sums over CHAIN columns, turned as on the processor, in float32, in one call of cuBLAS for a whole batch, and
float64 sums of these.
cuBLAS chooses its kernel, and so the order of its sums, by the sizes of a call: every call has the same
ones, whatever the batch holds. Columns that are not used are zero, which changes no sum. The sample that other
statistics look at is gathered here, too: to find it the processor would read every line of its cache again.

Letters: K checkpoints, B pieces, M elements of each, P pieces that a call has room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.statistics.gram import TURNS, is_in_float32
from pipeline.statistics.piece import OfGpu, PiecePlace, Scratch, TensorFacts, sampled_columns
from pipeline.statistics.pieces import PIECE, batch_elements

CHAIN = 128
"""Elements of one float32 sum. A GPU adds one product after the other to it, a processor's vector instructions to
16 or more sums in turn, so that chains of the same length are off by more. Squared lengths of 16,384 bfloat16 weights
on an H200, 64 or 154 checkpoints: off by -9.7e-8 of themselves with 128, -6.6e-7 with 512, -2.9e-6 with 2,048; turned
(`gram.TURNS`) by -3e-10, -5e-9 and -5e-8, each with a spread of 1.0e-8, 4.8e-8 and 2.2e-7. Products of 512 take 0.91 to
0.95 of the time (docs/decisions/gpu.md)."""


def suits_gpu(facts: TensorFacts) -> bool:
    """Return whether pieces of a part are multiplied on a GPU, if there is one.

    Small parts are multiplied in float64, which takes the processor less time than it takes to ask a GPU
    (12,000 tensors of 1,024 weights: 6.0 s on 16 cores, 10.0 s with an H200, piece by piece). Codes with
    scales are decoded on the processor in any case, for their digests.
    """
    return is_in_float32(facts) and not facts.scales


def gpu_scratch_bytes(num_checkpoints: int, width: int) -> int:
    """Return what `gpu_products` takes on the GPU beside a batch as stored, of elements of `width` bytes."""
    elements = batch_elements(num_checkpoints, on_gpu=True)
    values = num_checkpoints * elements * (2 * max(4, width) + 4)  # decoded, gathered; increments
    products = elements // CHAIN * num_checkpoints**2 * 4
    return values + products + 4 * elements // PIECE * num_checkpoints**2 * 8


class Launched(NamedTuple):
    """What will be on the GPU: `piece.OfGpu`."""

    products: Tensor
    moved: Tensor
    sample: Tensor

    def wait(self) -> OfGpu:
        """Return it, in the host's memory."""
        return OfGpu(self.products.cpu().numpy(), self.moved.cpu().numpy(), self.sample.cpu())


def launched(values: Tensor, places: Sequence[PiecePlace], scratch: Scratch) -> Launched:
    """Have a GPU multiply the increments of pieces; nothing is waited for.

    Args:
        values: (K, B M), decoded, on the GPU; B M at most what a batch holds.
    """
    firsts = places[0].facts.firsts
    pieces, count = len(places), len(values)
    length = values.shape[1] // pieces
    room = batch_elements(count, on_gpu=True) // PIECE
    sums = PIECE // CHAIN
    increments = scratch.table("increments", torch.float32, room * PIECE)
    increments = increments.view(room, sums, count, CHAIN)
    if pieces * length < room * PIECE:
        increments.zero_()
    whole, rest = divmod(length, CHAIN)
    of_pieces = values.unflatten(1, (pieces, length))
    if whole:
        body = of_pieces[:, :, : whole * CHAIN].unflatten(2, (whole, CHAIN))
        _subtract(increments[:pieces, :whole].permute(2, 0, 1, 3), body, firsts)
    if rest:
        tail = of_pieces[:, :, whole * CHAIN :]
        _subtract(increments[:pieces, whole, :, :rest].permute(1, 0, 2), tail, firsts)
    moved = increments[:pieces].ne(0).any(3).any(1)
    torch.view_as_complex(increments.unflatten(3, (CHAIN // 2, 2))).mul_(_turns(values.device))
    rows = increments.view(room * sums, count, CHAIN)
    products = scratch.products("products", torch.float32, room * sums)
    torch.bmm(rows, rows.transpose(1, 2), out=products)
    totals = products.view(room, sums, count, count).sum(1, dtype=torch.float64)
    columns = torch.from_numpy(sampled_columns(places)).to(values.device)
    sample = values.index_select(1, columns).unflatten(1, (pieces, len(columns) // pieces))
    return Launched(totals[:pieces], moved, sample)


@cache
def _turns(device: torch.device) -> Tensor:
    """Return by what the pairs of a piece's columns are turned, as they lie in increments."""
    return torch.from_numpy(TURNS).view(PIECE // CHAIN, 1, CHAIN // 2).to(device)


def _subtract(increments: Tensor, values: Tensor, firsts: Sequence[int]) -> None:
    """Fill in the rows of the increment basis, (K, …) both."""
    increments[0] = values[0]
    torch.sub(values[1:], values[:-1], out=increments[1:])
    for first in firsts[1:]:
        torch.sub(values[first], values[0], out=increments[first])
