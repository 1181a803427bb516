"""Programs under measurement: each a process of its own, its memory watched from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory import family, resident

HERE = Path(__file__).parent.parent
_EVERY_S = 0.02

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
"""What people write: one matrix, of the whole model. It is timed from after its imports."""

_RAYS_START = """
import time
started = time.perf_counter()
import ray
ray.init(address="local", include_dashboard=False, log_to_driver=False)
class Worker:
    def __init__(self):
        import pipeline.execute.work.worker
    def ready(self):
        return True
ray.get(ray.remote(Worker).remote().ready.remote())
print(time.perf_counter() - started)
ray.shutdown()
"""


@dataclass(frozen=True)
class Measured:
    """One run of a program."""

    output: str
    seconds: float
    """Of the whole process."""
    peaks: Mapping[int, tuple[str, int]]
    """Of each process that belonged to it: what it was and its RssAnon + RssShmem at most, in bytes."""

    @property
    def peak(self) -> int:
        """Of the largest process."""
        return max(peak for _, peak in self.peaks.values())


def measured(
    command: Sequence[str],
    checkout: Path = HERE,
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[[Mapping[int, tuple[str, int]]], None] | None = None,
) -> Measured:
    """Run a command to its end, in a checkout, whose sources Python then finds first.

    Args:
        meanwhile: called again and again with the peaks so far of processes that are still there.

    Raises:
        SystemExit: it failed; its last words are shown.
    """
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=printed, stderr=errors, text=True,  # a pipe that nobody reads fills up
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)} | dict(environment or {}),
        )  # fmt: skip
        peaks: dict[int, tuple[str, int]] = {}
        while process.poll() is None:
            alive = family(process.pid)
            for pid in alive:
                peaks[pid] = _titled(pid, *peaks.get(pid, ("", 0)))
            if meanwhile is not None:
                meanwhile({pid: peaks[pid] for pid in alive})
            time.sleep(_EVERY_S)
        seconds = time.perf_counter() - started
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{command[:6]}: {process.returncode}\n{errors.read()[-2000:]}")
        printed.seek(0)
        output = printed.read()
    return Measured(output, seconds, peaks)


def _titled(pid: int, title: str, peak: int) -> tuple[str, int]:
    try:  # Ray's workers change theirs
        now = (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        now = title
    return now or title, max(peak, resident(pid))


def kind_of(title: str) -> str:
    """Return what a process of a job is, by its command line: driver, worker or one of Ray's own."""
    if "jobs.analyze" in title:
        return "driver"
    idle = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
    return "worker" if title.startswith("ray::") and not title.startswith(idle) else "Ray's own"


def hallmarks(
    suite: Path, store: Path, *options: str, checkout: Path = HERE
) -> tuple[dict[str, Any], Measured]:
    """Run `hallmarks analyze` of a checkout from nothing; return its summary, and what it took."""
    command = [sys.executable, "-m", "jobs.analyze", str(suite), "--store", str(store)]
    executor = () if "--executor" in options else ("--executor", "local")
    run = measured([*command, *executor, *options, "--json", "--fresh"], checkout)
    return json.loads(run.output.splitlines()[-1]), run


def plan(suite: Path, *options: str) -> dict[str, Any] | None:
    """Return what `hallmarks plan --json` says, or None where it does not fit."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.plan", str(suite), "--json", *options],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=HERE,
        env=os.environ | {"PYTHONPATH": str(HERE)},
    )  # fmt: skip
    if done.returncode not in (0, 2):
        raise SystemExit(f"plan {suite} {options}: {done.returncode}")
    return None if done.returncode else json.loads(done.stdout)


def script(suite: Path) -> tuple[float, float, Measured]:
    """Run the script that people write; return its seconds, its largest cosine, and what it took."""
    run = measured([sys.executable, "-c", SCRIPT, str(suite)])
    seconds, _, largest = map(float, run.output.split())
    return seconds, largest, run


def script_bytes(checkpoints: int, numel: int) -> int:
    """Return what the script needs: all rows in float32, and their stack."""
    return 2 * 4 * checkpoints * numel


def rays_own_start() -> float:
    """Return the seconds from before Ray's import to a worker, imports done, on a Ray of its own."""
    as_jobs_do = {"RAY_worker_niceness": "0"}
    return float(measured([sys.executable, "-c", _RAYS_START], environment=as_jobs_do).output)
