"""`hallmarks audit`: what is wrong, or worth knowing, about the checkpoints of a run."""

from __future__ import annotations

import click
from rich.console import Console

from jobs.console import EXIT_INCOMPLETE, console, run, say
from jobs.options import debug_option, store_option
from pipeline.errors import RequestError
from pipeline.findings.finding import SEVERITIES
from pipeline.store.query import Store

_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}


@click.command()
@store_option
@click.option("--run", "name", metavar="NAME", help="Only this run (default: all runs).")
@click.option("--strict", is_flag=True, help="Exit with 3 if any finding is an error.")
@debug_option
def audit(store: str, name: str | None, strict: bool, debug: bool) -> int:
    """Print the findings about the checkpoints of a run."""
    del debug
    opened = Store(store)
    runs = [row[0] for row in opened.sql("SELECT run FROM runs ORDER BY run").fetchall()]
    if name is not None and name not in runs:
        raise RequestError(f"no run {name} in {store}", f"there are: {', '.join(runs)}")
    screen = console()
    errors, damaged = 0, bool(opened.damaged)
    for each in runs if name is None else [name]:
        rows = findings_of(opened, each)
        if (why := opened.trouble(each)) is not None:
            damaged = True
            rows.insert(
                0, ("error", "damaged", f"{why}; the command that made the run makes it again")
            )
        errors += sum(severity == "error" for severity, _, _ in rows)
        say(screen, f"run {each}: {told(rows)}")
        for row in rows:
            print_finding(screen, row)
    return EXIT_INCOMPLETE if damaged or (strict and errors) else 0


def findings_of(store: Store, run_name: str) -> list[tuple[str, str, str]]:
    """Return severity, kind and message of every finding of a run, the severest first."""
    _, rows = store.rows(
        "SELECT severity, kind, message FROM findings WHERE run = ? AND list_contains(?, severity)"
        " ORDER BY list_position(?, severity), kind, k NULLS LAST, message",
        [run_name, list(SEVERITIES), list(SEVERITIES)],
    )
    return [(severity, kind, message) for severity, kind, message in rows]


def told(rows: list[tuple[str, str, str]]) -> str:
    """Return how many findings there are, in words."""
    counts = {s: sum(severity == s for severity, _, _ in rows) for s in SEVERITIES}
    words = [
        f"{count} {s}{'s' * (count > 1 and s != 'info')}" for s, count in counts.items() if count
    ]
    return ", ".join(words) or "nothing found"


def print_finding(screen: Console, row: tuple[str, str, str]) -> None:
    """Print one finding on a line."""
    severity, kind, message = row
    say(screen, f"{severity:<8}", style=_COLOURS[severity], end="")
    say(screen, f"{kind}: {message}")


if __name__ == "__main__":
    run(audit)
