"""`hallmarks follow`: keeps a run up to date with a source that still grows."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import click

from jobs.audit import print_finding
from jobs.console import Result, console, run, say
from jobs.options import requests_from, resources_from, store_option, what_is_followed
from jobs.program import give_way, resumable
from jobs.progress import with_error
from jobs.summary import print_summary
from pipeline.findings.finding import Finding
from pipeline.follow.following import Followed
from pipeline.follow.following import follow as run_following
from pipeline.follow.look import SETTLE_S
from pipeline.store.folder import Folder


@click.command()
@what_is_followed
@store_option
@click.option("--once", is_flag=True, help="Take what is there, then end.")
@click.option(
    "--settle",
    metavar="SECONDS",
    default=f"{SETTLE_S:g}",
    show_default=True,
    help="Read a checkpoint when its files have not changed for so long.",
)
@click.option(
    "--exec",
    "command",
    metavar="COMMAND",
    help="Call this for each new finding that is an error (variables HALLMARKS_RUN, _STORE, _KIND,"
    " _K, _STEP, _MESSAGE).",
)
@click.option("--threads", metavar="N", help="Threads that read and compute [default: 1].")
@click.option(
    "--replace",
    is_flag=True,
    help="Replace a run of this name even if it was made by analyze, or of something else.",
)
def follow(**options: Any) -> int:
    """Keep a run up to date with SOURCE, to which a training still adds checkpoints.

    Each new checkpoint is read once; figures between checkpoints are estimates with standard errors, until
    `hallmarks analyze` makes them exact. Checkpoints that were read may be removed.
    """
    resumable("what was read is kept")
    (request,) = requests_from(options | {"sources": [options["source"]]})
    Folder(options["store"])
    listener = _Listener(options)
    give_way()
    with listener.result.claimed() if options["as_json"] else contextlib.nullcontext():
        followed = run_following(
            request,
            options["store"],
            resources_from(options),
            once=options["once"],
            settle=options["settle"],
            command=options["command"],
            replace_run=options["replace"],
            listener=listener,
        )
        if options["as_json"]:
            listener.result.print_json(followed.as_dict())
    if not options["as_json"]:
        listener.over(followed)
    return 0


class _Listener:
    """Prints what happens: results on standard output, the rest on standard error."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.result = Result()
        self._as_json, self._once = options["as_json"], options["once"]
        self._errors, self._lock = console(stderr=True), threading.Lock()

    def note(self, text: str) -> None:
        with self._lock:
            say(self._errors, text)

    def written(self, followed: Followed, new: list[Finding]) -> None:
        if self._once:
            return
        if self._as_json:
            self.result.print_json(followed.as_dict())
            return
        screen, summary = console(), followed.summary
        assert summary is not None
        figures = "".join(
            f", {name} {with_error(value, error)}"
            for name, value, error in (
                ("mds", summary.mds, summary.mds_stderr),
                ("relative mds", summary.relative_mds, summary.relative_mds_stderr),
            )
            if value is not None
        )
        say(screen, f"run {summary.run}: {summary.checkpoints} checkpoints{figures}")
        for finding in new:
            print_finding(screen, (finding.severity, finding.kind, finding.message))

    def over(self, followed: Followed) -> None:
        """Print what following has come to."""
        for entry in followed.pending:
            self.note(f"not read: {entry.name} ({entry.reason})")
        if followed.summary is None:
            screen = console()
            count = f"{followed.checkpoints} checkpoint{'s'[followed.checkpoints == 1 :]}"
            say(screen, f"run {followed.run}: {count} read; figures begin with the second")
        else:
            print_summary(followed.summary)


if __name__ == "__main__":
    run(follow)
