"""The same as the command line, in Python (docs/contract.md, §5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, TypedDict, Unpack

from pipeline.job.analyze import analyze as run_analysis
from pipeline.job.analyze import analyze_joint as run_joint_analysis
from pipeline.job.summary import Summary
from pipeline.planning.options import check_known, flag, texts
from pipeline.planning.options import path as path_text
from pipeline.planning.plan import Plan, make_plan
from pipeline.planning.request import RESOURCES, SELECTION, Request, Resources
from pipeline.store.query import Store

Location = str | PathLike[str]
"""A path or a URL."""
Texts = str | Iterable[str]
"""Several, or one."""


class Selection(TypedDict, total=False):
    """What decides the figures: options of the command line, with the same defaults."""

    run: str | None
    revisions: Texts
    steps: str | None
    names: str | None
    weights: Texts
    seeds: str
    include: Texts
    exclude: Texts
    state: str | None
    roles: Location | None
    by_head: bool
    statistics: Texts
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
    replace: bool


def plan(source: Location, **selection: Unpack[Selection]) -> Plan:
    """Return what `analyze` would read and compute; reads headers only.

    Raises:
        RequestError: nothing can be planned.
    """
    check_known(selection, Selection.__annotations__)
    return make_plan(_request(source, selection))[0]


def analyze(
    source: Location, store: Location = "hallmarks-store", **options: Unpack[Options]
) -> Summary:
    """Analyse a source into a store and return the summary.

    Raises:
        RequestError: the request is wrong; nothing was written.
        HallmarksError: something else failed; what was finished is kept.
    """
    check_known(options, Options.__annotations__)
    request, resources = _request(source, options), _resources(options)
    fresh, may_replace = _flags(options)
    where = path_text("--store", store)
    return run_analysis(request, where, resources, fresh=fresh, replace=may_replace)


def analyze_joint(
    sources: Iterable[Location], store: Location = "hallmarks-store", **options: Unpack[Options]
) -> list[Summary]:
    """Analyse several sources in one read: a run for each, and last the run over all of them.

    The option `run` names the run over all.

    Raises:
        RequestError: the request is wrong; nothing was written.
        HallmarksError: something else failed; what was finished is kept.
    """
    check_known(options, Options.__annotations__)
    run = options.get("run")
    shared: Mapping[str, Any] = {name: value for name, value in options.items() if name != "run"}
    requests = [_request(source, shared) for source in texts("SOURCE", sources)]
    resources, (fresh, may_replace) = _resources(options), _flags(options)
    where = path_text("--store", store)
    return run_joint_analysis(requests, run, where, resources, fresh=fresh, replace=may_replace)


def open_store(path: Location = "hallmarks-store", *, confined: bool = True) -> Store:
    """Return a store opened for queries.

    Args:
        confined: queries read this store and nothing else, and write nothing; False allows all that
            DuckDB can do, such as joins with other files.

    Warns:
        DamagedRun: a run, or a table of it, is left out, since files are gone or damaged.

    Raises:
        StoreUnusable: there is no store, or no finished run in it.
    """
    return Store(path_text("--store", path), confined=confined)


def _request(source: Any, options: Mapping[str, Any]) -> Request:
    return Request(source, **{name: options[name] for name in SELECTION if name in options})


def _resources(options: Mapping[str, Any]) -> Resources:
    return Resources(**{name: options[name] for name in RESOURCES if name in options})


def _flags(options: Mapping[str, Any]) -> tuple[bool, bool]:
    fresh, replace = (flag(f"--{name}", options.get(name, False)) for name in ("fresh", "replace"))
    return fresh, replace
