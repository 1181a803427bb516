"""`hallmarks analyze`: the main job. `python -m jobs.analyze` is the same, as a Ray job's entry."""

from __future__ import annotations

from typing import Any

import click

from jobs.console import EXIT_INCOMPLETE, Result, one_object, run
from jobs.options import (
    check_store,
    requests_from,
    resources_from,
    selection_and_resources,
    store_option,
)
from jobs.program import resumable
from jobs.progress import JobProgress
from jobs.summary import print_summary
from pipeline.job.analyze import analyze as run_analysis
from pipeline.job.analyze import analyze_joint
from pipeline.job.summary import Summary
from pipeline.planning.request import Request


@click.command()
@selection_and_resources
@store_option
@click.option("--fresh", is_flag=True, help="Discard partial results of this run and start over.")
@click.option(
    "--replace",
    is_flag=True,
    help="Replace a run of this name even if it was made from another source or selection.",
)
def analyze(**options: Any) -> int:
    """Analyse the checkpoints of SOURCE: a directory, a Hub repository such as org/name, a bucket,
    or a manifest. Several SOURCEs become a run each.

    Rerun with the same arguments to resume where it stopped.
    """
    result = Result()
    requests = requests_from(options)
    jobs = [requests] if options["joint"] else [[request] for request in requests]
    summaries = []
    if not options["as_json"]:
        for job in jobs:
            finished = _analyze(job, options)
            for summary in finished:
                print_summary(summary)
            summaries += finished
    else:
        with result.claimed():
            for job in jobs:
                summaries += _analyze(job, options)
            result.print_json(one_object([summary.as_dict() for summary in summaries]))
    return 0 if all(summary.complete for summary in summaries) else EXIT_INCOMPLETE


def _analyze(requests: list[Request], options: dict[str, Any]) -> list[Summary]:
    """Do one job: of one request, or of several in one read."""
    resumable()
    check_store(options["store"])
    progress = JobProgress(options["store"])
    where, resources = options["store"], resources_from(options)
    how: dict[str, Any] = {"progress": progress}
    how |= {name: options[name] for name in ("fresh", "replace")}
    try:
        if options["joint"]:
            return analyze_joint(requests, options["run"], where, resources, **how)
        return [run_analysis(requests[0], where, resources, **how)]
    finally:
        progress.close()


if __name__ == "__main__":
    run(analyze)
