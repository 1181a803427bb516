"""`hallmarks sql`: a query over the views of a store."""

from __future__ import annotations

import csv
import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from jobs.console import run
from jobs.options import debug_option, store_option
from pipeline.errors import QueryError
from pipeline.store.query import Store


@click.command()
@store_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "markdown"]),
    default="table",
    show_default=True,
)
@debug_option
@click.argument("query", required=False)
def sql(store: str, form: str, debug: bool, query: str | None) -> int:
    """Run QUERY (or standard input) over the views of a store.

    Views: runs, checkpoints, tensors, similarity, path, indicators, spectrum, projection,
    findings.
    """
    del debug
    if query is None:
        if sys.stdin.isatty():
            raise click.UsageError("no QUERY given")
        query = sys.stdin.read()
    if not query or not query.strip():
        raise QueryError("the query is empty", "for example: hallmarks sql 'FROM runs'")
    columns, rows = Store(store).rows(query)
    _FORMATS[form](columns, rows)
    return 0


def _table(columns: list[str], rows: Any) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    width = None if sys.stdout.isatty() else 10_000  # a pipe has no width to fold at
    Console(width=width, highlight=False, markup=False).print(table)


def _csv(columns: list[str], rows: Any) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


def _json(columns: list[str], rows: Any) -> None:
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    click.echo(json.dumps(found, default=str))


def _markdown(columns: list[str], rows: Any) -> None:
    def line(cells: Any) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    click.echo(line(columns))
    click.echo(line("---" for _ in columns))
    for row in rows:
        click.echo(line("" if value is None else value for value in row))


_FORMATS = {"table": _table, "csv": _csv, "json": _json, "markdown": _markdown}

if __name__ == "__main__":
    run(sql)
