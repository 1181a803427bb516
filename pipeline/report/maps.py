"""Trajectory maps of the groups of a scope, from the views, packed for the page.

Shapes: G = groups, K = checkpoints of the run, M = checkpoints of a map, P = its M (M + 1) / 2 pairs i <= j
in row-major order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.report.packing import FloatArray, Packed, half_chords, pack
from pipeline.store.query import Store

KEYS = ("stack", "layer", "component", "tensor", "head", "expert")
_PAIRS_AT_ONCE = 4_000_000
"""100 MB as lists of DuckDB's."""
_NO_LAYER = -1

_QUERY = f"""SELECT {", ".join(KEYS)},
    list(cosine ORDER BY i, j) AS weights, list(relative_cosine ORDER BY i, j) AS displacements,
    list(distance ORDER BY i, j) AS distances, list(cosine_stderr ORDER BY i, j) AS weights_error,
    list(relative_cosine_stderr ORDER BY i, j) AS displacements_error
FROM similarity
WHERE run = ? AND scope = ? AND list_contains(?, coalesce(layer, {_NO_LAYER}))
    AND i % ? = 0 AND j % ? = 0
GROUP BY ALL"""


def maps(
    store: Store,
    run: str,
    scope: str,
    *,
    sources: list[str],
    sampled: bool,
    fine: bool,
    most: int,
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield the keys of each group of a scope with its maps.

    Args:
        sources: (K,) where each checkpoint comes from: increments are formed within each.
        sampled: the cosines have standard errors.
        fine: in two bytes a pair, with the map of increments; otherwise in one, without.
        most: checkpoints of a map; of more, every second, third, … is taken.
    """
    every = -(-len(sources) // most)
    taken = np.array(sources)[::every]
    for layers in _batches(store, run, scope, len(taken) * (len(taken) + 1) // 2):
        table = store.table(_QUERY, [run, scope, layers, every, every])
        arrays = {name: _rows(table, name) for name in table.column_names[len(KEYS) :]}
        for number, keys in enumerate(zip(*(table[k].to_pylist() for k in KEYS), strict=True)):
            group = {name: array[number] for name, array in arrays.items()}
            yield keys, {"every": every, **_packed(group, taken, sampled, fine)}


def _batches(store: Store, run: str, scope: str, pairs: int) -> Iterator[list[int]]:
    """Yield layers whose groups are read at once."""
    counts = store.sql(
        f"SELECT coalesce(layer, {_NO_LAYER}) AS depth, count(*) FROM groups"
        " WHERE run = ? AND scope = ? GROUP BY depth ORDER BY depth",
        [run, scope],
    ).fetchall()
    batch: list[int] = []
    total = 0
    for layer, count in counts:
        if batch and (total + count) * pairs > _PAIRS_AT_ONCE:
            yield batch
            batch, total = [], 0
        batch.append(layer)
        total += count
    if batch:
        yield batch


def _rows(table: pa.Table, name: str) -> FloatArray:
    """Return a column of lists of one length, (G, P)."""
    column = table[name].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).astype(float)
    return values.reshape(len(column), -1)


def _packed(
    group: dict[str, FloatArray], sources: np.ndarray, sampled: bool, fine: bool
) -> dict[str, Packed]:
    width = 2 if fine else 1
    cosines = {name: group[name] for name in ("weights", "displacements")}
    if fine:
        cosines["increments"] = increment_cosines(group["distances"], sources)
    packed = {name: pack(half_chords(values), width) for name, values in cosines.items()}
    if sampled and fine:
        errors = ("weights_error", "displacements_error")
        packed |= {name: pack(group[name], 1) for name in errors}
    return packed


def increment_cosines(distances: FloatArray, sources: np.ndarray) -> FloatArray:
    """Return the cosines, (P,), of all pairs of increments; NaN where one is zero or undefined.

    The dot product of two increments is half of d(i, j-1)^2 + d(i-1, j)^2 - d(i, j)^2 - d(i-1, j-1)^2.
    All four are sums over the same matrix of increments in float64, so that what cancels is exact to
    1e-16 of the largest.

    Args:
        distances: (P,) of pairs of checkpoints.
        sources: (M,); an increment from one to another is none.
    """
    count = len(sources)
    upper = np.triu_indices(count)
    squared = np.zeros((count, count))
    squared[upper] = distances**2
    squared = np.maximum(squared, squared.T)  # NaN stays
    dots = squared[1:, :-1] + squared[:-1, 1:] - squared[1:, 1:] - squared[:-1, :-1]
    lengths = np.sqrt(np.diagonal(squared, 1))
    lengths = np.where((sources[1:] == sources[:-1]) & (lengths > 0), lengths, np.nan)
    cosines = np.full((count, count), np.nan)
    cosines[1:, 1:] = np.clip(dots / 2.0 / np.outer(lengths, lengths), -1.0, 1.0)
    np.fill_diagonal(cosines[1:, 1:], np.where(np.isnan(lengths), np.nan, 1.0))
    return cosines[upper]
