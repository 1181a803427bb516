"""What following estimates, and what it costs: the tables of benchmarks/results/follow.md.

    PYTHONPATH=. python benchmarks/follow.py coverage [--keys 60]    # do intervals hold the truth?
    PYTHONPATH=. python benchmarks/follow.py norms [--keys 20]       # three ways to use known norms
    PYTHONPATH=. python benchmarks/follow.py cost                    # seconds and bytes
    PYTHONPATH=. python benchmarks/follow.py command                 # of `hallmarks follow` itself

Networks are really trained: a transformer by AdamW (jobs/language_model.py), whose embedding has rows of
bytes that its text does not hold, and a network of one hidden layer by SGD on the same text.

Letters: N checkpoints, m buckets, B estimates.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from pydoc_data import topics
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from benchmarks.memory import resident_of_family
from jobs.language_model import Settings, train
from pipeline.follow.estimates import increments_of, products
from pipeline.follow.norms import with_norms
from pipeline.numerics.basis import Basis
from pipeline.numerics.indicators import INDICATORS
from pipeline.numerics.straight_turns import SCALES
from pipeline.numerics.trajectory import cosines
from pipeline.planning.sample import JACKKNIFE_FOLDS
from pipeline.reduce.figures import Figures, GroupSums, Times, figures
from pipeline.statistics.sketch import Sketch
from tests.suites import stored_weights

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
"""Part → (N, numel)."""
Norms = Callable[[Array, Array], Array]
"""(B, N, N) estimates of a part and its (N,) squared norms → the estimates with these."""
FIGURES = ("mds", "relative_mds", "straightness", "pca_share_1", "mean_update_angle_deg")
EMBEDDING, LAYER = "model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"


def transformer() -> Weights:
    """Return 42 checkpoints of a transformer of 0.9 million weights."""
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder) / "run", settings=replace(Settings(), steps=300))
        return stored_weights(Path(folder) / "run")


def perceptron() -> Weights:
    """Return 40 checkpoints of a network that guesses a byte from the eight before it, by SGD."""
    generator = torch.Generator().manual_seed(0)
    text = torch.frombuffer(
        bytearray("\n".join(topics.topics.values()).encode()), dtype=torch.uint8
    ).long()
    network = torch.nn.Sequential(
        torch.nn.Embedding(256, 16), torch.nn.Flatten(), torch.nn.Linear(128, 128), torch.nn.Tanh()
    )
    head = torch.nn.Linear(128, 256)
    parameters = [*network.parameters(), *head.parameters()]
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    rows: list[list[Array]] = []
    for step in range(400):
        if step % 10 == 0:
            matrices = (network[2].weight, head.weight)
            rows.append([each.detach().double().numpy().reshape(-1).copy() for each in matrices])
        at = torch.randint(len(text) - 9, (64,), generator=generator)
        context = torch.stack([text[place : place + 8] for place in at.tolist()])
        loss = torch.nn.functional.cross_entropy(head(network(context)), text[at + 8])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layers = zip(*rows, strict=True)
    return dict(zip(("hidden.weight", "head.weight"), map(np.stack, layers), strict=True))


def concentrated() -> Weights:
    """Return 42 checkpoints of 200,000 weights, of which twenty have 84 % of every increment."""
    generator = np.random.default_rng(0)
    rows = np.tile(0.02 * generator.standard_normal(200_000), (42, 1))
    rows[1:] += 1e-4 * generator.standard_normal((41, 200_000)).cumsum(axis=0)
    places = generator.choice(200_000, 20, replace=False)
    size = 1e-4 * np.sqrt(0.84 / 0.16 * 200_000 / 20)
    rows[1:, places] += size * generator.standard_normal((41, 20)).cumsum(axis=0)
    return {"layers.0.mlp.up_proj.weight": rows}


@cache
def series() -> dict[str, Weights]:
    """Return what is estimated: groups of parts."""
    of_transformer, of_perceptron = transformer(), perceptron()
    return {
        "transformer": of_transformer,
        "its embedding": {EMBEDDING: of_transformer[EMBEDDING]},
        "its MLP layer": {LAYER: of_transformer[LAYER]},
        "SGD, head": {"head.weight": of_perceptron["head.weight"]},
        "SGD, hidden layer": {"hidden.weight": of_perceptron["hidden.weight"]},
        "20 of 200,000 weights": concentrated(),
    }


def estimate(weights: Weights, buckets: int, seed: int, norms: Norms) -> Figures:
    """Return the figures of a group from the sketches of its parts, as following makes them."""
    count = len(next(iter(weights.values())))
    total, changes = np.zeros((count, count)), np.zeros((JACKKNIFE_FOLDS, count, count))
    absent = np.zeros(count, bool)
    for name, rows in weights.items():
        sketch = Sketch(buckets, seed, Sketch(buckets).columns_for([rows.shape[1]]))
        kept = np.zeros((count, sketch.columns))
        sketch.add(kept, rows.astype(np.float64), 0, rows.shape[1], name)
        increments = increments_of(kept, absent)
        if sketch.is_whole(rows.shape[1]):
            total += increments @ increments.T
            continue
        whole, *replicates = norms(products(increments), np.vecdot(rows, rows))
        total += whole
        changes += np.stack(replicates) - whole
    return _figures(total, dict(enumerate(changes)))


def exact(weights: Weights) -> Figures:
    """Return the figures of a group from its weights."""
    increments = [np.diff(rows, axis=0, prepend=0.0) for rows in weights.values()]
    return _figures(np.add.reduce([rows @ rows.T for rows in increments]), {})


def _figures(increments: Array, changes: dict[int, Array]) -> Figures:
    count = len(increments)
    words = np.arange(count, dtype=np.uint64)[:, None]
    folds = JACKKNIFE_FOLDS if changes else 0
    absent, straight = np.zeros(count, bool), np.zeros((2, len(SCALES), count))
    sums = GroupSums(increments, words, absent, straight, changes, folds=folds)
    times = np.arange(count, dtype=float)
    return figures([sums], Times(times, times), Basis((0,), count))


def along(estimates: Array, squares: Array) -> Array:
    """As following does it (pipeline/follow/norms.py)."""
    return with_norms(estimates, squares, np.zeros(len(squares), bool))


def stretched(estimates: Array, squares: Array) -> Array:
    """Ŝ_ij √(S_ii S_jj / Ŝ_ii Ŝ_jj) of the products of the θ_k (docs/method-2.md, §7)."""
    norms = np.diagonal(estimates.cumsum(1).cumsum(2), axis1=1, axis2=2)
    scale = np.sqrt(squares / norms)
    count = len(squares)
    rows = np.tril(np.repeat(np.diff(scale, prepend=scale[:, :1])[:, :, None], count, axis=2), -1)
    rows[:, np.arange(count), np.arange(count)] = scale
    return rows @ estimates @ rows.swapaxes(1, 2)


def as_estimated(estimates: Array, squares: Array) -> Array:
    """Do nothing with what is known of norms."""
    del squares
    return estimates


def chosen(found: Figures) -> dict[str, tuple[float, float]]:
    """Return the figures whose intervals are looked at, and their standard errors."""
    values = {
        name: (found.indicators[0, place], found.indicator_errors[0, place])
        for name in FIGURES
        for place in [INDICATORS.index(name)]
    }
    last = found.dots.shape[1] - 1
    cosine, relative = cosines(found.dots)[0], cosines(found.relative_dots)[0]
    pairs = {
        "0, T": (0, last),
        "T/2, T": (last // 2, last),
        "T/2, T/2 + 1": (last // 2, last // 2 + 1),
    }
    for name, pair in pairs.items():
        values[f"cosine({name})"] = cosine[pair], found.cosine_errors[0][pair]
        if pair[0]:
            error = found.relative_cosine_errors[0][pair]
            values[f"relative cosine({name})"] = relative[pair], error
    return values


def covered(weights: Weights, buckets: int, keys: Iterable[int]) -> dict[str, tuple[float, float]]:
    """Return, of each figure, the share of intervals ± 1.96 that hold the truth, and bias in deviations."""
    truth = chosen(exact(weights))
    each = [chosen(estimate(weights, buckets, key, along)) for key in keys]
    result = {}
    for name, (true, _) in truth.items():
        values, errors = np.array([found[name] for found in each]).T
        held = float(np.mean(np.abs(values - true) <= 1.96 * errors))
        result[name] = held, float((values.mean() - true) / values.std())
    return result


def coverage(keys: int) -> None:
    """Print what intervals hold: of each series the figures' lowest, median and highest share."""
    print("| series | m | lowest | median | highest | largest mean error / std. deviation |")
    print("|---|---|---|---|---|---|")
    everything: list[tuple[float, float]] = []
    for name, weights in series().items():
        for buckets in (256, 1024):
            started = time.perf_counter()
            found = covered(weights, buckets, range(keys))
            everything += found.values()
            print(f"| {name} | {buckets:,} | {_summary(list(found.values()))} |", flush=True)
            print(f"{name}, {buckets}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(f"| all | | {_summary(everything)} |")


def _summary(of_figures: Sequence[tuple[float, float]]) -> str:
    held, off = np.array(of_figures).T
    return f"{held.min():.3f} | {np.median(held):.3f} | {held.max():.3f} | {np.abs(off).max():.2f}"


def norms(keys: int) -> None:
    """Print how far figures are off with three ways to use what is known of norms."""
    print(
        "| series | norms | cosines | relative cosines | ‖Δ‖ | ‖D‖ | update angles | straightness"
        " | pca_share_1 |\n|---|---|---|---|---|---|---|---|---|"
    )
    ways = {"as estimated": as_estimated, "θ stretched": stretched, "along θ": along}
    for name, weights in series().items():
        true = _compared(exact(weights))
        for way, of_way in ways.items():
            found = [_compared(estimate(weights, 256, key, of_way)) for key in range(keys)]
            shown: list[str] = []
            for number, (values, truth) in enumerate(
                zip(zip(*found, strict=True), true, strict=True)
            ):
                off = float(np.sqrt(np.nanmean((np.array(values) - truth) ** 2)))
                in_percent, in_degrees = number in (2, 3), number == 4
                shown.append(
                    f"{off:.2%}" if in_percent else f"{off:.2f}°" if in_degrees else f"{off:.5f}"
                )
            print(f"| {name} | {way} | {' | '.join(shown)} |")


def _compared(found: Figures) -> list[Array]:
    upper = np.triu_indices(found.dots.shape[1], 1)
    columns = {name: values[0] for name, values in found.path.items()}
    straight, share = (INDICATORS.index(each) for each in ("straightness", "pca_share_1"))
    return [
        cosines(found.dots)[0][upper],
        cosines(found.relative_dots)[0][upper],
        np.log(columns["increment"][1:]),
        np.log(columns["displacement"][1:]),
        columns["update_angle_deg"],
        found.indicators[0, straight],
        found.indicators[0, share],
    ]


def cost() -> None:
    """Print seconds and bytes."""
    print(f"sketch of 16,384 weights, m = 4,096: {_sketch_us():.0f} µs on one thread")
    for count in (50, 154, 300, 1000):
        of_part, of_group = _estimate_s(count)
        print(
            f"N = {count:,}: {of_part:.3f} s a part of 4,096 buckets for products, {of_group:.2f} s a group"
            " for figures with standard errors"
        )
    _updates()


def _sketch_us() -> float:
    sketch, times = Sketch(columns=4096), list[float]()
    values, buckets = np.random.default_rng(0).standard_normal((1, 16_384)), np.zeros((1, 4096))
    for _ in range(300):
        began = time.perf_counter()
        sketch.add(buckets, values, 0, 1 << 20, "w")
        times.append(time.perf_counter() - began)
    return 1e6 * min(times)


def _estimate_s(count: int) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    sketches = generator.standard_normal((count, 4096)).cumsum(axis=0)
    squares, absent = np.vecdot(sketches, sketches), np.zeros(count, bool)
    began = time.process_time()
    whole, *replicates = with_norms(products(increments_of(sketches, absent)), squares, absent)
    of_part = time.process_time() - began
    if count > 154:
        return of_part, float("nan")
    began = time.process_time()
    _figures(whole, dict(enumerate(np.stack(replicates) - whole)))
    return of_part, time.process_time() - began


def _updates() -> None:
    """Print what `Sketcher.update` takes of a network in memory, and by how much the process grows."""
    from pipeline.follow import Sketcher

    width, layers = 2048, 16
    network = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers)))
    network.bfloat16().requires_grad_(False)
    gigabytes = 2 * sum(each.numel() for each in network.parameters()) / 1e9
    for threads in (1, 2):
        with (
            tempfile.TemporaryDirectory() as store,
            Sketcher(network, store, run="network", threads=threads) as sketcher,
        ):
            sketcher.update(0)
            grown, began, used = _peak(), time.perf_counter(), time.process_time()
            sketcher.update(1)
            sketcher.update(2)
            wall, cpu = time.perf_counter() - began, time.process_time() - used
            kept = sum(file.stat().st_size for file in Path(store).glob("_follow/**/*.safetensors"))
        print(
            f"update of {gigabytes:.2f} GB in bf16, {threads} threads: {wall / 2 / gigabytes:.2f} s and"
            f" {cpu / 2 / gigabytes:.2f} s of CPU a GB, with tables; kept {kept / 3 / 1e6:.1f} MB of"
            f" {2 * layers} parts; peak memory {grown / 1e6:.0f} MB, of which the network {1e3 * gigabytes:.0f}"
        )


