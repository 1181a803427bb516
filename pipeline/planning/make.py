"""Making a plan: from a request and its source to tiles and a digest. Reads listings and headers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from pipeline.errors import FormatError, PlanDoesNotFit, RequestError
from pipeline.planning.account import Account, account_of, of_several
from pipeline.planning.align import AlignedTensor, Alignment, align
from pipeline.planning.choose import choose
from pipeline.planning.contents import Contents, read_all
from pipeline.planning.memory import show_size
from pipeline.planning.parallel import one_request_each
from pipeline.planning.plan import Plan, PlannedCheckpoint, PlannedPath
from pipeline.planning.request import Request, check_run_name, run_name_from
from pipeline.planning.sample import Draw, Sample, draw, draw_within
from pipeline.planning.select import LeftOut, Selected, Selection
from pipeline.planning.tiles import (
    Tile,
    divide,
    everything,
    range_bytes,
    tile_bytes,
)
from pipeline.planning.training import known
from pipeline.planning.valueless import without_values
from pipeline.sources import open_source
from pipeline.sources.base import Source
from pipeline.sources.joint import Joint
from pipeline.statistics.pieces import CHUNK, PIECE

RESULT_FORMAT = 8
"""Raised when the arithmetic or the result files change: results of before are not taken up."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What is to be planned: checkpoints of a source, of which no header has been read."""

    run: str
    source: Source
    selection: Selection
    account: Account
    labels: Sequence[str]
    """Of the source that each checkpoint is of."""
    paths: tuple[PlannedPath, ...]
    """Several, of a joint run."""
    request: Request


def make_plan(
    request: Request, source: Source | None = None, least_tile_bytes: int | None = None
) -> tuple[Plan, Source]:
    """Return the plan for a request, and the source that it was made from.

    Args:
        source: what to plan on; default: what the request names.
        least_tile_bytes: bytes of a tile; default: the rule of `tiles.py`.

    Raises:
        RequestError: nothing can be planned; nothing was written.
    """
    source = source or _open(request)
    selection = choose(source, request)
    labels = [source.label] * len(selection.checkpoints)
    name, account = run_name(request, source), account_of(source, selection)
    chosen = _Chosen(name, source, selection, account, labels, (), request)
    return _made(chosen, least_tile_bytes), source


def make_joint_plan(requests: Sequence[Request], run: str | None) -> tuple[Plan, Source]:
    """Return one plan for several requests, whose checkpoints follow each other, and its source.

    Tensors are those that all checkpoints of all sources hold.

    Args:
        requests: alike but for their sources; at least two.
        run: name of the run over all of them; default: made from their names.

    Raises:
        RequestError: nothing can be planned; nothing was written.
    """
    if len(requests) < 2:
        raise RequestError(
            f"--joint needs at least 2 SOURCEs, found {len(requests)}",
            "name another SOURCE, or leave out --joint",
        )
    if requests[0].spectra:
        raise RequestError(
            "--spectra cannot be combined with --joint", "analyze the SOURCEs one by one"
        )
    sources = [_open(request) for request in requests]
    joint = Joint(sources)
    checkpoints: list[Selected] = []
    paths: list[PlannedPath] = []
    labels: list[str] = []
    for number, (source, request) in enumerate(zip(sources, requests, strict=True)):
        selection = choose(source, request)
        account = account_of(source, selection)
        logs = tuple(
            replace(file, checkpoint=joint.adopted(number, file.checkpoint))
            for file in account.logs
        )
        paths.append(
            PlannedPath(
                run_name(request, source),
                source.label,
                selection_text(source, request),
                len(checkpoints),
                selection.left_out,
                selection.gaps,
                replace(account, logs=logs),
            )
        )
        checkpoints += [
            replace(selected, candidate=joint.adopted(number, selected.candidate))
            for selected in selection.checkpoints
        ]
        labels += [source.label] * len(selection.checkpoints)
    together = Selection(
        tuple(checkpoints),
        tuple(left_out for path in paths for left_out in path.left_out_checkpoints),
        tuple(gap for path in paths for gap in path.gaps),
    )
    name = check_run_name(run) if run else run_name_from(joint.run_name)
    check_distinct([*(path.run for path in paths), name])
    account = of_several([path.account for path in paths])
    return _made(_Chosen(name, joint, together, account, labels, tuple(paths), requests[0])), joint


def make_plan_of_one(source: Source, selected: Selected, request: Request, run: str) -> Plan:
    """Return the plan of a single checkpoint, which says nothing of the training.

    Raises:
        FormatError: the checkpoint cannot be read, or not yet.
        NothingMatches: no tensor of it is asked for.
    """
    alone = Selection((selected,), ())
    return _planned(_Chosen(run, source, alone, Account(), [source.label], (), request))[0]


