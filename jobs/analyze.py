"""`hallmarks analyze`: the main job. `python -m jobs.analyze` is the same, as a Ray job's entry."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.table import Table

from jobs.console import EXIT_INCOMPLETE, JobProgress, Result, one_object, run, stop_on_signals
from jobs.options import requests_from, resources_from, selection_and_resources, store_option
from pipeline.analysis import Summary, analyze_joint
from pipeline.analysis import analyze as run_analysis
from pipeline.planning.memory import show_size
from pipeline.planning.request import Request
from pipeline.store.query import Store

_SHOWN = (
    "mds",
    "relative_mds",
    "straightness",
    "norm_ratio",
    "mean_update_angle_deg",
    "pca_share_1",
    "effective_rank",
    "predictability_1",
    "lookahead_share",
    "saturation_step",
    "settled_step",
)


@click.command()
@selection_and_resources
@store_option
@click.option("--fresh", is_flag=True, help="Discard what an interrupted run of this name left.")
def analyze(**options: Any) -> int:
    """Analyse the checkpoints of SOURCE: a directory, a Hub repository such as org/name, a bucket,
    or a manifest. Several SOURCEs become a run each.

    Started again with the same arguments, it goes on where it stopped.
    """
    result = Result()
    requests = requests_from(options)
    jobs = [requests] if options["joint"] else [[request] for request in requests]
    summaries = []
    if not options["as_json"]:
        for job in jobs:
            found = _analyze(job, options)
            for summary in found:
                _print_summary(summary)
            summaries += found
    else:
        with result.claimed():
            for job in jobs:
                summaries += _analyze(job, options)
            result.print_json(one_object([summary.as_dict() for summary in summaries]))
    return 0 if all(summary.complete for summary in summaries) else EXIT_INCOMPLETE


def _analyze(requests: list[Request], options: dict[str, Any]) -> list[Summary]:
    """Do one job: of one request, or of several in one read."""
    stop_on_signals()
    progress = JobProgress()
    where, resources, fresh = options["store"], resources_from(options), options["fresh"]
    try:
        if len(requests) == 1:
            return [run_analysis(requests[0], where, resources, fresh=fresh, progress=progress)]
        return analyze_joint(
            requests, options["run"], where, resources, fresh=fresh, progress=progress
        )
    finally:
        progress.close()


def _print_summary(summary: Summary) -> None:
    console = Console(soft_wrap=True, highlight=False)
    rows = (
        Store(summary.store)
        .sql(
            "SELECT indicator, value, null_value FROM indicators"
            f" WHERE run = '{summary.run}' AND scope = 'model'"
        )
        .fetchall()
    )
    values = {indicator: (value, null) for indicator, value, null in rows}
    table = Table("the whole model", "value", "random walk", title=f"run {summary.run}")
    for name in _SHOWN:
        value, null = values[name]
        if value is not None or null is not None:
            table.add_row(name, _shown(value), _shown(null))
    console.print(table)
    state = "already complete: nothing was read" if summary.already_complete else (
        f"{show_size(summary.bytes_read)} read in {summary.seconds:.1f} s on {summary.device}"
    )  # fmt: skip
    console.print(
        f"{summary.checkpoints} checkpoints, {summary.parameters:,} weights in {summary.tensors}"
        f" tensors; {state}"
    )
    for reason in summary.lost:
        console.print(f"incomplete: {reason}", markup=False)
    console.print(f"results: {summary.store}", markup=False)
    console.print(
        f'ask: hallmarks sql --store {summary.store} "SELECT layer, component, value FROM'
        " indicators WHERE scope = 'layer_component' AND indicator = 'relative_mds'\"",
        markup=False,
    )


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


if __name__ == "__main__":
    run(analyze)
