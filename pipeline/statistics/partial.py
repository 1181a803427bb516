"""What one tile leaves of one part: the partial Gram matrix and what stored values tell.

Letters: K checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.statistics.rounding import COARSEST_FIRST, NUM_SUMS

DIGEST_WORDS = 2  # 128 bits: among 10⁸ digests a false equality has a chance of about 1e-23


@dataclass(frozen=True, eq=False, slots=True)
class PartialGram:
    """Sums over some elements of one part, for all checkpoints. Adds up over elements."""

    increments: NDArray[np.float64]
    """(K, K) Gram matrix in the increment basis."""
    digests: NDArray[np.uint64]
    """(K, DIGEST_WORDS) of the stored values; equal where they are, whatever the division."""
    non_finite: NDArray[np.int64]
    """(K,) how many values are NaN or infinite."""
    exponent_sums: NDArray[np.float64]
    """(K, NUM_SUMS) for the rounding energy, of the sampled values."""
    represented: NDArray[np.bool_]
    """(K, 4) whether each number format represents the sampled values exactly."""
    numel: int
    sampled: int
    """How many values of each checkpoint went into the rounding energy."""

    @staticmethod
    def empty(num_checkpoints: int) -> PartialGram:
        """Return the sum over no element."""
        return PartialGram(
            increments=np.zeros((num_checkpoints, num_checkpoints)),
            digests=np.zeros((num_checkpoints, DIGEST_WORDS), np.uint64),
            non_finite=np.zeros(num_checkpoints, np.int64),
            exponent_sums=np.zeros((num_checkpoints, NUM_SUMS)),
            represented=np.ones((num_checkpoints, len(COARSEST_FIRST)), bool),
            numel=0,
            sampled=0,
        )

    def __add__(self, other: PartialGram) -> PartialGram:
        return PartialGram(
            increments=self.increments + other.increments,
            digests=self.digests + other.digests,  # modulo 2⁶⁴ a word: the order does not matter
            non_finite=self.non_finite + other.non_finite,
            exponent_sums=self.exponent_sums + other.exponent_sums,
            represented=self.represented & other.represented,
            numel=self.numel + other.numel,
            sampled=self.sampled + other.sampled,
        )


@dataclass(frozen=True, eq=False, slots=True)
class TileResult:
    """What one tile leaves: small, whatever the tile's size."""

    parts: dict[tuple[int, int, int], PartialGram]
    """(tensor, its part, jackknife group) → sums over the tile's elements of it. Groups differ only
    where weights are sampled."""
    device: str
    """What computed it: name of the processor or card."""