def _made(chosen: _Chosen, least_tile_bytes: int | None = None) -> Plan:
    plan, checkpoints, contents = _planned(chosen, least_tile_bytes)
    bounds = pairwise((*plan.firsts, len(checkpoints)))
    accounts = [path.account for path in plan.paths] or [plan.account]
    return plan.knowing(
        [
            known(chosen.source, checkpoints[a:b], contents[a:b], each.logs, chosen.request)
            for (a, b), each in zip(bounds, accounts, strict=True)
        ]
    )


def _planned(
    chosen: _Chosen, least_tile_bytes: int | None = None
) -> tuple[Plan, tuple[Selected, ...], list[Contents]]:
    """Return the plan, without what is known of the training, its checkpoints and what they store."""
    source, selection, request = chosen.source, chosen.selection, chosen.request
    contents, lacking = _contents(
        source, selection.checkpoints, [path.first for path in chosen.paths] or [0], request
    )
    kept = [k for k in range(len(selection.checkpoints)) if k not in lacking]
    labels = [chosen.labels[k] for k in kept]
    account, paths = _lacking(selection.checkpoints, lacking, chosen.account, chosen.paths)
    checkpoints = tuple(selection.checkpoints[k] for k in kept)
    firsts = tuple(path.first for path in paths) or (0,)
    names = [checkpoint.candidate.name for checkpoint in checkpoints]
    if paths:
        names = [f"{name} of {label}" for name, label in zip(names, labels, strict=True)]
    alignment = align(source, names, contents, request, firsts)
    sample = _sample(alignment.tensors, request)
    ranges = sample.ranges if sample else everything(alignment.tensors)
    total = range_bytes(ranges, alignment.tensors)
    least = least_tile_bytes or tile_bytes(len(checkpoints), total)
    tiles = divide(ranges, alignment.tensors, least)
    draws = sample.draws if sample else ()
    plan = Plan(
        run=chosen.run,
        source=source.label,
        checkpoints=_checkpoints(checkpoints, alignment, labels),
        left_out_checkpoints=selection.left_out,
        gaps=selection.gaps,
        files=alignment.files,
        tensors=alignment.tensors,
        left_out_tensors=alignment.left_out,
        tiles=tiles,
        account=account,
        unread=alignment.unread,
        network=alignment.network,
        content=_digest(checkpoints, alignment, tiles, firsts, draws, request),
        selection=selection_text(source, request),
        paths=paths,
        draws=draws,
        seed=request.seed,
        statistics_asked=request.statistics,
        spectra=request.spectra or 0,
        windows_asked=request.windows,
    )
    return plan, checkpoints, contents


def _contents(
    source: Source, checkpoints: Sequence[Selected], firsts: Sequence[int], request: Request
) -> tuple[list[Contents], dict[int, str]]:
    """Return what the checkpoints store that can be read and hold values, and why the others do not.

    Args:
        firsts: where each path begins.

    Raises:
        FormatError: of a path fewer than two can be read.
    """
    read = read_all(source, checkpoints, request.reading)
    errors = {k: each for k, each in enumerate(read) if isinstance(each, FormatError)}
    for first, stop in pairwise([*firsts, len(read)]):
        of_path = [k for k in errors if first <= k < stop]
        if of_path and stop - first - len(of_path) < 2:
            raise errors[of_path[0]]
    lacking = {
        k: why_unreadable(error, checkpoints[k].candidate.name) for k, error in errors.items()
    }
    readable = [k for k in range(len(read)) if k not in errors]
    contents = [each for each in read if isinstance(each, Contents)]
    starts = [sum(k < first for k in readable) for first in firsts]
    without = without_values([each.tensors for each in contents], starts)
    lacking |= {readable[number]: why for number, why in without.items()}
    return [each for number, each in enumerate(contents) if number not in without], lacking


def why_unreadable(error: FormatError, name: str) -> str:
    """Return why a checkpoint cannot be read, without the way to its file."""
    place, _, what = error.message.partition(": ")
    file = place.rpartition("/")[2]
    return what if place.endswith(name) else f"{file}: {what}" if what else place


