"""The whole job on checkpoints of every shape, against the machine's bound and the script that people write.

    PYTHONPATH=. python benchmarks/shapes.py [SHAPE…] [--repeats 3] [--checkout DIR] [--only PART]
        [--share 1.0] [--json FILE] [--markdown FILE]

Shapes are those of `benchmarks/suites.py`; the data are made here under a temporary directory (at most
9 GB at once), and read before every timing, so that all find them in the page cache. Contestants take turns,
`--repeats` times; medians:

    hallmarks   `hallmarks analyze --executor local`: all figures of all groups, in Parquet
    before      the same of another checkout (`--checkout`)
    script      load all, flatten to float32, stack, normalise, multiply: one matrix of the whole model
    bound       reading the bytes once, the bare float32 product, and one `numpy.linalg.eigh` for each
                distinct group, all on all cores, each at the best rate found (`benchmarks/bound.py`)

`seconds` are what `analyze --json` says: its start-up and that of the script are left out. Efficiency is
bound / seconds. A distinct group is a set of parts: a layer of one tensor and that tensor are one.

Parts: `shapes`; `memory`, of every process (RssAnon + RssShmem) against the projection and the idle process
that `plan --json` states; `ray`, against local on the first shape; `exponents`, of time in weights and in
checkpoints. `--share` takes fewer checkpoints, to try it out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contestants
from benchmarks.bound import Bound, decomposition_seconds, product_seconds, read_seconds
from benchmarks.markdown import markdown
from benchmarks.suites import SUITES, Suite, llama

CORES = len(os.sched_getaffinity(0))
PARTS = ("shapes", "memory", "ray", "exponents")
SMALL_BUDGET = "128MiB"


@contextmanager
def written(suite: Suite) -> Iterator[tuple[Path, Path, list[Path]]]:
    """Yield a folder of the suite's checkpoints, one for a store, and the files of weights."""
    with tempfile.TemporaryDirectory(prefix="hallmarks-benchmark-") as folder:
        directory = Path(folder) / "suite"
        yield directory, Path(folder) / "store", suite.write(directory)


def distinct_groups(store: Path) -> int:
    """Return how many different sets of parts the groups of a store are."""
    from pipeline import open_store

    keys = "scope, stack, layer, component, tensor, head, expert"
    groups = {*open_store(str(store)).sql(f"SELECT DISTINCT {keys} FROM indicators").fetchall()}
    split = {row[4] for row in groups if row[0] == "head"}  # parts of these are their heads
    held: dict[tuple, list[int]] = {}
    for number, row in enumerate(groups):
        if row[0] == "head" or (row[0] == "tensor" and row[4] not in split):
            for group in _holding(*row[1:]):
                if group in groups:
                    held.setdefault(group, []).append(number)
    return len({tuple(parts) for parts in held.values()})


def _holding(
    stack: str | None, layer: int | None, component: str, tensor: str, head: int | None,
    expert: int | None,
) -> Iterator[tuple]:  # fmt: skip
    """Yield the groups that hold a part."""
    yield "model", None, None, None, None, None, None
    if component not in ("embed", "position", "unembed"):
        yield "body", None, None, None, None, None, None
    yield "layer", stack, layer, None, None, None, None
    yield "component", stack, None, component, None, None, None
    yield "layer_component", stack, layer, component, None, None, None
    yield "tensor", stack, layer, component, tensor, None, expert
    yield "head", stack, layer, component, tensor, head, expert


def compared(
    suite: Suite,
    repeats: int,
    before: Path | None = None,
    with_script: bool = True,
    typical: Callable[[Iterable[float]], float] = statistics.median,
) -> dict[str, Any]:
    """Return what the contestants took, and the bound; `typical` picks one of the repeats."""
    with written(suite) as (directory, store, files):
        fits = contestants.script_bytes(suite.checkpoints, suite.numel) < 0.8 * _memory()
        turns: dict[str, Callable[[], dict[str, float]]] = {
            "hallmarks": lambda: _analyzed(directory, store, suite)
        }
        if before is not None:
            turns["before"] = lambda: _analyzed(directory, store.with_name("before"), suite, before)
        if with_script and fits:
            turns["script"] = lambda: _scripted(directory)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in turns}
        bounds: list[Bound] = []
        for _ in range(repeats):
            for name, turn in turns.items():
                read_seconds(files, CORES)  # into the page cache, which the script drives out
                runs[name].append(turn())
            read_seconds(files, CORES)
            bounds.append(_bound(suite, files, store))
        found = {name: _typical(each, typical) for name, each in runs.items()}
        bound = _typical([asdict(each) | {"seconds": each.seconds} for each in bounds], typical)
        groups = distinct_groups(store)
    ours = found["hallmarks"]
    ratios = {"efficiency": bound["seconds"] / ours["seconds"]}
    if "before" in found:
        ratios["times_faster_than_before"] = found["before"]["seconds"] / ours["seconds"]
    if "script" in found:
        ratios["times_faster_than_script"] = found["script"]["seconds"] / ours["seconds"]
        ratios["share_of_the_scripts_memory"] = ours["peak_bytes"] / found["script"]["peak_bytes"]
    return {
        "title": suite.title,
        "checkpoints": suite.checkpoints,
        "weights": suite.numel,
        "tensors": len(suite.shapes),
        "bytes": suite.num_bytes,
        "distinct_groups": groups,
        "bound": bound,
        **found,
        **ratios,
        "script_does_not_fit": with_script and not fits,
    }


def _analyzed(directory: Path, store: Path, suite: Suite, *checkout: Path) -> dict[str, float]:
    given = {"checkout": checkout[0]} if checkout else {}
    summary, run = contestants.hallmarks(directory, store, *suite.options, **given)
    return {"seconds": summary["seconds"], "process_seconds": run.seconds, "peak_bytes": run.peak}


