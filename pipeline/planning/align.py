"""The same tensors in all checkpoints: which are comparable, and where each lies."""

from __future__ import annotations

import bisect
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pipeline.checkpoint.aligned_scales import AlignedScales, aligned_scales
from pipeline.checkpoint.dtypes import WEIGHT_DTYPES
from pipeline.checkpoint.file_kinds import FileKind
from pipeline.checkpoint.parts import Part
from pipeline.checkpoint.roles import Role, reason_to_leave_out
from pipeline.checkpoint.stored import Extent, StoredTensor
from pipeline.errors import NothingMatches, quoted
from pipeline.planning.bridge import bridged
from pipeline.planning.columns import in_one_order
from pipeline.planning.contents import Contents, read_config
from pipeline.planning.network import Network
from pipeline.planning.plan_cache import PlanCache
from pipeline.planning.request import Request
from pipeline.planning.ties import Twin, one_place, twins
from pipeline.planning.valueless import has_values
from pipeline.sources.base import File, Source

_OF_THE_VOCABULARY = frozenset({"embed", "unembed"})


@dataclass(frozen=True, slots=True)
class AlignedTensor:
    """One tensor that all checkpoints hold in the same shape."""

    name: str
    shape: tuple[int, ...]
    numel: int
    role: Role
    parts: tuple[Part, ...]
    dtypes: tuple[str, ...]
    """Stored format at each checkpoint."""
    files: tuple[int, ...]
    """Index into the plan's files, at each checkpoint."""
    starts: tuple[int, ...]
    """Absolute offset of the first byte in that file, at each checkpoint."""
    scattered: Mapping[int, tuple[Extent, ...]] = field(default_factory=dict)
    """Its extents at the checkpoints where it has several; they give indexes into the plan's files."""
    rows: tuple[int, ...] = ()
    """How many rows each checkpoint stores, where a vocabulary grew: those that all have count."""
    twin: Twin | None = None
    """What it may be under a second name: decided by its values."""
    scales: Mapping[int, AlignedScales] = field(default_factory=dict)
    """What its values are multiplied with, at the checkpoints that store codes."""
    order: tuple[int, ...] = ()
    """Dimensions by descending stride where that is not their order."""
    ranks: int = 1
    """How many ranks hold its columns: its elements lie rank by rank then."""

    num_bytes: int = field(init=False, compare=False)
    """Stored size with all scales, over the checkpoints; what several share counts once, and what
    another tensor shares counts there."""

    def __post_init__(self) -> None:
        others = set(self.twin.filled) if self.twin else set[int]()
        rows = enumerate(zip(self.files, self.starts, self.dtypes, strict=True))
        places = {place for k, place in rows if k not in others}
        stored = Counter(dtype for _, _, dtype in places).items()
        codes = (WEIGHT_DTYPES[dtype].reach(0, self.numel)[1] * count for dtype, count in stored)
        scales = {each for k, each in self.scales.items() if k not in others}
        num_bytes = sum(codes) + sum(each.num_bytes(0, self.numel) for each in scales)
        object.__setattr__(self, "num_bytes", num_bytes)

    def share(self, first: int, stop: int) -> int:
        """Return how many of its bytes the elements [first, stop) account for."""
        return self.num_bytes * stop // self.numel - self.num_bytes * first // self.numel

    def shares_bytes_of(self, first: AlignedTensor) -> bool:
        """Return whether it is, in some checkpoints, another tensor: the same bytes of the same files."""
        return self.twin is not None and bool(self.twin.filled) and self.twin.name == first.name

    def all_files(self) -> set[int]:
        """Return the files that any of its elements lie in."""
        return {
            *self.files,
            *(extent.file for extents in self.scattered.values() for extent in extents),
            *(file for scales in self.scales.values() for file in scales.files()),
        }

    def extents(self, k: int, first: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (file, first byte, byte past the last, bytes before these) of [first, stop)."""
        dtype = WEIGHT_DTYPES[self.dtypes[k]]
        extents, size = self.scattered.get(k), dtype.itemsize
        if extents is None:
            start, (begin, end) = self.starts[k], dtype.reach(first, stop)
            yield self.files[k], start + begin, start + end, 0
            return
        number = bisect.bisect_right(extents, first, key=lambda extent: extent.first) - 1
        reached = first
        while reached < stop:
            extent = extents[number]
            number += 1
            end = min(stop, extents[number].first if number < len(extents) else self.numel)
            start = extent.start + (reached - extent.first) * size
            yield extent.file, start, start + (end - reached) * size, (reached - first) * size
            reached = end


@dataclass(frozen=True, slots=True)
class LeftOutTensor:
    """A tensor that is not analysed, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    reason: str
    kind: str | None = None
    """Of the finding that it makes; None: left out at the user's wish."""
    k: int | None = None
    """The first checkpoint that is at fault."""


class _Reason(NamedTuple):
    text: str
    kind: str | None = None
    k: int | None = None


@dataclass(frozen=True, slots=True)
class Alignment:
    files: tuple[File, ...]
    tensors: tuple[AlignedTensor, ...]
    """In the order in which the first checkpoint stores them."""
    left_out: tuple[LeftOutTensor, ...]
    bytes: tuple[int, ...]
    """Size of all weight files of each checkpoint."""
    unread: tuple[Mapping[str, FileKind], ...]
    """The files of each checkpoint that are not read, by path, and what they are."""
    network: Network
    """What roles and parts were made from."""


def align(
    source: Source,
    names_of: Sequence[str],
    contents: Sequence[Contents],
    request: Request,
    firsts: Sequence[int] = (0,),
) -> Alignment:
    """Return the tensors that are comparable throughout.

    Args:
        names_of: what each checkpoint is called, for people.
        contents: what each checkpoint stores.
        firsts: the checkpoints whose `config.json` counts: the first of each path.

    Raises:
        FormatError: a configuration is malformed.
        NothingMatches: no tensor is left.
    """
    with PlanCache() as cache:
        configs = [read_config(source, contents[first].config, cache) for first in firsts]
    tensors_of = in_one_order(bridged([each.tensors for each in contents]))
    contents = [
        replace(each, tensors=stored) for each, stored in zip(contents, tensors_of, strict=True)
    ]
    files, numbers = distinct_files(contents)
    tensors: list[AlignedTensor] = []
    left_out: list[LeftOutTensor] = []
    names = _names_in_storage_order(contents)
    samples = {name: next(each[name][1] for each in tensors_of if name in each) for name in names}
    network = Network(
        {name: place.shape for name, place in samples.items()},
        tuple(map(json.dumps, configs)),
        request.roles.text if request.roles else "",
        request.by_head,
    )
    known, parts_of = network.roles(), network.parts_of()
    tied = one_place(tensors_of, names)
    single = [name for name in names if name not in tied and not unwanted(name, request)]
    may_be_tied = twins(tensors_of, single, known, configs)
    for name in names:
        stored = [each.get(name) for each in tensors_of]
        twin = may_be_tied.get(name)
        first = samples[name]
        if twin is not None:
            stored = [
                each.get(twin.name) if place is None else place
                for each, place in zip(tensors_of, stored, strict=True)
            ]
        rows = _rows(stored) if known[name].component in _OF_THE_VOCABULARY else ()
        if rows:
            stored = [each and (each[0], _first_rows(each[1], min(rows))) for each in stored]
            first = _first_rows(first, min(rows))
        reason = _reason(name, stored, names_of, request)
        if reason is None and name in tied:
            reason = _Reason(f"tied to {tied[name]}", "tied_weights")
        if reason is not None:
            left_out.append(LeftOutTensor(name, first.shape, first.dtype, known[name], *reason))
            continue
        present = [tensor for tensor in stored if tensor is not None]
        tensors.append(
            AlignedTensor(
                name=name,
                shape=first.shape,
                numel=first.numel,
                role=known[name],
                parts=parts_of(name, known[name], first.shape, first.numel, first.is_in_order),
                dtypes=tuple(place.dtype for _, place in present),
                files=tuple(
                    files_of_one[file]
                    for files_of_one, (file, _) in zip(numbers, present, strict=True)
                ),
                starts=tuple(place.start for _, place in present),
                scattered={
                    k: tuple(e._replace(file=numbers[k][file + e.file]) for e in place.extents)
                    for k, (file, place) in enumerate(present)
                    if place.extents
                },
                rows=rows,
                twin=twin,
                scales={
                    k: aligned_scales(place.scales, place.shape, numbers[k], file)
                    for k, (file, place) in enumerate(present)
                    if place.scales
                },
                order=first.order,
                ranks=first.ranks,
            )
        )
    if not tensors:
        raise _no_tensor(source, request, left_out, is_joint=len(firsts) > 1)
    sizes = tuple(sum(file.size for file in each.files) for each in contents)
    return Alignment(
        files, tuple(tensors), tuple(left_out), sizes, tuple(c.unread for c in contents), network
    )


def _rows(stored: Sequence[tuple[int, StoredTensor] | None]) -> tuple[int, ...]:
    """Return how many rows each checkpoint stores of a tensor that differs in nothing else."""
    places = [each[1] for each in stored if each is not None]
    shapes = {place.shape for place in places}
    if (
        len(places) < len(stored)
        or len(shapes) == 1
        or not all(place.is_in_order for place in places)
    ):
        return ()
    if () in shapes or len({shape[1:] for shape in shapes}) > 1:
        return ()
    return tuple(place.shape[0] for place in places)


def _first_rows(place: StoredTensor, rows: int) -> StoredTensor:
    shape = (rows, *place.shape[1:])
    numel = math.prod(shape)
    extents = tuple(extent for extent in place.extents if extent.first < numel)
    stop = place.start + WEIGHT_DTYPES[place.dtype].reach(0, numel)[1]
    return replace(place, shape=shape, stop=stop, extents=extents)


def _names_in_storage_order(contents: Sequence[Contents]) -> list[str]:
    """Return all tensor names: neighbours in the first checkpoint's files are neighbours here.

    Neighbours in one tile are then read by one range.
    """
    order: dict[str, None] = {}
    for of_checkpoint in contents:
        places = of_checkpoint.tensors
        if not places.keys() <= order.keys():
            of_files = sorted(places, key=lambda name: (places[name][0], places[name][1].start))
            order.update(dict.fromkeys(of_files))
    return list(order)


def _reason(
    name: str,
    stored: Sequence[tuple[int, StoredTensor] | None],
    names_of: Sequence[str],
    request: Request,
) -> _Reason | None:
    kinds = dict.fromkeys((t[1].dtype, t[1].shape) for t in stored if t is not None)
    shapes = {shape for _, shape in kinds}
    without = _without_values(stored, names_of)
    if without is not None:
        return without
    for dtype, shape in kinds:
        reason = reason_to_leave_out(name, dtype, shape)
        if reason is not None:
            return _Reason(reason, "excluded_tensor")
    if why := unwanted(name, request):
        return _Reason(why)
    absent = [k for k, tensor in enumerate(stored) if tensor is None]
    if absent:
        first = names_of[absent[0]]
        text = f"absent from {len(absent)} checkpoints, first {first}"
        return _Reason(text, "missing_tensor", absent[0])
    orders = {tensor[1].order for tensor in stored if tensor is not None}
    if (-1,) in orders:
        return _Reason(
            "its elements do not lie side by side (a slice of columns, or an expanded tensor)",
            "excluded_tensor",
        )
    if len(orders) > 1 and len(shapes) == 1:
        return _Reason("stored transposed in some checkpoints and not in others", "excluded_tensor")
    if len({tensor[1].ranks for tensor in stored if tensor is not None}) > 1:
        text = "its columns are divided among other numbers of ranks at some checkpoints"
        return _Reason(text, "valueless_tensor")
    if len(shapes) > 1:
        first = stored[0][1].shape if stored[0] else ()
        k, changed = next(
            (k, tensor[1].shape)
            for k, tensor in enumerate(stored)
            if tensor is not None and tensor[1].shape != first
        )
        at = names_of[k]
        text = f"shape changed from {list(first)} to {list(changed)} at {at}"
        return _Reason(text, "shape_changed", k)
    return None


def unwanted(name: str, request: Request) -> str | None:
    """Return why a tensor is not asked for, or None if it is."""
    if any(re.search(pattern, name) for pattern in request.exclude):
        return "excluded by --exclude"
    if request.include and not any(re.search(pattern, name) for pattern in request.include):
        return "not matched by --include"
    return None


def _without_values(
    stored: Sequence[tuple[int, StoredTensor] | None], names_of: Sequence[str]
) -> _Reason | None:
    """Return why a tensor has no values that can be read at some checkpoints, if that is so.

    It is worth a warning where it holds weights that are not read, or does at other checkpoints.
    """
    present = [(k, tensor[1]) for k, tensor in enumerate(stored) if tensor is not None]
    lacking = [(k, tensor) for k, tensor in present if tensor.unreadable or 0 in tensor.shape]
    if not lacking:
        return None
    k, tensor = lacking[0]
    reason = tensor.unreadable or "empty"
    if len(lacking) < len(present) and any(has_values(other) for _, other in present):
        at = names_of[k]
        text = f"{reason} at {len(lacking)} checkpoints, first {at}"
        return _Reason(text, "valueless_tensor", k)
    warned = tensor.lost or not tensor.unreadable
    return _Reason(reason, "valueless_tensor" if warned else "excluded_tensor", k)


def _no_tensor(
    source: Source, request: Request, left_out: Sequence[LeftOutTensor], is_joint: bool
) -> NothingMatches:
    # one for each reason: of a joint plan, what each of the sources lacks
    examples = {tensor.reason: tensor for tensor in reversed(left_out)}
    shown = "; ".join(
        f"{quoted(tensor.name, 60)} {list(tensor.shape)}: {reason}"
        for reason, tensor in list(examples.items())[:2]
    )
    hint = "are these checkpoints of the same network?"
    if request.include or request.exclude:
        hint = "check --include and --exclude"
    elif is_joint:
        hint = "--joint compares runs of one network: leave it out for a run of each SOURCE"
    return NothingMatches(f"{source.label}: no tensor is left of {len(left_out)} ({shown})", hint)


def distinct_files(contents: Sequence[Contents]) -> tuple[tuple[File, ...], list[list[int]]]:
    """Return the distinct files, and the number of each checkpoint's own among them.

    Where a commit tells contents by hash, files of the same contents are one file, read once:
    of the 154 branches of one public suite 76 hold the last checkpoint.
    """
    files: list[File] = []
    known: dict[str, int] = {}
    numbers: list[list[int]] = []
    for of_checkpoint in contents:
        numbers.append([])
        for file in of_checkpoint.files:
            number = len(files)
            if file.checkpoint.commit is not None:
                number = known.setdefault(file.identity, number)
            if number == len(files):
                files.append(file)
            numbers[-1].append(number)
    return tuple(files), numbers
