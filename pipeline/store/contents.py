"""What a store holds: the rows of `runs`, and the files that they name.

The row of a run is written last. It says how many files each table of the run has, and the size and
digest of each: what no row names is no part of the store, and a file that is gone, cut or damaged is
noticed before it gives a figure.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.errors import RequestError, StoreUnusable, quoted
from pipeline.planning.request import check_run_name
from pipeline.store.attempts import attempt_of, is_bar, part_path, row_path
from pipeline.store.folder import Folder
from pipeline.store.schema import SCHEMAS, with_run

_REQUESTS = 16


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a table, as the row of its run names it."""

    run: str
    table: str
    path: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Contents:
    """The runs of a store, as they were when it was looked at."""

    rows: pa.Table
    """Of `runs`, with the column `run`."""
    parts: dict[str, list[Part]]
    """By table; all but `runs`."""
    damaged: dict[str, str]
    """Runs whose row cannot be read, and why."""

    def attempt(self, run: str) -> str | None:
        """Return the attempt that counts, or None if there is no such run."""
        runs, attempts = (self.rows[name].to_pylist() for name in ("run", "attempt"))
        return dict(zip(runs, attempts, strict=True)).get(run)


class _Damaged(ValueError):
    """The message says what is wrong with a file."""


def contents(folder: Folder, only: str | None = None) -> Contents:
    """Read the row of every run; one that cannot be read does not count, and is named.

    Args:
        only: this run and no other.

    Raises:
        StoreUnusable: the storage does not answer.
    """
    survey = _Survey()
    for run, (path, data) in _rows(folder, only).items():
        try:
            check_run_name(run)
        except RequestError:
            survey.damaged[quoted(run)] = "a run cannot have this name"
            continue
        try:
            if isinstance(data, _Damaged):
                raise data
            survey.add(run, attempt_of(path), _row(data))
        except _Damaged as error:
            survey.damaged[run] = f"{path} {error}"
    rows = pa.Table.from_pylist(survey.rows, schema=with_run("runs"))
    return Contents(rows, survey.parts, survey.damaged)


@dataclass(slots=True)
class _Survey:
    rows: list[dict[str, Any]] = field(default_factory=list)
    parts: dict[str, list[Part]] = field(default_factory=lambda: defaultdict(list))
    damaged: dict[str, str] = field(default_factory=dict)

    def add(self, run: str, attempt: str, row: dict[str, Any]) -> None:
        """Take a run's row, or nothing of it."""
        files = row["files"]
        if row["attempt"] != attempt:
            raise _Damaged("is another attempt's")
        if files is None or not all(map(_names_a_file, files)):
            raise _Damaged("names files of no table")
        numbers: dict[str, int] = defaultdict(int)
        for file in files:
            table = file["table"]
            path = part_path(table, run, attempt, numbers[table])
            numbers[table] += 1
            self.parts[table].append(Part(run, table, path, file["size"], file["digest"]))
        self.rows.append(row | {"run": run})


def trouble(folder: Folder, part: Part) -> str | None:
    """Return what is wrong with a file, which is read as a whole, or None."""
    try:
        data = _read(folder, part.path)
    except _Damaged as error:
        return str(error)
    if data is None:
        return "is gone"
    if len(data) != part.size:
        return f"has {len(data):,} bytes, not {part.size:,}"
    if digest(data) != part.digest:
        return "is damaged"
    return _misfit(data, SCHEMAS[part.table])


def trouble_by_listing(folder: Folder, table: str, parts: Sequence[Part]) -> dict[Part, str]:
    """Return what is wrong with the files of a table as far as one listing shows."""
    sizes = {entry.path: entry.size for entry in folder.entries(table)}
    troubles = {}
    for part in parts:
        size = sizes.get(part.path)
        if size is None:
            troubles[part] = "is gone"
        elif size != part.size:
            troubles[part] = f"has {size:,} bytes, not {part.size:,}"
    return troubles


def digest(data: bytes) -> str:
    """Return what tells a file's contents from what a disk or a copy has made of them."""
    return xxhash.xxh3_128_hexdigest(data)


def _rows(folder: Folder, only: str | None) -> dict[str, tuple[str, bytes | _Damaged]]:
    """Return the file that holds the row of every run, by run, and its contents."""
    while True:
        listed = folder.list("runs" if only is None else f"runs/run={only}")
        paths = [path for path in listed if _is_of_a_run(path)]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            read = list(pool.map(lambda path: _tried(folder, path), paths))
        if None not in read:
            break  # else one was removed meanwhile, and another counts
    rows = {}
    for path, data in zip(paths, read, strict=True):  # in the order in which they count
        if data is not None and not (isinstance(data, bytes) and is_bar(data)):
            rows[path.split("/")[1].removeprefix("run=")] = path, data
    return rows


def _is_of_a_run(path: str) -> bool:
    """Return False of a stray file."""
    run, attempt = [*path.split("/"), ""][1].removeprefix("run="), attempt_of(path)
    return bool(attempt) and path == row_path(run, attempt)


def _tried(folder: Folder, path: str) -> bytes | _Damaged | None:
    try:
        return _read(folder, path)
    except _Damaged as error:
        return error


def _read(folder: Folder, path: str) -> bytes | None:
    try:
        return folder.read(path)
    except StoreUnusable:
        if folder.remote:
            raise
        raise _Damaged("cannot be read") from None  # by its owner's leave, or a link


def _names_a_file(file: dict[str, Any] | None) -> bool:
    return (
        file is not None
        and file["table"] in SCHEMAS.keys() - {"runs"}
        and file["size"] is not None
        and file["digest"] is not None
    )


def sealed(row: pa.Table) -> pa.Table:
    """Return the row of a run with its own digest in it."""
    place = row.column_names.index("digest")
    return row.set_column(place, "digest", [[_digest_of_row(row.to_pylist()[0])]])


def _digest_of_row(values: dict[str, Any]) -> str:
    """Return the digest of a row's columns, whatever they are, but for that of the digest."""
    others = {name: value for name, value in values.items() if name != "digest"}
    return digest(json.dumps(others, sort_keys=True, default=str).encode())


def _row(data: bytes) -> dict[str, Any]:
    """Return the row that a file of `runs` holds, with exactly today's columns."""
    schema = SCHEMAS["runs"]
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        if file.metadata.num_rows != 1:
            raise ValueError("one row")
        row = file.read()
        if row["digest"].to_pylist() != [_digest_of_row(row.to_pylist()[0])]:
            raise ValueError("digest")
        names = [name for name in schema.names if name in row.column_names]
        values = row.select(names).cast(pa.schema(map(schema.field, names))).to_pylist()[0]
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError):
        raise _Damaged("is damaged, or of an earlier version") from None
    return dict.fromkeys(schema.names) | values


def _misfit(data: bytes, schema: pa.Schema) -> str | None:
    """Say so if a file's columns are not of a table's types; older files may lack some."""
    try:
        columns = pq.read_schema(pa.BufferReader(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"is no Parquet file ({type(error).__name__})"
    for field_ in schema:
        if field_.name in columns.names and _plain(columns.field(field_.name)) != _plain(field_):
            return f"has another type in column {field_.name}"
    return None


def _plain(column: pa.Field) -> pa.DataType:
    return column.type.value_type if pa.types.is_dictionary(column.type) else column.type
