"""A run's tables as Parquet: `STORE/<table>/run=<run>/<attempt>-<number>.parquet`.

All files of a run carry the name of the attempt that wrote them (store/attempts.py). The row in `runs`
is written last and makes the attempt count: a reader sees the old tables or the new ones, never a
mixture. Before the row all of it may be removed, after it nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import LeaseLost, StoreUnusable
from pipeline.findings.finding import Finding
from pipeline.numerics.indicators import INDICATORS
from pipeline.planning.plan import Plan
from pipeline.reduce.figures import Figures
from pipeline.reduce.groups import Key
from pipeline.store.attempts import part_path, remove_unfinished, row_path
from pipeline.store.contents import digest, sealed
from pipeline.store.folder import Folder
from pipeline.store.schema import BYTE_STREAM_SPLIT, SCHEMAS

Array = NDArray[np.float64]

ROWS_PER_FILE = 2_000_000  # about 50 MB of similarities: bounds what is held before it is written
ROW_GROUP_ROWS = 122_880  # DuckDB's own: point queries 2.4 ms, against 4.8-5.6 ms otherwise


class RunWriter:
    """Writes one attempt of one run. Nothing of it shows before `commit`."""

    def __init__(self, folder: Folder, run: str, attempt: str) -> None:
        self._folder, self._run, self._attempt = folder, run, attempt
        self._batches: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._rows: dict[str, int] = defaultdict(int)
        self._files: dict[str, list[dict[str, Any]]] = defaultdict(list)
        """Of each table, as the row of `runs` names them."""
        self._row = b""

    def add(self, number: int, key: Key, found: Figures) -> None:
        """Add all figures of one group; `number` identifies the group within the run."""
        self._append("groups", {name: [getattr(key, name)] for name in Key.__slots__}, number)
        count = len(found.projection)
        i, j = np.triu_indices(count)
        upper = {
            "dot": found.dots[i, j],
            "relative_dot": found.relative_dots[i, j],
            "squared_distance": found.squared_distances[i, j],
            "cosine_stderr": found.cosine_errors[i, j],
            "relative_cosine_stderr": found.relative_cosine_errors[i, j],
        }
        self._append("similarity", {"i": i, "j": j, **upper}, number)
        self._append("path", {"k": np.arange(count), **found.path}, number)
        self._append(
            "indicators",
            {
                "indicator": list(INDICATORS),
                "value": np.array([found.indicators[name] for name in INDICATORS]),
                "stderr": np.array([found.indicator_errors[name] for name in INDICATORS]),
                "null_value": np.array([found.null_values[name] for name in INDICATORS]),
                "differs_from_null": [found.differs_from_null[name] for name in INDICATORS],
            },
            number,
        )
        for basis, (eigenvalues, shares) in found.spectrum.items():
            ranks = np.arange(1, len(eigenvalues) + 1)
            columns = {"rank": ranks, "eigenvalue": eigenvalues, "share": shares}
            self._append("spectrum", {"basis": [basis] * len(ranks), **columns}, number)
        coordinates = {f"pc{c + 1}": found.projection[:, c] for c in range(3)}
        self._append("projection", {"k": np.arange(count), **coordinates}, number)

    def add_statistic(self, number: int, statistic: str, columns: Mapping[str, Array]) -> None:
        """Add the rows of a statistic on request, one for each checkpoint of a group."""
        count = len(next(iter(columns.values())))
        self._append(statistic, {"k": np.arange(count), **columns}, number)

    def complete(self, plan: Plan, found: Sequence[Finding], run_row: dict[str, Any]) -> None:
        """Write all that is left but the row of `runs`."""
        self._append("checkpoints", _checkpoint_columns(plan))
        self._append("tensors", _tensor_columns(plan))
        self._append("findings", _finding_columns(found))
        for table in SCHEMAS.keys() - {"runs"}:
            self._flush(table)
        files = list(chain.from_iterable(self._files.values()))
        own = {"attempt": self._attempt, "files": files}
        row = {name: [(run_row | own).get(name)] for name in SCHEMAS["runs"].names}
        self._row = _parquet(sealed(pa.table(row, schema=SCHEMAS["runs"])), "runs")

    def commit(self) -> None:
        """Write the row of `runs`: from here on this attempt counts. May be tried again.

        Raises:
            LeaseLost: another driver has taken the run over meanwhile.
            StoreUnusable: the storage does not answer; the row may be there all the same.
        """
        if not self._folder.create(row_path(self._run, self._attempt), self._row):
            raise LeaseLost(
                f"run {self._run} was taken over by another driver while this one was writing it",
                "`hallmarks status` says how far it is",
            )

    def abandon(self) -> None:
        """Remove what this attempt has written, before its commit."""
        with contextlib.suppress(StoreUnusable):  # no view shows it; a later attempt removes it
            remove_unfinished(self._folder, self._run, self._attempt)

    def _append(self, table: str, columns: dict[str, Any], group: int | None = None) -> None:
        """Keep rows; columns are turned into Arrow many groups at a time, which is 3 times faster."""
        rows = len(next(iter(columns.values())))
        columns["attempt"] = np.zeros(rows, np.int32)
        if group is not None:
            columns["group_id"] = np.full(rows, group, np.int32)
        self._batches[table].append(columns)
        self._rows[table] += rows
        if self._rows[table] >= ROWS_PER_FILE:
            self._flush(table)

    def _flush(self, table: str) -> None:
        batches = self._batches.pop(table, [])
        if not batches and self._files[table]:
            return
        # a table without rows still gets a file: the views name all of them
        arrays = []
        for field in SCHEMAS[table]:
            values = _joined([columns[field.name] for columns in batches])
            if field.name == "attempt":
                indices = pa.array(values, pa.int32())
                arrays.append(pa.DictionaryArray.from_arrays(indices, [self._attempt]))
            elif pa.types.is_dictionary(field.type):
                arrays.append(pa.array(values, field.type.value_type).dictionary_encode())
            else:
                # from_pandas: NaN is NULL
                arrays.append(pa.array(values, field.type, from_pandas=True))
        data = _parquet(pa.Table.from_arrays(arrays, schema=SCHEMAS[table]), table)
        path = part_path(table, self._run, self._attempt, len(self._files[table]))
        self._folder.replace(path, data)
        self._files[table].append({"table": table, "size": len(data), "digest": digest(data)})
        self._rows[table] = 0


def _joined(batches: list[Any]) -> Any:
    if batches and isinstance(batches[0], np.ndarray):
        return np.concatenate(batches)
    return list(chain.from_iterable(batches))


def _parquet(table: pa.Table, name: str) -> bytes:
    """Return a table as the bytes of a Parquet file.

    Doubles as byte streams and keys as dictionaries: 10.9 MB where pyarrow's defaults give 14.9.
    """
    sink = pa.BufferOutputStream()
    split = BYTE_STREAM_SPLIT[name]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=3,
        use_dictionary=[  # type: ignore[arg-type]  # the stubs know only a bool
            column for column in table.column_names if column not in split
        ],
        column_encoding=dict.fromkeys(split, "BYTE_STREAM_SPLIT") or None,
        row_group_size=ROW_GROUP_ROWS,
        write_page_checksum=True,  # for who reads parts of a file, from object storage
    )
    return sink.getvalue().to_pybytes()


def _checkpoint_columns(plan: Plan) -> dict[str, Any]:
    names = ("name", "source", "commit", "step", "elapsed", "tokens", "stage", "bytes", "dtype")
    columns: dict[str, Any] = {
        name: [getattr(checkpoint, name) for checkpoint in plan.checkpoints] for name in names
    }
    count = len(plan.checkpoints)
    return columns | {"k": list(range(count))}


def _finding_columns(found: Sequence[Finding]) -> dict[str, Any]:
    names = ("severity", "kind", "k", "tensor", "message")
    columns: dict[str, Any] = {name: [getattr(entry, name) for entry in found] for name in names}
    return columns | {"evidence": [json.dumps(entry.evidence) for entry in found]}


def _tensor_columns(plan: Plan) -> dict[str, Any]:
    rows = [
        (tensor.name, tensor.role, tensor.shape, tensor.dtypes[0], None) for tensor in plan.tensors
    ] + [
        (tensor.name, tensor.role, tensor.shape, tensor.dtype, tensor.reason)
        for tensor in plan.left_out_tensors
    ]
    fractions = [plan.fraction_of(number) for number in range(len(plan.tensors))]
    return {
        "tensor": [name for name, *_ in rows],
        "fraction": fractions + [None] * len(plan.left_out_tensors),
        **{
            field: [getattr(role, field) for _, role, *_ in rows]
            for field in ("stack", "layer", "component", "expert", "kind")
        },
        "shape": [list(shape) for _, _, shape, _, _ in rows],
        "numel": [int(np.prod(shape, dtype=object)) for _, _, shape, _, _ in rows],
        "dtype": [dtype for *_, dtype, _ in rows],
        "included": [reason is None for *_, reason in rows],
        "reason": [reason for *_, reason in rows],
    }
