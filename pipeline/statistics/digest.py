"""Digests of stored values: equal where the values are, bit for bit, whatever the division.

A digest is the sum over pieces of xxh3-128 of the part's bytes in the piece, seeded by the piece's
number, each half modulo 2⁶⁴: so it adds up over tiles in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from pipeline.statistics.statistic import ArraySpec

if TYPE_CHECKING:
    from pipeline.statistics.piece import Pieces

WORDS = 2  # 128 bits: among 10⁸ digests a false equality has a chance of about 1e-23


class Digest:
    """What tells checkpoints of equal values."""

    name = "digest"
    scratch = 0

    def arrays(self, num_checkpoints: int) -> tuple[ArraySpec, ...]:
        return (ArraySpec("digest.words", (num_checkpoints, WORDS), "u8"),)

    def of_pieces(self, pieces: Pieces) -> dict[str, Any]:
        digests: list[bytes] = []
        for number, place in enumerate(pieces.places):
            seed = place.number
            for first, *others in pieces.stored_bytes(number):
                if not others:
                    digests.append(xxhash.xxh3_128_digest(first, seed))
                    continue
                hasher = xxhash.xxh3_128(first, seed)
                for run in others:
                    hasher.update(run)
                digests.append(hasher.digest())
        words = np.frombuffer(b"".join(digests), ">u8").astype("u8")
        return {"digest.words": words.reshape(len(pieces), -1, WORDS)}
