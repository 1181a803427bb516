"""`ray job submit`, as users do it: against a cluster that asks for a token, from this checkout."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pipeline
from tests import canary
from tests.canary import Cluster
from tests.conftest import serving
from tests.hub import Hub
from tests.suites import trajectory, write_suite
from tests.test_bits import everything

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parent.parent
NAME = "org/submitted"
DASHBOARD = ROOT / "infra/grafana/hallmarks.json"
ONLY_IN_TROUBLE = {
    f"ray_hallmarks_{name}_total" for name in ("tiles_failed", "retries", "rate_limited_seconds")
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """200 MB, in three tiles."""
    hub = Hub()
    rows = trajectory("walk", 20, 1_250_000, 0.1)
    suite = write_suite(tmp_path_factory.mktemp("submitted"), {"a": rows, "b": rows})
    for folder in suite.iterdir():
        hub.repository(NAME).commit_folder(folder, branch=folder.name)
    with serving(hub):
        yield hub


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with canary.cluster() as found:
        yield found


@dataclass
class Submitted:
    """A job, seen through Ray's REST interface: its command takes two seconds to start."""

    cluster: Cluster
    id: str

    @property
    def about(self) -> dict[str, Any]:
        return self._asked("")

    def logs(self) -> str:
        return self._asked("/logs")["logs"]

    def _asked(self, path: str) -> dict[str, Any]:
        token = Path(self.cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        request = urllib.request.Request(
            f"{self.cluster.dashboard}/api/jobs/{self.id}{path}",
            headers={"Authorization": f"Bearer {token}"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return what is known of it when it has ended."""
        while (about := self.about)["status"] in ("PENDING", "RUNNING"):
            meanwhile()
            time.sleep(0.2)
        return about


def ray_job(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).parent / "ray")
    return subprocess.run(
        [program, "job", arguments[0], f"--address={cluster.dashboard}", *arguments[1:]],
        env=cluster.environment | {"RAY_AUTH_MODE": "token"},
        cwd=ROOT, capture_output=True, text=True, timeout=110,
    )  # fmt: skip


def submit(cluster: Cluster, home: Path, *arguments: str) -> Submitted:
    """Submit `jobs.analyze` to a cluster that has the program, and have it ask the Hub fixture."""
    from huggingface_hub import constants

    variables = {
        "HF_ENDPOINT": constants.ENDPOINT, "HF_HOME": str(home), "XDG_CACHE_HOME": str(home),
    }  # fmt: skip
    environment = f"--runtime-env-json={json.dumps({'env_vars': variables})}"
    return submitted(cluster, environment, sys.executable, "-m", "jobs.analyze", *arguments)


def submitted(cluster: Cluster, environment: str, *entrypoint: str) -> Submitted:
    """Submit a command with the checkout as the working directory."""
    for _ in range(30):
        done = ray_job(
            cluster, "submit", "--working-dir=.", "--no-wait", environment, "--", *entrypoint
        )
        if "No available agent" not in done.stderr:
            break
        time.sleep(1)  # the cluster has just started
    assert done.returncode == 0, done.stderr
    (name,) = set(re.findall(r"raysubmit_\w+", done.stdout))
    return Submitted(cluster, name)


def test_a_submitted_job(hub: Hub, cluster: Cluster, tmp_path: Path) -> None:
    """Stopped first: `ray job stop` leaves three seconds, and the same command goes on.

    The summary is its last line, its log can be read, its figures are those of any executor. And every
    metric that the dashboard draws is there for Prometheus.
    """
    store = tmp_path / "store"
    arguments = [NAME, "--store", str(store), "--run", "r", "--json"]
    stop_half_way(hub, cluster, tmp_path, arguments)
    job = submit(cluster, tmp_path, *arguments)
    told = []  # while it runs: a worker's gauges go with it
    about = job.wait(lambda: told.append(cluster.metrics()))
    logs = ray_job(cluster, "logs", job.id).stdout
    assert about["status"] == "SUCCEEDED" and about["driver_exit_code"] == 0, logs
    drawn = set(re.findall(r"ray_hallmarks_\w+", DASHBOARD.read_text()))
    missing = {name for name in drawn if not any(name in each for each in told)}
    assert len(drawn) == 8 and missing <= ONLY_IN_TROUBLE, missing
    summary = json.loads(logs.strip().splitlines()[-1])
    assert summary["executor"] == "ray" and summary["complete"]
    assert summary["resumed_tiles"] >= 1
    assert "\r" not in logs and "Traceback" not in logs
    pipeline.analyze(NAME, str(tmp_path / "local"), executor="local", run="r")
    assert everything(store) == everything(tmp_path / "local")


def stop_half_way(hub: Hub, cluster: Cluster, home: Path, arguments: list[str]) -> None:
    """Submit a job, stop it when it has a tile, and see it end by itself."""
    store = home / "store"
    hub.bytes_per_s = 60e6
    try:
        job = submit(cluster, home, *arguments)
        while not list(store.glob("_tiles/run=r/*/*.safetensors")):
            assert job.about["status"] in ("PENDING", "RUNNING"), job.logs()
            time.sleep(0.05)
        hub.bytes_per_s = 1e6  # it is not over before the command is there
        stopped = ray_job(cluster, "stop", job.id)
        assert stopped.returncode == 0, stopped.stderr
        logs = job.logs()
    finally:
        hub.bytes_per_s = None
    assert "interrupted (SIGTERM): finished tiles are kept" in logs
    assert "Traceback" not in logs
    assert job.wait()["status"] == "STOPPED"
    lease = json.loads((store / "_leases/run=r/0000000001").read_text())
    assert lease["released"], (
        "it ended by itself, not by the SIGKILL that comes after three seconds"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([NAME], "--store hallmarks-store is relative"),
        (["org/absent", "--store", "/x"], "no such repository"),
        ([NAME, "--store", "/x", "--address", "http://there"], "submit a job"),
    ],
)
@pytest.mark.slow
def test_wrong_requests_have_their_code(
    hub: Hub, cluster: Cluster, tmp_path: Path, arguments: list[str], message: str
) -> None:
    del hub
    job = submit(cluster, tmp_path, *arguments)
    about, logs = job.wait(), job.logs()
    assert about["status"] == "FAILED" and about["driver_exit_code"] == 2
    assert f"error: {message}" in logs or message in logs
    assert "hint: " in logs and "Traceback" not in logs


@pytest.mark.slow
def test_the_line_is_alone_whatever_happens(hub: Hub, cluster: Cluster, tmp_path: Path) -> None:
    """A worker is killed half-way: what Ray has to say about it is not on standard output."""
    from huggingface_hub import constants

    command = [sys.executable, "-m", "jobs.analyze", NAME, "--store", str(tmp_path / "store")]
    hub.reset()
    hub.bytes_per_s = 60e6
    try:
        job = subprocess.Popen(
            [*command, "--run", "r", "--address", cluster.address, "--json"],
            env=cluster.environment | {"HF_ENDPOINT": constants.ENDPOINT},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while hub.count("cdn") < 50 and job.poll() is None:
            time.sleep(0.02)
        for pid in cluster.actors():
            os.kill(pid, signal.SIGKILL)
        output, errors = job.communicate(timeout=100)
    finally:
        hub.bytes_per_s = None
    assert job.returncode == 0, errors
    assert output.count("\n") == 1 and json.loads(output)["complete"]
