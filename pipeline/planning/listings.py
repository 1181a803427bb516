"""What listings alone tell of a source's checkpoints: no header is read, no byte of weights."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.checkpoint.layouts import listed, weights_folder
from pipeline.checkpoint.reading import Reading
from pipeline.checkpoint.shards import absent_shards, likely_weights
from pipeline.planning.choose import choose
from pipeline.planning.contents import HEADERS_AT_ONCE, files_of
from pipeline.planning.plan import Plan
from pipeline.planning.plan_cache import PlanCache
from pipeline.planning.request import Request
from pipeline.planning.select import Selected, Selection
from pipeline.sources import open_source
from pipeline.sources.base import File


@dataclass(frozen=True, slots=True)
class ListedCheckpoint:
    """One checkpoint as its listing shows it."""

    name: str
    commit: str | None
    stage: int | None
    step: int | None
    files: Mapping[str, File]
    """Its weight files, by path."""
    absent: tuple[str, ...] = ()
    """Shards that their numbers say there are, and the listing lacks."""


def listings(request: Request) -> tuple[list[ListedCheckpoint], Selection]:
    """Return what is listed of each checkpoint that a request keeps, in order.

    Raises:
        NothingMatches: fewer than two are left, or they are of several runs.
    """
    source = open_source(request.source, request.layout, request.reading)
    selection = choose(source, request)
    with PlanCache() as cache, ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:

        def of(entry: Selected) -> ListedCheckpoint:
            files = files_of(source, entry.candidate, cache, request.reading)
            return _listed(entry, {file.path: file for file in files}, request.reading)

        return list(pool.map(of, selection.checkpoints)), selection


def listings_of(plan: Plan) -> list[ListedCheckpoint]:
    """Return the same of the files that a plan reads."""
    numbers = [{tensor.files[k] for tensor in plan.tensors} for k in range(len(plan.checkpoints))]
    return [
        ListedCheckpoint(
            planned.name,
            planned.commit,
            planned.stage,
            planned.step,
            {plan.files[n].path: plan.files[n] for n in sorted(numbers[k])},
        )
        for k, planned in enumerate(plan.checkpoints)
    ]


def _listed(entry: Selected, files: dict[str, File], reading: Reading) -> ListedCheckpoint:
    if reading.weights:
        paths = [path for path in files if reading.are_weights(path)]
    else:
        base = weights_folder(listed(dict.fromkeys(files)), "") or ""
        above = f"{base}/" if base else ""
        inside = {path.removeprefix(above) for path in files if path.startswith(above)}
        paths = [above + path for path in likely_weights(inside)]
    where = entry.position
    return ListedCheckpoint(
        entry.candidate.name,
        entry.candidate.commit,
        where.stage,
        where.step,
        {path: files[path] for path in paths},
        tuple(absent_shards(paths)),
    )