def _lacking(
    checkpoints: Sequence[Selected],
    lacking: Mapping[int, str],
    account: Account,
    paths: tuple[PlannedPath, ...],
) -> tuple[Account, tuple[PlannedPath, ...]]:
    """Return the account and the paths of a plan that leaves out checkpoints without values."""
    entries = {k: LeftOut(checkpoints[k].candidate.name, why) for k, why in lacking.items()}
    stops = [*(path.first for path in paths[1:]), len(checkpoints)]
    adjusted = tuple(
        replace(
            path,
            first=path.first - sum(k < path.first for k in lacking),
            account=_with(path.account, [e for k, e in entries.items() if path.first <= k < stop]),
        )
        for path, stop in zip(paths, stops, strict=False)
    )
    return _with(account, list(entries.values())), adjusted


def _with(account: Account, lacking: Sequence[LeftOut]) -> Account:
    return replace(account, lacking=(*account.lacking, *lacking))


def _open(request: Request) -> Source:
    return open_source(request.source, request.layout, request.reading)


def _sample(tensors: Sequence[AlignedTensor], request: Request) -> Sample | None:
    """Return the sample that is asked for; None: every weight."""
    fraction = 1.0 if request.fraction is None else request.fraction
    if request.budget is not None:
        fraction, sample = draw_within(tensors, request.budget, request.seed)
        if fraction < 1 and sample is None:
            least = range_bytes(draw(tensors, 1e-9, request.seed).ranges, tensors)
            raise PlanDoesNotFit(
                f"--budget {show_size(request.budget)} is too small: the smallest sample with"
                f" standard errors reads {show_size(least, up=True)}",
                f"use --budget {show_size(least, up=True)}, or fewer checkpoints with --steps",
            )
        return sample
    return None if fraction == 1 else draw(tensors, fraction, request.seed)


def run_name(request: Request, source: Source | None = None) -> str:
    """Return the name that the request's run will have; reads nothing."""
    if request.run:
        return check_run_name(request.run)
    return run_name_from((source or _open(request)).run_name)


def one_for_each_run(request: Request) -> list[Request]:
    """Return the request, or one for each run in its source if all are asked for."""
    if request.seeds != "all":
        return [request]
    source = _open(request)
    return one_request_each(request, source.candidates(), run_name(request, source))


def check_distinct(names: Sequence[str]) -> None:
    """Refuse runs of one job of which one would replace the other.

    Raises:
        RequestError: two have one name.
    """
    for name in names:
        if names.count(name) > 1:
            raise RequestError(
                f"two runs would both be called {name}",
                "choose another name, or analyze the SOURCEs one by one with --run",
            )


def selection_text(source: Source, request: Request) -> str:
    """Return which source and which of its weights are asked for, as JSON."""
    return json.dumps({"source": source.uri, **request.selection()}, sort_keys=True)


def _checkpoints(
    checkpoints: Sequence[Selected], alignment: Alignment, labels: Sequence[str]
) -> tuple[PlannedCheckpoint, ...]:
    planned = []
    for k, selected in enumerate(checkpoints):
        numels: Counter[str] = Counter()
        for tensor in alignment.tensors:
            numels[tensor.dtypes[k]] += tensor.numel
        planned.append(
            PlannedCheckpoint(
                source=labels[k],
                name=selected.candidate.name,
                commit=selected.candidate.commit,
                step=selected.position.step,
                elapsed=selected.elapsed,
                tokens=selected.position.tokens,
                stage=selected.position.stage,
                bytes=alignment.bytes[k],
                dtype=numels.most_common(1)[0][0],
            )
        )
    return tuple(planned)


def _digest(
    checkpoints: Sequence[Selected],
    alignment: Alignment,
    tiles: tuple[Tile, ...],
    firsts: tuple[int, ...],
    draws: tuple[tuple[Draw, ...], ...],
    request: Request,
) -> str:
    """Return the digest of all that decides the figures; what is in files by their identities.

    So a store that moved has the same plans. Local files that moved or were copied are others: that
    they hold what they held could be told only by reading them.
    """
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        digest.update(json.dumps(value).encode() + b"\n")

    add([RESULT_FORMAT, PIECE, CHUNK, *firsts[1:]])
    if request.roles:
        add(request.roles.text)
    for selected in checkpoints:
        add([selected.candidate.name, selected.candidate.commit, selected.elapsed])
    for file in alignment.files:
        add([file.path, file.size, file.identity])
    for tensor in alignment.tensors:
        parts = [
            (part.label, part.head, part.expert, part.period, part.start, part.stop)
            for part in tensor.parts
        ]
        add([tensor.name, tensor.shape, tensor.dtypes, tensor.files, tensor.starts, parts])
        add(list(tensor.scattered.items()))
        if tensor.scales:
            add(list(tensor.scales.items()))
    for tile in tiles:
        add(tile.name)
    for drawn in draws:
        add([[draw_of_part.segments, draw_of_part.folds] for draw_of_part in drawn])
    return digest.hexdigest()[:32]
