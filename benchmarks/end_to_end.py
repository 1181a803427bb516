"""The whole job against a script as people write it, and against what the machine allows.

    PYTHONPATH=. python benchmarks/end_to_end.py [--checkpoints 64] [--json FILE]

Data: checkpoints of 33.5 million float16 weights in local files, made here once under a temporary
directory (about 4.3 GB), read once before timing so that all contestants find them in the page
cache. Contestants, each a process of its own:

    hallmarks   `hallmarks analyze --executor local`: all indicators of all scopes, in Parquet
    script      load all, flatten to float32, stack, normalise, multiply: one matrix, whole model
    bound       time to read the files once (all cores, positional reads) plus the time of the bare
                float32 product of all increments at the fastest rate found (all cores, data in cache)

"apart from start-up": hallmarks' own `seconds` starts when its modules are imported; the script is
timed from after its imports too. Peak memory: the largest RssAnon + RssShmem seen in
/proc/PID/status of any process of the contestant, polled every 20 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.memory import family, resident

WIDTH = 1024
REPEATS = 3
PIECE = 16_384

SCRIPT = """
import sys, time
from pathlib import Path
import torch
from safetensors.torch import load_file
started = time.perf_counter()
folders = sorted(Path(sys.argv[1]).iterdir(), key=lambda f: int(f.name.removeprefix("step")))
rows = []
for folder in folders:
    weights = load_file(folder / "model.safetensors")
    rows.append(torch.cat([weights[name].flatten().float() for name in sorted(weights)]))
theta = torch.stack(rows)
del rows
theta /= theta.norm(dim=1, keepdim=True)
cosines = theta @ theta.T
print(time.perf_counter() - started, cosines.mean().item(), cosines.max().item())
"""


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the tensors of a two-layer network of 33.56 million weights."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (8 * WIDTH, WIDTH)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}self_attn.{x}_proj.weight": (WIDTH, WIDTH) for x in "qkvo"}
        found[prefix + "mlp.up_proj.weight"] = (4 * WIDTH, WIDTH)
        found[prefix + "mlp.down_proj.weight"] = (WIDTH, 4 * WIDTH)
        found[prefix + "input_layernorm.weight"] = (WIDTH,)
        found[prefix + "post_attention_layernorm.weight"] = (WIDTH,)
    found["model.norm.weight"] = (WIDTH,)
    return found


def make_checkpoints(directory: Path, count: int) -> None:
    """Write a drift with noise whose steps shrink as 0.1 / (1 + k)."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    weights = {n: 0.02 * torch.randn(s, generator=generator) for n, s in shapes().items()}
    drift = {n: 0.02 * torch.randn(s, generator=generator) for n, s in shapes().items()}
    for k in range(count):
        folder = directory / f"step{k}"
        folder.mkdir(parents=True)
        save_file({n: w.half() for n, w in weights.items()}, folder / "model.safetensors")
        for name, values in weights.items():
            noise = 0.02 * torch.randn(values.shape, generator=generator)
            values.add_(drift[name] + noise, alpha=0.1 / (1 + k))


def measured(command: list[str]) -> tuple[str, float, float]:
    """Run a command; return its output, wall seconds, and peak GiB of its largest process."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, *map(resident, family(process.pid)))
        time.sleep(0.02)
    output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{command[:4]} ended with {process.returncode}")
    return output, time.perf_counter() - started, peak / 2**30


def read_seconds(files: list[Path], cores: int) -> float:
    """Return the time of reading all files once, in 256 KiB reads into a buffer that stays."""

    def read(share: int) -> None:
        buffer = memoryview(bytearray(1 << 18))
        for file in files[share::cores]:
            with open(file, "rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    pass

    started = time.perf_counter()
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(read, range(cores)))
    return time.perf_counter() - started


def product_seconds(count: int, numel: int, cores: int) -> float:
    """Return the time of all float32 products u @ u.T, with u in cache: the faster of two libraries."""
    import numpy as np
    import torch
    from threadpoolctl import threadpool_limits

    pieces = -(-numel // PIECE)

    def of_numpy(share: int) -> None:
        rows = np.ones((count, PIECE), np.float32)
        product = np.empty((count, count), np.float32)
        for _ in range(share, pieces, cores):
            np.matmul(rows, rows.T, out=product)

    def of_torch(share: int) -> None:
        rows, product = torch.ones((count, PIECE)), torch.empty((count, count))
        for _ in range(share, pieces, cores):
            torch.mm(rows, rows.T, out=product)

    times = []
    torch.set_num_threads(1)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cores) as pool:
        for work in (of_numpy, of_torch):
            started = time.perf_counter()
            list(pool.map(work, range(cores)))
            times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="hallmarks-benchmark-") as folder:
        suite, store = Path(folder) / "suite", Path(folder) / "store"
        make_checkpoints(suite, options.checkpoints)
        files = sorted(suite.glob("*/model.safetensors"))
        numel = sum(_numel(shape) for shape in shapes().values())
        runs = []
        for _ in range(REPEATS):
            read_seconds(files, cores)  # into the page cache, which the script drives out
            ours = measured(_ours(suite, store))
            bound = read_seconds(files, cores), product_seconds(options.checkpoints, numel, cores)
            script = measured([sys.executable, "-c", SCRIPT, str(suite)])
            runs.append((ours, script, bound))
        found = _summary(runs, options.checkpoints, numel, cores)
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def _ours(suite: Path, store: Path) -> list[str]:
    command = [sys.executable, "-m", "jobs.analyze", str(suite), "--store", str(store)]
    return [*command, "--executor", "local", "--json", "--fresh"]


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _summary(runs: list, count: int, numel: int, cores: int) -> dict:
    ours = [json.loads(run[0][0]) for run in runs]
    scripts = [[float(field) for field in run[1][0].split()] for run in runs]
    seconds = statistics.median(entry["seconds"] for entry in ours)
    script = statistics.median(entry[0] for entry in scripts)
    read = statistics.median(run[2][0] for run in runs)
    product = statistics.median(run[2][1] for run in runs)
    return {
        "machine": f"{cores} cores, {platform.processor() or platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
        "checkpoints": count,
        "weights": numel,
        "hallmarks_seconds": round(seconds, 2),
        "hallmarks_whole_process_seconds": round(statistics.median(run[0][1] for run in runs), 2),
        "hallmarks_peak_gib": round(max(run[0][2] for run in runs), 2),
        "hallmarks_mds": ours[0]["mds"],
        "script_seconds": round(script, 2),
        "script_whole_process_seconds": round(statistics.median(run[1][1] for run in runs), 2),
        "script_peak_gib": round(max(run[1][2] for run in runs), 2),
        "script_mds": scripts[0][1],
        "script_largest_cosine": scripts[0][2],
        "bound_read_seconds": round(read, 2),
        "bound_product_seconds": round(product, 2),
        "times_faster_than_script": round(script / seconds, 2),
        "times_the_bound": round(seconds / (read + product), 2),
    }


if __name__ == "__main__":
    main()
