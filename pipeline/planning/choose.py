"""Which checkpoints of a source are analysed: its names choose (`select.py`), then what lies in them.

A checkpoint without weights is left out and named. A last or best one, whose name states no step, is
left out if it is a copy of another, as a Hub suite's `main` and a trainer's `last.ckpt` mostly are.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pipeline.checkpoint.layouts import holds_weights_anywhere
from pipeline.checkpoint.shards import holds_weights
from pipeline.errors import FormatError, NothingMatches
from pipeline.planning.contents import HEADERS_AT_ONCE, Contents, files_of, read_contents
from pipeline.planning.plan_cache import PlanCache
from pipeline.planning.request import Request
from pipeline.planning.select import LeftOut, Selected, Selection, select, too_few
from pipeline.sources.base import Candidate, Source
from pipeline.sources.nearby import series_around

_TENSORS_COMPARED = 64
"""Of two checkpoints that may be copies: training moves most matrices in every step."""
_BYTES_COMPARED = 4096
"""Of each: a page, from its middle."""


def choose(source: Source, request: Request) -> Selection:
    """Return the checkpoints of a source that the request keeps and that hold weights.

    Raises:
        NothingMatches: fewer than two are left, or they are of several runs.
    """
    candidates = source.candidates()
    _refuse_one_checkpoint(source, candidates, request)
    selection = select(candidates, request, source.beside())
    with PlanCache() as cache:
        looking = _Looking(source, request, cache)
        selection = looking.without_empty(selection)
        if len(selection.checkpoints) > 1:
            selection = looking.without_copies(selection)
    if len(selection.checkpoints) < 2:
        left_out = (*selection.left_out, *selection.lacking)
        raise too_few(selection.checkpoints, left_out, candidates, request, source.beside())
    return selection


def _refuse_one_checkpoint(
    source: Source, candidates: Sequence[Candidate], request: Request
) -> None:
    """Refuse a source that is one checkpoint of a series, and name the series."""
    if sum(request.reading.position(each.name).is_known for each in candidates) > 1:
        return
    if (where := series_around(request.source, request.reading)) and source.whole():
        raise NothingMatches(
            f"{request.source}: expected at least 2 checkpoints, found one, which is the SOURCE itself",
            where,
        )


class _Looking:
    def __init__(self, source: Source, request: Request, cache: PlanCache) -> None:
        self._source, self._request, self._cache = source, request, cache

    def without_empty(self, selection: Selection) -> Selection:
        """Leave out revisions without weights: folders were looked into when they were found."""
        revisions = [
            entry
            for entry in selection.checkpoints
            if entry.candidate.commit and not entry.candidate.path
        ]
        with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
            holding = dict(zip(revisions, pool.map(self._holds_weights, revisions), strict=True))
        kept = tuple(entry for entry in selection.checkpoints if holding.get(entry, True))
        empty = [entry for entry in revisions if not holding[entry]]
        lacking = [LeftOut(e.candidate.name, "no weights in it") for e in empty if e.is_placed]
        unplaced = [LeftOut(e.candidate.name, "holds no weights") for e in empty if not e.is_placed]
        return replace(
            selection,
            checkpoints=kept,
            left_out=(*selection.left_out, *unplaced),
            lacking=(*selection.lacking, *lacking),
        )

    def without_copies(self, selection: Selection) -> Selection:
        """Leave out last and best checkpoints that are copies, or other networks."""
        kept = [entry for entry in selection.checkpoints if entry.is_placed]
        left_out = list(selection.left_out)
        for entry in selection.checkpoints:
            if entry.is_placed:
                continue
            before = selection.checkpoints[: selection.checkpoints.index(entry)]
            place = sum(other in before for other in kept)
            why = self._why_not(entry, kept, kept[max(0, place - 1)])
            if why is None:
                kept.insert(place, entry)
            else:
                left_out.append(LeftOut(entry.candidate.name, why))
        return replace(selection, checkpoints=tuple(kept), left_out=tuple(left_out))

    def _why_not(self, entry: Selected, others: Sequence[Selected], before: Selected) -> str | None:
        """Return why a last or best checkpoint is none of its own.

        In a repository a last one is compared with the one before it alone: each costs a request.
        """
        if entry.candidate.commit is not None and not entry.candidate.path:
            files = self._weight_files(entry)
            if files <= self._weight_files(before):
                return f"the same files as {before.candidate.name}"
            return None
        try:
            contents = self._contents(entry)
        except FormatError as error:
            return f"cannot be read: {error.message}"
        near = self._readable(before)
        if near and len(contents.tensors.keys() & near.tensors.keys()) * 2 < len(near.tensors):
            return f"other tensors than those of {before.candidate.name}"
        for other in reversed(others):
            held = self._readable(other)
            if held and self._are_copies(contents, held):
                return f"the same weights as {other.candidate.name}"
        return None

    def _are_copies(self, one: Contents, other: Contents) -> bool:
        shapes = [{n: (t.dtype, t.shape) for n, (_, t) in c.tensors.items()} for c in (one, other)]
        if shapes[0] != shapes[1]:
            return False
        names = list(one.tensors)
        chosen = names[:: max(1, len(names) // _TENSORS_COMPARED)]
        return all(self._page(one, name) == self._page(other, name) for name in chosen)

    def _page(self, contents: Contents, name: str) -> bytes:
        """Return a page of a tensor's bytes."""
        file, tensor = contents.tensors[name]
        start, stop = tensor.start, tensor.stop
        if tensor.extents:
            first, *others = tensor.extents
            file, start = file + first.file, first.start
            share = (others[0].first if others else tensor.numel) / max(tensor.numel, 1)
            stop = start + int((tensor.stop - tensor.start) * share)
        middle = start + max(0, stop - start - _BYTES_COMPARED) // 2
        stop = min(stop, middle + _BYTES_COMPARED, contents.files[file].size)
        return self._source.read(contents.files[file], middle, stop) if stop > middle else b""

    def _readable(self, entry: Selected) -> Contents | None:
        """Return what a checkpoint of the series stores; one that cannot be read is told of later."""
        try:
            return self._contents(entry)
        except FormatError:
            return None

    def _contents(self, entry: Selected) -> Contents:
        return read_contents(self._source, entry, self._cache, self._request.reading)

    def _weight_files(self, entry: Selected) -> set[str]:
        files = files_of(self._source, entry.candidate, self._cache)
        are_weights = self._request.reading.are_weights
        return {f.identity for f in files if holds_weights([f.path]) or are_weights(f.path)}

    def _holds_weights(self, entry: Selected) -> bool:
        paths = [file.path for file in files_of(self._source, entry.candidate, self._cache)]
        return holds_weights_anywhere(paths, self._request.reading)
