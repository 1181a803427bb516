"""DuckDB, confined: a query reads the store's files and nothing else, and writes none.

Queries come from colleagues, web pages and language models, and stores from anywhere. DuckDB itself
refuses all other files, the network, extensions and settings. What it allows for the store's files it
allows for writing, too; so statements that may write any are refused here, by their kind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import duckdb

from pipeline.errors import QueryError, quoted
from pipeline.planning.machine import total_memory

_FIRST = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    "secret_directory": "",  # it names the user's home
    "python_enable_replacements": False,  # else a query reads this program's variables
    "temp_directory": "",  # nothing is written when memory runs out: the query fails
}
_LAST = {"enable_external_access": False, "lock_configuration": True}

_HARMLESS = {
    duckdb.StatementType.SELECT,
    duckdb.StatementType.EXPLAIN,
    duckdb.StatementType.MULTI,  # a PIVOT
    duckdb.StatementType.CREATE,
    duckdb.StatementType.INSERT,
    duckdb.StatementType.DROP,
}
"""Statements that read, or make tables and views in memory."""
_WRITERS = re.compile(r"\b(copy|export|attach)\b", re.IGNORECASE)
"""What an EXPLAIN ANALYZE would run."""


def memory_limit() -> int:
    """Return what a confined query may take, in bytes."""
    return total_memory() // 2


def confine(connection: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> None:
    """Confine a connection for good to these paths, patterns for files included."""
    settings = {
        **_FIRST,
        "memory_limit": f"{memory_limit()}B",
        "allowed_paths": list(paths),
        **_LAST,
    }
    for name, value in settings.items():
        connection.execute(f"SET {name} = ?", [value])


def check(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Refuse what is more than a question.

    Raises:
        QueryError: a statement is of another kind.
        duckdb.Error: it is not SQL.
    """
    for statement in connection.extract_statements(query):
        kind = _kind(statement)
        inner = kind == duckdb.StatementType.EXPLAIN and _WRITERS.search(statement.query)
        if kind not in _HARMLESS or inner:
            what = quoted(statement.query.strip(), 40) if kind is None else kind.name
            raise QueryError(
                f"query refused: {what} is no question about a store",
                "--unconfined allows everything that DuckDB can do (in Python: confined=False)",
            )


def _kind(statement: duckdb.Statement) -> duckdb.StatementType | None:
    """Return the kind of a statement; None: one that DuckDB's Python client has no name for."""
    try:
        return statement.type
    except ValueError:
        return None
