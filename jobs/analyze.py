"""`hallmarks analyze`: the main job. `python -m jobs.analyze` is the same, as a Ray job's entry."""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from jobs.audit import findings_of, print_finding, told
from jobs.console import (
    EXIT_INCOMPLETE,
    Result,
    console,
    one_object,
    run,
    say,
)
from jobs.options import requests_from, resources_from, selection_and_resources, store_option
from jobs.program import resumable
from jobs.progress import JobProgress
from pipeline.errors import RequestError
from pipeline.findings.inventory import FLOOR_REACHED_DEG
from pipeline.job.analyze import analyze as run_analysis
from pipeline.job.analyze import analyze_joint
from pipeline.job.summary import Summary
from pipeline.planning.memory import show_size
from pipeline.planning.request import Request
from pipeline.store.folder import Folder
from pipeline.store.query import Store

_FINDINGS_SHOWN = 8
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
                _print_summary(summary)
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
    _check_store(options["store"])
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


def _check_store(store: str) -> None:
    """Refuse what cannot be a store, before anything is read.

    A relative one of a submitted job neither: its working directory is a copy that Ray removes.
    """
    Folder(store)
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if submitted and "://" not in store and not Path(store).is_absolute():
        raise RequestError(
            f"--store {store} is relative, and the working directory of a Ray job is a cache",
            "name a directory that all nodes see, by its absolute path",
        )


def _print_summary(summary: Summary) -> None:
    screen, store = console(), Store(summary.store)
    where = "WHERE run = ? AND scope = 'model'"
    columns = "indicator, value, stderr, null_value, differs_from_null"
    rows = store.sql(f"SELECT {columns} FROM indicators {where}", [summary.run]).fetchall()
    values = {indicator: rest for indicator, *rest in rows}
    # a floor of 90 degrees hides every angle, larger ones too
    below, angles, mean_below = store.sql(
        f"SELECT count_if(noise_floor_deg >= least(update_angle_deg, {FLOOR_REACHED_DEG})),"
        " count(update_angle_deg),"
        f" avg(noise_floor_deg) >= least(avg(update_angle_deg), {FLOOR_REACHED_DEG})"
        f" FROM path {where}",
        [summary.run],
    ).fetchall()[0]
    sampled = any(error for _, error, _, _ in values.values())
    errors = ["std. error"] if sampled else []
    lines: list[tuple[list[str], str]] = []
    for name in _SHOWN:
        value, error, null, differs = values[name]
        if value is None and null is None:
            continue
        words = "as a random walk" if differs is False else ""
        if name == "mean_update_angle_deg" and mean_below:
            words = "below the noise floor"
        shown = ["–" if error is None else f"{error:.2g}"] if sampled else []
        lines.append(([name, _shown(value), *shown, _shown(null)], words))
    said = [""] if any(words for _, words in lines) else []
    table = Table(
        "the whole model", "value", *errors, "random walk", *said, title=f"run {summary.run}"
    )
    for cells, words in lines:
        table.add_row(*cells, *([words] if said else []))
    screen.print(table)
    if below:
        say(
            screen,
            f"{below} of {angles} update angles are below the noise floor: rounding alone can"
            " produce them",
        )
    if summary.recomputed:
        state = "figures recomputed from stored sums; nothing was read"
    elif summary.already_complete:
        state = "already complete; nothing was read"
    else:
        state = (
            f"{show_size(summary.bytes_read)} read in {summary.seconds:.1f} s on {summary.device}"
        )
    if summary.fraction < 1:
        state += f"; {summary.fraction:.3%} of the weights"
    start = "" if summary.first_step is None else f" from step {summary.first_step:,}"
    say(
        screen,
        f"{summary.checkpoints} checkpoints{start}, {summary.parameters:,} weights in {summary.tensors}"
        f" tensors; {state}",
    )
    for reason in summary.lost:
        say(screen, f"incomplete: {reason}")
    _print_findings(screen, store, summary)
    say(screen, f"results: {summary.store}")
    say(
        screen,
        f'ask: hallmarks sql --store {quote(summary.store)} "SELECT layer, component, value FROM'
        " indicators WHERE scope = 'layer_component' AND indicator = 'relative_mds'\"",
    )


def _print_findings(screen: Console, store: Store, summary: Summary) -> None:
    rows = findings_of(store, summary.run)
    say(screen, f"findings: {told(rows)}")
    for row in rows[:_FINDINGS_SHOWN]:
        print_finding(screen, row)
    if len(rows) > _FINDINGS_SHOWN:
        more = len(rows) - _FINDINGS_SHOWN
        say(
            screen,
            f"… and {more} more: hallmarks audit --store {quote(summary.store)} --run {summary.run}",
        )


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


if __name__ == "__main__":
    run(analyze)
