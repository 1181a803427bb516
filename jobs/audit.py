"""`hallmarks audit`: what is wrong, or worth knowing, about the checkpoints of a run."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from jobs.console import EXIT_INCOMPLETE, run
from jobs.options import debug_option, store_option
from pipeline.errors import RequestError
from pipeline.findings.finding import SEVERITIES
from pipeline.store.query import Store

_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}


@click.command()
@store_option
@click.option("--run", "name", metavar="NAME", help="Only this run; default: every run.")
@click.option("--strict", is_flag=True, help="Exit with 3 if any finding is an error.")
@debug_option
def audit(store: str, name: str | None, strict: bool, debug: bool) -> int:
    """Print the findings about the checkpoints of a run."""
    del debug
    opened = Store(store)
    runs = [row[0] for row in opened.sql("SELECT run FROM runs ORDER BY run").fetchall()]
    if name is not None and name not in runs:
        raise RequestError(f"no run {name} in {store}", f"there are: {', '.join(runs)}")
    console = Console(soft_wrap=True, highlight=False)
    errors = 0
    for each in runs if name is None else [name]:
        rows = findings_of(opened, each)
        errors += sum(severity == "error" for severity, _, _ in rows)
        console.print(f"run {each}: {told(rows)}", markup=False)
        for row in rows:
            print_finding(console, row)
    return EXIT_INCOMPLETE if strict and errors else 0


def findings_of(store: Store, run_name: str) -> list[tuple[str, str, str]]:
    """Return severity, kind and message of every finding of a run, the severest first."""
    rows: list[tuple[Any, ...]] = store.sql(
        "SELECT severity, kind, message FROM findings"
        f" WHERE run = '{run_name}' ORDER BY kind, k NULLS LAST, message"
    ).fetchall()
    return sorted(((s, k, m) for s, k, m in rows), key=lambda row: SEVERITIES.index(row[0]))


def told(rows: list[tuple[str, str, str]]) -> str:
    """Return how many findings there are, in words."""
    counts = {s: sum(severity == s for severity, _, _ in rows) for s in SEVERITIES}
    words = [
        f"{count} {s}{'s' * (count > 1 and s != 'info')}" for s, count in counts.items() if count
    ]
    return ", ".join(words) or "nothing found"


def print_finding(console: Console, row: tuple[str, str, str]) -> None:
    """Print one finding on a line."""
    severity, kind, message = row
    console.print(f"{severity:<8}", style=_COLOURS[severity], end="")
    console.print(f"{kind}: {message}", markup=False)


if __name__ == "__main__":
    run(audit)
