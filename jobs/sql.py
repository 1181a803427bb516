"""`hallmarks sql`: a query over the views of a store."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from pathlib import Path
from typing import TextIO

import click

from jobs.console import EXIT_INCOMPLETE, console, hint, run
from jobs.options import debug_option, store_option
from jobs.tables import Screen, write
from pipeline.errors import Interrupted, QueryError
from pipeline.store.confine import memory_limit
from pipeline.store.glossary import terms
from pipeline.store.hints import unknown_words
from pipeline.store.query import Store


def _named(kind: str) -> str:
    return ", ".join(term.name for term in terms() if term.kind == kind)


@click.command(
    epilog=f"Views: {_named('view')}. Functions: {_named('function')}."
    " FROM glossary says what everything in them means."
)
@store_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "markdown"]),
    default="table",
    show_default=True,
)
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=40,
    show_default=True,
    metavar="N",
    help="Rows of a table that are shown on a terminal.",
)
@click.option(
    "--file", type=click.File(errors="surrogateescape"), help="Read the query from a file."
)
@click.option(
    "--unconfined",
    is_flag=True,
    help="Let the query do everything that DuckDB can: other files, the network, extensions, settings.",
)
@debug_option
@click.argument("query", required=False)
def sql(
    store: str,
    form: str,
    rows: int,
    file: TextIO | None,
    unconfined: bool,
    debug: bool,
    query: str | None,
) -> int:
    """Run QUERY (or standard input) over the views of a store; on a terminal, ask for queries.

    It reads the store's files and nothing else, and writes nothing.
    """
    del debug
    if file is not None and query is not None:
        raise click.UsageError("--file and QUERY cannot be combined")
    asking = query is None and file is None and sys.stdin.isatty()
    text = "" if asking else _unicode(_stated(query, file))
    if not asking and not text.strip():
        raise QueryError("the query is empty", "for example: hallmarks sql 'FROM runs'")
    opened = Store(store, confined=not unconfined)
    if not unconfined:
        _bound_memory()
    if asking:
        from jobs.prompt import converse

        converse(opened, lambda typed: answer(opened, _unicode(typed), form, rows))
    else:
        try:
            answer(opened, text, form, rows)
        except KeyboardInterrupt:  # a query that a signal has stopped
            raise Interrupted("the query was stopped") from None
    return EXIT_INCOMPLETE if opened.damaged else 0


def answer(store: Store, query: str, form: str, rows: int) -> None:
    """Write the answer to a query, and why there may be none.

    Args:
        rows: that a table on a terminal shows at most.
    """
    columns, found_rows = store.rows(query)
    terminal = console()
    screen = Screen(terminal.width, rows) if terminal.is_terminal else None
    if not write(form, columns, found_rows, screen):
        for line in unknown_words(store, query):
            hint(line)


def _stated(query: str | None, file: TextIO | None) -> str:
    if query is not None:
        return query
    return sys.stdin.read() if file is None else file.read()


def _unicode(text: str) -> str:
    """Return what was typed as UTF-8 where the locale knows ASCII only."""
    with contextlib.suppress(UnicodeError):  # no text at all: refused later
        return text if text.isascii() else os.fsencode(text).decode()
    return text


def _bound_memory() -> None:
    """Bound what the process may allocate: DuckDB's own limit does not count texts that it makes."""
    with contextlib.suppress(
        OSError, ValueError, IndexError
    ):  # there is no /proc, or a lower limit
        held = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, ((int(held) << 10) + memory_limit(), hard))


if __name__ == "__main__":
    run(sql)
