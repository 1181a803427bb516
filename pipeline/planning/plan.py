"""The plan: everything that decides the figures, as one printable value.

Everything after it is a loop over its tiles.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from pipeline.checkpoint.file_kinds import FileKind
from pipeline.checkpoint.parts import Part
from pipeline.planning.account import Account
from pipeline.planning.align import AlignedTensor, LeftOutTensor
from pipeline.planning.gaps import Gap
from pipeline.planning.network import Network
from pipeline.planning.options import Windows
from pipeline.planning.row_tables import row_tables
from pipeline.planning.sample import WHOLE, Draw
from pipeline.planning.select import LeftOut
from pipeline.planning.tiles import (
    Tile,
    divide,
    elements,
    everything,
    range_bytes,
    tile_bytes,
)
from pipeline.sources.base import File
from pipeline.statistics.matrices import Shape
from pipeline.statistics.rows import NAME as ROWS
from pipeline.statistics.rows import NO_ROWS, Rows
from pipeline.statistics.sketch import BUCKETS, Sketch
from pipeline.statistics.statistic import ArraySpec, Statistic, specs
from pipeline.statistics.table import NAMES, chosen
from pipeline.training.metrics import Training, joined
from pipeline.training.settings import Settings, shared


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
    settings: Settings = field(default_factory=dict)
    training: Training = field(default_factory=Training, repr=False)


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
    network: Network = field(repr=False)
    """What roles and parts of tensors are made from."""
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
    windows_asked: Windows | None = None
    """Which parts of the paths are looked at by themselves, if that is stated. Nothing is read for it."""
    settings: Settings = field(default_factory=dict)
    """Hyperparameters of the training, where known. Like `training`, no figure depends on them."""
    training: Training = field(default_factory=Training, repr=False)
    """Its metrics by step, where known."""
    spectra: int = 0
    """Checkpoints of which spectra of matrices are computed, in a second read; 0: none are asked for."""
    matrices: tuple[tuple[Shape, ...], ...] = ()
    """Of that second read: the shapes of each tensor's parts, which are held whole."""
    sketch: Sketch | None = None
    """How every part is sketched, if it is: of a run that is followed (pipeline/follow)."""
    apart: Mapping[int, int] | None = None
    """Which tensors are not what they may be under a second name, and the first checkpoint where
    their values differ; None before that has been looked at."""

    @property
    def digest(self) -> str:
        """Of all that decides the figures; results are kept under it."""
        sketch = () if self.sketch is None else (self.sketch.label,)
        return "-".join((self.content, *self.statistics_asked, *sketch))

    def having(self, names: Iterable[str]) -> Plan:
        """Return the same plan with these statistics besides those that it asks for."""
        asked = {*self.statistics_asked, *names}
        return replace(self, statistics_asked=tuple(name for name in NAMES if name in asked))

    def sketched(self, buckets: int = BUCKETS, seed: int = 0) -> Plan:
        """Return the same plan with sketches of all parts.

        Tiles of many small parts are divided further: each part adds the columns of its sketch to a result.

        Args:
            buckets: of a part, a power of two, at most `sketch.MOST_BUCKETS`.
        """
        numels = [part.below(t.numel) for t in self.tensors for part in t.parts]
        sketch = Sketch(buckets, seed, Sketch(buckets).columns_for(numels))
        ranges = everything(self.tensors)
        least = tile_bytes(len(self.checkpoints), range_bytes(ranges, self.tensors))
        of_part = 8 * len(self.checkpoints) * max(sketch.columns, len(self.checkpoints))
        return replace(self, sketch=sketch, tiles=divide(ranges, self.tensors, least, of_part))

    def knowing(self, known: Sequence[tuple[Settings, Training]]) -> Plan:
        """Return the same plan with what is known of the training of each path.

        A run over several paths has the settings that all of them share.
        """
        if not self.paths:
            ((settings, training),) = known
            return replace(self, settings=settings, training=training)
        paths = tuple(
            replace(path, settings=settings, training=training)
            for path, (settings, training) in zip(self.paths, known, strict=True)
        )
        return replace(
            self,
            paths=paths,
            settings=shared([path.settings for path in paths]),
            training=joined((path.first, path.training) for path in paths),
        )

    @property
    def windows(self) -> Windows:
        """Which windows of the paths are looked at, and of which groups besides."""
        return self.windows_asked or Windows()

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """What is computed of every part while it is read."""
        sketch = () if self.sketch is None else (self.sketch,)
        return (*chosen(self.statistics_asked), *sketch)

    @property
    def specs(self) -> tuple[ArraySpec, ...]:
        """The arrays that are kept of every part."""
        return specs(self.statistics, len(self.checkpoints))

    @property
    def rows(self) -> Rows:
        """The tensors of which rows are looked at; none unless they are asked for."""
        if ROWS not in self.statistics_asked:
            return NO_ROWS
        return Rows.of(row_tables(self.tensors), len(self.firsts))

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
                    settings=path.settings,
                    training=path.training,
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

    def renamed(self) -> Plan | None:
        """Return the same plan with the roles that this version gives its tensors.

        None where their parts are others then: sums of those there are not.

        Raises:
            RequestError: something of `--roles` fits no tensor.
        """
        known, parts_of = self.network.roles(), self.network.parts_of()
        tensors: list[AlignedTensor] = []
        for tensor in self.tensors:
            role = known[tensor.name]
            ways = (
                parts_of(tensor.name, role, tensor.shape, tensor.numel, is_in_order)
                for is_in_order in (True, False)
            )
            fitting = [
                way for way in ways if list(map(_place, way)) == list(map(_place, tensor.parts))
            ]
            if not fitting:
                return None
            tensors.append(replace(tensor, role=role, parts=fitting[0]))
        left_out = (replace(tensor, role=known[tensor.name]) for tensor in self.left_out_tensors)
        return replace(self, tensors=tuple(tensors), left_out_tensors=tuple(left_out))

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
                if twin.stated or not twin.is_partial:
                    continue
                kind, k = "missing_tensor", twin.filled[0] if twin.filled else 0
                reason = (
                    f"absent from {len(twin.filled)} checkpoints, first {self.checkpoints[k].name}"
                    if twin.filled
                    else "absent from checkpoints of another source"
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


def _place(part: Part) -> Part:
    """Return which elements of its tensor a part is, and of what."""
    return replace(part, component="")
