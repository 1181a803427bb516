"""The same as the command line, in Python (docs/contract.md, §5)."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.analysis import Summary
from pipeline.analysis import analyze as run_analysis
from pipeline.analysis import analyze_joint as run_joint_analysis
from pipeline.planning.memory import parse_size
from pipeline.planning.plan import Plan, make_plan
from pipeline.planning.request import Request, Resources, StepRange
from pipeline.store.query import Store


def plan(
    source: str,
    *,
    run: str | None = None,
    revisions: Iterable[str] = (),
    steps: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    by_head: bool = False,
    layout: str = "auto",
) -> Plan:
    """Return what `analyze` would read and compute; reads headers only.

    Arguments are the options of the command line.

    Raises:
        RequestError: nothing can be planned.
    """
    return make_plan(_request(source, run, revisions, steps, include, exclude, by_head, layout))[0]


def analyze(
    source: str,
    store: str = "hallmarks-store",
    *,
    run: str | None = None,
    revisions: Iterable[str] = (),
    steps: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    by_head: bool = False,
    layout: str = "auto",
    memory: str | int | None = None,
    device: str = "auto",
    executor: str = "ray",
    address: str | None = None,
    max_workers: int | None = None,
    fresh: bool = False,
) -> Summary:
    """Analyse a source into a store and return the summary.

    Arguments are the options of the command line.

    Raises:
        RequestError: the request is wrong; nothing was written.
        HallmarksError: something else failed; what was finished is kept.
    """
    request = _request(source, run, revisions, steps, include, exclude, by_head, layout)
    budget = parse_size(memory) if isinstance(memory, str) else memory
    resources = Resources(budget, device, executor, address, max_workers)
    return run_analysis(request, store, resources, fresh=fresh)


def analyze_joint(
    sources: Iterable[str],
    store: str = "hallmarks-store",
    *,
    run: str | None = None,
    revisions: Iterable[str] = (),
    steps: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    by_head: bool = False,
    layout: str = "auto",
    memory: str | int | None = None,
    device: str = "auto",
    executor: str = "ray",
    address: str | None = None,
    max_workers: int | None = None,
    fresh: bool = False,
) -> list[Summary]:
    """Analyse several sources in one read: a run for each, and last the run over all of them.

    Arguments are the options of the command line; `run` names the run over all.

    Raises:
        RequestError: the request is wrong; nothing was written.
        HallmarksError: something else failed; what was finished is kept.
    """
    requests = [
        _request(source, None, revisions, steps, include, exclude, by_head, layout)
        for source in sources
    ]
    budget = parse_size(memory) if isinstance(memory, str) else memory
    resources = Resources(budget, device, executor, address, max_workers)
    return run_joint_analysis(requests, run, store, resources, fresh=fresh)


def open_store(path: str = "hallmarks-store") -> Store:
    """Return a store opened for queries.

    Raises:
        StoreUnusable: there is no store, or no finished run in it.
    """
    return Store(path)


def _request(
    source: str,
    run: str | None,
    revisions: Iterable[str],
    steps: str | None,
    include: Iterable[str],
    exclude: Iterable[str],
    by_head: bool,
    layout: str,
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
    )
