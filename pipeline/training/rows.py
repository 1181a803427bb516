"""Rows of metrics in CSV, JSON lines and Parquet, whatever such a file holds.

Two forms: a row for each value, in columns step, metric, value and, where it has one, split; or a row
for each step, in a column for each metric, as Lightning's CSVLogger and many scripts write it.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.checkpoint.json_text import JsonText
from pipeline.errors import quoted
from pipeline.training.metrics import MOST_CURVES, MOST_VALUES, Collector, Metric

SUFFIXES = (".csv", ".jsonl", ".parquet")
COLUMNS = ("step", "split", "metric", "value")
_LONGEST_TEXT = 4096
_SPLIT = re.compile(r"(train|training|val|valid|validation|eval|test)[/_.](.+)", re.IGNORECASE)
"""How names of metrics begin where no split is stated apart: `val_loss` of Lightning's examples, and
`eval/loss`, as transformers and accelerate write it for TensorBoard."""

Row = Mapping[str, Any]


def metric_of(name: str) -> Metric:
    """Return the metric that a name stands for, which may begin with its split."""
    match = _SPLIT.fullmatch(name)
    return Metric(match[1], match[2]) if match else Metric(None, name)


def take_rows(name: str, data: bytes, collector: Collector) -> None:
    """Take the metrics of a table.

    Args:
        name: its file's, whose suffix says what it is.

    Raises:
        ValueError: it is no such table.
    """
    columns: dict[str, None] = {}
    for row in _READERS[name[name.rindex(".") :]](data, collector):
        columns |= dict.fromkeys(row)
        if len(columns) > MOST_CURVES + len(COLUMNS):
            raise ValueError(f"more than {MOST_CURVES:,} columns")
        _take(row, collector)
    if "step" not in columns or len(columns) == 1:
        shown = ", ".join(quoted(column, 40) for column in list(columns)[:8]) or "no rows"
        raise ValueError(
            f"expected columns step, metric, value, or step and one for each metric, found {shown}"
        )


def _take(row: Row, collector: Collector) -> None:
    if "metric" in row and "value" in row:
        split, metric = row.get("split"), row["metric"]
        for column in row.keys() - set(COLUMNS):
            collector.trouble(f"a column {quoted(column, 60)}", row[column])
        if not isinstance(metric, str) or not (split is None or isinstance(split, str)):
            collector.trouble("no text as metric or split", split if metric else metric)
            return
        value = math.nan if row["value"] in (None, "") else row["value"]
        collector.add(Metric(split or None, metric), row.get("step"), value)
        return
    for name, value in row.items():
        if name != "step" and value not in (None, ""):  # most cells of such a table are empty
            collector.add(metric_of(name), row.get("step"), value)


def _csv(data: bytes, collector: Collector) -> Iterator[Row]:
    del collector
    lines = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    try:
        header = next(lines, [])
        if len(set(header)) != len(header):
            raise ValueError("a column appears twice")
        for line in lines:
            if len(line) > len(header):
                raise ValueError(f"line {lines.line_num:,} has more cells than the first")
            yield dict(zip(header, line, strict=False))
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num:,}: {error}") from None


def _json_lines(data: bytes, collector: Collector) -> Iterator[Row]:
    """An object a line. A last line that breaks off is one that is being written."""
    lines = data.splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text, row = JsonText(line), {}
            for name in text.members():
                row[name] = text.value()
            text.end()
        except ValueError as error:
            if number < len(lines) or number == 1:
                raise ValueError(f"line {number:,}: {error}") from None
            collector.trouble("a last line that breaks off", line.decode(errors="replace"))
            return
        yield row


def _parquet(data: bytes, collector: Collector) -> Iterator[Row]:
    """Columns of numbers, and of the texts that name metrics: those alone are looked at."""
    import pyarrow as pa  # a sixth of a second, and few need it
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(pa.BufferReader(data)).names
        texts = [name for name in ("metric", "split") if name in names]
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts)
        wanted: list[str] = []
        for field in file.schema_arrow:
            kind = field.type
            if names.count(field.name) > 1:
                raise ValueError("a column appears twice")
            is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
            if is_number or (field.name in texts and pa.types.is_dictionary(kind)):
                wanted.append(field.name)
            else:
                collector.trouble(f"a column {quoted(field.name, 60)} of type {kind}", field.name)
        if file.metadata.num_rows > MOST_VALUES or len(wanted) > MOST_CURVES:
            raise ValueError(f"more than {MOST_VALUES:,} rows, or {MOST_CURVES:,} columns")
        for batch in file.iter_batches(
            batch_size=max(1, 1_000_000 // max(1, len(wanted))), columns=wanted
        ):
            for column in batch.columns:
                if pa.types.is_dictionary(column.type):
                    longest = max(
                        (len(text or "") for text in column.dictionary.to_pylist()), default=0
                    )
                    if longest > _LONGEST_TEXT:
                        raise ValueError(f"a text of {longest:,} characters")
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, TypeError, OverflowError) as error:
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from None


_READERS = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}
