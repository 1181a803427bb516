"""The sums of one tile: every statistic of every part, in stacked arrays.

Letters: P parts of the tile (a part in several folds counts several times), K checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.statistics.digest import StoredDigests, Words
from pipeline.statistics.parts import PartKey, Sums
from pipeline.statistics.piece import Pieces, TensorFacts
from pipeline.statistics.rows import RowAccumulator
from pipeline.statistics.statistic import Statistic, packed, specs


class Accumulator:
    """Adds up the pieces of one tile. A piece is added whole or not at all."""

    def __init__(
        self,
        keys: Sequence[PartKey],
        statistics: Sequence[Statistic],
        num_checkpoints: int,
        rows: RowAccumulator | None = None,
    ) -> None:
        """`rows`: of the tables in the tile, if they are asked for."""
        self._keys, self._statistics = tuple(keys), statistics
        self._rows = {key: row for row, key in enumerate(self._keys)}
        self._specs = {spec.name: spec for spec in specs(statistics, num_checkpoints)}
        self._arrays = {name: spec.empty(len(keys)) for name, spec in self._specs.items()}
        self._digests = StoredDigests()
        self._table_rows = rows

    def add(self, pieces: Pieces) -> None:
        """Add pieces to their parts, in order; if this fails, nothing was added."""
        rows = [self._rows[place.key] for place in pieces.places]
        contributions = [each.of_pieces(pieces) for each in self._statistics]
        of_rows = self._table_rows.of_pieces(pieces) if self._table_rows else []
        # What may find no memory is done.
        if self._table_rows:
            self._table_rows.merge(of_rows)
        side_by_side = rows == list(range(rows[0], rows[0] + len(rows)))
        for contribution in contributions:
            for name, values in contribution.items():
                merge, array = self._specs[name].merge, self._arrays[name]
                if side_by_side:
                    merge(array[rows[0] : rows[0] + len(rows)], values)
                else:
                    for row, value in zip(rows, values, strict=True):
                        merge(array[row, ...], value)

    def add_stored(
        self,
        parts: Sequence[tuple[PartKey, TensorFacts]],
        first: int,
        stop: int,
        rows: Sequence[memoryview],
        column: int,
    ) -> None:
        """Add what is stored of the elements [first, stop) of a tensor to its parts.

        Args:
            rows: of bytes, in which they lie from `column` on.
        """
        for key, facts in parts:
            if not facts.scales:
                of_range = self._digests.of_range(key, facts, first, stop, rows, column)
                self._add_digests(key, of_range)

    def _add_digests(self, key: PartKey, words: Words) -> None:
        self._arrays["digest.words"][self._rows[key]] += words

    def result(self, device: str) -> Sums:
        """Return the sums over everything added; nothing more is added then."""
        for key, words in self._digests.rest():
            self._add_digests(key, words)
        arrays = {
            name: packed(array) if self._specs[name].symmetric else array
            for name, array in self._arrays.items()
        }
        return Sums(
            self._keys, arrays, device, self._table_rows.result() if self._table_rows else None
        )
