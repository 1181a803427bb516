"""The user's token and the signatures of addresses: nowhere but in the processes that need them.

A job on a real cluster, with faults, a worker that is killed, and an object store so full that all
of it is spilled to disk; then every place is searched where Ray or we could have left a secret.
`make test-all` also removes the protections one by one: the search must find what then leaks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pipeline
from tests import canary
from tests.canary import Cluster
from tests.conftest import serving
from tests.hub import Fault, Hub
from tests.suites import trajectory, write_suite
from tests.test_bits import everything

pytestmark = pytest.mark.ray

NAME = "org/secret"
TOKEN = "hf_" + "canaryToken" * 3
SIGNATURE = "canarySignature"
CHECKPOINTS = 40


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with canary.cluster() as found:
        yield found


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A private suite of 256 MB, four tiles; addresses of more than 3,000 characters."""
    hub = Hub()
    hub.token, hub.marker = TOKEN, SIGNATURE * 200
    rows = trajectory("walk", CHECKPOINTS, 800_000, 0.1)
    suite = write_suite(tmp_path_factory.mktemp("secret"), {"a": rows, "b": rows})
    for folder in suite.iterdir():
        hub.repository(NAME, private=True).commit_folder(folder, branch=folder.name)
    with serving(hub):
        yield hub


@dataclass
class Job:
    """What a job left and told."""

    code: int
    output: str
    leaks: list[str]
    seen: bool
    """A worker was killed, the object store was spilled, and Ray told of the job's tasks."""


def analysed(hub: Hub, cluster: Cluster, folder: Path, *leak: str, pull: str = "actor") -> Job:
    """Run the job through all that can go wrong, and search for secrets meanwhile and after."""
    from huggingface_hub import constants

    hub.reset()
    hub.bytes_per_s = 40e6
    for fault in (
        Fault("status", status=403, probability=0.02),
        Fault("reset", after_share=0.5, probability=0.02),
        Fault("status", status=503, headers={"Retry_After": "0"}, probability=0.02),
    ):
        hub.faults.add(fault)
    secrets = (TOKEN, SIGNATURE)
    home, store, cache = folder / "home", folder / "store", folder / "cache"
    program = ["-m", "tests.leaky", *leak] if leak else ["-m", "jobs.analyze"]
    command = [sys.executable, *program, NAME, "--store", str(store), "--run", "r"]
    command += ["--address", cluster.address, "--memory", "300MiB", "--json", "--debug"]
    command += ["--pull", pull]
    log = folder / "output"
    with log.open("wb") as file:
        job = subprocess.Popen(
            command, stdout=file, stderr=file,
            env=cluster.environment | {
                "HF_ENDPOINT": constants.ENDPOINT, "HF_TOKEN": TOKEN, "HF_HOME": str(home),
                "XDG_CACHE_HOME": str(cache),
            },
        )  # fmt: skip
    leaks: list[str] = []
    while hub.count("cdn") < 2 * CHECKPOINTS and job.poll() is None:
        time.sleep(0.02)
    hub.bytes_per_s = 4e6  # it is not over before all of this has happened
    presser = cluster.fill_object_store()
    killed = cluster.actors()[:1]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    hub.bytes_per_s = 40e6
    while job.poll() is None:
        leaks += canary.in_processes(secrets, but=[job.pid])
        time.sleep(0.3)
    answers = cluster.answers()
    leaks += [f"the dashboard: {secret}" for secret in secrets if secret in answers]
    leaks += canary.in_files(secrets, cluster.folder, folder)
    spilled = cluster.spilled()
    presser.communicate()
    seen = bool(killed and spilled and ("WorkerActor." in answers or "_pull" in answers))
    return Job(job.returncode, log.read_text(), leaks, seen)


@pytest.mark.parametrize("pull", ["actor", pytest.param("tasks", marks=pytest.mark.slow)])
def test_no_secret_leaves_the_driver(hub: Hub, cluster: Cluster, tmp_path: Path, pull: str) -> None:
    job = analysed(hub, cluster, tmp_path, pull=pull)
    assert job.code == 0, job.output
    assert not job.leaks and job.seen
    actions = {fault.action for fault, _ in hub.faults.applied}
    assert actions == {"status", "reset"}
    assert not any(record.authorized for record in hub.records if record.kind == "cdn")
    summary = json.loads(job.output.splitlines()[-1])
    assert summary["executor"] == "ray" and summary["complete"]
    hub.bytes_per_s = None
    hub.faults.clear()
    os.environ["HF_TOKEN"] = TOKEN
    try:
        pipeline.analyze(NAME, str(tmp_path / "quiet"), executor="local", run="r")
    finally:
        del os.environ["HF_TOKEN"]
    assert everything(tmp_path / "store") == everything(tmp_path / "quiet")


@pytest.mark.slow
@pytest.mark.parametrize("leak", ["object_store", "environment", "quoted_errors"])
def test_the_search_finds_what_leaks(hub: Hub, cluster: Cluster, tmp_path: Path, leak: str) -> None:
    """Each protection taken away by itself (tests/leaky.py)."""
    assert analysed(hub, cluster, tmp_path, leak).leaks
