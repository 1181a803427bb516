"""Sums over all weights of a group, estimated from those that were read.

A group of weights is divided into strata. Of each, some units were read that were taken at random:
runs of a sample, or tiles of a run that is not finished. What was read stands for the whole stratum
by its share, which makes the sums unbiased.

For the standard errors the units read are dealt to jackknife folds. The change that leaving one out
would make, in a stratum of N units, n of them read and n_g of these in the group, is

    a (N / (n − n_g) (T − T_g) − N / n T),   a² = (1 − f) (m − 1) / m · G / (G − 1) if m < G,
                                             a² = (1 − f)                           otherwise

with T the sum over the units read, T_g over those in the group, m independent draws, f = n / N and
G groups. Source: docs/method.md, "Sampling".

Letters: K checkpoints, H scales of turns.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.straight_turns import SCALES

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stratum:
    """What was read of some weights that are alike."""

    size: int
    """Units, read or not."""
    read: Mapping[int, int]
    """Units read, by jackknife fold."""
    draws: int
    """How many of them were taken independently of each other."""

    @property
    def units_read(self) -> int:
        return sum(self.read.values())

    @property
    def whole(self) -> bool:
        """True where all was read: nothing is estimated."""
        return self.units_read == self.size

    @property
    def varies_knowably(self) -> bool:
        """Whether what was read tells how uncertain it is: two draws, not all in one group."""
        return self.draws > 1 and max(self.read.values()) < self.units_read


def varying(strata: Mapping[Hashable, Stratum]) -> list[int]:
    """Return the jackknife folds without which the sums are others; none where errors are not known."""
    if not _errors_known(strata):
        return []
    return sorted({group for s in strata.values() if not s.whole for group in s.read})


def _errors_known(strata: Mapping[Hashable, Stratum]) -> bool:
    return all(s.whole or s.varies_knowably for s in strata.values())


class Estimate:
    """The sums of one group of weights, put together from those over units."""

    def __init__(
        self, strata: Mapping[Hashable, Stratum], groups: int, num_checkpoints: int
    ) -> None:
        """`groups`: jackknife folds, G above. Every stratum must have been read in part."""
        self._strata, self.groups = strata, groups
        shape = (num_checkpoints, num_checkpoints)
        self._totals: dict[Hashable, Array] = {label: np.zeros(shape) for label in strata}
        self.straight = np.zeros((2, len(SCALES), num_checkpoints))
        self.errors_known = _errors_known(strata)
        self._changes: dict[int, Array] = {group: np.zeros(shape) for group in varying(strata)}

    def add(self, label: Hashable, group: int, increments: Array) -> None:
        """Add the Gram matrix, (K, K), over units of a stratum that are in a jackknife fold."""
        stratum = self._strata[label]
        self._totals[label] += increments
        if self.errors_known and not stratum.whole:
            kept = stratum.units_read - stratum.read[group]
            self._changes[group] -= self._scale(stratum) * stratum.size / kept * increments

    def add_straight(self, label: Hashable, sums: Array) -> None:
        """Add what rounding makes of a straight path, (2, H, K), of what was read of a stratum."""
        stratum = self._strata[label]
        self.straight += sums * (stratum.size / stratum.units_read)

    def result(self) -> tuple[Array, dict[int, Array]]:
        """Return the Gram matrix of all strata, and its changes by jackknife fold."""
        shape = next(iter(self._totals.values())).shape
        increments = np.zeros(shape)
        for label, total in self._totals.items():
            stratum = self._strata[label]
            share = stratum.size / stratum.units_read
            increments += total if stratum.whole else share * total
            if self.errors_known and not stratum.whole:
                for group, units in stratum.read.items():
                    without = stratum.size / (stratum.units_read - units)
                    self._changes[group] += self._scale(stratum) * (without - share) * total
        return increments, self._changes

    def _scale(self, stratum: Stratum) -> float:
        unread = 1 - stratum.units_read / stratum.size
        draws, groups = stratum.draws, self.groups
        if draws < groups:
            unread *= (draws - 1) / draws * groups / (groups - 1)
        return math.sqrt(unread)
