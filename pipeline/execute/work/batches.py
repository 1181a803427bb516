"""How the pieces of a block are taken together: decoded in batches.

A piece is one product wherever a batch begins, so no bit depends on it.

Letters: K checkpoints, M elements of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.planning.blocks import PlacedRange
from pipeline.statistics.parts import PartKey
from pipeline.statistics.piece import (
    TORCH_DTYPES,
    PiecePlace,
    Stored,
    TensorFacts,
    columns_of,
    columns_of_places,
)
from pipeline.statistics.pieces import PIECE, batch_elements, bounds, products_at_once
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
    pieces: list[list[PiecePlace]] = field(default_factory=list[list[PiecePlace]])
    """In order; those of one list are worked on together."""

    def takes(self, facts: TensorFacts, begins: NDArray[np.int64], length: int, room: int) -> bool:
        """Return whether so many elements of a tensor may be decoded with these, `room` at most."""
        return (
            facts.stored is not None
            and (self.facts is facts or not (facts.scales or self.facts.scales))
            and self.dtypes == facts.dtypes
            and self.numel + length <= room
            and bool(self.ends[0] == begins[0])
        )

    def add(self, piece: PiecePlace, at_once: int) -> None:
        """Add a piece, to the last ones if it can be worked on with them, `at_once` at most."""
        last = self.pieces[-1] if self.pieces else []
        if last and len(last) < at_once and last[-1].continued_by(piece):
            last.append(piece)
        else:
            self.pieces.append([piece])

    def stored_in(self, table: Tensor) -> Stored:
        """Return the values as stored, given the block's bytes: (M,) rows or (K, M)."""
        if self.stored is not None:
            return table[:, self.begins[0] : self.ends[0]].view(TORCH_DTYPES[self.stored])
        return [
            row[begin:end].view(TORCH_DTYPES[dtype])
            for row, begin, end, dtype in zip(
                table, self.begins, self.ends, self.dtypes, strict=True
            )
        ]

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


RangeOfParts = tuple[PlacedRange, Sequence[tuple[PartKey, TensorFacts]]]
"""A tensor range of a block, and the parts that its pieces belong to."""


def batches(
    ranges: Iterable[RangeOfParts], num_checkpoints: int, on_gpu: bool = False
) -> Iterator[Batch]:
    """Yield the pieces of a block, each to be added to the parts that come with its range.

    Tensors of one format that lie side by side share a batch.
    """
    room = batch_elements(num_checkpoints, on_gpu)
    at_once = room // PIECE if on_gpu else products_at_once(num_checkpoints)
    batch: Batch | None = None
    for place, parts in ranges:
        facts = parts[0][1]
        first = place.range.first
        for start, stop in bounds(first, place.range.stop, PIECE):
            begins = place.column + (start - first) * facts.sizes
            if batch is None or not batch.takes(facts, begins, stop - start, room):
                if batch is not None:
                    yield batch
                batch = Batch(place, facts.dtypes, facts.stored, begins, begins, facts, start)
            for key, of_part in parts:
                columns = columns_of(of_part.part, start, stop)
                if columns is not None:
                    place_of_piece = PiecePlace(key, of_part, start, stop, columns, batch.numel)
                    batch.add(place_of_piece, at_once)
            batch.numel += stop - start
            batch.ends = begins + (stop - start) * facts.sizes
    if batch is not None:
        yield batch


def of_places(table: Tensor, places: Sequence[PiecePlace]) -> Tensor:
    """Return the elements of pieces, (K, B M), of the decoded values of their batch."""
    columns = columns_of_places(table, places)
    assert isinstance(columns, Tensor)
    return columns
