"""`hallmarks update`: figures of stored runs made again with this version, without reading a weight."""

from __future__ import annotations

from typing import Any

import click

from jobs.console import EXIT_INCOMPLETE, Result, console, run, say
from jobs.options import debug_option, json_option, store_option
from jobs.progress import JobProgress
from pipeline.job.update import update as update_runs


@click.command()
@store_option
@click.option("--run", metavar="NAME", help="Only this run (default: all runs).")
@json_option
@debug_option
def update(store: str, as_json: bool, debug: bool, **options: Any) -> int:
    """Make the figures of stored runs again with this version. Reads no weight and needs no source.

    Runs that are current are left alone.
    """
    del debug
    result, progress = Result(), JobProgress(store)
    try:
        if as_json:
            with result.claimed():
                runs = update_runs(store, options["run"], progress=progress)
                result.print_json({"store": store, "runs": [each.as_dict() for each in runs]})
        else:
            runs = update_runs(store, options["run"], progress=progress)
            screen = console()
            for each in runs:
                why = f": {each.reason}" if each.reason else ""
                say(screen, f"{each.run}: {each.state}{why}")
    finally:
        progress.close()
    return EXIT_INCOMPLETE if any(each.state == "not updated" for each in runs) else 0


if __name__ == "__main__":
    run(update)
