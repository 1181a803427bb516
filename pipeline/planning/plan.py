"""The plan: everything that decides the figures, as one printable value.

Everything after it is a loop over its tiles.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from pipeline.checkpoint.file_kinds import FileKind
from pipeline.errors import PlanDoesNotFit, RequestError
from pipeline.planning.account import Account, account_of, of_several
from pipeline.planning.align import AlignedTensor, Alignment, LeftOutTensor, align
from pipeline.planning.choose import choose
from pipeline.planning.contents import read_all
from pipeline.planning.gaps import Gap
from pipeline.planning.memory import show_size
from pipeline.planning.parallel import one_request_each
from pipeline.planning.request import Request, check_run_name, run_name_from
from pipeline.planning.sample import WHOLE, Draw, Sample, draw, draw_within
from pipeline.planning.select import LeftOut, Selected, Selection
from pipeline.planning.tiles import (
    Tile,
    divide,
    elements,
    everything,
    range_bytes,
    tile_bytes,
)
from pipeline.planning.valueless import without_values
from pipeline.sources import open_source
from pipeline.sources.base import File, Source
from pipeline.sources.joint import Joint
from pipeline.statistics.pieces import CHUNK, PIECE
from pipeline.statistics.statistic import ArraySpec, Statistic, specs
from pipeline.statistics.table import NAMES, chosen

RESULT_FORMAT = 5
"""Raised when the arithmetic or the result files change: results of before are not taken up."""


@dataclass(frozen=True, slots=True)
class PlannedCheckpoint:
    source: str
    name: str
    commit: str | None
    step: int | None
    elapsed: float | None
    tokens: float | None
    stage: int | None
    bytes: int
    dtype: str
    """The format that most of its weights are stored in."""


@dataclass(frozen=True, slots=True)
class PlannedPath:
    """What one of several sources adds to a joint plan."""

    run: str
    source: str
    selection: str
    first: int
    """Number of its first checkpoint among those of all."""
    left_out_checkpoints: tuple[LeftOut, ...]
    gaps: tuple[Gap, ...]
    account: Account


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be read and computed."""

    run: str
    source: str
    checkpoints: tuple[PlannedCheckpoint, ...]
    left_out_checkpoints: tuple[LeftOut, ...]
    gaps: tuple[Gap, ...]
    files: tuple[File, ...] = field(repr=False)
    tensors: tuple[AlignedTensor, ...] = field(repr=False)
    left_out_tensors: tuple[LeftOutTensor, ...] = field(repr=False)
    tiles: tuple[Tile, ...] = field(repr=False)
    account: Account
    unread: tuple[Mapping[str, FileKind], ...] = field(repr=False)
    """The files of each checkpoint that are not read, by path, and what they are."""
    content: str
    """Digest of what is read, and how it is divided."""
    selection: str = field(repr=False)
    """Which source and which of its weights were asked for, as JSON: a run of another is another."""
    paths: tuple[PlannedPath, ...] = ()
    """Of a joint plan: one for each source, which also becomes a run of its own."""
    draws: tuple[tuple[Draw, ...], ...] = field(default=(), repr=False)
    """How each part of each tensor is sampled; none if every weight is read."""
    seed: int = 0
    statistics_asked: tuple[str, ...] = ()
    """Names of the statistics that are computed besides those that figures are made of."""
    apart: Mapping[int, int] | None = None
    """Which tensors are not what they may be under a second name, and the first checkpoint where
    their values differ; None before that has been looked at."""

    @property
    def digest(self) -> str:
        """Of all that decides the figures; results are kept under it."""
        return "-".join((self.content, *self.statistics_asked))

    def having(self, names: Iterable[str]) -> Plan:
        """Return the same plan with these statistics besides those that it asks for."""
        asked = {*self.statistics_asked, *names}
        return replace(self, statistics_asked=tuple(name for name in NAMES if name in asked))

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """What is computed of every part while it is read."""
        return chosen(self.statistics_asked)

    @property
    def specs(self) -> tuple[ArraySpec, ...]:
        """The arrays that are kept of every part."""
        return specs(self.statistics, len(self.checkpoints))

    @property
    def firsts(self) -> tuple[int, ...]:
        """Where each path begins among the checkpoints."""
        return tuple(path.first for path in self.paths) or (0,)

    def alone(self) -> tuple[Plan, ...]:
        """Return what each path of a joint plan is by itself: a part of the same read."""
        bounds = pairwise([*(path.first for path in self.paths), len(self.checkpoints)])
        plans = []
        for path, (first, stop) in zip(self.paths, bounds, strict=True):
            checkpoints = slice(first, stop)
            tensors = tuple(
                replace(
                    t,
                    dtypes=t.dtypes[checkpoints],
                    files=t.files[checkpoints],
                    starts=t.starts[checkpoints],
                    scattered={k - first: r for k, r in t.scattered.items() if first <= k < stop},
                    twin=t.twin and t.twin.seen_from(first, stop),
                    scales={k - first: s for k, s in t.scales.items() if first <= k < stop},
                )
                for t in self.tensors
            )
            plans.append(
                replace(
                    self,
                    run=path.run,
                    source=path.source,
                    selection=path.selection,
                    checkpoints=self.checkpoints[checkpoints],
                    left_out_checkpoints=path.left_out_checkpoints,
                    gaps=path.gaps,
                    account=path.account,
                    unread=self.unread[checkpoints],
                    tensors=tensors,
                    left_out_tensors=tuple(
                        replace(tensor, k=None if tensor.k is None else max(0, tensor.k - first))
                        for tensor in self.left_out_tensors
                    ),
                    tiles=tuple(
                        replace(tile, bytes=range_bytes(tile.ranges, tensors))
                        for tile in self.tiles
                    ),
                    content=f"{self.content}-{first}",
                    apart=self.apart and {n: max(0, k - first) for n, k in self.apart.items()},
                    paths=(),
                )
            )
        return tuple(plans)

    def settled(self, apart: Mapping[int, int]) -> Plan:
        """Return the same plan with what the values say of tensors that may be tied."""
        return replace(self, apart=apart)

    @property
    def not_counted(self) -> dict[int, LeftOutTensor]:
        """The tensors that are read, but are another one under a second name, by their numbers.

        What is said to be one counts as one until its values have been looked at. One that some
        checkpoints lack, and that is no other one where it is, is missing in them.
        """
        second_names: dict[int, LeftOutTensor] = {}
        for number, tensor in enumerate(self.tensors):
            twin = tensor.twin
            if twin is None or (self.apart is None and not twin.stated):
                continue
            reason, kind, k = f"tied to {twin.name}", "tied_weights", None
            if self.apart is not None and number in self.apart:
                if twin.stated or not twin.filled:
                    continue
                kind, k = "missing_tensor", twin.filled[0]
                reason = (
                    f"absent from {len(twin.filled)} checkpoints, first {self.checkpoints[k].name}"
                )
            second_names[number] = LeftOutTensor(
                tensor.name, tensor.shape, tensor.dtypes[0], tensor.role, reason, kind, k
            )
        return second_names

    @property
    def counted(self) -> list[tuple[int, AlignedTensor]]:
        """The tensors that the figures are about, and their numbers."""
        without = self.not_counted
        return [(n, tensor) for n, tensor in enumerate(self.tensors) if n not in without]

    @property
    def all_left_out(self) -> tuple[LeftOutTensor, ...]:
        """The tensors that the figures are not about, read or not."""
        return (*self.left_out_tensors, *self.not_counted.values())

    @property
    def bytes_total(self) -> int:
        """Bytes of all weights that the figures are about."""
        return range_bytes(everything(self.tensors), self.tensors)

    @property
    def bytes_to_read(self) -> int:
        """Bytes of weights to read: fewer than all of a sample."""
        return sum(tile.bytes for tile in self.tiles)

    @property
    def sampled(self) -> bool:
        """True where only a sample of the weights is read."""
        return bool(self.draws)

    def drawn(self, tensor: int, part: int) -> Draw:
        """Return how a part of a tensor is sampled."""
        return self.draws[tensor][part] if self.draws else WHOLE

    def fraction_of(self, tensor: int) -> float:
        """Return the share of a tensor's elements that is read."""
        if not self.draws:
            return 1.0
        tensors, numel = self.tensors[tensor], 0.0
        for part, drawn in zip(tensors.parts, self.draws[tensor], strict=True):
            numel += drawn.fraction * elements(part, 0, tensors.numel)
        return numel / tensors.numel

    def order(self) -> list[int]:
        """Return the tiles in the order in which they are taken: at random, by the seed.

        What has been read at any time is then a random sample of what there is.
        """
        rng = random.Random(f"{self.seed} tiles")
        return sorted(range(len(self.tiles)), key=lambda _: rng.random())

    @property
    def repeats(self) -> dict[int, int]:
        """Checkpoints whose weights are, file for file, those of an earlier one: k → that one."""
        firsts: dict[tuple[tuple[int, int], ...], int] = {}
        repeats = {}
        for k in range(len(self.checkpoints)):
            places = tuple((tensor.files[k], tensor.starts[k]) for tensor in self.tensors)
            first = firsts.setdefault(places, k)
            if first != k:
                repeats[k] = first
        return repeats

    @property
    def parameters(self) -> int:
        """Weights of one checkpoint that are analysed."""
        return sum(tensor.numel for _, tensor in self.counted)


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
    return _made(name, source, selection, account, labels, (), request, least_tile_bytes), source


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
        raise RequestError(f"--joint needs at least 2 SOURCEs, found {len(requests)}")
    sources = [_open(request) for request in requests]
    joint = Joint(sources)
    checkpoints: list[Selected] = []
    paths: list[PlannedPath] = []
    labels: list[str] = []
    for number, (source, request) in enumerate(zip(sources, requests, strict=True)):
        selection = choose(source, request)
        paths.append(
            PlannedPath(
                run_name(request, source),
                source.label,
                _selection(source, request),
                len(checkpoints),
                selection.left_out,
                selection.gaps,
                account_of(source, selection),
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
    return _made(name, joint, together, account, labels, tuple(paths), requests[0]), joint


def _made(
    run: str,
    source: Source,
    selection: Selection,
    account: Account,
    labels: Sequence[str],
    paths: tuple[PlannedPath, ...],
    request: Request,
    least_tile_bytes: int | None = None,
) -> Plan:
    """Return the plan of a selection; `labels` name the source of each checkpoint."""
    contents = read_all(source, selection.checkpoints, request.reading)
    lacking = without_values(
        [each.tensors for each in contents], [path.first for path in paths] or [0]
    )
    kept = [k for k in range(len(contents)) if k not in lacking]
    labels, contents = [labels[k] for k in kept], [contents[k] for k in kept]
    account, paths = _lacking(selection.checkpoints, lacking, account, paths)
    checkpoints = tuple(selection.checkpoints[k] for k in kept)
    firsts = tuple(path.first for path in paths) or (0,)
    alignment = align(source, checkpoints, contents, request, firsts)
    sample = _sample(alignment.tensors, request)
    ranges = sample.ranges if sample else everything(alignment.tensors)
    total = range_bytes(ranges, alignment.tensors)
    least = least_tile_bytes or tile_bytes(len(checkpoints), total)
    tiles = divide(ranges, alignment.tensors, least)
    draws = sample.draws if sample else ()
    return Plan(
        run=run,
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
        content=_digest(checkpoints, alignment, tiles, firsts, draws, request),
        selection=_selection(source, request),
        paths=paths,
        draws=draws,
        seed=request.seed,
        statistics_asked=request.statistics,
    )


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


def _selection(source: Source, request: Request) -> str:
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
