"""Reading a store: DuckDB over the views."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from itertools import chain
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.errors import DamagedRun, QueryError, StoreUnusable, names_like, quoted
from pipeline.store.confine import check, confine
from pipeline.store.contents import Part, contents, trouble, trouble_by_listing
from pipeline.store.folder import Folder
from pipeline.store.glossary import comment, statement, terms
from pipeline.store.maps import TrajectoryMap
from pipeline.store.schema import SCHEMAS, with_run

_ROWS_AT_ONCE = 10_000
_VIEWS = (
    files("pipeline.store").joinpath("views/views.sql").read_text(encoding="utf-8")
    + "\n"
    + statement()
)
_MADE = re.compile(r'^CREATE OR REPLACE \w+ "?(\w+).*?;$', re.DOTALL | re.MULTILINE)
_STATEMENTS = {made[1]: f"{made[0]}\n{comment(made[1])}" for made in _MADE.finditer(_VIEWS)}
"""What makes each view and function, by its name, in an order in which they can be made."""
_SOURCES = re.compile(r"\b(?:FROM|JOIN) (\w+)")

_STORED = r"""SELECT * EXCLUDE (filename), regexp_extract(filename, 'run=([^/\\]*)[/\\][^/\\]*$', 1) AS run
FROM read_parquet({files}, filename = true, union_by_name = true, hive_partitioning = false)"""
"""A table from its files. The run is taken from the last directory alone: what DuckDB takes for Hive
columns are all directories above that are called key=value."""

_ABOUT_DIRECTORY = """\
-- The views of a hallmarks store, for any DuckDB from 1.4 on.
-- Run it in the store's directory:   .read views.sql
"""
_ABOUT_BUCKET = """\
-- The views of a hallmarks store, for any DuckDB from 1.4 on.
-- The store is on object storage, for which DuckDB needs an extension and credentials; with those
-- it runs anywhere:   INSTALL httpfs; LOAD httpfs;   (az://: azure)   CREATE SECRET (…);
-- `hallmarks sql` and `pipeline.open_store` do without.
"""


def views_sql(folder: Folder) -> str:
    """Return the text of the `views.sql` that a store holds."""
    root = _pattern(folder.root).replace("'", "''") + "/" if folder.remote else ""
    stored = "".join(
        f"CREATE OR REPLACE VIEW stored_{table} AS\n"
        + _STORED.format(files=f"'{root}{pattern}'")
        + ";\n\n"
        for table, pattern in _PATTERNS.items()
    )
    comments = "".join(map(comment, _STATEMENTS))
    return (
        (_ABOUT_BUCKET if folder.remote else _ABOUT_DIRECTORY) + stored + _VIEWS + "\n" + comments
    )


def views() -> dict[str, list[tuple[str, str]]]:
    """Return the columns of every view and their types in SQL, as a store without runs has them."""
    connection = duckdb.connect()
    for table in SCHEMAS:
        connection.register(f"stored_{table}", with_run(table).empty_table())
    connection.execute("".join(_STATEMENTS.values()))
    shown: dict[str, list[tuple[str, str]]] = {}
    for term in terms():
        if term.kind == "view":
            relation = connection.sql(f"FROM {term.name}")
            shown[term.name] = list(zip(relation.columns, map(str, relation.types), strict=True))
    return shown


_PATTERNS = {table: f"{table}/run=*/*.parquet" for table in SCHEMAS}


def _pattern(path: str) -> str:
    """Return a pattern that only this path matches; DuckDB takes every path for a pattern."""
    return re.sub(r"([*?[])", r"[\1]", path)


def _uses(names: Iterable[str]) -> set[str]:
    """Return these views and tables, and all that they are made from."""
    known = {*_STATEMENTS, *(f"stored_{table}" for table in SCHEMAS)}
    used: set[str] = set()
    pending = known & set(names)
    while pending:
        used |= pending
        words = [_SOURCES.findall(_STATEMENTS.get(name, "")) for name in pending]
        pending = (known & set(chain.from_iterable(words))) - used
    return used


class Store:
    """A store opened for reading, as it was when it was opened.

    A view is made, and the files of its tables are checked, before the first query whose text names
    it: of a directory every file as a whole (as fast as memory), on object storage their sizes, and
    each page when it is read. What is gone or damaged is left out and named.
    """

    def __init__(self, path: str, *, confined: bool = True, only: str | None = None) -> None:
        """Open a store.

        Args:
            confined: queries read this store and nothing else, and write nothing.
            only: one run, as if there were no other: others may be written meanwhile.

        Raises:
            StoreUnusable: there is no store, or no run in it.
        """
        self._folder = Folder(path)
        if not self._folder.exists:
            raise StoreUnusable(f"no such store: {path}", "name it with --store")
        self._only = only
        self._contents = contents(self._folder, only)
        if not len(self._contents.rows) and not self._contents.damaged:
            raise StoreUnusable(f"no finished run in {path}", "hallmarks analyze makes one")
        self._confined = confined
        self._made: set[str] = set()
        self.damaged: dict[str, str] = {}
        """What was left out so far, by run, and why."""
        self._connection = duckdb.connect()
        bar = self._connection.sql("SELECT current_setting('enable_progress_bar')").fetchall()
        if bar == [
            (True,)
        ]:  # in Jupyter without ipywidgets it is off, and DuckDB refuses to set it
            self._connection.execute(
                "SET enable_progress_bar = false"
            )  # it goes to standard output
        if self._folder.remote:
            # DuckDB cannot know how many rows Arrow will bring, and would keep the largest table in
            # memory to join the others to it; in the order in which they are written, the views do
            # not: 0.6 s and 80 MB for a count of 1.2 million similarities, against 3.5 s and 1.3 GB
            self._connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
        else:
            # every view reads the same few hundred footers: 0.2 s for those of 60 runs, not 0.5
            self._connection.execute("SET parquet_metadata_cache = true")
        self._connection.register("stored_runs", self._contents.rows)
        if confined:
            confine(self._connection, self._paths())
        for run, why in self._contents.damaged.items():
            self._leave_out(run, why)

    @property
    def path(self) -> str:
        """The directory or URL that was opened."""
        return self._folder.root

    def sql(self, query: str, parameters: Sequence[Any] | None = None) -> duckdb.DuckDBPyRelation:
        """Return the answer to a query over the views.

        Args:
            parameters: for each `?` of the query.

        Raises:
            QueryError: DuckDB refused it, or it is more than a question.
        """
        try:
            query.encode()
            return self._ask(query, parameters)
        except UnicodeEncodeError:
            raise QueryError("query refused: it is not UTF-8") from None
        except duckdb.CatalogException as error:
            if self._made.issuperset(_STATEMENTS):
                raise _refused(error, query) from None
        except duckdb.Error as error:
            raise _refused(error, query) from None
        self._make(_STATEMENTS)  # a view may be named in a way that its text does not show
        try:
            return self._ask(query, parameters)
        except duckdb.Error as error:
            raise _refused(error, query) from None

    def _ask(self, query: str, parameters: Sequence[Any] | None) -> duckdb.DuckDBPyRelation:
        if self._confined:
            check(self._connection, query)
        named = _uses(re.findall(r"\w+", query.lower()))
        self._make(named or _STATEMENTS)
        with _interruptible():
            relation = self._connection.sql(query, params=parameters)
        if relation is None:  # pyright: ignore[reportUnnecessaryComparison] - as a SET is
            raise QueryError("the query gives no rows", "ask with SELECT, FROM, SHOW or DESCRIBE")
        return relation

    def trouble(self, run: str) -> str | None:
        """Return what is wrong with a file of a run, all of which are looked at, or None."""
        for parts in self._contents.parts.values():
            troubles = self._troubles([part for part in parts if part.run == run])
            for part, why in troubles.items():
                return f"{part.path} {why}"
        return None

    def _make(self, names: Iterable[str]) -> None:
        """Make the views of these names, and what they need, unless they are there."""
        needed = _uses(names) - self._made
        for table in SCHEMAS:
            if f"stored_{table}" in needed and table != "runs":
                self._make_table(table)
        for name, made in _STATEMENTS.items():
            if name in needed:
                self._connection.execute(made)
        self._made |= needed

    def _make_table(self, table: str) -> None:
        """Make the view of a table's files, but for those that are not as they were written."""
        parts = self._contents.parts.get(table, [])
        troubles = self._troubles(parts)
        if troubles:
            now = contents(self._folder, self._only)
            for part, why in troubles.items():
                if now.attempt(part.run) != self._contents.attempt(part.run):
                    raise QueryError(f"run {part.run} was written again meanwhile", "ask again")
                self._leave_out(part.run, f"{part.path} {why}")
        runs = {part.run for part in troubles}  # of these not even the whole files
        sound = [part for part in parts if part.run not in runs]
        name = f"stored_{table}"
        if not sound:
            self._connection.register(name, with_run(table).empty_table())
        elif self._folder.remote:
            # Arrow's part for that takes 50 ms to import
            from pipeline.store.remote import dataset

            self._connection.register(name, dataset(self._folder, table, sound))
        else:
            query = _STORED.format(files="?")
            paths = [_pattern(self._path(part)) for part in sound]
            source = self._connection.sql(query, params=[paths])
            if not set(source.columns).issuperset(with_run(table).names):  # files are older
                self._connection.register(f"no_{table}", with_run(table).empty_table())
                query = f"{query} UNION ALL BY NAME FROM no_{table}"
                source = self._connection.sql(query, params=[paths])
            source.create_view(name)

    def _troubles(self, parts: Sequence[Part]) -> dict[Part, str]:
        if self._folder.remote:
            return trouble_by_listing(self._folder, parts[0].table, parts) if parts else {}
        troubles = ((part, trouble(self._folder, part)) for part in parts)
        return {part: why for part, why in troubles if why is not None}

    def _leave_out(self, run: str, why: str) -> None:
        if run not in self.damaged:
            self.damaged[run] = why
            warnings.warn(
                f"run {run} is left out: {why}; the command that made it makes it again",
                DamagedRun,
                stacklevel=2,
            )

    def _path(self, part: Part) -> str:
        return f"{self._folder.root}/{part.path}"

    def _paths(self) -> list[str]:
        """Return what DuckDB may open: files, and the patterns that stand for them."""
        if self._folder.remote:
            return []
        paths = [self._path(part) for part in chain.from_iterable(self._contents.parts.values())]
        return list({*paths, *map(_pattern, paths)})

    def rows(self, query: str, parameters: Sequence[Any] | None = None) -> tuple[list[str], Rows]:
        """Return the columns and the rows of an answer, which is not held in memory as a whole.

        Raises:
            QueryError: DuckDB refused the query.
        """
        relation = self.sql(query, parameters)
        return relation.columns, Rows(relation)

    def table(self, query: str, parameters: Sequence[Any] | None = None) -> pa.Table:
        """Return an answer as one Arrow table.

        Raises:
            QueryError: DuckDB refused the query, or failed in it.
        """
        relation = self.sql(query, parameters)
        with _told():
            return relation.to_arrow_reader(_ROWS_AT_ONCE).read_all()

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
    ) -> TrajectoryMap:
        """Return the cosines of all pairs of checkpoints, (K, K); NaN where undefined.

        Args:
            scope: of the group, as are the keys that follow: `model`, `layer`, `tensor`, ….
            relative: of the displacements from checkpoint 0.

        Raises:
            QueryError: there is no such run or group, or the keys leave several.
        """
        checkpoints = self.sql(
            "SELECT step, name FROM checkpoints WHERE run = ? ORDER BY k", [run]
        ).fetchall()
        if not checkpoints:
            runs = names_like(
                run, (name for (name,) in self.sql("SELECT run FROM runs").fetchall())
            )
            raise QueryError(f"no run {quoted(run)} in {self.path}", f"there are: {runs}")
        column = "relative_cosine" if relative else "cosine"
        rows = self.sql(
            f"SELECT i, j, {column} FROM similarity WHERE run = ? AND scope = ?"
            " AND layer IS NOT DISTINCT FROM ? AND (? IS NULL OR component = ?)"
            " AND (? IS NULL OR tensor = ?)",
            [run, scope, layer, component, component, tensor, tensor],
        ).fetchnumpy()
        count = len(checkpoints)
        if len(rows["i"]) != count * (count + 1) // 2:
            raise QueryError(
                f"run {quoted(run)}: expected one group of scope {quoted(scope)}, found"
                f" {'several' if len(rows['i']) else 'none'}",
                "name layer, component and tensor as the view `similarity` shows them",
            )
        square = np.full((count, count), np.nan)
        values = np.ma.filled(rows[column], np.nan)
        square[rows["i"], rows["j"]] = square[rows["j"], rows["i"]] = values
        steps, names = zip(*checkpoints, strict=True)
        return TrajectoryMap(square, run, steps, names, relative)

    def along(
        self,
        run: str,
        i: int,
        j: int,
        scope: str = "model",
        *,
        layer: int | None = None,
        component: str | None = None,
        tensor: str | None = None,
    ) -> duckdb.DuckDBPyRelation:
        """Return the parts of every displacement along the direction from i to j and across it, as rows.

        They are in lengths of the direction. In a run of several sources i and j may be of any of them.

        Args:
            scope: of the groups, as are the keys that follow: those that all of them fit.

        Raises:
            QueryError: there is no such run or checkpoint.
        """
        return self._called("along", run, (i, j), scope, layer, component, tensor)

    def average(
        self,
        run: str,
        weights: str | Sequence[float],
        scope: str = "model",
        *,
        layer: int | None = None,
        component: str | None = None,
        tensor: str | None = None,
    ) -> duckdb.DuckDBPyRelation:
        """Return the norm of a combination of checkpoints and its distance and angle from each, as rows.

        Args:
            weights: one for each checkpoint, adding up to 1; or `last:M`, `ema:DECAY`, `warmdown:M`.
            scope: of the groups, as are the keys that follow: those that all of them fit.

        Raises:
            QueryError: there is no such run, or the weights are none.
        """
        try:
            words = weights if isinstance(weights, str) else [float(each) for each in weights]
        except (TypeError, ValueError, OverflowError):
            raise QueryError(f"average: expected weights, found {quoted(weights)}") from None
        return self._called("average", run, (words,), scope, layer, component, tensor)

    def _called(
        self,
        function: str,
        run: str,
        arguments: Sequence[Any],
        scope: str,
        layer: int | None,
        component: str | None,
        tensor: str | None,
    ) -> duckdb.DuckDBPyRelation:
        """Return what a function of the views gives, in order; what it refuses is told at once."""
        places = ", ".join("?" for _ in (run, *arguments))
        keys = "scope := ?, layer := ?, component := ?, tensor := ?"
        rows = self.table(
            f"FROM {function}({places}, {keys})"
            " ORDER BY stack, layer, component, tensor, head, expert, k",
            [run, *arguments, scope, layer, component, tensor],
        )
        return self._connection.from_arrow(rows)