def command() -> None:
    """Print what `hallmarks follow` takes for one new checkpoint beside two that were read."""
    print(
        "| dtype | threads | s a GB, reading | CPU s a GB, reading | CPU s, process with tables | peak memory, MiB | kept, MB a GB |"
    )
    print("|---|---|---|---|---|---|---|")
    for dtype in (torch.bfloat16, torch.float32):
        for threads in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                _followed(Path(folder), dtype, threads)


def _followed(folder: Path, dtype: torch.dtype, threads: int) -> None:
    name = str(dtype).removeprefix("torch.")
    for step in range(3):
        place = folder / "run" / f"checkpoint-{step}"
        place.mkdir(parents=True)
        size = _checkpoint(place / "model.safetensors", dtype, step)
        if step == 1:
            _follow(folder, threads)
    again = _follow(folder, threads)  # the third
    nothing = _follow(folder, threads)  # what starting and looking takes
    kept = sum(each.stat().st_size for each in folder.glob("store/_follow/**/*.safetensors")) / 3
    gigabytes = size / 1e9
    row = [
        f"{again.reading_s / gigabytes:.1f}",
        f"{(again.cpu_s - nothing.cpu_s) / gigabytes:.1f}",
        f"{again.cpu_s:.1f}",
        f"{again.peak_bytes / 2**20:.0f}",
        f"{kept / 1e6 / gigabytes:.1f}",
    ]
    print(f"| {name} | {threads} | {' | '.join(row)} |")


