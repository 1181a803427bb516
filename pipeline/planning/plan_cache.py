"""What plans have read of commits, kept for the next plan. Safe to delete.

A commit never changes, so neither do its list of files and their headers: planning a suite of
1,475 revisions again needs one request instead of 20,000. One SQLite file in the user's cache
directory; no weights and no credentials are in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

FORMAT = 5
"""Raised when what is kept changes its form, or what is read of files: before 3 what one host had said
of a hash was believed for another, and sizes stood for hashes; before 4 the path of a file, which says
what its tensors are called in some formats, did not count; before 5 only files near the weights were
listed, and a tensor whose values cannot be read had no entry."""


def cache_file() -> Path:
    """Return where it is kept: `$XDG_CACHE_HOME/hallmarks`, by default in `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "hallmarks" / f"commits-{FORMAT}.sqlite"


class PlanCache:
    """A table of keys and JSON values. A cache that cannot be used is no error: it is empty."""

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        path = path or cache_file()
        with contextlib.suppress(sqlite3.Error, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = _opened(path)
            except sqlite3.DatabaseError:  # damaged, or another program's
                path.unlink()
                self._connection = _opened(path)

    def __enter__(self) -> PlanCache:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep what was read, also when planning failed or was interrupted."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.commit()
            self._connection.close()

    def get(self, key: str) -> Any:
        """Return the value of a key, or None."""
        if self._connection is None:
            return None
        try:
            with self._lock:
                query = "SELECT value FROM kept WHERE key = ?"
                row = self._connection.execute(query, (key,)).fetchone()
            return None if row is None else json.loads(row[0])
        except (sqlite3.Error, ValueError):
            return None

    def put(self, key: str, value: Any) -> None:
        """Keep a value that JSON can hold."""
        if self._connection is None:
            return
        with contextlib.suppress(sqlite3.Error), self._lock:
            query = "INSERT OR REPLACE INTO kept VALUES (?, ?)"
            self._connection.execute(query, (key, json.dumps(value, separators=(",", ":"))))


def _opened(path: Path) -> sqlite3.Connection:
    # 0.2 s of waiting for another plan that writes; then this one does without
    connection = sqlite3.connect(path, timeout=0.2, check_same_thread=False)
    connection.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT)")
    return connection
