"""A table of checkpoints: a row each, with the URI of one and, if known, its step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipeline.checkpoint.file_kinds import FileKind
from pipeline.checkpoint.json_text import JsonText
from pipeline.checkpoint.reading import BY_TABLES, Reading
from pipeline.errors import SourceNotFound, quoted
from pipeline.sources.base import Candidate, File, Source, telling_name
from pipeline.sources.beside import Beside
from pipeline.transport.access import Access

_COLUMNS = ("uri", "name", "step", "tokens", "state")
_MOST_COLUMNS = 1000
"""Beside those there may be what was measured at each checkpoint: all other columns of numbers."""
_NO_NUMBERS = FileKind("a column of the manifest that holds no numbers")
_MAX_ROWS = 100_000  # the longest public run has 1,500 checkpoints
_MAX_BYTES = 100_000_000  # a kilobyte a row
_MOST_CHARACTERS = 4096  # as of a path


class Manifest:
    """Checkpoints that a table lists, from sources of any kind."""

    def __init__(
        self, path: Path, open_one: Callable[[str], Source], reading: Reading = BY_TABLES
    ) -> None:
        """Open the source of one URI by `open_one`.

        `reading`: what the user says of names and files.
        """
        self._reading = reading
        self.label = str(path)
        self.uri = str(path.resolve())
        self.run_name = telling_name(path.resolve().with_suffix(""))
        self._path, self._open = path, open_one
        self._sources: dict[str, Source] = {}
        self._unread: list[str] = []
        """Columns that are neither known nor of numbers."""

    @property
    def is_remote(self) -> bool:
        """True if any of the sources is."""
        return any(source.is_remote for source in self._sources.values())

    @property
    def requests(self) -> Mapping[str, int]:
        """The sum over the sources."""
        return sum((Counter(source.requests) for source in self._sources.values()), Counter())

    def candidates(self) -> list[Candidate]:
        """Return one candidate a row.

        Raises:
            SourceNotFound: not a readable table, no column `uri`, or a row that is not one
                checkpoint.
        """
        return [self._candidate(number, row) for number, row in enumerate(self._rows(), 1)]

    def whole(self) -> list[Candidate]:
        return []

    def beside(self) -> list[Beside]:
        return [
            Beside(name, _NO_NUMBERS) for name in self._unread
        ]  # of sources it names what is meant

    def logs(self) -> list[File]:
        return []

    def files(self, candidate: Candidate) -> list[File]:
        files = self._sources[candidate.origin].files(candidate)
        return [replace(file, checkpoint=candidate) for file in files]

    def read(self, file: File, start: int, stop: int) -> bytes:
        return self._sources[file.checkpoint.origin].read(file, start, stop)

    def access(self, file: File, after: int = 0, keep: bool = False) -> Access:
        return self._sources[file.checkpoint.origin].access(file, after, keep)

    def _rows(self) -> list[dict[str, Any]]:
        try:
            rows, names = _read(self._path)
            read = set(_COLUMNS).union(*rows)
            self._unread = [name for name in names if name not in read]
            return rows
        except SourceNotFound:
            raise
        except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
            what = str(error).partition("\n")[0] or type(error).__name__
            raise SourceNotFound(f"{self._path}: not a readable table: {quoted(what)}") from None

    def _candidate(self, number: int, row: dict[str, Any]) -> Candidate:
        uri, where = row.get("uri"), f"{self._path}, row {number}"
        if not isinstance(uri, str) or not uri or len(uri) > _MOST_CHARACTERS:
            raise SourceNotFound(f"{where}: expected a uri, found {quoted(uri)}")
        try:
            source = self._sources[uri] = self._sources.get(uri) or self._open(uri)
            (checkpoint,) = source.whole()
        except SourceNotFound as error:
            raise SourceNotFound(f"{where}: {error.message}", error.hint) from None
        except ValueError:
            raise SourceNotFound(
                f"{where}: {quoted(uri)} is not one checkpoint",
                "name a folder with the weights of one, a weight file, or hf://org/name@revision",
            ) from None
        name = _name(row.get("name"), where) or _last_part(uri)
        named = self._reading.position(name)
        step = _number(row, "step", where)
        stated = replace(
            named,
            step=named.step if step is None else round(step),
            tokens=_number(row, "tokens", where) or named.tokens,
        )
        state = row.get("state") or ""
        if not isinstance(state, str):
            raise SourceNotFound(f"{where}: expected keys as state, found {quoted(state)}")
        metrics = tuple(
            (column, _measured(value))
            for column, value in row.items()
            if column not in _COLUMNS and value is not None
        )
        return replace(
            checkpoint, name=name, origin=uri, stated=stated, state=state, metrics=metrics
        )


def _read(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows, few at most, of the columns that count, and the names of all columns."""
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes are too many")
    if path.suffix == ".jsonl":
        return _json_rows(path)
    table = pyarrow.csv.read_csv(path)
    _check(path, table.column_names, table.num_rows)
    return table.select(_wanted(table.schema)).to_pylist(), table.column_names


