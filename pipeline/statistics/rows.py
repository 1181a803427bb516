"""What each row of an embedding or an output head did: sums of its first and last weights, and when it last moved.

Four numbers of a row whatever the number of checkpoints. Rows are cut by pieces, blocks and tiles: a cut row has
sums over each of its pieces, which are added up in their order. Only the first and last checkpoint of a path are
decoded; all others are compared as stored.

Letters: N rows of a result, P paths, K checkpoints, M elements of a piece, U runs of one row in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.statistics.piece import Pieces, Stored

NAME = "rows"
PRODUCTS = 3
"""‖w_0‖², ‖w_T‖², ⟨w_0, w_T⟩."""


class RowTable(NamedTuple):
    """Where the rows of a tensor lie among its elements: element e is of row e // run mod rows."""

    rows: int
    run: int
    """Elements of one row that lie side by side: the width, or 1 in a table that is stored transposed."""

    def touched(self, first: int, stop: int) -> NDArray[np.int64]:
        """Return the rows that the elements [first, stop) are of, ascending."""
        begin = first // self.run
        return np.sort(np.arange(begin, begin + self.num_touched(first, stop)) % self.rows)

    def num_touched(self, first: int, stop: int) -> int:
        """Return how many rows they are of."""
        return min(self.rows, -(-stop // self.run) - first // self.run)

    def runs(self, first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the runs of one row that the elements [first, stop) hold: the row of each, and its begin from
        `first`."""
        begins = np.arange(-(first % self.run), stop - first, self.run)
        begins[0] = 0
        return (first // self.run + np.arange(len(begins))) % self.rows, begins


@dataclass(frozen=True, eq=False, slots=True)
class RowSums:
    """Sums over some elements of some rows."""

    keys: NDArray[np.int64]
    """(N, 2): tensor and row; a row comes once in a tile, and again in the next one where that cuts it."""
    products: NDArray[np.float64]
    """(N, P, PRODUCTS)"""
    last_moved: NDArray[np.int32]
    """(N, P): the last checkpoint of a path, counted from its first, whose stored values differ from those of the
    one before; 0: none."""

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.products.nbytes + self.last_moved.nbytes

    @staticmethod
    def joined(each: Sequence[RowSums]) -> RowSums:
        """Return the sums of several, one after the other; at least one."""
        return RowSums(
            np.concatenate([sums.keys for sums in each]),
            np.concatenate([sums.products for sums in each]),
            np.concatenate([sums.last_moved for sums in each]),
        )


SCRATCH = 128
"""Bytes of working memory for each element of a piece: two checkpoints of it and their products in float64, what is
compared of two, and which columns are left."""


class Rows(NamedTuple):
    """Of which rows sums are kept, and how much that is."""

    tables: Mapping[int, RowTable]
    """By the number of their tensor."""
    each: int
    """Bytes of the sums of one row."""

    @staticmethod
    def of(tables: Mapping[int, RowTable], paths: int) -> Rows:
        """Return what is kept of the rows of these tables, on so many paths."""
        return Rows(tables, 2 * 8 + paths * (8 * PRODUCTS + 4))


NO_ROWS = Rows({}, 0)


class _OfPiece(NamedTuple):
    places: NDArray[np.int64]
    """(U,) where the sums of its rows lie; one place may come several times."""
    products: NDArray[np.float64]
    last_moved: NDArray[np.int32]


class RowAccumulator:
    """Adds up the rows of one tile."""

    def __init__(
        self,
        tables: Mapping[int, RowTable],
        ranges: Iterable[tuple[int, int, int]],
        firsts: Sequence[int],
        num_checkpoints: int,
    ) -> None:
        """Prepare sums of the rows that a tile holds some of.

        Args:
            tables: by number of their tensor; others are passed over.
            ranges: tensor, first and stop of what the tile holds.
            firsts: where each path begins.
        """
        self._tables, self._paths = tables, list(pairwise((*firsts, num_checkpoints)))
        touched: dict[int, list[NDArray[np.int64]]] = defaultdict(list)
        for tensor, first, stop in ranges:
            if tensor in tables:
                touched[tensor].append(tables[tensor].touched(first, stop))
        self._begins: dict[int, int] = {}
        self._rows: dict[int, NDArray[np.int64]] = {}
        count = 0
        for tensor, rows in touched.items():
            self._begins[tensor], self._rows[tensor] = count, np.unique(np.concatenate(rows))
            count += len(self._rows[tensor])
        self._products = np.zeros((count, len(self._paths), PRODUCTS))
        self._last_moved = np.zeros((count, len(self._paths)), np.int32)

    def of_pieces(self, pieces: Pieces) -> list[_OfPiece]:
        """Return what pieces add to the rows that they are of."""
        return [
            self._of_piece(pieces.one(number))
            for number, place in enumerate(pieces.places)
            if place.key.tensor in self._tables
        ]

    def merge(self, added: Sequence[_OfPiece]) -> None:
        """Add what pieces add, in their order."""
        for each in added:
            np.add.at(self._products, each.places, each.products)
            np.maximum.at(self._last_moved, each.places, each.last_moved)

    def result(self) -> RowSums | None:
        """Return the sums over everything added; None if no table has rows in the tile."""
        keys = [
            np.column_stack((np.full(len(rows), tensor), rows))
            for tensor, rows in self._rows.items()
        ]
        return RowSums(np.concatenate(keys), self._products, self._last_moved) if keys else None

    def _of_piece(self, piece: Pieces) -> _OfPiece:
        (place,) = piece.places
        table = self._tables[place.key.tensor]
        rows, begins = table.runs(place.start, place.stop)
        of_table = np.searchsorted(self._rows[place.key.tensor], rows)
        places = self._begins[place.key.tensor] + of_table
        stored = piece.values if piece.facts.scales else piece.stored
        of_paths = [
            _products(stored[first], stored[stop - 1], begins) for first, stop in self._paths
        ]
        moved = [last_moved(stored, begins, first, stop) for first, stop in self._paths]
        return _OfPiece(places, np.stack(of_paths, axis=1), np.stack(moved, axis=1))


def _products(first: Tensor, last: Tensor, begins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (U, PRODUCTS) of the runs that begin at `begins`, given two rows of M values as stored."""
    before, after = first.double().numpy(), last.double().numpy()
    sums, product = np.empty((len(begins), PRODUCTS)), np.empty_like(before)
    with np.errstate(all="ignore"):  # what is not finite has no figures
        for column, (a, b) in enumerate(((before, before), (after, after), (before, after))):
            sums[:, column] = np.add.reduceat(np.multiply(a, b, out=product), begins)
    return sums


def last_moved(
    stored: Stored, begins: NDArray[np.int64], first: int, stop: int
) -> NDArray[np.int32]:
    """Return (U,) when each run last changed among the checkpoints [first, stop), counted from `first`.

    From the last checkpoint back, and only as far as some run has not been seen to move.

    Args:
        stored: K rows of M values.
        begins: where the runs begin.
    """
    moved = np.zeros(len(begins), np.int32)
    left = np.arange(len(begins))
    lengths = np.diff(np.append(begins, len(stored[first])))
    columns: Any = slice(None)
    for k in range(stop - 1, first, -1):
        before, after = _patterns(stored[k - 1], stored[k])
        changed = np.logical_or.reduceat(before[columns] != after[columns], begins)
        if not changed.any():
            continue
        moved[left[changed]] = k - first
        left = left[~changed]
        if not left.size:
            break
        of_left = np.zeros(len(moved), bool)
        of_left[left] = True
        columns = np.flatnonzero(np.repeat(of_left, lengths))
        begins = np.cumsum(lengths[left]) - lengths[left]
    return moved


def _patterns(before: Tensor, after: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what tells whether stored values are the same: −0 and 0 differ, formats do not count."""
    import torch

    if before.dtype != after.dtype:
        before, after = before.double(), after.double()
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[before.itemsize]
    return before.view(integers).numpy(), after.view(integers).numpy()
