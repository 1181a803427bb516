"""How the pieces of a block are taken together: decoded in batches, copied to a GPU in transfers.

A piece is one product wherever a batch or a transfer begins, so no bit depends on either.

Letters: K checkpoints, M elements of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.planning.blocks import ROW_ALIGNMENT, PlacedRange
from pipeline.statistics.parts import PartKey
from pipeline.statistics.piece import TORCH_DTYPES, PiecePlace, TensorFacts, columns_of
from pipeline.statistics.pieces import batch_elements, piece_bounds, products_at_once
from pipeline.statistics.scaling import needed_scales


@dataclass(eq=False, slots=True)
class Batch:
    """Pieces that lie side by side in a block and are decoded at once."""

    place: PlacedRange
    """Where the first of them lies."""
    dtypes: tuple[str, ...]
    stored: str | None
    """The format of all checkpoints, if it is one."""
    begins: NDArray[np.int64]
    """(K,) columns of the first byte; rows differ where formats do."""
    ends: NDArray[np.int64]
    facts: TensorFacts
    """Of the first piece; codes with scales of one range only share a batch."""
    start: int
    """The first element, of its tensor."""
    numel: int = 0
    lacking: list[list[PiecePlace]] = field(default_factory=list[list[PiecePlace]])
    """What has yet to be added, in order, the last one first; pieces of one list are worked on together."""

    def takes(self, facts: TensorFacts, begins: NDArray[np.int64], length: int) -> bool:
        """Return whether so many elements of a tensor may be decoded with these."""
        return (
            facts.stored is not None
            and (self.facts is facts or not (facts.scales or self.facts.scales))
            and self.dtypes == facts.dtypes
            and self.numel + length <= batch_elements(len(self.dtypes))
            and bool(self.ends[0] == begins[0])
        )

    def add(self, piece: PiecePlace) -> None:
        """Add a piece, to the last ones if it can be worked on with them."""
        last = self.lacking[-1] if self.lacking else []
        most = products_at_once(len(self.dtypes))
        if last and len(last) < most and last[-1].continued_by(piece):
            last.append(piece)
        else:
            self.lacking.append([piece])

    def scales(self, rows: Tensor) -> dict[int, Tensor]:
        """Return the scales that its elements need, of each checkpoint that has some, on the CPU.

        Args:
            rows: the block, in the host's memory.
        """
        held, stop = self.place.range, self.start + self.numel
        of = held.first, held.stop
        return {
            k: needed_scales(scales, rows[k], self.place.scales, of, self.start, stop)
            for k, scales in self.facts.scales.items()
        }

    def complete(self) -> Batch:
        """Return it with the first pieces last."""
        self.lacking.reverse()
        return self


def batches(
    ranges: Iterable[tuple[PlacedRange, Sequence[tuple[PartKey, TensorFacts]]]],
) -> Iterator[Batch]:
    """Yield the pieces of a block, each to be added to the parts that come with its range.

    Tensors of one format that lie side by side share a batch.
    """
    batch: Batch | None = None
    for place, parts in ranges:
        facts = parts[0][1]
        first = place.range.first
        for start, stop in piece_bounds(first, place.range.stop):
            begins = place.column + (start - first) * facts.sizes
            if batch is None or not batch.takes(facts, begins, stop - start):
                if batch is not None:
                    yield batch.complete()
                batch = Batch(place, facts.dtypes, facts.stored, begins, begins, facts, start)
            for key, of_part in parts:
                columns = columns_of(of_part.part, start, stop)
                if columns is not None:
                    batch.add(PiecePlace(key, of_part, start, stop, columns, batch.numel))
            batch.numel += stop - start
            batch.ends = begins + (stop - start) * facts.sizes
    if batch is not None:
        yield batch.complete()


@dataclass(eq=False, slots=True)
class Transfer:
    """Batches that lie side by side, and the columns that hold them."""

    batches: list[Batch]
    begins: NDArray[np.int64]
    """(K,) of ROW_ALIGNMENT, so that what is aligned in the block is aligned in a copy."""
    ends: NDArray[np.int64]

    def takes(self, batch: Batch, room: int) -> bool:
        """Return whether a batch may come last and every row still fits into `room` bytes."""
        # From where rows differ, a tensor that is alike in all of them would lie in no table.
        level = bool((self.begins == self.begins[0]).all())
        return (level or batch.place is self.batches[0].place) and int(
            (batch.ends - self.begins).max()
        ) <= room

    def stored(self, batch: Batch, table: Tensor) -> Tensor | list[Tensor]:
        """Return a batch's values as stored, given the transfer's bytes: (M,) rows or (K, M)."""
        begins, ends = batch.begins - self.begins, batch.ends - self.begins
        if batch.stored is not None:
            return table[:, begins[0] : ends[0]].view(TORCH_DTYPES[batch.stored])
        return [
            row[begin:end].view(TORCH_DTYPES[dtype])
            for row, begin, end, dtype in zip(table, begins, ends, batch.dtypes, strict=True)
        ]


def transfers(pieces: Sequence[Batch], room: int) -> Iterator[Transfer]:
    """Divide batches, in order, into transfers of at most `room` bytes a row; a batch must fit."""
    transfer: Transfer | None = None
    for batch in pieces:
        if transfer is not None and transfer.takes(batch, room):
            transfer.batches.append(batch)
            transfer.ends = batch.ends
        else:
            if transfer is not None:
                yield transfer
            transfer = Transfer([batch], batch.begins // ROW_ALIGNMENT * ROW_ALIGNMENT, batch.ends)
    if transfer is not None:
        yield transfer
