"""Reading a store: DuckDB over the views."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import QueryError, StoreUnusable, quoted
from pipeline.store.folder import Folder

_ROWS_AT_ONCE = 10_000
_VIEWS = files("pipeline.store").joinpath("views/views.sql")


_ABOUT_DIRECTORY = "-- Run it in the store's directory:   .read views.sql\n"
_ABOUT_BUCKET = """\
-- The store is on object storage, for which DuckDB needs an extension and credentials; with those
-- it runs anywhere:   INSTALL httpfs; LOAD httpfs;   (az://: azure)   CREATE SECRET (…);
-- `hallmarks sql` and `pipeline.open_store` do without.
"""
_FILES = re.compile(r"read_parquet\('(\w+)(/run=\*/\*\.parquet',[^)]*\))")
"""Where the views name the files of a table."""


def views_sql(folder: Folder) -> str:
    """Return the text of the `views.sql` that a store holds."""
    text = _VIEWS.read_text()
    if not folder.remote:
        return text
    root = folder.root.replace("'", "''")
    absolute = _FILES.sub(lambda found: f"read_parquet('{root}/{found[1]}{found[2]}", text)
    return absolute.replace(_ABOUT_DIRECTORY, _ABOUT_BUCKET)


class Store:
    """A store opened for reading; on object storage as it was when it was opened."""

    def __init__(self, path: str) -> None:
        """Open a store.

        Raises:
            StoreUnusable: there is no store, or no run in it.
        """
        self._folder = Folder(path)
        if not self._folder.exists:
            raise StoreUnusable(f"no such store: {path}", "name it with --store")
        if not self._folder.list("runs"):
            raise StoreUnusable(f"no finished run in {path}", "hallmarks analyze makes one")
        self._connection = duckdb.connect()
        if self._folder.remote:
            from pipeline.store.remote import tables  # Arrow's part for that takes 50 ms to import

            for name, table in tables(self._folder).items():
                self._connection.register(f"stored_{name}", table)
            # DuckDB cannot know how many rows Arrow will bring, and would keep the largest table in
            # memory to join the others to it; in the order in which they are written, the views do
            # not: 0.6 s and 80 MB for a count of 1.2 million similarities, against 3.5 s and 1.3 GB
            self._connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
            self._connection.execute(_FILES.sub(r"stored_\1", _VIEWS.read_text()))
        else:
            root = self._folder.root.replace("'", "''")
            self._connection.execute(f"SET file_search_path = '{root}'")
            self._connection.execute(views_sql(self._folder))

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Return the answer to a query over the views.

        Raises:
            QueryError: DuckDB refused it.
        """
        try:
            relation = self._connection.sql(query)
        except duckdb.Error as error:
            raise QueryError(f"query refused: {_one_line(error)}") from None
        if relation is None:
            raise QueryError("the query gives no rows", "ask with SELECT, FROM, SHOW or DESCRIBE")
        return relation

    def rows(self, query: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """Return the columns and the rows of an answer, which is not held in memory as a whole.

        Raises:
            QueryError: DuckDB refused the query.
        """
        relation = self.sql(query)
        return relation.columns, _fetched(relation)

    def runs(self) -> duckdb.DuckDBPyRelation:
        """Return the rows of the view `runs`."""
        return self.sql("FROM runs ORDER BY run")

    def trajectory_map(
        self,
        run: str,
        scope: str = "model",
        *,
        layer: int | None = None,
        component: str | None = None,
        tensor: str | None = None,
        relative: bool = False,
    ) -> NDArray[np.float64]:
        """Return the cosines of all pairs of checkpoints, (K, K); NaN where undefined.

        Args:
            relative: of the displacements from checkpoint 0.

        Raises:
            QueryError: there is no such group, or the keys leave several.
        """
        column = "relative_cosine" if relative else "cosine"
        rows = self._connection.execute(
            f"SELECT i, j, {column} FROM similarity WHERE run = ? AND scope = ?"
            " AND layer IS NOT DISTINCT FROM ? AND (? IS NULL OR component = ?)"
            " AND (? IS NULL OR tensor = ?)",
            [run, scope, layer, component, component, tensor, tensor],
        ).fetchnumpy()
        count = int(rows["j"].max()) + 1 if len(rows["j"]) else 0
        if count * (count + 1) // 2 != len(rows["i"]) or not count:
            raise QueryError(
                f"run {quoted(run)}: expected one group of scope {quoted(scope)}, found"
                f" {'none' if not count else 'several'}",
                "name layer, component and tensor as the view `similarity` shows them",
            )
        square = np.full((count, count), np.nan)
        values = np.ma.filled(rows[column], np.nan)
        square[rows["i"], rows["j"]] = square[rows["j"], rows["i"]] = values
        return square


def _fetched(relation: duckdb.DuckDBPyRelation) -> Iterator[tuple[Any, ...]]:
    # through Arrow: DuckDB's own rows want another package for times with a zone
    try:
        for batch in relation.to_arrow_reader(_ROWS_AT_ONCE):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
    except (duckdb.Error, pa.ArrowException) as error:
        raise QueryError(f"query failed: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    text = str(error).partition("Detail: Python exception")[0]  # Arrow's: a traceback of ours
    return " ".join(text.split())[:400]
