"""The increment basis: which row of it leads to which checkpoint, for one path or several.

Row 0 is theta_0 and row k the increment into checkpoint k. Of several paths that are read together,
each but the first begins with a row that leads to it from the first checkpoint of all, so that two
paths from one start lie close together in the basis too.

Shapes: N = checkpoints of all paths, P = those of one.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.stack import FloatArray


@dataclass(frozen=True, slots=True)
class Basis:
    """The increment basis of N checkpoints."""

    firsts: tuple[int, ...]
    """Where each path begins; the first of them is 0."""
    count: int
    """N."""

    @property
    def paths(self) -> tuple[slice, ...]:
        """The checkpoints of each path."""
        return tuple(slice(*bounds) for bounds in pairwise([*self.firsts, self.count]))

    @property
    def parents(self) -> NDArray[np.int64]:
        """(N,) the checkpoint that each row starts from; -1: the origin."""
        parents = np.arange(-1, self.count - 1)
        parents[list(self.firsts[1:])] = 0
        return parents

    def chains(self) -> FloatArray:
        """(N, N) ones where a row is a part of the checkpoint: theta = chains @ basis."""
        chain = np.eye(self.count)
        for k, before in enumerate(self.parents):
            if before >= 0:
                chain[k] += chain[before]
        return chain

    def alone(self, path: slice) -> FloatArray:
        """(P, N) the increment basis of one path alone, in terms of this one."""
        rows = np.eye(self.count)[path]
        if path.start:
            rows[0] += np.eye(self.count)[0]
        return rows
