"""From merged arrays of parts to what adds up over the parts of a group.

Letters: Q parts, K checkpoints.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.basis import Basis
from pipeline.statistics.exponents import coarsest, spacing
from pipeline.statistics.statistic import beside_diagonal


class SpacedAlike(NamedTuple):
    """Parts at checkpoints whose values are in one format."""

    parts: NDArray[np.int64]
    """(N,), with the next one: which of a stack's they are."""
    checkpoints: NDArray[np.int64]
    counts: NDArray[np.float64]
    """(N, U) weights of the whole part by the spacing of values where they are."""
    spacings: NDArray[np.float64]
    """(U,), ascending, to be multiplied with the next one."""
    units: NDArray[np.float64]
    """(N,): 1, but of codes with scales."""


@dataclass(frozen=True, eq=False)
class PartStack:
    """What was read of some parts, over all tiles and folds."""

    arrays: Mapping[str, NDArray[Any]]
    """By name, (Q, …); of symmetric matrices the upper triangle."""
    numel: NDArray[np.float64]
    """(Q,) elements of each part, read or not."""
    dtypes: Sequence[tuple[str, ...]]
    """Stored format of each part at each checkpoint."""
    basis: Basis
    """Of the K checkpoints."""

    @cached_property
    def weight(self) -> NDArray[np.float64]:
        """(Q,) elements that each element read stands for: 1 where all were read."""
        return self.numel / np.maximum(1, self.arrays["exponents.numel"])

    @cached_property
    def sampled_every(self) -> NDArray[np.float64]:
        """(Q,) elements read for each that is in the sample of values."""
        return self.arrays["exponents.numel"] / np.maximum(1, self.arrays["exponents.sampled"])

    @cached_property
    def squared_increments(self) -> NDArray[np.float64]:
        """(Q, K) ‖Δ_k‖² of the whole part; at the first checkpoint ‖θ_0‖²."""
        return beside_diagonal(self.arrays["gram.increments"], 0) * self.weight[:, None]

    @cached_property
    def spaced_alike(self) -> tuple[SpacedAlike, ...]:
        """All parts, of which a value was sampled, at all checkpoints."""
        return tuple(self._spaced_alike())

    def _spaced_alike(self) -> Iterator[SpacedAlike]:
        alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for part in np.flatnonzero(self.arrays["exponents.sampled"]).tolist():
            alike[self.dtypes[part]].append(part)
        sampled = np.maximum(1, self.arrays["exponents.sampled"])[:, None]
        units = 2.0 ** (self.arrays["exponents.fractions"] / sampled)
        for dtypes, parts in alike.items():
            formats = coarsest(self.arrays["exponents.represented"][parts], dtypes)
            for name in np.unique(formats):
                of_parts, checkpoints = np.nonzero(formats == name)
                of_stack = np.array(parts)[of_parts]
                counts, spacings = spacing(
                    self.arrays["exponents.counts"][of_stack, checkpoints], str(name)
                )
                counts *= (self.weight * self.sampled_every)[of_stack, None]
                yield SpacedAlike(
                    of_stack, checkpoints, counts, spacings, units[of_stack, checkpoints]
                )
