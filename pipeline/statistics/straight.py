"""What rounding makes of a straight path: sums over parts, for turns of every scale.

A turn of h at k is ∠(θ_k − θ_{k−h}, θ_{k+h} − θ_k). Of a part whose weights all went straight ahead, in steps of one
size such that the stored ones are as long as these two, the stored ones have the product Σ E ab, where rounding turned
them. Both sums over parts are kept; with h they turn by arccos(Σ E ab / Σ E a²). Source: docs/method-2.md, §5.3.

Letters: Q parts, K checkpoints, H scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.basis import Basis
from pipeline.numerics.equal_steps import turned_products
from pipeline.numerics.straight_turns import SCALES
from pipeline.statistics.groups import PartStack
from pipeline.statistics.statistic import beside_diagonal


def squared_moves(triangles: NDArray[Any], basis: Basis) -> NDArray[np.float64]:
    """Return ‖θ_k − θ_{k−h}‖² over what was read of parts, (Q, H, K); 0 where k − h is not on the path of k.

    Linear in the Gram matrices, summed outward from k: nothing cancels.

    Args:
        triangles: (Q, K (K + 1) / 2), of the increment basis.
    """
    count = basis.count
    moves = np.zeros((len(triangles), len(SCALES), count))
    path = np.searchsorted(basis.firsts, np.arange(count), side="right")
    squares = np.zeros((len(triangles), count))  # of the sums of h increments up to each
    ends = np.zeros_like(
        squares
    )  # products of the last of these with all of them, those before twice
    for h in range(1, min(SCALES[-1], count - 1) + 1):
        ends[:, h - 1 :] += beside_diagonal(triangles, h - 1) * (1.0 if h == 1 else 2.0)
        squares[:, 1:] = squares[:, :-1].copy()
        squares += ends
        if h in SCALES:
            behind = np.flatnonzero(path[h:] == path[:-h]) + h
            moves[:, SCALES.index(h), behind] = np.maximum(squares[:, behind], 0.0)
    return moves


def straight_sums(stack: PartStack, moves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Σ E ab and Σ E a² = ‖a‖‖b‖ of whole parts, (Q, 2, H, K); 0 where the turn is undefined.

    A part of which no value was sampled is left out.

    Args:
        moves: (Q, H, K), over what was read of the parts.
    """
    lengths = np.zeros_like(moves)
    for number, h in enumerate(SCALES):
        roots = np.sqrt(moves[:, number]) * np.sqrt(stack.weight)[:, None]
        lengths[:, number, :-h] = roots[:, :-h] * roots[:, h:]
    sums = np.zeros((len(moves), 2, *moves.shape[1:]))
    for alike in stack.spaced_alike:
        wanted = lengths[alike.parts, :, alike.checkpoints]
        row, scale = np.nonzero(wanted)
        squared, squared_units = wanted[row, scale], alike.units[row] ** 2
        products = turned_products(alike.counts, alike.spacings, row, squared / squared_units)
        place = alike.parts[row], scale, alike.checkpoints[row]
        sums[:, 0][place] = products * squared_units
        sums[:, 1][place] = squared
    return sums
