"""The tables of a store on object storage, for DuckDB, which needs no extension to read them.

Each is an Arrow dataset over an explicit list of files that are read by range, through the store's
own client: a query gets the columns that it names, of the runs that it names, and when it runs.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.store.folder import Entry, Folder
from pipeline.store.schema import SCHEMAS

_REQUESTS = 16
_FORMAT = ds.ParquetFileFormat()


def tables(folder: Folder) -> dict[str, ds.Dataset]:
    """Return every table with the files of the attempts that count, as they are now.

    Of a run that is written again afterwards these tables hold what they held, and reading it is an
    error, never a mixture.

    Raises:
        StoreUnusable: the storage does not answer.
    """
    others = sorted(SCHEMAS.keys() - {"runs"})
    runs: list[Entry] = []
    found: dict[str, ds.Dataset] = {}
    with ThreadPoolExecutor(_REQUESTS) as pool:
        # an attempt's files are removed after `runs` names another one: lists are whole if between
        # two looks at `runs` nothing has changed there
        while (now := folder.entries("runs")) != runs or not found:
            runs = now
            read = zip(runs, pool.map(lambda entry: folder.read(entry.path), runs), strict=True)
            files = [(entry.path, io.BytesIO(data)) for entry, data in read if data is not None]
            rows = _counting(_dataset("runs", files).to_table())
            attempts = set(rows["attempt"].to_pylist())
            found = {"runs": ds.dataset(rows)}
            for table, entries in zip(others, pool.map(folder.entries, others), strict=True):
                files = [
                    (entry.path, _RemoteFile(folder, entry))
                    for entry in entries
                    if entry.path.rpartition("/")[2].partition("-")[0] in attempts
                ]
                found[table] = _dataset(table, files)
    return found


def _counting(rows: pa.Table) -> pa.Table:
    """Return the row of each run's attempt that counts."""
    greatest = rows.group_by("run").aggregate([("attempt", "max")])
    return rows.join(greatest, ["run", "attempt"], ["run", "attempt_max"], "left semi")


def _dataset(table: str, files: Iterable[tuple[str, io.IOBase]]) -> ds.Dataset:
    fragments = [
        _FORMAT.make_fragment(
            pa.PythonFile(file, mode="r"), partition_expression=ds.field("run") == _run(path)
        )
        for path, file in files
    ]
    # given, not found out: no file is opened for it, and columns that older files lack are NULL
    schema = SCHEMAS[table].append(pa.field("run", pa.string()))
    return ds.FileSystemDataset(fragments, schema, _FORMAT)


def _run(path: str) -> str:
    return path.split("/")[1].removeprefix("run=")


class _RemoteFile(io.RawIOBase):
    """One file; Arrow calls it from one thread at a time."""

    def __init__(self, folder: Folder, entry: Entry) -> None:
        self._folder, self._entry = folder, entry
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origins = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._entry.size}
        self._position = origins[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        start, end = self._position, self._entry.size
        stop = end if size < 0 else min(start + size, end)
        if start >= stop:
            return b""
        data = self._folder.read_range(self._entry.path, start, stop)
        self._position = stop
        return data
