"""`hallmarks audit`: what is wrong, or worth knowing, about the checkpoints of a run or a source."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from jobs.console import EXIT_INCOMPLETE, Result, console, one_object, run, say
from jobs.options import (
    checkpoints_of_a_source,
    debug_option,
    json_option,
    requests_from,
    store_option,
)
from jobs.tables import between_words
from pipeline.errors import RequestError, names_like, printable, quoted
from pipeline.findings.finding import SEVERITIES
from pipeline.store.query import Store

_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}


@click.command()
@checkpoints_of_a_source
@store_option
@click.option("--run", metavar="NAME", help="Only this run (default: all runs).")
@click.option("--strict", is_flag=True, help="Exit with 3 if any finding is an error.")
@json_option
@debug_option
@click.pass_context
def audit(context: click.Context, **options: Any) -> int:
    """Print what is wrong with the checkpoints of a run, or worth knowing.

    With SOURCE, without a store: what listings and published hashes alone tell, in seconds.
    """
    stated = {
        name
        for name in options
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if options["sources"]:
        if stated & {"store", "run"}:
            raise RequestError(
                "audit SOURCE needs no store: it reads listings",
                "leave out --store and --run, or SOURCE for the findings of a run",
            )
        return _of_sources(options)
    if surplus := sorted(stated - {"store", "run", "strict", "as_json", "debug"}):
        raise RequestError(f"--{surplus[0]} is of audit SOURCE", "name a SOURCE")
    return _of_store(options["store"], options["run"], options["strict"], options["as_json"])


def _of_sources(options: dict[str, Any]) -> int:
    # clients of the Hub and planning take a quarter of a second to import
    from pipeline.findings.listings import findings_of_listings
    from pipeline.planning.listings import listings

    screen, errors, described = console(), 0, []
    for request in requests_from(options):
        checkpoints, selection = listings(request)
        findings = findings_of_listings(checkpoints, selection.gaps, selection.lacking)
        findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
        rows = [(finding.severity, finding.kind, finding.message) for finding in findings]
        errors += sum(severity == "error" for severity, _, _ in rows)
        described.append(
            {
                "source": request.source,
                "checkpoints": len(checkpoints),
                "findings": [asdict(finding) for finding in findings],
            }
        )
        if not options["as_json"]:
            say(screen, f"{request.source}: {len(checkpoints)} checkpoints, {told(rows)}")
            for row in rows:
                print_finding(screen, row)
    if options["as_json"]:
        Result().print_json(one_object(described))
    return EXIT_INCOMPLETE if options["strict"] and errors else 0


def _of_store(store: str, name: str | None, strict: bool, as_json: bool) -> int:
    opened = Store(store)
    runs = [row[0] for row in opened.sql("SELECT run FROM runs ORDER BY run").fetchall()]
    if name is not None and name not in runs:
        raise RequestError(
            f"no run {quoted(name)} in {store}", f"there are: {names_like(name, runs)}"
        )
    screen = console()
    errors, damaged = 0, bool(opened.damaged)
    described = []
    for each in runs if name is None else [name]:
        rows = findings_of(opened, each)
        if (why := opened.trouble(each)) is not None:
            damaged = True
            rows.insert(
                0, ("error", "damaged", f"{why}; the command that made the run makes it again")
            )
        errors += sum(severity == "error" for severity, _, _ in rows)
        keys = ("severity", "kind", "message")
        findings = [dict(zip(keys, row, strict=True)) for row in rows]
        described.append({"run": each, "findings": findings})
        if not as_json:
            say(screen, f"run {each}: {told(rows)}")
            for row in rows:
                print_finding(screen, row)
    if as_json:
        Result().print_json(one_object(described))
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
    """Print one finding: on a line, or on a terminal as many as it takes."""
    severity, kind, message = row
    margin = 8
    first, *others = folded(screen, f"{severity:<{margin}}{kind}: {message}", margin)
    say(screen, first[:margin], style=_COLOURS[severity], end="")
    for line in (first[margin:], *others):
        say(screen, line)


def folded(screen: Console, text: str, margin: int) -> list[str]:
    """Return the lines that a text takes on a terminal; elsewhere it is one."""
    if not screen.is_terminal:
        return [text]
    return between_words(printable(text), screen.width, margin)


if __name__ == "__main__":
    run(audit)
