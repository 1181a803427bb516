"""Digests of stored values: equal where the values are, bit for bit, whatever the division.

A digest is the sum over chunks of xxh3-128 of the part's bytes in the chunk, seeded by the chunk's number,
each half modulo 2⁶⁴: so it adds up over tiles in any order. Codes say nothing without their scales: of
these the bytes of their values are taken, piece by piece.

Letters: K checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.statistics.parts import PartKey
from pipeline.statistics.pieces import CHUNK, bounds
from pipeline.statistics.statistic import ArraySpec

if TYPE_CHECKING:
    from pipeline.checkpoint.parts import Part
    from pipeline.statistics.piece import Pieces, TensorFacts

WORDS = 2  # 128 bits: among 10⁸ digests a false equality has a chance of about 1e-23

Words = NDArray[np.uint64]


class Digest:
    """What tells checkpoints of equal values."""

    name = "digest"
    scratch = 0

    def arrays(self, num_checkpoints: int) -> tuple[ArraySpec, ...]:
        return (ArraySpec("digest.words", (num_checkpoints, WORDS), "u8"),)

    def of_pieces(self, pieces: Pieces) -> dict[str, Any]:
        """Digest codes with scales; other values are digested as stored (`StoredDigests`)."""
        if not pieces.facts.scales:
            return {}
        values = pieces.apart(pieces.values).numpy()
        digests = [
            [xxhash.xxh3_128_digest(row.tobytes(), place.number) for row in of_piece]
            for place, of_piece in zip(pieces.places, values.swapaxes(0, 1), strict=True)
        ]
        return {"digest.words": np.stack([_words(of_piece) for of_piece in digests])}


class StoredDigests:
    """Digests of what the ranges of one tile store, which come in order.

    By chunks, not by pieces: xxhash lets other threads go on while it works through 100,000 bytes or more
    (eight threads with an H200: with pieces half of the time that threads held the interpreter's lock was in
    their digests).
    """

    def __init__(self) -> None:
        self._cut: dict[PartKey, tuple[int, list[Any]]] = {}
        """Chunks that the end of a block cuts: their numbers, and a hasher for each checkpoint."""

    def of_range(
        self,
        key: PartKey,
        facts: TensorFacts,
        first: int,
        stop: int,
        rows: Sequence[memoryview],
        column: int,
    ) -> Words:
        """Return the (K, WORDS) sums of the digests of chunks that come to their end.

        Args:
            first, stop: the elements of the tensor that lie in the rows, from `column` on.
        """
        total = np.zeros((len(rows), WORDS), np.uint64)
        for start, end in bounds(first, stop, CHUNK):
            number = start // CHUNK
            is_whole = start % CHUNK == 0 and (end % CHUNK == 0 or end == facts.numel)
            runs = _runs(facts.part, start, end)
            if not runs:
                continue
            if key in self._cut and self._cut[key][0] != number:
                total += self._finished(key)
            begins = [column + (start - first) * size for size in facts.sizes.tolist()]
            of_chunk = list(zip(rows, begins, facts.sizes.tolist(), strict=True))
            if is_whole and len(runs) == 1:
                ((a, b),) = runs
                total += _words(
                    [
                        xxhash.xxh3_128_digest(row[begin + a * size : begin + b * size], number)
                        for row, begin, size in of_chunk
                    ]
                )
                continue
            if key not in self._cut:
                self._cut[key] = number, [xxhash.xxh3_128(seed=number) for _ in rows]
            for hasher, (row, begin, size) in zip(self._cut[key][1], of_chunk, strict=True):
                for a, b in runs:
                    hasher.update(row[begin + a * size : begin + b * size])
        return total

    def rest(self) -> Iterator[tuple[PartKey, Words]]:
        """Yield the digests of chunks that have not come to their end, when nothing more comes."""
        for key in list(self._cut):
            yield key, self._finished(key)

    def _finished(self, key: PartKey) -> Words:
        _, hashers = self._cut.pop(key)
        return _words([hasher.digest() for hasher in hashers])


def _runs(part: Part, start: int, end: int) -> list[tuple[int, int]]:
    """Return the runs of a part among a tensor's elements [start, end), counted from `start`."""
    if part.stop - part.start == part.period:
        return [(0, end - start)]
    runs = (
        (max(first + part.start, start) - start, min(first + part.stop, end) - start)
        for first in range(start - start % part.period, end, part.period)
    )
    return [(a, b) for a, b in runs if a < b]


def _words(digests: Sequence[bytes]) -> Words:
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, WORDS)
