"""Whole matrices of a tile, put together from its pieces: the read of `--spectra`.

Letters: P parts, K checkpoints, M elements of a piece.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.matrices import LARGEST, RANKS, UNDEFINED, needed, spectrum
from pipeline.statistics.parts import PartKey, Sums
from pipeline.statistics.statistic import ArraySpec

if TYPE_CHECKING:
    from pipeline.statistics.piece import Pieces, TensorFacts

OF = ("weights", "displacement")
"""What spectra are of: W_k, and W_k − W_0."""
Shape = tuple[int, int]


def matrix_specs(num_checkpoints: int) -> tuple[ArraySpec, ...]:
    """Return the arrays that are kept of each matrix; NaN where undefined."""
    return (
        ArraySpec("matrices.sigma", (num_checkpoints, len(OF), LARGEST), "f8"),
        ArraySpec("matrices.ranks", (num_checkpoints, len(OF), len(RANKS)), "f8"),
    )


def matrix_bytes(shapes: Sequence[Shape], num_checkpoints: int, width: int) -> int:
    """Return the bytes that the matrices of one tensor take, with what is computed of one at a time.

    Args:
        shapes: of each part.
        width: bytes of a stored element: what is decoded has 4, or 8.
    """
    held = sum(rows * columns for rows, columns in shapes) * num_checkpoints * max(4, width)
    return held + max(needed(*shape) for shape in shapes)


class Room:
    """Memory that the tiles of a worker share: each waits until its matrices fit."""

    def __init__(self, total: int) -> None:
        self._total, self._taken = total, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, num_bytes: int) -> Iterator[None]:
        """Hold so many bytes; what is larger than all of it waits for all."""
        num_bytes = min(num_bytes, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + num_bytes <= self._total)
            self._taken += num_bytes
        try:
            yield
        finally:
            with self._changed:
                self._taken -= num_bytes
                self._changed.notify_all()


class MatrixAccumulator:
    """Puts the matrices of one tile together."""

    def __init__(self, shapes: Mapping[PartKey, Shape], num_checkpoints: int) -> None:
        """`shapes`: of the parts of the tile."""
        self._shapes, self._count = shapes, num_checkpoints
        self._held: dict[PartKey, NDArray[np.floating[Any]]] = {}
        self._reached = dict.fromkeys(shapes, 0)

    def add(self, pieces: Pieces) -> None:
        """Add pieces, which come in order."""
        values = pieces.apart(pieces.values).numpy()
        for number, place in enumerate(pieces.places):
            self._add(place.key, values[:, number])

    def add_stored(
        self,
        parts: Sequence[tuple[PartKey, TensorFacts]],
        first: int,
        stop: int,
        rows: Sequence[memoryview],
        column: int,
    ) -> None:
        """Take nothing of what is stored: values come in pieces."""

    def result(self, device: str) -> Sums:
        """Return the spectra; nothing more is added then, and what was held is free."""
        arrays = {
            spec.name: np.full((len(self._shapes), *spec.shape), np.nan)
            for spec in matrix_specs(self._count)
        }
        for row, (key, shape) in enumerate(self._shapes.items()):
            matrices = self._held.pop(key).reshape(self._count, *shape)
            for k, matrix in enumerate(matrices):
                displacement = spectrum(matrix, matrices[0]) if k else UNDEFINED
                for number, figures in enumerate((spectrum(matrix), displacement)):
                    arrays["matrices.sigma"][row, k, number] = figures.sigma
                    arrays["matrices.ranks"][row, k, number] = figures.ranks
        return Sums(tuple(self._shapes), arrays, device)

    def _add(self, key: PartKey, values: NDArray[np.floating[Any]]) -> None:
        if key not in self._held:
            rows, columns = self._shapes[key]
            self._held[key] = np.empty((self._count, rows * columns), values.dtype)
        stop = self._reached[key] + values.shape[1]
        self._held[key][:, self._reached[key] : stop] = values
        self._reached[key] = stop