def _scripted(directory: Path) -> dict[str, float]:
    seconds, largest, run = contestants.script(directory)
    return {
        "seconds": seconds,
        "process_seconds": run.seconds,
        "peak_bytes": run.peak,
        "largest_cosine": largest,
    }


def _bound(suite: Suite, files: Sequence[Path], store: Path) -> Bound:
    return Bound(
        read_seconds(files, CORES),
        product_seconds(suite.checkpoints, suite.numel, CORES),
        decomposition_seconds(suite.checkpoints, distinct_groups(store), CORES),
    )


def _typical(
    runs: Sequence[dict[str, float]], typical: Callable[[Iterable[float]], float]
) -> dict[str, float]:
    return {name: typical([run[name] for run in runs]) for name in runs[0]}


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory(suite: Suite) -> list[dict[str, Any]]:
    """Return what the largest process took of memory against what was projected, with both budgets."""
    found = []
    with written(suite) as (directory, store, _):
        for given in ((), ("--memory", SMALL_BUDGET)):
            local = ("--executor", "local", *given, *suite.options)
            planned = contestants.plan(directory, *local)
            entry = {"title": suite.title, "budget": given[1] if given else "default"}
            if planned is None:
                found.append(entry | {"fits": False})
                continue
            _, run = contestants.hallmarks(directory, store, *local)
            projected = planned["memory"]["projected"] + planned["memory"]["idle"]
            found.append(
                entry
                | {
                    "fits": True,
                    "projected_bytes": projected,
                    "peak_bytes": run.peak,
                    "processes": len(run.peaks),
                    "within": run.peak <= projected,
                }
            )
    return found


def through_ray(suite: Suite, repeats: int) -> dict[str, Any]:
    """Return the seconds through Ray against local, and Ray's own start."""
    locally, rays, starts, peaks = [], [], [], {}
    with written(suite) as (directory, store, files):
        planned = contestants.plan(directory, "--executor", "ray")
        for _ in range(repeats):
            read_seconds(files, CORES)
            locally.append(contestants.hallmarks(directory, store)[0]["seconds"])
            summary, run = contestants.hallmarks(directory, store, "--executor", "ray")
            rays.append(summary["seconds"])
            starts.append(contestants.rays_own_start())
            for title, peak in run.peaks.values():
                kind = contestants.kind_of(title)
                peaks[kind] = max(peaks.get(kind, 0), peak)
    local, ray, start = map(statistics.median, (locally, rays, starts))
    assert planned is not None
    return {
        "title": suite.title,
        "local_seconds": local,
        "ray_seconds": ray,
        "rays_own_start_seconds": start,
        "ray_less_its_start_over_local": (ray - start) / local,
        "peak_bytes": peaks,
        "projected_bytes": planned["memory"]["projected"] + planned["memory"]["idle"],
    }


def exponents(share: float) -> dict[str, Any]:
    """Return how time grows with weights and with checkpoints: points, and fitted exponents."""
    base = SUITES["large"]
    wider = [
        base.at(
            title=f"64 × {m} M", checkpoints=_fewer(64, share), shapes=llama(1, width, 8 * width)
        )
        for m, width in ((4.2, 362), (8.4, 512), (16.8, 724), (33.5, 1024))
    ]
    narrow = llama(2, 128, 3_700, head=False)
    longer = [
        base.at(title=f"{n} × 1 M", checkpoints=_fewer(n, share), shapes=narrow)
        for n in (32, 64, 128, 256, 512)
    ]
    found: dict[str, Any] = {}
    for name, suites in (("weights", wider), ("checkpoints", longer)):
        points = []
        for suite in suites:
            with written(suite) as (directory, store, _):
                runs = [_analyzed(directory, store, suite) for _ in range(2)]
            value = suite.numel if name == "weights" else suite.checkpoints
            best = min(run["seconds"] for run in runs)
            points.append({name: value, "seconds": best, "peak_bytes": runs[0]["peak_bytes"]})
        slopes = [
            np.polyfit(*(np.log([point[key] for point in some]) for key in (name, "seconds")), 1)[0]
            for some in (points, points[-2:])
        ]
        found[name] = {
            "points": points,
            "exponent": slopes[0],
            "exponent_of_the_last_two": slopes[1],
        }
    return found


def _fewer(count: int, share: float) -> int:
    return max(4, round(count * share))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(SUITES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--checkout", type=Path)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    suites = [SUITES[name] for name in options.shapes or SUITES]
    suites = [suite.at(checkpoints=_fewer(suite.checkpoints, options.share)) for suite in suites]
    parts = options.only or PARTS
    checkout = options.checkout and options.checkout.resolve()
    found: dict[str, Any] = {
        "machine": f"{CORES} cores, {platform.machine()}, {_memory() / 2**30:.0f} GiB",
        "date": time.strftime("%Y-%m-%d"),
        "share": options.share,
    }
    if "shapes" in parts:
        found["shapes"] = []
        for suite in suites:
            found["shapes"].append(compared(suite, options.repeats, checkout))
            _save(found, options)
    if "memory" in parts:
        found["memory"] = []
        for suite in suites:
            found["memory"] += memory(suite)
            _save(found, options)
    if "ray" in parts:
        found["ray"] = through_ray(suites[0], options.repeats)
        _save(found, options)
    if "exponents" in parts:
        found["exponents"] = exponents(options.share)
    _save(found, options)
    print(markdown(found))


def _save(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Write what there is so far: the rest may take an hour, or fail."""
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(found))


if __name__ == "__main__":
    main()
