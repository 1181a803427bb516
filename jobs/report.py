"""`hallmarks report`: one page that shows the runs of a store."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import click

from jobs.console import EXIT_INCOMPLETE, console, run, say
from jobs.options import debug_option, store_option
from pipeline.errors import QueryError, RequestError, names_like, quoted
from pipeline.files import write_whole
from pipeline.report.comparison import shown_one_by_one
from pipeline.report.content import content
from pipeline.report.page import page
from pipeline.store.folder import Folder
from pipeline.store.query import Store


@click.command()
@store_option
@click.option(
    "--run",
    "names",
    multiple=True,
    metavar="NAME",
    help="Only this run, or those that match a pattern (repeatable; default: all; of more than 8 that are not"
    " named 8 one by one).",
)
@click.option(
    "--out",
    metavar="FILE.html",
    help="Where the page is written (default: STORE/report.html, or report.html for a remote store).",
)
@click.option(
    "--figures",
    metavar="DIR",
    help="Write pictures for slides and papers, too: PDF, SVG and PNG (needs matplotlib).",
)
@debug_option
def report(
    store: str, names: tuple[str, ...], out: str | None, figures: str | None, debug: bool
) -> int:
    """Write one self-contained page: trajectory maps, curves, layers, findings.

    It can be opened in any browser and sent to others; it makes no requests.
    """
    del debug
    opened = Store(store)
    runs = [row[0] for row in opened.sql("SELECT run FROM runs ORDER BY run").fetchall()]
    wanted = list(
        dict.fromkeys(chain.from_iterable(_matching(name, runs, store) for name in names or "*"))
    )
    sound = [name for name in wanted if _is_whole(opened, name)]
    if not sound:
        raise QueryError(
            f"no run of {store} is whole", "the command that made a run makes it again"
        )
    shown = sound if names and set(names) <= set(runs) else shown_one_by_one(opened, sound)
    drawn = None if figures is None else _drawn(opened, shown, sound, Path(figures))
    target = Path(out) if out is not None else _default(store)
    text = page(content(opened, store, shown, sound))
    try:
        write_whole(target, text.encode())  # a browser may load the page again at any time
    except OSError as error:
        raise RequestError(
            f"{quoted(target)} cannot be written: {error.strerror}", "choose another --out"
        ) from None
    say(console(), f"report: {target} ({len(text.encode()) / 1e6:.1f} MB)")
    if drawn is not None:
        say(console(), f"figures: {drawn} in {figures}, each as PDF, SVG and PNG")
    if shown != sound:
        say(console(), f"one by one: {len(shown)} of {len(sound)} runs; --run names others")
    return EXIT_INCOMPLETE if opened.damaged or sound != wanted else 0


def _matching(pattern: str, runs: Sequence[str], store: str) -> list[str]:
    """Return the runs that a name or pattern means."""
    if matching := fnmatch.filter(runs, pattern):
        return matching
    raise RequestError(
        f"no run {quoted(pattern)} in {store}", f"there are: {names_like(pattern, runs)}"
    )


def _drawn(store: Store, runs: list[str], compared: list[str], folder: Path) -> int:
    """Write the pictures of some runs and return how many there are."""
    from pipeline.report.figures import write_figures  # matplotlib may be missing, and takes 0.3 s

    return write_figures(store, runs, folder, compared)


def _is_whole(store: Store, name: str) -> bool:
    why = store.trouble(name)
    if why is not None:
        say(console(stderr=True), f"warning: run {name} is left out: {why}")
    return why is None


def _default(store: str) -> Path:
    return Path("report.html") if Folder(store).remote else Path(store) / "report.html"


if __name__ == "__main__":
    run(report)
