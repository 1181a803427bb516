"""The attempts at writing a run: what they are called, which of them counts, and what goes when.

An attempt's name begins with the number of the lease under which it was made: `0000000007.00002` is
the second estimate of lease 7, `0000000007.final` the end of its run. Names sort in the order in which
attempts count: the greatest one that `runs/run=<run>/<attempt>.parquet` is there for is the run.
That file is a create-if-absent and the last one that an attempt writes: it is the commit.
"""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.folder import Folder
from pipeline.store.schema import SCHEMAS

_TABLES = sorted(SCHEMAS.keys() - {"runs"})
_ATTEMPT = re.compile(r"(\d{10})\.(\d{5}|final)")


def estimate(token: int, number: int) -> str:
    """Return the name of the `number`-th estimate under a lease."""
    return f"{token:010d}.{number:05d}"


def final(token: int) -> str:
    """Return the name of the attempt that ends a run under a lease."""
    return f"{token:010d}.final"


def row_path(run: str, attempt: str) -> str:
    """Return where the row of an attempt lies."""
    return f"runs/run={run}/{attempt}.parquet"


def bar(folder: Folder, run: str, token: int) -> None:
    """Keep whoever held a lease from ending the run, unless it has: its row is there, and is empty."""
    sink = pa.BufferOutputStream()
    pq.write_table(SCHEMAS["runs"].empty_table(), sink)
    folder.create(row_path(run, final(token)), sink.getvalue().to_pybytes())


def highest_token(folder: Folder, run: str) -> int:
    """Return the highest number of a lease under which a row of a run was written; 0 if none was."""
    return max((token_of(_of(path)) for path in folder.list(f"runs/run={run}")), default=0)


def token_of(attempt: str) -> int:
    """Return the number of the lease under which an attempt was made; 0 if it is not named so."""
    return int(attempt[:10]) if _ATTEMPT.match(attempt) else 0


def is_whole(folder: Folder, run: str, attempt: str, files: str) -> bool:
    """Return True if all tables of an attempt are there, as far as sizes tell.

    Args:
        files: what its row says of them: JSON, sizes in bytes by table.
    """
    return all(
        [entry.size for entry in folder.entries(f"{table}/run={run}") if _of(entry.path) == attempt]
        == sizes
        for table, sizes in json.loads(files).items()
    )


def has_superseded(folder: Folder, run: str) -> bool:
    """Return True if there are rows of attempts that count less than the one that does."""
    counting = _counting(folder, run)
    return any(_of(path) < counting for path in folder.list(f"runs/run={run}"))


def remove_superseded(folder: Folder, run: str) -> None:
    """Remove the files of attempts that count less than the one that does."""
    counting = _counting(folder, run)
    for table in (*_TABLES, "runs"):  # a row is there as long as any of its tables
        paths = folder.list(f"{table}/run={run}")
        folder.delete([path for path in paths if "" < _of(path) < counting])


def _counting(folder: Folder, run: str) -> str:
    """Return the attempt that counts: the greatest with a row; "" if there is none."""
    found = sorted(folder.list(f"runs/run={run}"), key=_of, reverse=True)
    for path in found:
        data = folder.read(path)
        if data and _of(path) and pq.read_metadata(pa.BufferReader(data)).num_rows:
            return _of(path)
    return ""


def remove_unfinished(folder: Folder, run: str, attempt: str) -> None:
    """Remove the tables of an attempt that has no row."""
    for table in _TABLES:
        paths = folder.list(f"{table}/run={run}")
        folder.delete([path for path in paths if _of(path) == attempt])


def _of(path: str) -> str:
    """Return whose file this is; "" if it is not named like one of an attempt's."""
    found = _ATTEMPT.match(path.rpartition("/")[2])
    return "" if found is None else found[0]