class Rows(Iterator[tuple[Any, ...]]):
    """The rows of an answer, as they come.

    Raises:
        QueryError: the query failed on the way.
    """

    def __init__(self, relation: duckdb.DuckDBPyRelation) -> None:
        self._batches = self._read(relation)
        self._rows: Iterator[tuple[Any, ...]] = iter(())
        self._left = self._taken = 0
        """Rows of the batch that have not been given out, and of all batches so far."""

    def __next__(self) -> tuple[Any, ...]:
        while not self._left:
            columns = next(self.columns())
            self._left = len(columns[0])
            self._rows = zip(*columns, strict=True)
        self._left -= 1
        return next(self._rows)

    def columns(self) -> Iterator[list[list[Any]]]:
        """Yield the columns of some rows at once, as they come."""
        for batch in self._batches:
            self._taken += batch.num_rows
            with _told():
                columns = [column.to_pylist() for column in batch.columns]
            yield columns

    @property
    def number(self) -> int:
        """How many rows were given out, or counted."""
        return self._taken - self._left

    def count_rest(self) -> int:
        """Return how many more rows there are, which are gone then."""
        given = self.number
        self._taken += sum(batch.num_rows for batch in self._batches)
        self._left = 0
        return self._taken - given

    def _read(self, relation: duckdb.DuckDBPyRelation) -> Iterator[pa.RecordBatch]:
        # Arrow's, since DuckDB's own rows want another package for times with a zone
        with _told():
            yield from relation.to_arrow_reader(_ROWS_AT_ONCE)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Have a query that a signal stops end as Python ends what Ctrl-C stops.

    DuckDB looks for signals between its tasks: a product of large tables may be one long task.
    """
    try:
        yield
    except (duckdb.InterruptException, RuntimeError) as error:
        if "interrupted" not in str(error).lower():
            raise
        raise KeyboardInterrupt from None


@contextmanager
def _told() -> Iterator[None]:
    """Tell in one line what fails while an answer is made."""
    try:
        with _interruptible():
            yield
    except (duckdb.Error, pa.ArrowException, ValueError, OverflowError, ImportError) as error:
        raise QueryError(f"query failed: {_one_line(error)}") from None


def _refused(error: duckdb.Error, query: str) -> QueryError:
    return QueryError(f"query refused: {_one_line(error)}", _cure(str(error), query))


def _cure(said: str, query: str) -> str:
    """Return what would cure an error of DuckDB, where that is known."""
    if (name := re.search(r'Referenced column "(.*?)" not found', said)) and (
        f'"{name[1]}"' in query
    ):
        return f"texts stand in single quotes: '{name[1]}'"
    if name is not None and name[1] in {t.name for t in terms() if t.kind == "indicator"}:
        return f"{name[1]} is an indicator, and texts stand in single quotes: '{name[1]}'"
    if "syntax error" in said and re.search(r"\b(from|join)\s+between\s*\(", query, re.IGNORECASE):
        return (
            "between is a word of SQL, so the function's name is quoted: FROM \"between\"('a', 'b')"
        )
    return ""


def _one_line(error: Exception) -> str:
    text = str(error).partition("Detail: Python exception")[0]  # Arrow's: a traceback of ours
    text = text.partition("Possible solutions")[0]  # of which none is allowed
    return " ".join(text.split())[:400]
