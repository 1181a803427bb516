"""A suite that exists nowhere, at full size: Pythia-410m × 154 (125 GB) and Pythia-12B × 154 (3.6 TB).

    PYTHONPATH=. python benchmarks/virtual_suite.py [410m] [12b] [--scale 1.0] [--json FILE]

The tests' Hub (tests/hub) serves both from a generator (`benchmarks/virtual.py`) in a process of its own, without
TLS, on the same cores as the job. 410m is read as a whole, 12b with `--fraction 0.005`; both through a Ray of the
job's own, one of whose workers is killed when a third has been sent. Reported: seconds, bytes, requests, the
server's share of the CPUs, peak memory (RssAnon + RssShmem) of driver and workers, the worst error of cosines and
relative cosines against the truth, and of the sample how many of its intervals of 1.96 standard errors hold the
truth. `--scale` takes that share of the checkpoints and of the layers, to try it out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.contestants import Measured, kind_of, measured
from benchmarks.markdown import table
from benchmarks.truth import compared
from benchmarks.virtual import NETWORKS, STEPS, Blocks, File, Network, shards, tensors
from tests.hub import Hub, Record

OPTIONS = {"410m": (), "12b": ("--fraction", "0.005")}
KILLED_AFTER = 1 / 3
"""Of the bytes."""
_ASKED_EVERY_S = 1.0


class CountingHub(Hub):
    """Counts requests, of which there are too many to keep."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: Counter[str] = Counter()
        self.sent = 0

    def note(self, record: Record) -> None:
        with self._lock:
            self.requests[f"{record.kind} {record.status}"] += 1
            if record.kind == "cdn" and record.range:
                self.sent += record.range[1] - record.range[0]


def _serve(network: Network, steps: list[int], pipe: Any) -> None:
    """Serve until the pipe ends; answer every message with what was done so far."""
    hub, blocks = CountingHub(), Blocks(steps)
    repository = hub.repository(network.name)
    files = shards(network, tensors(network))
    index = {tensor.name: name for name, shard in files.items() for tensor in shard.tensors}
    for step, row in zip(steps, blocks.rows, strict=True):
        contents: dict[str, Any] = {"config.json": json.dumps(network.config).encode()}
        if len(files) > 1:
            text = json.dumps({"metadata": {}, "weight_map": index})
            contents["model.safetensors.index.json"] = text.encode()
        contents |= {name: File(shard, row, f"{step} {name}") for name, shard in files.items()}
        for branch in (f"step{step}", *(["main"] if step == steps[-1] else [])):
            repository.commit(contents, branch)
    with hub.serve() as endpoint:
        pipe.send(endpoint)
        while True:
            try:
                pipe.recv()
            except EOFError:
                return
            pipe.send((dict(hub.requests), hub.sent, time.process_time()))


@contextmanager
def served(network: Network, steps: list[int]) -> Iterator[tuple[str, Any]]:
    """Serve a network's checkpoints; yield the endpoint, and the pipe to ask for counts."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(network, steps, there), daemon=True)
    process.start()
    there.close()
    try:
        yield here.recv(), here
    finally:
        here.close()
        process.join()


class Killer:
    """Kills one worker, once so many bytes were sent."""

    def __init__(self, pipe: Any, after: float) -> None:
        self._pipe, self._after, self._asked = pipe, after, 0.0
        self.killed: int | None = None

    def __call__(self, processes: Mapping[int, tuple[str, int]]) -> None:
        if self.killed is not None or time.monotonic() < self._asked + _ASKED_EVERY_S:
            return
        self._asked = time.monotonic()
        self._pipe.send(None)
        workers = [pid for pid, (title, _) in processes.items() if kind_of(title) == "worker"]
        if self._pipe.recv()[1] >= self._after and workers:
            self.killed = workers[0]
            os.kill(self.killed, signal.SIGKILL)


def analyzed(network: Network, steps: list[int], *options: str) -> dict[str, Any]:
    """Run the job, with a worker killed on the way; return what it took, and how true it is."""
    with tempfile.TemporaryDirectory(prefix="hallmarks-virtual-") as folder:
        store = Path(folder) / "store"
        with served(network, steps) as (endpoint, pipe):
            environment = {
                "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": folder,
                "XDG_CACHE_HOME": folder, "NO_PROXY": "localhost,127.0.0.1",
            }  # fmt: skip
            job = [network.name, "--revisions", "step*", *options]
            planned = measured(
                [sys.executable, "-m", "jobs.plan", *job, "--json"], environment=environment
            )
            plan = json.loads(planned.output)
            pipe.send(None)
            before = pipe.recv()
            killer = Killer(pipe, before[1] + KILLED_AFTER * plan["bytes_to_read"])
            command = [sys.executable, "-m", "jobs.analyze", *job, "--store", str(store), "--json"]
            run = measured(command, environment=environment, meanwhile=killer)
            pipe.send(None)
            after = pipe.recv()
        summary = json.loads(run.output.splitlines()[-1])
        cores = len(os.sched_getaffinity(0))
        requests = Counter(after[0]) - Counter(before[0])
        return {
            "network": network.name,
            "checkpoints": len(steps),
            "options": " ".join(options),
            "bytes_total": plan["bytes_total"],
            "bytes_read": summary["bytes_read"],
            "bytes_sent": after[1] - before[1],
            "plan_seconds": round(planned.seconds, 1),
            "seconds": round(summary["seconds"], 1),
            "process_seconds": round(run.seconds, 1),
            "megabytes_per_s": round(summary["bytes_read"] / summary["seconds"] / 1e6, 1),
            "requests": dict(requests),
            "servers_share_of_the_cpus": round((after[2] - before[2]) / run.seconds / cores, 3),
            "worker_killed": killer.killed is not None,
            "complete": summary["complete"],
            "tiles": plan["tiles"],
            "projected_bytes": plan["memory"]["projected"] + plan["memory"]["idle"],
            "peak_bytes": _peaks(run),
            **compared(store, network, Blocks(steps), steps),
        }


def _peaks(run: Measured) -> dict[str, int]:
    peaks: dict[str, int] = {}
    for title, peak in run.peaks.values():
        peaks[kind_of(title)] = max(peak, peaks.get(kind_of(title), 0))
    return peaks


def scaled(network: Network, scale: float) -> tuple[Network, list[int]]:
    """Return a share of the layers, and of the steps, the first and the last among them."""
    count = max(4, round(len(STEPS) * scale))
    chosen = {round(n * (len(STEPS) - 1) / (count - 1)) for n in range(count)}
    layers = max(1, round(network.layers * scale))
    return replace(network, layers=layers), [STEPS[number] for number in sorted(chosen)]


def markdown(found: list[dict[str, Any]]) -> str:
    """Return what was measured as a table, a column for each network."""
    rows = [
        [name, *(_shown(name, entry.get(name, "–")) for entry in found)]
        for name in dict.fromkeys(name for entry in found for name in entry)
    ]
    return table(["", *(entry["network"] for entry in found)], rows[1:])


def _shown(name: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{each} {_shown(name, number)}" for each, number in value.items())
    if isinstance(value, float):
        return f"{value:.3g}" if "error" in name else f"{value:,}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value / 2**20:,.0f} MiB" if name.endswith("_bytes") else f"{value:,}"
    return str(value)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    for name in options.networks or NETWORKS:
        network, steps = scaled(NETWORKS[name], options.scale)
        found.append(analyzed(network, steps, *OPTIONS[name]))
        if options.json:
            options.json.write_text(json.dumps(found, indent=2) + "\n")
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    print(markdown(found))


if __name__ == "__main__":
    main()
