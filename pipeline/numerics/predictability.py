"""The share of each increment that lies in the span of those before it.

The span of the m increments before k is what is left out when they are eliminated, one by one from
the latest back, from the correlation matrix of the nine increments k-8 ... k: one elimination gives
the shares of every m. Steps k of all groups are eliminated side by side.

Eigenvalues of the m increments' own correlation matrix below a millionth of the largest count as
zero. Elimination cannot drop them; where there may be one, the eigenvectors are asked. There is none
where the trace of the inverse, which elimination gives, too, is at most 1e6 / m: the least eigenvalue
is no less than one over that trace, the largest no more than m.

Shapes: G = groups in the stack, M = increments that are not zero, L = steps k of several groups.

Source: docs/method.md, section "Indicators", `predictability_*`.
"""

import numpy as np

from pipeline.numerics.stack import FloatArray, IntArray, diagonal, patterns, selected

MEMORIES = (1, 2, 4, 8)
"""Increments that `predictability_*` looks back on."""
NEGLIGIBLE_EIGENVALUE = 1e-6
"""Of the largest: below it recent increments count as dependent."""

_LONGEST = max(MEMORIES)
_STEPS_AT_ONCE = 1024  # 81 doubles each, as much as a core's cache holds


def predictabilities(increments: FloatArray) -> dict[str, FloatArray]:
    """`predictability_*`, (G,) each, from the Gram matrices of the increments, k >= 1.

    NaN where fewer than two increments are not zero.
    """
    values = np.full((len(MEMORIES), len(increments)), np.nan)
    for groups, moved in patterns(diagonal(increments) > 0):
        matrices = selected(increments, groups, moved)
        if matrices.shape[1] > 1:
            energies = np.ascontiguousarray(diagonal(matrices))
            held = _shares(_band(matrices)) * energies[:, 1:]
            values[:, groups] = held.sum(axis=2) / energies[:, 1:].sum(axis=1)
    return {f"predictability_{m}": values[n] for n, m in enumerate(MEMORIES)}


def _band(increments: FloatArray) -> FloatArray:
    """(9, G, 8 + M) cosine of an increment and the one 0 to 8 before it, 0 where there is none.

    Eight increments of zeros lie ahead of the first: dependent directions, which hold nothing.
    """
    energies = diagonal(increments)
    groups, count = energies.shape
    band = np.zeros((_LONGEST + 1, groups, _LONGEST + count))
    band[0] = 1.0
    for lag in range(1, min(_LONGEST, count - 1) + 1):
        scale = np.sqrt(energies[:, lag:] * energies[:, :-lag])
        cosine = np.diagonal(increments, lag, 1, 2) / scale
        np.clip(cosine, -1.0, 1.0, out=band[lag, :, _LONGEST + lag :])
    return band


def _shares(band: FloatArray) -> FloatArray:
    """(4, G, M - 1) share of the increments from the second on, for each of `MEMORIES`."""
    groups, steps = band.shape[1], band.shape[2] - _LONGEST - 1
    group, step = (index.reshape(-1) for index in np.indices((groups, steps)))
    step += _LONGEST + 1
    shares = np.empty((len(MEMORIES), group.size))
    for first in range(0, group.size, _STEPS_AT_ONCE):
        some = slice(first, first + _STEPS_AT_ONCE)
        shares[:, some] = _eliminated(_windows(band, group[some], step[some]))
    for number, memory in enumerate(MEMORIES):
        (dependent,) = np.nonzero(np.isnan(shares[number]))
        for first in range(0, dependent.size, _STEPS_AT_ONCE):
            some = dependent[first : first + _STEPS_AT_ONCE]
            windows = _windows(band, group[some], step[some])[: memory + 1, : memory + 1]
            shares[number, some] = _projected(windows)
    return np.minimum(shares, 1.0).reshape(len(MEMORIES), groups, steps)


def _windows(band: FloatArray, group: IntArray, step: IntArray) -> FloatArray:
    """(9, 9, L) correlations of an increment and the eight before it, from the latest back."""
    windows = np.empty((_LONGEST + 1, _LONGEST + 1, group.size))
    for later in range(_LONGEST + 1):
        for earlier in range(later, _LONGEST + 1):
            cosine = band[earlier - later, group, step - later]
            windows[later, earlier] = windows[earlier, later] = cosine
    return windows


def _eliminated(windows: FloatArray) -> FloatArray:
    """(4, L) shares, NaN where eigenvalues may have to be dropped; overwrites `windows`.

    The sweep operator: after m sweeps the inverse of the m increments' matrix stands in their place,
    negative, and what they have in common with the increment itself has been taken off.
    """
    shares = np.full((len(MEMORIES), windows.shape[2]), np.nan)
    held = np.zeros(windows.shape[2])
    sound = np.ones(windows.shape[2], bool)
    with np.errstate(all="ignore"):  # dependent increments: not sound, and asked again
        for m in range(1, _LONGEST + 1):
            pivot, column = windows[m, m].copy(), windows[m].copy()
            sound &= pivot > 0
            scaled = column / pivot
            held += column[0] * scaled[0]
            windows -= scaled[:, np.newaxis] * column
            windows[m] = windows[:, m] = scaled
            windows[m, m] = -1.0 / pivot
            if m in MEMORIES:
                trace = -np.einsum("mml->l", windows[1 : m + 1, 1 : m + 1])
                independent = sound & (NEGLIGIBLE_EIGENVALUE * m * trace <= 1.0)
                np.copyto(shares[MEMORIES.index(m)], held, where=independent)
    return shares


def _projected(windows: FloatArray) -> FloatArray:
    """(L,) shares by eigenvectors, of (1 + m, 1 + m, L) correlations."""
    matrices = np.ascontiguousarray(np.moveaxis(windows, -1, 0))
    values, vectors = np.linalg.eigh(matrices[:, 1:, 1:])
    along = np.einsum("kij,ki->kj", vectors, matrices[:, 1:, 0])
    independent = values >= NEGLIGIBLE_EIGENVALUE * values[:, -1:]
    parts = np.divide(along**2, values, out=np.zeros_like(values), where=independent)
    return parts.sum(axis=1)
