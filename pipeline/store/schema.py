"""The tables of a run: the columns of the files that the views are made from.

`group_id` numbers the groups of a run; `groups` says what each is.
"""

from __future__ import annotations

import pyarrow as pa

from pipeline.numerics.matrices import RANKS
from pipeline.numerics.path import COLUMNS
from pipeline.statistics.table import ON_REQUEST

_key = pa.dictionary(pa.int32(), pa.string())
_common = [("attempt", _key)]
_file = pa.struct([("table", pa.string()), ("size", pa.int64()), ("digest", pa.string())])
_matrix = [("tensor", _key), ("expert", pa.int32()), ("k", pa.int32()), ("of", _key)]
_grouped = [("attempt", _key), ("group_id", pa.int32())]
_of_parts = [
    ("k_first", pa.int32()),
    ("k_last", pa.int32()),
    ("indicator", _key),
    ("value", pa.float64()),
    ("null_value", pa.float64()),
]

SCHEMAS: dict[str, pa.Schema] = {
    "runs": pa.schema(
        [
            ("attempt", pa.string()),
            ("final", pa.bool_()),
            ("plan", pa.string()),
            ("source", pa.string()),
            ("created_at", pa.timestamp("us", tz="UTC")),
            ("version", pa.string()),
            ("checkpoints", pa.int64()),
            ("tensors", pa.int64()),
            ("parameters", pa.int64()),
            ("fraction", pa.float64()),
            ("figures", pa.int32()),
            ("bytes_total", pa.int64()),
            ("bytes_read", pa.int64()),
            ("seconds", pa.float64()),
            ("device", pa.string()),
            ("complete", pa.bool_()),
            ("followed", pa.bool_()),
            ("settings", pa.string()),
            ("selection", pa.string()),
            ("statistics", pa.list_(pa.string())),
            ("spectra", pa.int32()),
            ("windows", pa.list_(pa.string())),
            ("files", pa.list_(_file)),
            ("digest", pa.string()),
        ]
    ),
    "checkpoints": pa.schema(
        [
            *_common,
            ("k", pa.int32()),
            ("name", pa.string()),
            ("source", pa.string()),
            ("commit", pa.string()),
            ("step", pa.int64()),
            ("elapsed", pa.float64()),
            ("tokens", pa.float64()),
            ("stage", pa.int32()),
            ("bytes", pa.int64()),
            ("dtype", pa.string()),
        ]
    ),
    "tensors": pa.schema(
        [
            *_common,
            ("tensor", pa.string()),
            ("stack", pa.string()),
            ("layer", pa.int32()),
            ("component", pa.string()),
            ("expert", pa.int32()),
            ("kind", pa.string()),
            ("shape", pa.list_(pa.int64())),
            ("numel", pa.int64()),
            ("dtype", pa.string()),
            ("included", pa.bool_()),
            ("fraction", pa.float64()),
            ("reason", pa.string()),
        ]
    ),
    "groups": pa.schema(
        [
            *_grouped,
            ("scope", pa.string()),
            ("stack", pa.string()),
            ("layer", pa.int32()),
            ("component", pa.string()),
            ("tensor", pa.string()),
            ("head", pa.int32()),
            ("expert", pa.int32()),
            ("parameters", pa.int64()),
            ("increments_kept", pa.bool_()),
        ]
    ),
    "similarity": pa.schema(
        [
            *_grouped,
            ("i", pa.int32()),
            ("j", pa.int32()),
            ("dot", pa.float64()),
            ("relative_dot", pa.float64()),
            ("cosine_stderr", pa.float64()),
            ("relative_cosine_stderr", pa.float64()),
            ("squared_distance", pa.float64()),
            ("increment_dot", pa.float64()),  # NULL but of groups whose increments are kept
        ]
    ),
    "path": pa.schema(
        [
            *_grouped,
            ("k", pa.int32()),
            *[(name, pa.float64()) for name in COLUMNS],
        ]
    ),
    "indicators": pa.schema(
        [
            *_grouped,
            ("indicator", _key),
            ("value", pa.float64()),
            ("stderr", pa.float64()),
            ("null_value", pa.float64()),
            ("differs_from_null", pa.bool_()),
        ]
    ),
    "windows": pa.schema(
        [*_grouped, ("w", pa.int32()), *_of_parts],
    ),
    "stages": pa.schema([*_grouped, *_of_parts]),
    "phases": pa.schema([*_grouped, ("phase", pa.int32()), ("jump", pa.float64()), *_of_parts]),
    "spectrum": pa.schema(
        [
            *_grouped,
            ("basis", _key),
            ("rank", pa.int32()),
            ("eigenvalue", pa.float64()),
            ("share", pa.float64()),
        ]
    ),
    "findings": pa.schema(
        [
            *_common,
            ("severity", pa.string()),
            ("kind", pa.string()),
            ("k", pa.int32()),
            ("tensor", pa.string()),
            ("message", pa.string()),
            ("evidence", pa.string()),
        ]
    ),
    "rows": pa.schema(
        [
            *_common,
            ("tensor", _key),
            ("row", pa.int64()),
            ("norm_first", pa.float64()),
            ("norm_last", pa.float64()),
            ("cosine_first_last", pa.float64()),
            ("last_moved_k", pa.int32()),
        ]
    ),
    "matrix_spectrum": pa.schema(
        [*_common, *_matrix, ("rank", pa.int32()), ("sigma", pa.float64())]
    ),
    "matrix_ranks": pa.schema([*_common, *_matrix, *[(name, pa.float64()) for name in RANKS]]),
    "training": pa.schema(
        [
            *_common,
            ("k", pa.int32()),
            ("step", pa.int64()),
            ("split", _key),
            ("metric", _key),
            ("value", pa.float64()),
        ]
    ),
    "projection": pa.schema(
        [*_grouped, ("k", pa.int32()), *[(f"pc{c}", pa.float64()) for c in (1, 2, 3)]]
    ),
}

for _statistic in ON_REQUEST:
    SCHEMAS[_statistic.name] = pa.schema(
        [*_grouped, ("k", pa.int32()), *[(name, pa.float64()) for name in _statistic.columns]]
    )

BYTE_STREAM_SPLIT = {
    table: tuple(field.name for field in schema if field.type == pa.float64())
    for table, schema in SCHEMAS.items()
}


def with_run(table: str) -> pa.Schema:
    """Return a table's columns as a reader sees them: the run comes from the path."""
    return SCHEMAS[table].append(pa.field("run", pa.string()))
