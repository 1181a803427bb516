"""Rows that come in batches, as Parquet files: none is lost or moved, whatever the batches are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.store import tables
from pipeline.store.schema import SCHEMAS
from pipeline.store.tables import TableWriter


def written(batches: list[int], monkeypatch: pytest.MonkeyPatch, file: int) -> list[pq.ParquetFile]:
    """Files of row groups of 10 rows, from batches of so many rows; `file` bytes end one."""
    monkeypatch.setattr(tables, "ROW_GROUP", 10)
    files: list[bytes] = []
    writer = TableWriter("indicators", "7", files.append, file)
    first = 0
    for count in batches:
        number = np.arange(first, first + count)
        first += count
        writer.add(
            {
                "group_id": number.astype(np.int32),
                "indicator": pa.array([f"i{n % 3}" for n in number]).dictionary_encode(),
                "value": np.where(number % 4 == 0, np.nan, number),
                "stderr": number * 0.5,
                "null_value": np.full(count, np.nan),
                "differs_from_null": np.ma.masked_array(number % 2 == 0, number % 5 == 0),
            }
        )
    writer.close()
    return [pq.ParquetFile(pa.BufferReader(data)) for data in files]


@pytest.mark.parametrize("file", [1, 1 << 20])
@pytest.mark.parametrize("batches", [[45], [3] * 15, [1, 29, 0, 15], [20, 20], [10] * 5, [7]])
def test_rows_are_those_that_came(
    batches: list[int], file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = written(batches, monkeypatch, file)
    total = sum(batches)
    groups = [
        each.metadata.row_group(n).num_rows for each in files for n in range(each.num_row_groups)
    ]
    assert groups == [10] * (total // 10) + [total % 10] * (total % 10 > 0)
    assert len(files) == (len(groups) if file == 1 else 1)
    rows = pa.concat_tables([each.read() for each in files])
    assert rows.column_names == SCHEMAS["indicators"].names
    found = rows.to_pydict()
    assert found["attempt"] == ["7"] * total
    assert found["group_id"] == list(range(total))
    assert found["indicator"] == [f"i{n % 3}" for n in range(total)]
    assert found["value"] == [None if n % 4 == 0 else n for n in range(total)]
    assert found["stderr"] == [n * 0.5 for n in range(total)]
    assert found["null_value"] == [None] * total
    assert found["differs_from_null"] == [None if n % 5 == 0 else n % 2 == 0 for n in range(total)]


@pytest.mark.parametrize("batches", [[], [0]])
def test_a_table_without_rows_has_a_file(
    batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = written(batches, monkeypatch, 1)
    assert file.metadata.num_rows == 0
    assert file.schema_arrow.names == SCHEMAS["indicators"].names
