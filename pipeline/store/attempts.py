"""The attempts at writing a run: what they are called, which of them counts, and what goes when.

An attempt's name begins with the number of the lease under which it was made: `0000000007.00002` is
the second estimate of lease 7, `0000000007.final` the end of its run. Names sort in the order in which
attempts count: the greatest one that `runs/run=<run>/<attempt>.parquet` is there for is the run.
That file is a create-if-absent and the last one that an attempt writes: it is the commit.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.folder import Folder
from pipeline.store.schema import SCHEMAS

_TABLES = sorted(SCHEMAS.keys() - {"runs"})
_BAR = b"hallmarks.bar"
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


def part_path(table: str, run: str, attempt: str, number: int) -> str:
    """Return where a file of another table lies; an attempt's files of one table count from 0."""
    return f"{table}/run={run}/{attempt}-{number:05d}.parquet"


def attempt_of(path: str) -> str:
    """Return whose file this is; "" if it is not named like one of an attempt's."""
    match = _ATTEMPT.match(path.rpartition("/")[2])
    return "" if match is None else match[0]


def bar(folder: Folder, run: str, token: int) -> None:
    """Keep whoever held a lease from ending the run, unless it has: its row is there, and is empty."""
    sink = pa.BufferOutputStream()
    pq.write_table(SCHEMAS["runs"].with_metadata({_BAR: b""}).empty_table(), sink)
    folder.create(row_path(run, final(token)), sink.getvalue().to_pybytes())


def is_bar(data: bytes) -> bool:
    """Return True if a file that should hold a row keeps an attempt from having one.

    It says so itself: a file without rows may also be a damaged row, or that of another table.
    """
    try:
        return _BAR in (pq.read_schema(pa.BufferReader(data)).metadata or {})
    except (pa.ArrowException, OSError, ValueError):
        return False


def highest_token(folder: Folder, run: str) -> int:
    """Return the highest number of a lease under which a row of a run was written; 0 if none was."""
    return max((token_of(attempt_of(path)) for path in folder.list(f"runs/run={run}")), default=0)


def token_of(attempt: str) -> int:
    """Return the number of the lease under which an attempt was made; 0 if it is not named so."""
    return int(attempt[:10]) if _ATTEMPT.match(attempt) else 0


def counting(folder: Folder, run: str) -> str:
    """Return the attempt that counts; "" if there is none."""
    return max(_rows(folder, run).values(), default="")


def has_superseded(folder: Folder, run: str) -> bool:
    """Return True if there are rows of attempts that count less than the one that does."""
    return len(_rows(folder, run)) > 1


def remove_superseded(folder: Folder, run: str) -> None:
    """Remove the files of attempts that count less than the one that does."""
    rows = _rows(folder, run)
    last = max(rows.values(), default="")
    for table in _TABLES:
        paths = folder.list(f"{table}/run={run}")
        folder.delete([path for path in paths if "" < attempt_of(path) < last])
    # in the end: a row is there as long as any of its tables
    folder.delete([path for path, attempt in rows.items() if attempt < last])


def _rows(folder: Folder, run: str) -> dict[str, str]:
    """Return whose row each file holds, but for those that bar an attempt: they stay."""
    attempts = {}
    for path in folder.list(f"runs/run={run}"):
        attempt, data = attempt_of(path), folder.read(path)
        if attempt and data and not is_bar(data):
            attempts[path] = attempt
    return attempts


def remove_unfinished(folder: Folder, run: str, attempt: str) -> None:
    """Remove the tables of an attempt that has no row."""
    for table in _TABLES:
        paths = folder.list(f"{table}/run={run}")
        folder.delete([path for path in paths if attempt_of(path) == attempt])
