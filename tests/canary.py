"""Where a secret turned up: in files, in other processes, in what a Ray cluster tells of itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def in_files(needles: Iterable[str], *folders: Path) -> list[str]:
    """Return the files below some folders that hold one of the texts, compressed ones not opened."""
    wanted = [needle.encode() for needle in needles]
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            except OSError:
                continue  # a socket, or gone
            found += [str(path) for needle in wanted if needle in data]
    return found


def in_processes(needles: Iterable[str], but: Iterable[int]) -> list[str]:
    """Return the processes whose environment or command line holds one of the texts."""
    wanted, spared = [needle.encode() for needle in needles], {str(pid) for pid in but}
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or folder.name in spared:
            continue
        for name in ("environ", "cmdline"):
            try:
                data = (folder / name).read_bytes()
            except OSError:
                continue
            found += [f"{folder}/{name}" for needle in wanted if needle in data]
    return found


@dataclass
class Cluster:
    """A Ray cluster of one node, with a dashboard, that asks for a token of its own."""

    folder: Path
    address: str
    dashboard: str
    environment: dict[str, str]

    def answers(self) -> str:
        """Return what the state API and the dashboard tell, as one text."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        told = []
        for path in (
            "api/v0/actors?detail=1", "api/v0/tasks?detail=1", "api/v0/objects?detail=1",
            "api/v0/workers?detail=1", "api/v0/jobs?detail=1", "api/v0/runtime_envs?detail=1",
            "api/v0/cluster_events?detail=1", "api/jobs/", "logical/actors", "nodes?view=details",
            "events", "api/component_activities",
        ):  # fmt: skip
            request = urllib.request.Request(
                f"{self.dashboard}/{path}", headers={"Authorization": f"Bearer {token}"}
            )
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    told.append(answer.read().decode(errors="replace"))
            except OSError as error:
                told.append(f"{path}: {error}")
        return json.dumps(told)

    def metrics(self) -> str:
        """Return what the node tells Prometheus."""
        found = json.loads((self.folder / "prom_metrics_service_discovery.json").read_text())
        told = ""
        for target in {target for entry in found for target in entry["targets"]}:
            with contextlib.suppress(OSError):
                told += (
                    urllib.request.urlopen(f"http://{target}/metrics", timeout=9).read().decode()
                )
        return told

    def actors(self) -> list[int]:
        """Return the processes that are workers of a job of ours."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    command = (folder / "cmdline").read_bytes()
                    own = str(self.folder).encode() in (folder / "environ").read_bytes()
                except OSError:
                    continue
                if own and command.startswith(b"ray::WorkerActor"):
                    found.append(int(folder.name))
        return found

    def fill_object_store(self) -> subprocess.Popen[bytes]:
        """Put three times what the store holds into it: everything in it is spilled to disk."""
        script = (
            "import ray, numpy, sys, time\n"
            f"ray.init(address={self.address!r}, log_to_driver=False)\n"
            "kept = [ray.put(numpy.ones(20_000_000, numpy.uint8)) for _ in range(12)]\n"
            "print('full', flush=True)\n"
            "sys.stdin.read()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script], env=self.environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        assert b"full" in process.stdout.readline()
        return process

    def spilled(self) -> list[Path]:
        """Return the files that the object store was spilled to."""
        return [p for p in self.folder.rglob("*spill*/*") if p.is_file()]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def cluster(python: str = sys.executable) -> Iterator[Cluster]:
    """Start a cluster from a Python's Ray, and end it with all its processes."""
    folder = Path(tempfile.mkdtemp(prefix="hm-", dir="/tmp"))  # a socket's path has 107 characters
    token = folder / "token"
    token.write_text(os.urandom(32).hex())
    # an agent that finds its usual port taken, by a cluster that just ended, takes no jobs
    port, agent = free_port(), free_port()
    environment = os.environ | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "500",
    }  # fmt: skip
    command = [
        str(Path(python).parent / "ray"), "start", "--head", "--block", "--port=0",
        "--include-dashboard=true", f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={agent}", "--num-cpus=2",
        "--object-store-memory=80000000", f"--temp-dir={folder}",
    ]  # fmt: skip
    output = folder / "start"
    with output.open("wb") as file:
        head = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while "will now block" not in output.read_text():
            assert head.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
        address = (folder / "ray_current_cluster").read_text()
        yield Cluster(folder, address, f"http://127.0.0.1:{port}", environment)
    finally:
        _end(head)
        subprocess.run(["rm", "-rf", str(folder)], check=False)


def _end(head: subprocess.Popen[bytes]) -> None:
    """Kill whatever runs of a cluster: all of it is in one session, whatever it calls itself.

    Agents outlive their raylet and take a core each.
    """
    os.killpg(head.pid, signal.SIGKILL)
    head.wait()
    for _ in range(50):
        there = [int(folder.name) for folder in Path("/proc").iterdir() if _is_of(head.pid, folder)]
        if not there:
            return
        for pid in there:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _is_of(session: int, process: Path) -> bool:
    """Return whether a folder of /proc is a living process of a session (proc(5): the sixth field)."""
    try:
        state, _, _, own, *_ = (process / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return False
    return int(own) == session and state != "Z"