def _wanted(columns: pa.Schema) -> list[str]:
    """Return the columns that are known, and all others of numbers."""
    return [
        column.name
        for column in columns
        if column.name in _COLUMNS
        or pa.types.is_integer(column.type)
        or pa.types.is_floating(column.type)
    ]


def _parquet_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows, if they are few and short: a text that repeats takes a bit of the file a row."""
    file = pyarrow.parquet.ParquetFile(path)
    about, names = file.metadata, file.schema_arrow.names
    _check(path, names, about.num_rows)
    groups = (about.row_group(number) for number in range(about.num_row_groups))
    if sum(group.total_byte_size for group in groups) > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES:,} bytes of values")
    wanted = _wanted(file.schema_arrow)
    texts = [name for name in wanted if name in _COLUMNS]
    table = pyarrow.parquet.ParquetFile(path, read_dictionary=texts).read(wanted)
    for chunk in (chunk for column in table.columns for chunk in column.chunks):
        if pa.types.is_dictionary(chunk.type):
            texts = (value for value in chunk.dictionary.to_pylist() if isinstance(value, str))
            if (longest := max(map(len, texts), default=0)) > _MOST_CHARACTERS:
                raise ValueError(f"a text of {longest:,} characters")
    return table.to_pylist(), names


def _json_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return an object a line; pyarrow's reader ends the process on a row that is `null`."""
    lines = path.read_bytes().splitlines()
    lines = [line for line in lines if line.strip()]
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for line in lines[: _MAX_ROWS + 1]:
        row, text = {}, JsonText(line)
        for name in text.members():
            names[name] = None
            if name in _COLUMNS or text.next in "-0123456789N":  # NaN, too
                row[name] = text.value()
            else:
                text.skip()
        text.end()
        rows.append(row)
    _check(path, list(names), len(rows))
    return rows, list(names)


def _check(path: Path, names: list[str], rows: int) -> None:
    if len(set(names)) != len(names):
        raise ValueError("a column appears twice")
    if len(names) > _MOST_COLUMNS:
        raise ValueError(f"more than {_MOST_COLUMNS:,} columns")
    if "uri" not in names or rows > _MAX_ROWS:
        raise SourceNotFound(
            f"{path}: expected a column uri and at most {_MAX_ROWS:,} rows, found {rows:,} rows of"
            f" {', '.join(map(quoted, names[:6]))}",
            "columns: uri, and if known name, step, tokens, state, and what was measured",
        )


def _last_part(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2].rpartition("@")[2]


def _name(value: Any, where: str) -> str:
    """Return a checkpoint's name; empty if there is none. A column of numbers may name them, too."""
    if value is None or isinstance(value, str | int | float | date):
        text = "" if value is None else str(value)
        if len(text) <= _MOST_CHARACTERS:
            return text
    raise SourceNotFound(f"{where}: expected a name, found {quoted(value)}")


def _measured(value: float) -> float:
    """Return a number as a double: an integer of JSON may have any size, and is infinite beyond it."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _number(row: dict[str, Any], column: str, where: str) -> float | None:
    value = row.get(column)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not 0 <= number < 2**63:
        raise SourceNotFound(f"{where}: expected a number as {column}, found {quoted(value)}")
    return number
