"""Sketches: sums of the values with random signs, from which Gram matrices are estimated.

A sketch is linear in the values: that of an increment is the difference of two, so that a run can be
followed while it grows, each checkpoint read once. Source: docs/method-2.md, §7; a count sketch
(Charikar, Chen and Farach-Colton, ICALP 2002) in which the values of a block go to different buckets.

Letters: K checkpoints, B pieces, M elements of a piece, m buckets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.statistics.pieces import PIECE, splitmix64
from pipeline.statistics.statistic import ArraySpec, one_by_one

if TYPE_CHECKING:
    from pipeline.checkpoint.parts import Part
    from pipeline.statistics.piece import Pieces

BUCKETS = 4096
"""m, unless another is asked for: cosines of one tensor are off by 0.016 (1 − c²)."""
MOST_BUCKETS = PIECE
WHOLE = 2
"""Parts of at most so many weights for each bucket are kept as they are: that takes twice the room of a
sketch at most, and is exact."""

_SHIFTS = 0xD1B54A32D192ED03
"""Tells the draws of shifts from those of signs."""
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64 (pieces.py), of many states at once
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_TOP = np.uint64(1 << 63)
_AT_ONCE = 4096
"""Elements of one call: what it works on stays in the cache nearest to the core."""
_COUNT = np.arange(_AT_ONCE, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Sketch:
    """The buckets of every part at each checkpoint; of a small part its values, in order."""

    buckets: int = BUCKETS
    """m, a power of two, at most MOST_BUCKETS."""
    seed: int = 0
    columns: int = WHOLE * BUCKETS
    """Of the array of buckets: what `columns_for` returns. Columns that a part does not need are zero."""

    name = "sketch"
    scratch = 8  # the values of a few pieces in float64

    @property
    def label(self) -> str:
        """What tells apart sketches that cannot be compared."""
        return f"{self.name}-{self.buckets}-{self.seed}"

    def arrays(self, num_checkpoints: int) -> tuple[ArraySpec, ...]:
        return (
            ArraySpec("sketch.buckets", (num_checkpoints, self.columns), "f8"),
            # Σw², the products of the Gram matrix are of float32
            ArraySpec("sketch.squares", (num_checkpoints,), "f8"),
        )

    def of_pieces(self, pieces: Pieces) -> dict[str, Any]:
        return one_by_one(pieces, self._of_piece)

    def is_whole(self, numel: int) -> bool:
        """Return whether a part of so many weights is kept as it is."""
        return numel <= WHOLE * self.buckets

    def columns_for(self, numels: Iterable[int]) -> int:
        """Return how many columns parts of so many weights need."""
        return max(numel if self.is_whole(numel) else self.buckets for numel in numels)

    def _of_piece(self, piece: Pieces) -> dict[str, Any]:
        import torch

        (place,), facts = piece.places, piece.facts
        values = piece.present_values[:, 0].to(torch.float64, copy=True).numpy()
        squares = np.vecdot(values, values)
        buckets = np.zeros((len(values), self.columns))
        self.add(buckets, values, facts.part.below(place.start), facts.part_numel, facts.name)
        return {"sketch.buckets": buckets, "sketch.squares": squares}

    def add(
        self,
        buckets: NDArray[np.float64],
        values: NDArray[np.float64],
        first: int,
        numel: int,
        name: str,
    ) -> None:
        """Add elements of a part to its buckets, (K, columns); elements must come in order.

        Args:
            values: (K, M) the elements from `first` on; they are given their signs in place.
            numel: elements of the part.
            name: of the part (`part_name`).
        """
        if self.is_whole(numel):
            buckets[:, first : first + values.shape[1]] = values
        else:
            key = key_of(name, self.seed)
            _give_signs(values, splitmix64(key) + first)
            self._add(buckets, values, first, splitmix64(key ^ _SHIFTS))

    def _add(
        self, buckets: NDArray[np.float64], signed: NDArray[np.float64], first: int, origin: int
    ) -> None:
        """Add elements with signs, (K, M) from `first` on, block by block."""
        m, last = self.buckets, first + signed.shape[1]
        for block in range(first // m, -(-last // m)):
            shift = splitmix64((origin + block) & _MASK) % m
            anew = (block + 1) * m - shift  # from here on the buckets begin again
            for begin, end in ((block * m, anew), (anew, (block + 1) * m)):
                start, stop = max(begin, first), min(end, last)
                if start < stop:
                    bucket = (start + shift) % m
                    run = signed[:, start - first : stop - first]
                    buckets[:, bucket : bucket + stop - start] += run


def _give_signs(values: NDArray[np.float64], state: int) -> None:
    """Multiply (K, M) values by ±1: the top bits of what SplitMix64 makes of the states from `state` on."""
    bits = values.view(np.uint64)
    for at in range(0, values.shape[1], _AT_ONCE):
        of_values = bits[:, at : at + _AT_ONCE]
        mixed = _COUNT[: of_values.shape[1]] + np.uint64((state + at + _GOLDEN) & _MASK)
        shifted = mixed >> np.uint64(30)
        mixed ^= shifted
        mixed *= _FIRST
        np.right_shift(mixed, np.uint64(27), out=shifted)
        mixed ^= shifted
        mixed *= _SECOND  # what follows in SplitMix64 leaves the top bit
        mixed &= _TOP
        of_values ^= mixed


def key_of(part: str, seed: int) -> int:
    """Return the number that a part's signs and shifts are drawn with.

    The first 8 bytes, big-endian, of SHA-256 of the UTF-8 bytes of its name (`part_name`), a line feed and
    the seed in decimal digits.
    """
    return int.from_bytes(hashlib.sha256(f"{part}\n{seed}".encode()).digest()[:8], "big")


def part_name(tensor: str, part: Part) -> str:
    """Return the name of a part, as no other of a plan has it: of a tensor that is one part the tensor's."""
    label = f"[{part.label}]" if part.label else ""
    expert = "" if part.expert is None else f" expert {part.expert}"
    head = "" if part.head is None else f" head {part.head}"
    return f"{tensor}{label}{expert}{head}"
