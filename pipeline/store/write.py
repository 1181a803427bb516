"""A run's tables as Parquet: `STORE/<table>/run=<run>/<attempt>-<number>.parquet`.

All files of a run carry the name of the attempt that wrote them (store/attempts.py). The row in `runs`
is written last and makes the attempt count: a reader sees the old tables or the new ones, never a
mixture. Before the row all of it may be removed, after it nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import LeaseLost, StoreUnusable
from pipeline.findings.finding import Finding
from pipeline.numerics.indicators import INDICATORS
from pipeline.numerics.matrices import RANKS
from pipeline.numerics.phases import LEAST_WEIGHTS
from pipeline.numerics.windows import offered
from pipeline.planning.plan import Plan
from pipeline.reduce.batches import FigureBatch
from pipeline.reduce.groups import Grouping, Key
from pipeline.reduce.matrices import MatrixFigures
from pipeline.reduce.memory import MOST_FILE
from pipeline.reduce.rows import TableRows
from pipeline.reduce.sub_paths import PathParts, SubPaths
from pipeline.statistics.matrices import OF
from pipeline.store.attempts import part_path, remove_unfinished, row_path
from pipeline.store.contents import digest, sealed
from pipeline.store.folder import Folder
from pipeline.store.schema import SCHEMAS
from pipeline.store.tables import TableWriter, parquet
from pipeline.training.metrics import UNKNOWN, Curve, Metric


class RunWriter:
    """Writes one attempt of one run. Nothing of it shows before `commit`."""

    def __init__(self, folder: Folder, run: str, attempt: str, file: int = MOST_FILE) -> None:
        """`file`: bytes of a file at which the next of its table begins."""
        self._folder, self._run, self._attempt, self._file_bytes = folder, run, attempt, file
        self._files: dict[str, list[dict[str, Any]]] = {}
        """Of each table, as the row of `runs` names them."""
        self._tables = {table: self._table(table) for table in SCHEMAS if table != "runs"}
        self._row = b""

    def add(self, batch: FigureBatch, grouped: Grouping) -> None:
        """Add all figures of some groups of those that there are."""
        numbers = batch.numbers
        keys = {name: [getattr(key, name) for key in batch.keys] for name in Key.__slots__}
        weights = [grouped.parameters[number] for number in numbers]
        kept = np.array([grouped.increments_kept[number] for number in numbers])
        self._tables["groups"].add(
            {"group_id": numbers, **keys, "parameters": weights, "increments_kept": kept}
        )
        figures, rows = batch.figures, batch.rows_or_all
        count = figures.projection.shape[1]
        i, j, places = _pairs(count)
        matrices = {
            "dot": figures.dots,
            "relative_dot": figures.relative_dots,
            "squared_distance": figures.squared_distances,
            "increment_dot": figures.increments,
            "cosine_stderr": figures.cosine_errors,
            "relative_cosine_stderr": figures.relative_cosine_errors,
        }
        upper = {name: _upper(values, places)[rows] for name, values in matrices.items()}
        upper["increment_dot"][~kept] = np.nan
        self._add("similarity", numbers, {"i": i, "j": j}, upper)
        checkpoints = {"k": np.arange(count)}
        columns = {name: values[rows] for name, values in figures.path.items()}
        self._add("path", numbers, checkpoints, columns)
        coordinates = {f"pc{c + 1}": figures.projection[rows, :, c] for c in range(3)}
        self._add("projection", numbers, checkpoints, coordinates)
        unknown = np.isnan(figures.indicators) | np.isnan(figures.null_values)
        differs = np.ma.masked_array(figures.differs_from_null, unknown)
        values = {
            "value": figures.indicators[rows],
            "stderr": figures.indicator_errors[rows],
            "null_value": figures.null_values[rows],
            "differs_from_null": differs[rows],
        }
        self._add("indicators", numbers, {"indicator": _words(INDICATORS)}, values)
        self._add_spectrum(numbers, batch)
        self._add_parts(numbers[kept], [figures.parts[row] for row in batch.rows[kept]])
        judged = kept & (np.array(weights) >= LEAST_WEIGHTS)
        for number, row in zip(numbers[judged], batch.rows[judged], strict=True):
            self._add_phases(number, figures.parts[row].phases, figures.jumps[row])

    def _add_spectrum(self, numbers: NDArray[np.int32], batch: FigureBatch) -> None:
        """Add eigenvalues; checkpoints that are absent, and bases that are not known, have none."""
        figures, rows = batch.figures, batch.rows_or_all
        values = np.concatenate(list(figures.eigenvalues.values()), axis=1)[rows]
        shares = np.concatenate(list(figures.shares.values()), axis=1)[rows]
        bases = [(basis, column.shape[1]) for basis, column in figures.eigenvalues.items()]
        ranked = {
            "basis": _words([basis for basis, ranks in bases for _ in range(ranks)]),
            "rank": np.concatenate([np.arange(1, ranks + 1) for _, ranks in bases]),
        }
        columns = {"eigenvalue": values, "share": shares}
        self._add("spectrum", numbers, ranked, columns, ~np.isnan(values))

    def _add_parts(self, numbers: NDArray[np.int32], parts: Sequence[PathParts]) -> None:
        """Add what is said of the windows and stages of some groups, a row for each indicator."""
        of_groups = list(zip(numbers, parts, strict=True))
        for width in dict.fromkeys(width for each in parts for width in each.windows):
            windows = [(n, each.windows[width]) for n, each in of_groups if width in each.windows]
            rows = _of_sub_paths(windows, offered(width))
            width_of_rows = np.full(len(rows["value"]), width, np.int32)
            self._tables["windows"].add(rows | {"w": width_of_rows})
        stages = [(n, each.stages) for n, each in of_groups if each.stages is not None]
        if stages:
            self._tables["stages"].add(_of_sub_paths(stages, INDICATORS))

    def _add_phases(
        self, number: np.int32, phases: SubPaths | None, jumps: NDArray[np.float64]
    ) -> None:
        """Add what is said of the phases of one group; there are none where none could be told."""
        if phases is None:
            return
        each = len(INDICATORS)
        columns = {"phase": np.arange(len(phases.first)), "jump": jumps[phases.first]}
        tiled = {name: np.tile(values, each) for name, values in columns.items()}
        self._tables["phases"].add(_of_sub_paths([(number, phases)], INDICATORS) | tiled)

    def add_statistic(
        self, groups: Sequence[int], statistic: str, columns: Mapping[str, NDArray[Any]]
    ) -> None:
        """Add the rows of a statistic on request, (K,), to each of some groups of the same weights."""
        count = len(next(iter(columns.values())))
        numbers = np.array(groups, np.int32)
        stacked = {name: np.tile(values, (len(groups), 1)) for name, values in columns.items()}
        self._add(statistic, numbers, {"k": np.arange(count)}, stacked)

    def add_rows(self, table: TableRows) -> None:
        """Add what is known of the rows of one tensor."""
        names = ("norm_first", "norm_last", "cosine_first_last")
        columns = {name: getattr(table, name) for name in names}
        columns["last_moved_k"] = np.ma.masked_equal(table.last_moved_k, 0)
        tensor = _words([table.tensor] * len(table.rows))
        self._tables["rows"].add({"tensor": tensor, "row": table.rows, **columns})

    def add_matrix(self, matrix: MatrixFigures) -> None:
        """Add the spectra of one matrix: of its displacements from the second checkpoint on."""
        k, of = np.meshgrid(matrix.checkpoints, np.arange(len(OF)), indexing="ij")
        existing = ((k > matrix.checkpoints[0]) | (of == 0)).reshape(-1)
        count = np.count_nonzero(existing)

        def columns(times: int) -> dict[str, Any]:
            names = _words([OF[number] for number in of.reshape(-1)[existing]])
            return {
                "tensor": _words([matrix.tensor] * count * times),
                "expert": [matrix.expert] * count * times,
                "k": np.repeat(k.reshape(-1)[existing], times),
                "of": pa.DictionaryArray.from_arrays(
                    np.repeat(names.indices.to_numpy(), times), names.dictionary
                ),
            }

        kept = matrix.sigma.shape[-1]
        sigma = matrix.sigma.reshape(-1, kept)[existing].reshape(-1)
        ranks = np.tile(np.arange(1, kept + 1), count)
        self._tables["matrix_spectrum"].add({**columns(kept), "rank": ranks, "sigma": sigma})
        of_ranks = matrix.ranks.reshape(-1, len(RANKS))[existing]
        by_name = dict(zip(RANKS, of_ranks.T, strict=True))
        self._tables["matrix_ranks"].add({**columns(1), **by_name})

    def complete(self, plan: Plan, findings: Sequence[Finding], run_row: dict[str, Any]) -> None:
        """Write all that is left but the row of `runs`."""
        self._tables["checkpoints"].add(_checkpoint_columns(plan))
        self._tables["tensors"].add(_tensor_columns(plan))
        self._tables["findings"].add(_finding_columns(findings))
        for metric, curve in plan.training.curves.items():
            self._tables["training"].add(_training_columns(metric, curve))
        for table in self._tables.values():
            table.close()
        files = list(chain.from_iterable(self._files.values()))
        columns = {"attempt": self._attempt, "files": files}
        row = {name: [(run_row | columns).get(name)] for name in SCHEMAS["runs"].names}
        self._row = parquet(sealed(pa.table(row, schema=SCHEMAS["runs"])), "runs")

    def commit(self) -> None:
        """Write the row of `runs`: from here on this attempt counts. May be tried again.

        Raises:
            LeaseLost: another driver has taken the run over meanwhile.
            StoreUnusable: the storage does not answer; the row may be there all the same.
        """
        if not self._folder.create(row_path(self._run, self._attempt), self._row):
            raise LeaseLost(
                f"this process lost the lease on run {self._run} while writing it: another driver took it over",
                "`hallmarks status` shows its progress",
            )

    def abandon(self) -> None:
        """Remove what this attempt has written, before its commit."""
        with contextlib.suppress(StoreUnusable):  # no view shows it; a later attempt removes it
            remove_unfinished(self._folder, self._run, self._attempt)

    def _add(
        self,
        table: str,
        numbers: NDArray[np.int32],
        shared: Mapping[str, NDArray[Any] | pa.DictionaryArray],
        columns: Mapping[str, NDArray[Any]],
        existing: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add as many rows of every group.

        Args:
            shared: (P,), what is the same for each of the R groups.
            columns: (R, P).
            existing: (R, P), which of the rows there are; all, if not given.
        """
        width = len(next(iter(shared.values())))
        group = np.repeat(numbers, width)
        common = {name: _tiled(values, len(numbers)) for name, values in shared.items()}
        chosen = {name: values.reshape(-1) for name, values in columns.items()}
        if existing is not None and not existing.all():
            kept = existing.reshape(-1)
            group = group[kept]
            chosen = {name: values[kept] for name, values in chosen.items()}
            common = {
                name: values[kept]
                if isinstance(values, np.ndarray)
                else values.filter(pa.array(kept))
                for name, values in common.items()
            }
        self._tables[table].add({"group_id": group, **common, **chosen})

    def _table(self, table: str) -> TableWriter:
        files = self._files[table] = []

        def store(data: bytes) -> None:
            path = part_path(table, self._run, self._attempt, len(files))
            self._folder.replace(path, data)
            files.append({"table": table, "size": len(data), "digest": digest(data)})

        return TableWriter(table, self._attempt, store, self._file_bytes)


