"""How much sooner is an estimate there than the exact figures?

    PYTHONPATH=. python benchmarks/estimate.py [--fraction 0.02] [--megabytes-per-s 200]

The first suite of `suites.py` (33.5 million float16 weights a checkpoint) as branches of a Hub
repository, served from memory on loopback by a process of its own (tests/hub), on the same cores as
the job. The whole run and the estimate take turns, each a process of its own, three times; medians.
Bytes are what the server really sent; headers are known from a first run that does not count.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.suites import SUITES

NAME = "org/suite"
REPEATS = 3
SHOWN = ("mds", "relative_mds", "mds_stderr", "relative_mds_stderr")


def serve(count: int, megabytes_per_s: float | None, pipe: Any) -> None:
    """Serve the suite, as fast as it goes or as over a link; answer every message with the bytes sent since the last one."""
    from tests.hub import Hub

    hub = Hub()
    hub.bytes_per_s = megabytes_per_s and 1e6 * megabytes_per_s
    with tempfile.TemporaryDirectory(prefix="hallmarks-estimate-") as folder:
        SUITES["large"].at(checkpoints=count).write(Path(folder))
        for k in range(count):
            data = (Path(folder) / f"step{k}" / "model.safetensors").read_bytes()
            hub.repository(NAME).commit({"model.safetensors": data}, branch=f"step{k}")
    with hub.serve() as endpoint:
        pipe.send(endpoint)
        while pipe.recv():
            spans = [
                record.range for record in hub.records if record.kind == "cdn" and record.range
            ]
            pipe.send((len(spans), sum(stop - start for start, stop in spans)))
            hub.reset()


def analyzed(folder: str, pipe: Any, *options: str) -> dict[str, Any]:
    """Run the job from nothing; return its summary, with the time of all, ranges and bytes sent."""
    store = f"{folder}/store"
    command = [sys.executable, "-m", "jobs.analyze", f"hf://{NAME}", "--store", store, "--fresh"]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--executor", "local", "--json", *options],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    pipe.send("counted")
    ranges, sent = pipe.recv()
    found = json.loads(done.stdout)
    return found | {"process_seconds": seconds, "ranges": ranges, "sent": sent}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=int, default=64)
    parser.add_argument("--fraction", type=float, default=0.02)
    parser.add_argument("--megabytes-per-s", type=float)
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    arguments = (options.checkpoints, options.megabytes_per_s, there)
    server = context.Process(target=serve, args=arguments, daemon=True)
    server.start()
    os.environ["HF_ENDPOINT"] = here.recv()
    runs = []
    with tempfile.TemporaryDirectory(prefix="hallmarks-estimate-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # planning learns the headers once, for both
        analyzed(folder, here, "--fraction", str(options.fraction))
        for _ in range(REPEATS):
            whole = analyzed(folder, here)
            runs.append((whole, analyzed(folder, here, "--fraction", str(options.fraction))))
    here.send("")
    server.join()
    print(
        f"link: {options.megabytes_per_s or 'unlimited'} MB/s\n\n| | every weight | sample |\n|---|---|---|"
    )
    for key in ("seconds", "process_seconds", "bytes_read", "sent", "ranges", "fraction"):
        whole, sample = (statistics.median(run[which][key] for run in runs) for which in (0, 1))
        print(f"| {key} | {whole:.4g} | {sample:.4g} |")
    for key in SHOWN:
        print(f"| {key} | {runs[0][0][key]:.6g} | {runs[0][1][key]:.2g} |" if "stderr" in key
              else f"| {key} | {runs[0][0][key]:.6f} | {runs[0][1][key]:.6f} |")  # fmt: skip
    for key in ("seconds", "sent"):
        ratio = statistics.median(sample[key] / whole[key] for whole, sample in runs)
        print(f"\n{key}, sample over whole: {ratio:.3f}")


if __name__ == "__main__":
    main()
