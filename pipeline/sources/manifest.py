"""A table of checkpoints: a row each, with the address of one and, if known, its step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from pipeline.checkpoint.names import Position, position
from pipeline.errors import SourceNotFound, quoted
from pipeline.sources.base import Access, Candidate, File, Source, telling_name

SUFFIXES = (".csv", ".jsonl", ".parquet")
_MAX_ROWS = 100_000  # the longest public run has 1,500 checkpoints


class Manifest:
    """Checkpoints that a table lists, from sources of any kind."""

    def __init__(self, path: Path, open_one: Callable[[str], Source]) -> None:
        """`open_one` gives the source of one address."""
        self.label = str(path)
        self.address = str(path.resolve())
        self.run_name = telling_name(path.resolve().with_suffix(""))
        self._path, self._open = path, open_one
        self._sources: dict[str, Source] = {}

    @property
    def waits(self) -> bool:
        """True if any of the sources waits."""
        return any(source.waits for source in self._sources.values())

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

    def files(self, candidate: Candidate) -> list[File]:
        found = self._sources[candidate.origin].files(candidate)
        return [replace(file, checkpoint=candidate) for file in found]

    def read(self, file: File, start: int, stop: int) -> bytes:
        return self._sources[file.checkpoint.origin].read(file, start, stop)

    def access(self, file: File, after: int = 0, keep: bool = False) -> Access:
        return self._sources[file.checkpoint.origin].access(file, after, keep)

    def _rows(self) -> list[dict[str, Any]]:
        try:
            table = _read(self._path)
        except (pa.ArrowException, OSError, ValueError) as error:
            what = quoted(str(error).splitlines()[0] if str(error) else type(error).__name__, 120)
            raise SourceNotFound(f"{self._path}: not a readable table: {what}") from None
        if "uri" not in table.column_names or table.num_rows > _MAX_ROWS:
            raise SourceNotFound(
                f"{self._path}: expected a column uri and at most {_MAX_ROWS:,} rows, found"
                f" {table.num_rows:,} rows of {', '.join(map(quoted, table.column_names[:6]))}",
                "columns: uri, and if known name, step, tokens",
            )
        return table.to_pylist()

    def _candidate(self, number: int, row: dict[str, Any]) -> Candidate:
        uri, where = row["uri"], f"{self._path}, row {number}"
        if not isinstance(uri, str) or not uri:
            raise SourceNotFound(f"{where}: expected a uri, found {quoted(uri)}")
        source = self._sources.get(uri) or self._open(uri)
        self._sources[uri] = source
        try:
            (found,) = source.whole()
        except ValueError:
            raise SourceNotFound(f"{where}: {quoted(uri)} is not one checkpoint") from None
        name = row.get("name") or uri.rstrip("/").rpartition("/")[2].rpartition("@")[2]
        named = position(str(name))
        stated = Position(
            named.stage,
            named.step if (step := _number(row, "step", where)) is None else round(step),
            _number(row, "tokens", where) or named.tokens,
            named.branch,
        )
        return replace(found, name=str(name), origin=uri, stated=stated)


def _read(path: Path) -> pa.Table:
    match path.suffix:
        case ".csv":
            return pyarrow.csv.read_csv(path)
        case ".jsonl":
            return pyarrow.json.read_json(path)
        case _:
            return pyarrow.parquet.read_table(path)


def _number(row: dict[str, Any], column: str, where: str) -> float | None:
    value = row.get(column)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < 2**63:
        raise SourceNotFound(f"{where}: expected a number as {column}, found {quoted(value)}")
    return number