@lru_cache(maxsize=1)
def _pairs(count: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Return i, j and the place in a matrix of each pair i <= j of checkpoints."""
    i, j = np.triu_indices(count)
    return i.astype(np.int32), j.astype(np.int32), i * count + j


def _tiled(
    values: NDArray[Any] | pa.DictionaryArray, times: int
) -> NDArray[Any] | pa.DictionaryArray:
    if isinstance(values, np.ndarray):
        return np.tile(values, times)
    indices = np.tile(values.indices.to_numpy(), times)
    return pa.DictionaryArray.from_arrays(indices, values.dictionary)


def _upper(matrices: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the upper triangles, (G, P), by their places in the matrices."""
    return np.take(matrices.reshape(len(matrices), -1), places, axis=1)


def _of_sub_paths(
    groups: Sequence[tuple[np.int32, SubPaths]], names: Sequence[str]
) -> dict[str, Any]:
    """Return the columns of parts of paths: of each group one indicator after the other."""
    counts = [len(parts.first) for _, parts in groups]
    rows = np.multiply(counts, len(names))
    indicator = [np.repeat(np.arange(len(names), dtype=np.int32), count) for count in counts]
    return {
        "group_id": np.repeat(np.array([number for number, _ in groups], np.int32), rows),
        "k_first": np.concatenate([np.tile(parts.first, len(names)) for _, parts in groups]),
        "k_last": np.concatenate([np.tile(parts.last, len(names)) for _, parts in groups]),
        "indicator": pa.DictionaryArray.from_arrays(np.concatenate(indicator), list(names)),
        "value": np.concatenate([parts.values.T.reshape(-1) for _, parts in groups]),
        "null_value": np.concatenate([parts.null_values.T.reshape(-1) for _, parts in groups]),
    }


def _words(words: Sequence[str]) -> pa.DictionaryArray:
    return pa.array(words, pa.string()).dictionary_encode()


def _checkpoint_columns(plan: Plan) -> dict[str, Any]:
    names = ("name", "source", "commit", "step", "elapsed", "tokens", "stage", "bytes", "dtype")
    columns: dict[str, Any] = {
        name: [getattr(checkpoint, name) for checkpoint in plan.checkpoints] for name in names
    }
    count = len(plan.checkpoints)
    return columns | {"k": list(range(count))}


def _finding_columns(findings: Sequence[Finding]) -> dict[str, Any]:
    names = ("severity", "kind", "k", "tensor", "message")
    columns: dict[str, Any] = {
        name: [getattr(finding, name) for finding in findings] for name in names
    }
    return columns | {"evidence": [json.dumps(finding.evidence) for finding in findings]}


def _training_columns(metric: Metric, curve: Curve) -> dict[str, Any]:
    count = len(curve.values)
    return {
        "k": np.ma.masked_equal(curve.k, UNKNOWN),
        "step": np.ma.masked_equal(curve.steps, UNKNOWN),
        "split": pa.array([metric.split] * count, pa.string()).dictionary_encode(),
        "metric": _words([metric.name] * count),
        "value": curve.values,
    }


def _tensor_columns(plan: Plan) -> dict[str, Any]:
    rows = [
        (tensor.name, tensor.role, tensor.shape, tensor.dtypes[0], None)
        for _, tensor in plan.counted
    ] + [
        (tensor.name, tensor.role, tensor.shape, tensor.dtype, tensor.reason)
        for tensor in plan.all_left_out
    ]
    fractions = [plan.fraction_of(number) for number, _ in plan.counted]
    return {
        "tensor": [name for name, *_ in rows],
        "fraction": fractions + [None] * len(plan.all_left_out),
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
