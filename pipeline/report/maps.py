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
    list(cosine_stderr ORDER BY i, j) AS weights_error,
    list(relative_cosine_stderr ORDER BY i, j) AS displacements_error
FROM similarity
WHERE run = ? AND scope = ? AND list_contains(?, coalesce(layer, {_NO_LAYER}))
    AND i % ? = 0 AND j % ? = 0
GROUP BY ALL"""

_INCREMENTS = f"""SELECT {", ".join(KEYS)}, list(dot ORDER BY i, j) AS dots
FROM update_similarity
WHERE run = ? AND scope = ? AND list_contains(?, coalesce(layer, {_NO_LAYER}))
GROUP BY ALL"""


def maps(
    store: Store,
    run: str,
    scope: str,
    *,
    count: int,
    sampled: bool,
    fine: bool,
    most: int,
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield the keys of each group of a scope with its maps.

    Args:
        count: K.
        sampled: the cosines have standard errors.
        fine: in two bytes a pair, with the map of increments; otherwise in one, without.
        most: checkpoints of a map; of more, every second, third, … is taken.
    """
    every = -(-count // most)
    read = count if fine else -(-count // every)
    for layers in _batches(store, run, scope, read * (read + 1) // 2):
        table = store.table(_QUERY, [run, scope, layers, every, every])
        increments = dict(_groups(store.table(_INCREMENTS, [run, scope, layers]))) if fine else {}
        for keys, group in _groups(table):
            packed = _packed(group, sampled, fine)
            if keys in increments:
                cosines = increment_cosines(increments[keys]["dots"], every)
                packed["increments"] = pack(half_chords(cosines), 2)
            yield keys, {"every": every, **packed}


def _groups(table: pa.Table) -> Iterator[tuple[tuple[Any, ...], dict[str, FloatArray]]]:
    """Yield the keys of each group, and its lists."""
    arrays = {name: _rows(table, name) for name in table.column_names[len(KEYS) :]}
    for number, keys in enumerate(zip(*(table[key].to_pylist() for key in KEYS), strict=True)):
        yield keys, {name: array[number] for name, array in arrays.items()}


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


def _packed(group: dict[str, FloatArray], sampled: bool, fine: bool) -> dict[str, Packed]:
    width = 2 if fine else 1
    packed = {name: pack(half_chords(group[name]), width) for name in ("weights", "displacements")}
    if sampled and fine:
        errors = ("weights_error", "displacements_error")
        packed |= {name: pack(group[name], 1) for name in errors}
    return packed


def increment_cosines(dots: FloatArray, every: int) -> FloatArray:
    """Return the cosines, (P,), of all pairs of the increments between the checkpoints of a map.

    Each of these is the sum of `every` increments. NaN where one is zero or undefined, and at the first
    checkpoint, which none leads to.

    Args:
        dots: of all pairs i <= j of the K - 1 increments, row by row; NaN where undefined.
    """
    count = int(np.sqrt(2 * len(dots)))
    square = np.empty((count, count))
    upper = np.triu_indices(count)
    square[upper] = square[upper[::-1]] = dots
    longer = count // every
    whole = square[: longer * every, : longer * every]
    sums = whole.reshape(longer, every, longer, every).sum(axis=(1, 3))
    lengths = np.sqrt(np.diagonal(sums))
    cosines = np.full((longer + 1, longer + 1), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines[1:, 1:] = np.clip(sums / np.outer(lengths, lengths), -1.0, 1.0)
    np.fill_diagonal(cosines[1:, 1:], np.where(lengths > 0, 1.0, np.nan))
    return cosines[np.triu_indices(longer + 1)]
