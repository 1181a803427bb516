"""`hallmarks sql`: a query over the views of a store."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
import resource
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from jobs.console import EXIT_INCOMPLETE, console, run
from jobs.options import debug_option, store_option
from pipeline.errors import QueryError, printable
from pipeline.store.confine import memory_limit
from pipeline.store.query import Store

_Rows = Iterator[tuple[Any, ...]]


@click.command()
@store_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "markdown"]),
    default="table",
    show_default=True,
)
@click.option(
    "--unconfined",
    is_flag=True,
    help="Let the query do everything that DuckDB can: other files, the network, extensions, settings.",
)
@debug_option
@click.argument("query", required=False)
def sql(store: str, form: str, unconfined: bool, debug: bool, query: str | None) -> int:
    """Run QUERY (or standard input) over the views of a store.

    It reads the store's files and nothing else, and writes nothing.

    Views: runs, checkpoints, tensors, similarity, path, indicators, spectrum, projection,
    findings.
    """
    del debug
    text = _unicode(_piped() if query is None else query)
    if not text.strip():
        raise QueryError("the query is empty", "for example: hallmarks sql 'FROM runs'")
    opened = Store(store, confined=not unconfined)
    if not unconfined:
        _bound_memory()
    columns, rows = opened.rows(text)
    _FORMATS[form](columns, rows)
    return EXIT_INCOMPLETE if opened.damaged else 0


def _piped() -> str:
    if sys.stdin.isatty():
        raise click.UsageError("no QUERY given")
    return sys.stdin.read()


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


def _table(columns: list[str], rows: _Rows) -> None:
    table = Table(*map(printable, columns))
    for row in rows:
        table.add_row(*map(_cell, row))
    screen = console()
    if not screen.is_terminal:
        screen.width = 10_000  # a pipe has no width to fold at
    screen.print(table, soft_wrap=False)


def _csv(columns: list[str], rows: _Rows) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(map(printable, columns))
    writer.writerows(map(_cell, row) for row in rows)


def _json(columns: list[str], rows: _Rows) -> None:
    names = _apart(columns)
    start = "["
    for row in rows:
        record = dict(zip(names, map(_finite, row), strict=True))
        print(start + json.dumps(record, default=str), end="")
        start = ", "
    print("[]" if start == "[" else "]")


def _markdown(columns: list[str], rows: _Rows) -> None:
    def line(cells: Iterable[str]) -> str:
        return (
            "| " + " | ".join(re.sub(r"[\\|<]|\](?=\()", r"\\\g<0>", cell) for cell in cells) + " |"
        )

    print(line(map(printable, columns)))
    print(line("---" for _ in columns))
    for row in rows:
        print(line(map(_cell, row)))


def _cell(value: Any) -> str:
    return "" if value is None else printable(value)


def _apart(names: list[str]) -> list[str]:
    """Return different names: of several that are the same, later ones get a number."""
    distinct: list[str] = []
    for name in names:
        candidates = (f"{name}_{number}" if number else name for number in range(len(names) + 1))
        distinct.append(next(each for each in candidates if each not in distinct))
    return distinct


def _finite(value: Any) -> Any:
    """Return a value as JSON has it, which knows no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if type(value) in (list, tuple):  # an interval is a tuple, too
        return [_finite(each) for each in value]
    return value


_FORMATS = {"table": _table, "csv": _csv, "json": _json, "markdown": _markdown}

if __name__ == "__main__":
    run(sql)
