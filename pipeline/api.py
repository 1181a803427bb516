"""The same as the command line, in Python (docs/contract.md, §5).

Every value is judged where those of the command line are (`pipeline/planning/options.py`), with the same
sentences. Where several texts may stand, one alone is one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.planning.make import make_plan
from pipeline.planning.options import Location, Stated, Texts, Widths, flag, texts
from pipeline.planning.options import path as path_text
from pipeline.planning.plan import Plan
from pipeline.planning.request import RESOURCES, SELECTION, Request, Resources
from pipeline.store.query import Store

if TYPE_CHECKING:
    from pipeline.averaging.average import AverageSummary
    from pipeline.job.summary import Summary
    from pipeline.job.update import Updated


def plan(
    source: Location,
    *,
    run: str | None = None,
    revisions: Texts = (),
    steps: str | None = None,
    names: str | None = None,
    weights: Texts = (),
    seeds: str = "first",
    include: Texts = (),
    exclude: Texts = (),
    state: str | None = None,
    roles: Location | None = None,
    by_head: bool = False,
    statistics: Texts = (),
    spectra: int | str | None = None,
    windows: Widths | None = None,
    layout: str = "auto",
    fraction: float | str | None = None,
    budget: str | int | None = None,
    seed: int = 0,
    settings: Stated | None = None,
    training: Location | None = None,
) -> Plan:
    """Return what `analyze` would read and compute; reads headers only, and moves no weights.

    Args:
        source: a directory, a Hub repository such as `org/name`, a bucket, or a manifest.
        run: the others are those of `analyze`, and mean the same.

    Raises:
        RequestError: nothing can be planned.
    """
    return make_plan(_request(source, locals()))[0]


def analyze(
    source: Location,
    store: Location = "hallmarks-store",
    *,
    run: str | None = None,
    revisions: Texts = (),
    steps: str | None = None,
    names: str | None = None,
    weights: Texts = (),
    seeds: str = "first",
    include: Texts = (),
    exclude: Texts = (),
    state: str | None = None,
    roles: Location | None = None,
    by_head: bool = False,
    statistics: Texts = (),
    spectra: int | str | None = None,
    windows: Widths | None = None,
    layout: str = "auto",
    fraction: float | str | None = None,
    budget: str | int | None = None,
    seed: int = 0,
    settings: Stated | None = None,
    training: Location | None = None,
    memory: str | int | None = None,
    device: str = "auto",
    executor: str = "ray",
    address: str | None = None,
    max_workers: int | None = None,
    pull: str = "auto",
    verify: bool = False,
    cache: bool = False,
    fresh: bool = False,
    replace: bool = False,
) -> Summary:
    """Analyse the checkpoints of a source into a store and return the summary.

    The same call again resumes where it stopped, or finds that all is done.

    Args:
        source: a directory, a Hub repository such as `org/name`, a bucket, or a manifest.
        store: a directory, or `s3://…`, `gs://…`, `az://…`.
        run: name of the run in the store; default: made from the source.
        revisions: globs; only checkpoints whose name matches one of them.
        steps: `A:B` or `A:B:EVERY`: only steps from A to B that are multiples of EVERY.
        names: a regular expression that reads steps from names, by groups `step`, `tokens`, ….
        weights: globs: which files of a checkpoint are its weights.
        seeds: of several runs side by side `first` (the longest), `all`, or the name of one.
        include: regular expressions: only tensors whose name one of them is found in.
        exclude: regular expressions: no such tensors; wins over `include`.
        state: where in a PyTorch file the weights lie, such as `state.model`.
        roles: a TOML file that says what tensors are whose names are not known.
        by_head: also one Gram matrix for each attention head.
        statistics: what else is computed in the read, such as `sparsity`, or `all`.
        spectra: at how many checkpoints singular values of whole matrices are computed, in a second read.
        windows: how many checkpoints the windows of the view `windows` have, 5 or more, such as
            `[5, 8, 16]`, and scopes besides `model`, `body`, `layer` and `component`, such as
            `"8,tensor"`; default: those that the store has of this run, else 8.
        layout: how a Hub repository exposes its checkpoints: `auto`, `revisions`, `commits`,
            `folders`.
        fraction: share of the weights to read, above 0 and at most 1: a random sample, whose figures
            have standard errors; default: all.
        budget: bytes to read at most, such as `"20GB"`, in place of a fraction.
        seed: of the sample.
        settings: hyperparameters of the training by name, or a file that holds them.
        training: a file of metrics by step, with columns step, metric, value and, if it has one,
            split; logs that trainers leave in the source are read without being named.
        memory: working memory of one worker, in bytes or as `"2GiB"`; default: a share of the
            machine's.
        device: where products are computed: `auto`, `cpu` or `cuda`.
        executor: `ray`, or `local`: in this process.
        address: the Ray cluster; default: `RAY_ADDRESS`, else a Ray of its own.
        max_workers: workers at most.
        pull: who reads on a cluster: `auto`, `actor` or `tasks`.
        verify: compare whole files with the hashes that the source publishes.
        cache: keep what is read in the Hub cache.
        fresh: discard what an interrupted run of the same name left.
        replace: replace a run of this name that was made from something else.

    Raises:
        RequestError: the request is wrong; nothing was written.
        HallmarksError: something else failed; what was finished is kept.
    """
    options = locals()
    from pipeline.job.analyze import analyze as run_analysis  # brings torch, which takes a second

    request, resources = _request(source, options), _resources(options)
    fresh, replace = flag("--fresh", fresh), flag("--replace", replace)
    return run_analysis(
        request, path_text("--store", store), resources, fresh=fresh, replace=replace
    )


def analyze_joint(
    sources: Iterable[Location],
    store: Location = "hallmarks-store",
    *,
    run: str | None = None,
    revisions: Texts = (),
    steps: str | None = None,
    names: str | None = None,
    weights: Texts = (),
    seeds: str = "first",
    include: Texts = (),
    exclude: Texts = (),
    state: str | None = None,
    roles: Location | None = None,
    by_head: bool = False,
    statistics: Texts = (),
    spectra: int | str | None = None,
    windows: Widths | None = None,
    layout: str = "auto",
    fraction: float | str | None = None,
    budget: str | int | None = None,
    seed: int = 0,
    settings: Stated | None = None,
    memory: str | int | None = None,
    device: str = "auto",
    executor: str = "ray",
    address: str | None = None,
    max_workers: int | None = None,
    pull: str = "auto",
    verify: bool = False,
    cache: bool = False,
    fresh: bool = False,
    replace: bool = False,
) -> list[Summary]:
    """Analyse several sources in one read: a run for each, and last the run over all of them.

    Args:
        sources: at least two; `k` runs over them in this order.
        store: as of `analyze`, like the others.
        run: names the run over all; default: made from the sources.

    Raises:
        RequestError: the request is wrong; nothing was written.
        HallmarksError: something else failed; what was finished is kept.
    """
    options = locals()
    from pipeline.job.analyze import analyze_joint as run_analysis

    shared = options | {"run": None}
    requests = [_request(source, shared) for source in texts("SOURCE", sources)]
    where, resources = path_text("--store", store), _resources(options)
    fresh, replace = flag("--fresh", fresh), flag("--replace", replace)
    return run_analysis(requests, run, where, resources, fresh=fresh, replace=replace)


def update(store: Location = "hallmarks-store", *, run: str | None = None) -> list[Updated]:
    """Make the figures of stored runs again with this version; reads no weight and needs no source.

    Runs that are current are left alone; one that cannot be made again stays as it is.

    Args:
        run: only this one, and those that were made in the same read; default: all.

    Raises:
        StoreUnusable: there is no store, or no run in it.
        RequestError: there is no such run.
    """
    from pipeline.job.update import update as update_runs

    return update_runs(path_text("--store", store), run)


def average(
    source: Location,
    weights: Location | Sequence[float],
    out: Location,
    *,
    revisions: Texts = (),
    steps: str | None = None,
    names: str | None = None,
    seeds: str = "first",
    include: Texts = (),
    exclude: Texts = (),
    state: str | None = None,
    layout: str = "auto",
    dtype: str | None = None,
    memory: str | int | None = None,
    replace: bool = False,
) -> AverageSummary:
    """Write a combination of checkpoints as a checkpoint and return what was written.

    Sums are made in float64 and rounded once. The same call again resumes where it stopped, or finds
    that all is done. Tensors that are no weights, or not selected, are those of the last checkpoint
    that has a weight.

    Args:
        source: a directory, a Hub repository such as `org/name`, a bucket, or a manifest.
        weights: `last:M`, `ema:DECAY`, `warmdown:M`, a .csv file with the columns weight and name, step
            or k, or a number for each checkpoint; they add up to 1.
        out: the directory that becomes the checkpoint.
        revisions: as of `analyze`, like the others.
        dtype: number format of the averaged tensors, such as `BF16`; default: as in the last checkpoint
            that has a weight.
        replace: replace another combination there.

    Raises:
        RequestError: it cannot be done; nothing was written.
        HallmarksError: something else failed; what was written is kept.
    """
    options = locals()
    from pipeline.averaging.average import average as run_average  # brings torch

    selection = {name: value for name, value in options.items() if name != "weights"}
    request, replace = _request(source, selection), flag("--replace", replace)
    return run_average(request, weights, out, dtype=dtype, memory=memory, replace=replace)


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
    return Resources(**{name: options[name] for name in RESOURCES if name != "threads"})
