"""The same as the command line, in Python (docs/contract.md, §5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict, Unpack

from pipeline.analysis import analyze as run_analysis
from pipeline.analysis import analyze_joint as run_joint_analysis
from pipeline.planning.memory import parse_size
from pipeline.planning.plan import Plan, make_plan
from pipeline.planning.request import Request, Resources, StepRange
from pipeline.results import Summary
from pipeline.store.query import Store


class Selection(TypedDict, total=False):
    """What decides the figures: options of the command line, with the same defaults."""

    run: str | None
    revisions: Iterable[str]
    steps: str | None
    include: Iterable[str]
    exclude: Iterable[str]
    by_head: bool
    layout: str
    fraction: float | None
    budget: str | int | None
    seed: int


class Options(Selection, total=False):
    """And what they do not depend on."""

    memory: str | int | None
    device: str
    executor: str
    address: str | None
    max_workers: int | None
    pull: str
    verify: bool
    cache: bool
    fresh: bool


def plan(source: str, **selection: Unpack[Selection]) -> Plan:
    """Return what `analyze` would read and compute; reads headers only.

    Raises:
        RequestError: nothing can be planned.
    """
    return make_plan(_request(source, **selection))[0]


def analyze(source: str, store: str = "hallmarks-store", **options: Unpack[Options]) -> Summary:
    """Analyse a source into a store and return the summary.

    Raises:
        RequestError: the request is wrong; nothing was written.
        HallmarksError: something else failed; what was finished is kept.
    """
    selection, resources, fresh = _divided(**options)
    return run_analysis(_request(source, **selection), store, resources, fresh=fresh)


def analyze_joint(
    sources: Iterable[str], store: str = "hallmarks-store", **options: Unpack[Options]
) -> list[Summary]:
    """Analyse several sources in one read: a run for each, and last the run over all of them.

    The option `run` names the run over all.

    Raises:
        RequestError: the request is wrong; nothing was written.
        HallmarksError: something else failed; what was finished is kept.
    """
    selection, resources, fresh = _divided(**options)
    run = selection.pop("run", None)
    requests = [_request(source, **selection) for source in sources]
    return run_joint_analysis(requests, run, store, resources, fresh=fresh)


def open_store(path: str = "hallmarks-store", *, confined: bool = True) -> Store:
    """Return a store opened for queries.

    Args:
        confined: queries read this store and nothing else, and write nothing; False allows all that
            DuckDB can do, such as joins with other files.

    Warns:
        DamagedRun: a run, or a table of it, is left out, since files are gone or damaged.

    Raises:
        StoreUnusable: there is no store, or no finished run in it.
    """
    return Store(path, confined=confined)


def _divided(
    memory: str | int | None = None,
    device: str = "auto",
    executor: str = "ray",
    address: str | None = None,
    max_workers: int | None = None,
    pull: str = "auto",
    verify: bool = False,
    cache: bool = False,
    fresh: bool = False,
    **selection: Unpack[Selection],
) -> tuple[Selection, Resources, bool]:
    budget = parse_size(memory) if isinstance(memory, str) else memory
    resources = Resources(
        budget, device, executor, address, max_workers, pull, verify=verify, cache=cache
    )
    return selection, resources, fresh


def _request(
    source: str,
    run: str | None = None,
    revisions: Iterable[str] = (),
    steps: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    by_head: bool = False,
    layout: str = "auto",
    fraction: float | None = None,
    budget: str | int | None = None,
    seed: int = 0,
) -> Request:
    return Request(
        source,
        run,
        tuple(revisions),
        StepRange.parse(steps) if steps else None,
        tuple(include),
        tuple(exclude),
        by_head,
        layout,
        fraction,
        parse_size(budget) if isinstance(budget, str) else budget,
        seed,
    )
