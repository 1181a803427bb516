"""What `analyze` says of a run when it is over: its figures, what they stand on, and where to go on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from shlex import quote
from typing import Any

from rich.console import Console

from jobs.audit import findings_of, folded, print_finding, told
from jobs.console import console, say
from jobs.progress import with_error
from jobs.tables import table_lines
from pipeline.job.summary import Summary
from pipeline.numerics.straight_turns import DIFFERS_BY_DEG, SAYS_NOTHING_DEG
from pipeline.planning.memory import show_size
from pipeline.store.query import Store
from pipeline.training.settings import of_text

_FINDINGS_SHOWN = 8
_SETTINGS_SHOWN = 8
_METRICS_SHOWN = 6
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
_KINDS = {"layer": "layers", "component": "roles"}
_DEFAULT_STORE = "hallmarks-store"
_PAGE = 80
"""Characters in a line of a file or pipe."""
_BREAK = " \\"
"""What the shell takes for no end of a line."""


def print_summary(summary: Summary) -> None:
    """Print a run's figures, findings, times, and the commands that come next."""
    screen, store = console(), Store(summary.store)
    _say(screen, f"run {summary.run}: {_what(summary)}")
    findings = findings_of(store, summary.run)
    _say(screen, _beginning(summary, {kind for _, kind, _ in findings}))
    say(screen, "")
    _print_figures(screen, store, summary)
    for line in _straightest(store, summary.run):
        _say(screen, line)
    say(screen, "")
    for line in _training(store, summary.run):
        say(screen, line)
    for reason in summary.lost:
        _say(screen, f"incomplete: {reason}")
    say(screen, f"findings: {told(findings)}")
    for row in findings[:_FINDINGS_SHOWN]:
        print_finding(screen, row)
    if summary.estimates is not None:
        _say(screen, _off(summary.estimates))
    _say(screen, _times(summary))
    say(screen, f"results: {summary.store}")
    for words in _next_commands(summary, len(findings)):
        for line in command_lines(words, screen.width if screen.is_terminal else _PAGE):
            say(screen, line)


def _say(screen: Console, text: str) -> None:
    for line in folded(screen, text, 2):
        say(screen, line)


def command_lines(command: Sequence[str], width: int) -> list[str]:
    """Return a command as lines for a shell; one that is too wide is continued on further lines.

    Args:
        command: its words; an option with its value is one of them, quoted already.
    """
    lines = [f"  {command[0]}"]
    for number, word in enumerate(command[1:], 2):
        room = width - len(lines[-1]) - 1 - (len(_BREAK) if number < len(command) else 0)
        if len(word) <= room:
            lines[-1] += f" {word}"
        else:
            lines[-1] += _BREAK
            lines.append(f"    {word}")
    return lines


def _what(summary: Summary) -> str:
    sampled = f"; {summary.fraction:.3%} of the weights read" if summary.fraction < 1 else ""
    return (
        f"{summary.checkpoints} checkpoints, {summary.parameters:,} weights in {summary.tensors} tensors"
        f"{sampled}"
    )


def _beginning(summary: Summary, kinds: set[str]) -> str:
    """Return what displacements are measured from."""
    if summary.first_step is None:
        return "displacements are from the first checkpoint, whose name states no step"
    where = f"displacements are from step {summary.first_step:,}"
    if "starts_late" in kinds:
        return f"{where}, not from initialization"
    return f"{where}, " + (
        "the initialization" if not summary.first_step else "which looks initialized"
    )


def _print_figures(screen: Console, store: Store, summary: Summary) -> None:
    where = "WHERE run = ? AND scope = 'model'"
    columns = "indicator, value, stderr, null_value, differs_from_null"
    rows = store.sql(f"SELECT {columns} FROM indicators {where}", [summary.run]).fetchall()
    values = {indicator: rest for indicator, *rest in rows}
    angles, silent, straight, mean, floor = store.sql(
        f"SELECT count(update_angle_deg), count_if(noise_floor_deg >= {SAYS_NOTHING_DEG}),"
        f" count_if(noise_floor_deg < {SAYS_NOTHING_DEG}"
        f" AND update_angle_deg <= noise_floor_deg + {DIFFERS_BY_DEG}),"
        f" avg(update_angle_deg), avg(noise_floor_deg) FROM path {where}",
        [summary.run],
    ).fetchall()[0]
    sampled = any(error for _, error, _, _ in values.values())
    lines: list[list[str]] = []
    for name in _SHOWN:
        value, error, null, differs = values[name]
        if value is None and null is None:
            continue
        words = "as a random walk" if differs is False else ""
        if name == "mean_update_angle_deg" and mean is not None:
            if floor >= SAYS_NOTHING_DEG:
                words = "says nothing: below the noise floor"
            elif mean <= floor + DIFFERS_BY_DEG:
                words = "as a straight path, rounded"
        errors = ["–" if error is None else f"{error:.2g}"] if sampled else []
        lines.append([name, _shown(value), *errors, _shown(null), words])
    titles = ["the whole model", "value", *(["std. error"] if sampled else []), "random walk", ""]
    if not any(line[-1] for line in lines):
        titles, lines = titles[:-1], [line[:-1] for line in lines]
    for line in table_lines(titles, lines, [title not in (titles[0], "") for title in titles]):
        say(screen, line)
    if silent:
        _say(
            screen,
            f"{silent} of {angles} update angles say nothing: rounding alone makes a straight path turn by"
            f" {SAYS_NOTHING_DEG:.0f}° or more",
        )
    if straight:
        _say(
            screen,
            f"{straight} of {angles} update angles do not differ from those of a straight path, rounded",
        )


