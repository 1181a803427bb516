"""A table of a run as Parquet files: rows come in, and go out encoded, a row group at a time.

Only the rows of one row group are held as they came, and of one file as they are encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.reduce.memory import MOST_FILE, ROW_GROUP
from pipeline.store.schema import BYTE_STREAM_SPLIT, SCHEMAS

Columns = Mapping[str, NDArray[Any] | Sequence[Any] | pa.Array]
"""Column → its values: NaN, None and what is masked is NULL."""


class TableWriter:
    """Encodes one table of one attempt; the last file is complete with `close`."""

    def __init__(
        self, name: str, attempt: str, store: Callable[[bytes], None], file: int = MOST_FILE
    ) -> None:
        """Of one table.

        Args:
            store: called with each file.
            file: bytes of it at which another begins.
        """
        self._name, self._attempt, self._store, self._file_bytes = name, attempt, store, file
        self._pending: list[pa.Table] = []
        self._rows = 0
        self._file: tuple[pa.BufferOutputStream, pq.ParquetWriter] | None = None
        self._row_groups = 0

    def add(self, columns: Columns) -> None:
        """Add rows; all columns but the attempt."""
        table = self._arrow(columns)
        self._pending.append(table)
        self._rows += len(table)
        if self._rows >= ROW_GROUP:
            self._encode(ROW_GROUP)

    def close(self) -> None:
        """Encode and store what is left; a table without rows gets a file: the views name all."""
        self._encode(1)
        if self._file is None and not self._row_groups:
            self._write(self._arrow({name: [] for name in SCHEMAS[self._name].names}))
        self._end_file()

    def _encode(self, least: int) -> None:
        """Write full row groups, and a last one of `least` rows or more."""
        if not self._pending:
            return
        table, first = pa.concat_tables(self._pending), 0
        while len(table) - first >= least:
            self._write(table.slice(first, ROW_GROUP))
            first += ROW_GROUP
        self._pending = [table.slice(first)]
        self._rows = len(self._pending[0])

    def _write(self, rows: pa.Table) -> None:
        if self._file is None:
            sink = pa.BufferOutputStream()
            self._file = sink, pq.ParquetWriter(sink, rows.schema, **_options(self._name))
        sink, writer = self._file
        writer.write_table(rows, row_group_size=ROW_GROUP)
        self._row_groups += 1
        if sink.tell() >= self._file_bytes:
            self._end_file()

    def _end_file(self) -> None:
        if self._file is not None:
            sink, writer = self._file
            writer.close()
            self._file = None
            self._store(sink.getvalue().to_pybytes())

    def _arrow(self, columns: Columns) -> pa.Table:
        schema = SCHEMAS[self._name]
        rows = len(next(iter(columns.values())))
        attempt = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [self._attempt])
        arrays = [
            attempt if field.name == "attempt" else _arrow(columns[field.name], field.type)
            for field in schema
        ]
        return pa.Table.from_arrays(arrays, schema=schema)


def parquet(table: pa.Table, name: str) -> bytes:
    """Return a whole table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=ROW_GROUP, **_options(name))
    return sink.getvalue().to_pybytes()


def _arrow(values: NDArray[Any] | Sequence[Any] | pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(values.data, kind, mask=np.ma.getmaskarray(values))
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    if isinstance(values, np.ndarray) and values.dtype == np.float64 and not _has_nan(values):
        return pa.array(
            values, kind
        )  # taken as it is: a twentieth of what looking at each value takes
    return pa.array(values, kind, from_pandas=True)  # NaN is NULL


def _has_nan(values: NDArray[np.float64]) -> bool:
    return bool(np.isnan(np.max(values, initial=-np.inf)))  # NaN is passed on


def _options(name: str) -> dict[str, Any]:
    """Doubles as byte streams and keys as dictionaries: 10.9 MB where pyarrow's defaults give 14.9.

    Statistics of keys alone: those of doubles took a quarter of the time, and no view asks for them.
    Zstandard at level -1: a million rows of similarities take 49 to 64 ms of CPU (of 935, 154 and 24
    checkpoints) where level 3 takes 58 to 93, and 17.4, 14.8 and 15.4 MB where it makes 17.6, 14.7 and 15.0.
    """
    split = BYTE_STREAM_SPLIT[name]
    keys = [column for column in SCHEMAS[name].names if column not in split]
    return {
        "compression": "zstd",
        "compression_level": -1,
        "use_dictionary": keys,
        "write_statistics": keys,
        "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT") or None,
        "write_page_checksum": True,  # for who reads parts of a file, from object storage
    }
