"""A table of a store on object storage, for DuckDB, which needs no extension to read it.

It is an Arrow dataset over the files that rows of `runs` name, which are read by range, through the
store's own client: a query gets the columns that it names, of the runs that it names, and when it
runs. Of every page that is read the checksum is compared.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.store.contents import Part
from pipeline.store.folder import Folder
from pipeline.store.schema import with_run

_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


def dataset(folder: Folder, table: str, parts: Iterable[Part]) -> ds.Dataset:
    """Return a table with these files.

    Of a run that is written again afterwards it holds what it held, and reading that is an error.
    """
    fragments = [
        _FORMAT.make_fragment(
            pa.PythonFile(_RemoteFile(folder, part), mode="r"),
            partition_expression=ds.field("run") == part.run,
        )
        for part in parts
    ]
    # given, not found out: no file is opened for it, and columns that older files lack are NULL
    return ds.FileSystemDataset(fragments, with_run(table), _FORMAT)


class _RemoteFile(io.RawIOBase):
    """One file; Arrow calls it from one thread at a time."""

    def __init__(self, folder: Folder, part: Part) -> None:
        self._folder, self._part = folder, part
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origins = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._part.size}
        self._position = origins[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        start, end = self._position, self._part.size
        stop = end if size < 0 else min(start + size, end)
        if start >= stop:
            return b""
        data = self._folder.read_range(self._part.path, start, stop)
        self._position = stop
        return data