def _checkpoint(file: Path, dtype: torch.dtype, step: int) -> int:
    """Write a network of 16 matrices of 2,048 × 8,192 and as many norms; return its bytes."""
    generator = torch.Generator().manual_seed(step)
    tensors = {
        f"model.layers.{layer}.{part}.weight": torch.randn(shape, generator=generator).to(dtype)
        for layer in range(16)
        for part, shape in (("mlp.up_proj", (2048, 8192)), ("input_layernorm", (2048,)))
    }
    save_file(tensors, file)
    return file.stat().st_size


class _Taken(NamedTuple):
    reading_s: float
    cpu_s: float
    peak_bytes: int


def _follow(folder: Path, threads: int) -> _Taken:
    """Follow what is there, in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "jobs.follow", str(folder / "run")),
            *("--store", str(folder / "store"), "--run", "r", "--once", "--settle", "0"),
            *("--threads", str(threads), "--memory", "1GiB"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident_of_family(process.pid))
        time.sleep(0.05)
    notes = process.stderr.read() if process.stderr else ""
    if process.returncode:
        raise SystemExit(notes)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = [float(each) for each in re.findall(r" read in ([\d.]+) s", notes)]
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _Taken(seconds[-1] if seconds else 0.0, used, peak)


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("coverage", "norms", "cost", "command"))
    parser.add_argument("--keys", type=int, default=60)
    arguments = parser.parse_args()
    match arguments.what:
        case "coverage":
            coverage(arguments.keys)
        case "norms":
            norms(min(arguments.keys, 20))
        case "command":
            command()
        case _:
            cost()


if __name__ == "__main__":
    main()