def _straightest(store: Store, run: str) -> Iterator[str]:
    """Yield a line for layers and one for roles: where weights went straight, and where they wandered."""
    for scope, kind in _KINDS.items():
        rows = store.sql(
            f"SELECT concat_ws(' ', stack, {scope}), value FROM indicators WHERE run = ? AND scope = ?"
            " AND indicator = 'straightness' AND value IS NOT NULL ORDER BY value DESC, 1",
            [run, scope],
        ).fetchall()
        if len(rows) > 1:
            ends = [f"{name} ({value:.3f})" for name, value in (rows[0], rows[-1])]
            yield f"straightest of {len(rows)} {kind}: {ends[0]}; least straight: {ends[1]}"


def _training(store: Store, run: str) -> Iterator[str]:
    """Yield a line for the settings and one for the metrics of the training, where known."""
    settings = store.sql("SELECT settings FROM runs WHERE run = ?", [run]).fetchall()[0][0]
    if shown := [f"{name} {json.dumps(value)}" for name, value in of_text(settings).items()]:
        more = f" and {len(shown) - _SETTINGS_SHOWN} more" if len(shown) > _SETTINGS_SHOWN else ""
        yield f"settings: {', '.join(shown[:_SETTINGS_SHOWN])}{more}"
    names, values = store.sql(
        "SELECT list(DISTINCT concat_ws(' ', split, metric)), count(*) FROM training WHERE run = ?",
        [run],
    ).fetchall()[0]
    if values:
        more = f" and {len(names) - _METRICS_SHOWN} more" if len(names) > _METRICS_SHOWN else ""
        yield f"training: {', '.join(sorted(names)[:_METRICS_SHOWN])}{more}, {values:,} values"


def _off(estimates: dict[str, Any]) -> str:
    """Return how far what `follow` had estimated was off."""
    said = [
        f"{name.replace('_', ' ')}s by at most {off['largest']:.2g}"
        + ("" if (by := off["largest_in_stderr"]) is None else f" ({by:.1f} standard errors)")
        for name in ("cosine", "relative_cosine")
        if (off := estimates[name]) is not None
    ]
    figure = estimates["indicators"].get("relative_mds")
    if figure is not None:
        was = with_error(figure["was"], figure["stderr"])
        said.append(f"relative_mds, {was}, is {figure['is']:.6g}")
    return (
        f"estimates of {estimates['checkpoints']} checkpoints that were followed are replaced;"
        f" they were off: {', '.join(said)}"
    )


def _times(summary: Summary) -> str:
    """Return where the time went, Ray's start apart."""
    if summary.followed:
        return (
            "followed: figures between checkpoints are estimates; `hallmarks analyze` makes them exact"
            " while the checkpoints are there"
        )
    if summary.recomputed:
        return "figures recomputed from stored sums; nothing was read"
    if summary.already_complete:
        return "already complete; nothing was read"
    rest = max(0.0, summary.seconds - summary.start_seconds - summary.work_seconds)
    parts = [f"{summary.work_seconds:.1f} s reading and multiplying", f"{rest:.1f} s figures"]
    if summary.executor == "ray":
        parts.insert(0, f"{summary.start_seconds:.1f} s starting Ray")
    where = f"{show_size(summary.bytes_read)} read in {summary.seconds:.1f} s on {summary.device}"
    return f"{where}: {', '.join(parts)}"


def _next_commands(summary: Summary, findings: int) -> Iterator[list[str]]:
    store = [] if summary.store == _DEFAULT_STORE else [f"--store {quote(summary.store)}"]
    run = f"--run {summary.run}"
    yield ["hallmarks report", *store, run]
    yield ["hallmarks sql", *store, "\"FROM top('straightness', 5)\""]
    if findings > _FINDINGS_SHOWN:
        yield ["hallmarks audit", *store, run]
    else:
        yield ["hallmarks sql", *store, f"\"FROM settled('{summary.run}', 0.05)\""]


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"
