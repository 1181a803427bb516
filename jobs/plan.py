"""`hallmarks plan`: what `analyze` would read and compute. Reads headers only."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import click

from jobs.console import Result, console, one_object, run
from jobs.console import say as print_line
from jobs.options import requests_from, resources_from, selection_and_resources
from pipeline.checkpoint.file_kinds import NOT_UNDERSTOOD, FileKind
from pipeline.findings.listings import findings_of_listings
from pipeline.job.memory import worker_memory
from pipeline.planning.listings import listings_of
from pipeline.planning.machine import available_cores
from pipeline.planning.make import make_joint_plan, make_plan
from pipeline.planning.matrices import matrix_plan
from pipeline.planning.memory import IDLE_BYTES, Memory, show_size
from pipeline.planning.plan import Plan
from pipeline.planning.unknown import unknown
from pipeline.reduce.groups import INCREMENTS_KEPT, grouping
from pipeline.reduce.memory import encoded_tables, kept_increments, requested
from pipeline.transport.limits import QUOTAS, windows

_NAMES_SHOWN = 5
_SCREEN = 50
"""Lines of a plan, at most."""
_WIDTH = 87
"""Of a line, beside its label, on a screen of 100 columns."""
_Say = Callable[[str, str], None]


@click.command()
@selection_and_resources
def plan(**options: Any) -> int:
    """Show what analyze would read of SOURCE: checkpoints, tensors, bytes, memory."""
    resources, requests = resources_from(options), requests_from(options)
    descriptions = []
    plans = (
        [make_joint_plan(requests, options["run"])]
        if options["joint"]
        else (make_plan(request) for request in requests)
    )
    for made, source in plans:
        # A worker of this machine; on a cluster the same budget holds for each of its workers.
        memory = worker_memory(made, resources, min(4, available_cores()) + source.is_remote)
        if options["as_json"]:
            descriptions.append(describe(made, memory, source.requests))
        else:
            _print(made, memory, source.requests)
    if options["as_json"]:
        Result().print_json(one_object(descriptions))
    return 0


def describe(made: Plan, memory: Memory, requests: Mapping[str, int]) -> dict[str, Any]:
    """Return everything about a plan that a machine may want."""
    return {
        "run": made.run,
        "source": made.source,
        "digest": made.digest,
        "paths": [{"run": p.run, "source": p.source, "first": p.first} for p in made.paths],
        "checkpoints": [asdict(checkpoint) for checkpoint in made.checkpoints],
        "first_step": made.checkpoints[0].step,
        "checkpoints_left_out": [asdict(left_out) for left_out in made.left_out_checkpoints],
        "repeats": {
            made.checkpoints[k].name: made.checkpoints[first].name
            for k, first in made.repeats.items()
        },
        "tensors": [
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "dtypes": sorted(set(tensor.dtypes)),
                "parts": sorted({part.label for part in tensor.parts if part.label}),
                "fraction": made.fraction_of(number),
                **asdict(tensor.role),
            }
            for number, tensor in made.counted
        ],
        "tensors_left_out": [
            {"name": entry.name, "shape": entry.shape, "dtype": entry.dtype, "reason": entry.reason}
            for entry in made.all_left_out
        ],
        "roles": asdict(unknown(made)),
        "parameters": made.parameters,
        "bytes_total": made.bytes_total,
        "bytes_to_read": made.bytes_to_read,
        "fraction": made.bytes_to_read / made.bytes_total,
        "seed": made.seed,
        "settings": made.settings,
        "training": [
            {"split": metric.split, "metric": metric.name, "values": len(curve.values)}
            for metric, curve in made.training.curves.items()
        ],
        "logs": list(made.training.logs),
        "logs_not_understood": list(made.training.notes),
        "gaps": [asdict(gap) for gap in made.gaps],
        "ordering": made.account.ordering,
        "incomplete": [asdict(entry) for entry in made.account.lacking],
        "unplaced": list(made.account.unplaced),
        "beside": [_described(each.path, each.kind) for each in made.account.beside],
        "files_of_checkpoints": [
            {"checkpoint": checkpoint.name, **_described(path, kind)}
            for checkpoint, unread in zip(made.checkpoints, made.unread, strict=True)
            for path, kind in unread.items()
        ]
        + [
            {"checkpoint": file.checkpoint.name, "path": file.path, "what": "weights, read"}
            for file in made.files
        ],
        "files": len(made.files),
        "requests": dict(requests),
        "requests_to_analyze": requests_to_analyze(made, requests),
        "windows": windows(requests_to_analyze(made, requests)),
        "tiles": len(made.tiles),
        "memory": {**asdict(memory), "idle": IDLE_BYTES},
        "spectra": _spectra(made),
        "statistics": {n: c._asdict() for n, c in requested(made, grouping(made)).items()},
        "tables": {
            **dict(zip(("bytes", "increments", "windows"), _tables(made), strict=True)),
            "widths": list(made.windows.widths),
            "scopes": [*INCREMENTS_KEPT, *made.windows.scopes],
        },
    }


def _described(path: str, kind: FileKind) -> dict[str, str]:
    return {"path": path, "what": kind.what} | ({"advice": kind.advice} if kind.advice else {})


def _print(made: Plan, memory: Memory, requests: Mapping[str, int]) -> None:
    """Print a plan on one screen: with fewer names of each kind where there is more to say."""
    lines: list[str] = []
    for most in range(_NAMES_SHOWN, 0, -1):
        lines = _lines(made, memory, requests, most)
        if len(lines) <= _SCREEN:
            break
    screen = console()
    for line in lines:
        print_line(screen, line)


def _lines(made: Plan, memory: Memory, requests: Mapping[str, int], most: int) -> list[str]:
    lines: list[str] = []

    def say(label: str, text: str) -> None:
        rows = textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        for n, row in enumerate(rows):
            lines.append(f"{'' if n else label:<12} {row}")

    say("run", made.run)
    say("source", made.source)
    for path in made.paths[:most]:
        say("", f"from checkpoint {path.first}: {path.source}, also run {path.run}")
    dtypes = "/".join(sorted({checkpoint.dtype for checkpoint in made.checkpoints}))
    first, last = made.checkpoints[0], made.checkpoints[-1]
    count = len(made.checkpoints)
    say("checkpoints", f"{count}: {first.name} … {last.name}, stored as {dtypes}")
    if first.step is not None:
        say("", f"displacements are measured from step {first.step:,}")
    _stages(say, made, most)
    _training(say, made, most)
    worst = [f for f in findings_of_listings(listings_of(made)) if f.severity == "error"]
    for finding in worst[:most]:
        say("", f"error: {finding.kind}: {finding.message}")
    if len(worst) > most:
        say("", f"… and {len(worst) - most} more (hallmarks audit {made.source})")
    for gap in made.gaps[:most]:
        say("", f"gap: {gap.missing} missing between step {gap.after} and step {gap.before}")
    if len(made.gaps) > most:
        say("", f"… and {len(made.gaps) - most} more gaps")
    for k, first in list(made.repeats.items())[:most]:
        names = made.checkpoints[k].name, made.checkpoints[first].name
        say("", f"the same files: {names[0]} as {names[1]}, read once")
    if len(made.repeats) > most:
        say("", f"… and {len(made.repeats) - most} more checkpoints, read once")
    _left_out(say, [(entry.name, entry.reason) for entry in made.left_out_checkpoints], most)
    _account(say, made, most)
    say("tensors", f"{len(made.counted)} aligned, {made.parameters:,} weights per checkpoint")
    counts: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for _, tensor in made.counted:
        for part in tensor.parts:
            counts[part.component] += 1
            weights[part.component] += tensor.numel * (part.stop - part.start) // part.period
    for component, count in counts.most_common():
        say("", f"{component:<10} {count:>5}  {weights[component]:>15,}")
    other = unknown(made)
    if other.worth_a_warning:
        say("", f"other: {other.share_of_layers:.1%} of the weights of layers: {other}")
        say("", "--roles FILE.toml says what they are")
    if counts["attn_qkv"]:
        say("", "attn_qkv: queries, keys and values are fused in an unknown layout")
    _left_out(say, [(entry.name, entry.reason) for entry in made.all_left_out], most)
    files, tiles = len(made.files), len(made.tiles)
    say(
        "to read",
        f"{show_size(made.bytes_to_read)} of {files} files, in {tiles} tile{'s'[tiles == 1 :]}",
    )
    if made.sampled:
        share = made.bytes_to_read / made.bytes_total
        runs = sum(1 for tile in made.tiles for _ in tile.ranges)
        say(
            "",
            f"a sample of {share:.3%} of {show_size(made.bytes_total)}: {runs:,} segments in"
            f" each checkpoint, seed {made.seed}",
        )
    if requests:
        _requests(say, made, requests)
    say(
        "memory",
        f"{show_size(memory.projected)} per worker, beside the {show_size(IDLE_BYTES)} of an idle"
        f" process; budget {show_size(memory.budget)}, minimum {show_size(memory.least, up=True)}",
    )
    if described := _spectra(made):
        names = described["checkpoints"]
        say(
            "spectra",
            f"{described['matrices']} matrices of {len(names)} checkpoints ({', '.join(names)}) in a"
            f" second read of {show_size(described['bytes'])}, {show_size(described['memory'], up=True)}"
            " of memory for the largest",
        )
        _left_out(say, [tuple(entry.values()) for entry in described["left_out"]], most)
    for name, cost in requested(made, grouping(made)).items():
        memory_of, stored = (show_size(size, up=True) for size in cost)
        say(
            "" if name != next(iter(made.statistics_asked)) else "statistics",
            f"{name}: at most {stored} in the store, {memory_of} of memory for each tile in hand",
        )
    tables, increments, of_windows = map(show_size, _tables(made))
    say(
        "tables",
        f"at most {tables} in the store, of which {increments} are products of increments and"
        f" {of_windows} windows of {', '.join(map(str, made.windows.widths))} checkpoints",
    )
    return lines


def _spectra(made: Plan) -> dict[str, Any] | None:
    """Return what the second read takes, if spectra are asked for."""
    if not made.spectra:
        return None
    second = matrix_plan(made)
    tiles = second.plan.tiles
    return {
        "checkpoints": [made.checkpoints[k].name for k in second.checkpoints],
        "matrices": sum(map(len, second.plan.matrices)),
        "bytes": sum(tile.bytes for tile in tiles),
        "memory": max((second.needed(tile.index) for tile in tiles), default=0),
        "left_out": [asdict(entry) for entry in second.left_out],
    }


def _tables(made: Plan) -> tuple[int, int, int]:
    """Return how many bytes the tables of all runs of a plan take at most.

    Of these, products of increments, and figures of windows.
    """
    grouped, runs = grouping(made), (made, *made.alone())
    sizes = [encoded_tables(grouped, run) for run in runs]
    return (
        sum(map(sum, sizes)),
        sum(kept_increments(grouped, len(run.checkpoints)) for run in runs),
        sum(windows for *_, windows, _, _ in sizes),
    )


def requests_to_analyze(made: Plan, requests: Mapping[str, int]) -> dict[str, int]:
    """Return how many requests of each class `analyze` makes on the Hub in its first hour, at most.

    It plans again, from the plan cache, and asks for a URL for every file of weights. Ranges of weights count in no class.
    """
    if not requests:
        return {}
    urls = sum(file.checkpoint.commit is not None for file in made.files)
    return {
        "api": requests.get("api", 0),
        "resolvers": max(requests.get("resolvers", 0), urls),
    }


def _requests(say: _Say, made: Plan, requests: Mapping[str, int]) -> None:
    def shown(numbers: Mapping[str, int]) -> str:
        return ", ".join(f"{number:,} {kind}" for kind, number in sorted(numbers.items()))

    needed = requests_to_analyze(made, requests)
    say("requests", f"{shown(requests)} made for this plan; at most {shown(needed)} to analyze")
    say("", f"plus {needed['resolvers']:,} resolver requests per 48 minutes of reading")
    for account, counts in windows(needed).items():
        over = ", ".join(f"{count} {kind} windows" for kind, count in counts.items() if count > 1)
        holds = f"is exceeded ({over}); the job will throttle itself" if over else "is sufficient"
        quota = QUOTAS[account]
        say(
            "",
            f"{account}: five-minute quota ({quota['api']:,} api, {quota['resolvers']:,}"
            f" resolvers) {holds}",
        )


def _stages(say: _Say, made: Plan, most: int) -> None:
    """One line a stage, where there are several."""
    stages: dict[int | None, list[int | None]] = {}
    for checkpoint in made.checkpoints:
        stages.setdefault(checkpoint.stage, []).append(checkpoint.step)
    if len(stages) < 2:
        return
    for stage, steps in list(stages.items())[: most + 3]:
        label = "no stage" if stage is None else f"stage {stage}"
        say("", f"{label}: {len(steps)}, steps {_step(steps[0])} … {_step(steps[-1])}")
    if len(stages) > most + 3:
        say("", f"… and {len(stages) - most - 3} more stages")


def _training(say: _Say, made: Plan, most: int) -> None:
    """Say what is known of the training besides its weights, and from where."""
    if made.settings:
        shown = [f"{name} {json.dumps(value)}" for name, value in made.settings.items()]
        more = f" and {len(shown) - 2 * most} more" if len(shown) > 2 * most else ""
        say("settings", ", ".join(shown[: 2 * most]) + more)
    if made.training.curves:
        names = sorted({log.rpartition("/")[2] for log in made.training.logs})
        more = f" and {len(names) - most} more" if len(names) > most else ""
        say("training", f"{made.training.told}, from {', '.join(names[:most])}{more}")
    for note in made.training.notes[:most]:
        say("", note)


def _account(say: _Say, made: Plan, most: int) -> None:
    """Say what is incomplete, what is placed without a step, and what there is that is not read."""
    if made.account.ordering:
        say("", made.account.ordering)
    for entry in made.account.lacking[:most]:
        say("", f"incomplete: {entry.name} ({entry.reason})")
    if len(made.account.lacking) > most:
        say("", f"… and {len(made.account.lacking) - most} more that are incomplete")
    if made.account.unplaced:
        say("", f"no step, but no copy either: {', '.join(made.account.unplaced[:most])}")
    kinds: dict[FileKind, Counter[str]] = {}
    lacking = {f"{entry.name}/" for entry in made.account.lacking}
    for each in (each for each in made.account.beside if each.path not in lacking):
        kinds.setdefault(each.kind, Counter())[each.path] += 1
    for unread in made.unread:
        for path, kind in unread.items():
            kinds.setdefault(kind, Counter())[path] += 1
    for paths in kinds.values():
        for path in paths:
            paths[path] -= sum(log.endswith(f"/{path}") for log in made.training.logs)
    kinds = {kind: +paths for kind, paths in kinds.items() if +paths}
    label = "not read"
    for kind in sorted(kinds, key=lambda kind: (not kind.advice, kind != NOT_UNDERSTOOD))[
        : most + 2
    ]:
        paths = kinds[kind]
        names = ", ".join(path for path, _ in paths.most_common(2))
        more = f" and {len(paths) - 2} more names" if len(paths) > 2 else ""
        say(label, f"{kind.what}: {paths.total():,} × {names}{more}")
        if kind.advice:
            say("", f"  {kind.advice}")
        label = ""
    if len(kinds) > most + 2:
        say("", f"… and {len(kinds) - most - 2} more kinds (--json lists all)")


def _step(step: int | None) -> str:
    return "unknown" if step is None else f"{step:,}"


def _left_out(say: _Say, entries: list[tuple[str, str]], most: int) -> None:
    """One line a reason: a network has one mask a layer."""
    reasons: dict[str, list[str]] = {}
    for name, reason in entries:
        reasons.setdefault(reason, []).append(name)
    for reason, names in list(reasons.items())[:most]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        say("", f"left out: {names[0]}{more} ({reason})")
    if len(reasons) > most:
        say("", f"… for {len(reasons) - most} more reasons (--json lists all)")


if __name__ == "__main__":
    run(plan)
