"""How a job on a Ray of its own ends, or does not begin: signals, Ray's death, clusters that are not there."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.canary import in_processes
from tests.commands import hallmarks
from tests.conftest import serving
from tests.hub import Hub
from tests.suites import trajectory, write_suite

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

NAME = "org/slow"
SMALL_TILES = "from pipeline.planning import tiles\ntiles.MIN_TILE_BYTES = 1 << 18\n"
IN_ONE = "from jobs.cli import main; main()"
TOKEN = "hf_canaryToken"
KEPT = "finished tiles are kept; rerun the same command to resume"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """16 MB, in 64 tiles."""
    hub = Hub()
    rows = trajectory("walk", 4, 1_000_000, 0.1)
    for folder in write_suite(tmp_path_factory.mktemp("slow"), {"w": rows}).iterdir():
        hub.repository(NAME).commit_folder(folder, branch=folder.name)
    with serving(hub):
        yield hub


@dataclass
class Job:
    """A command that starts a Ray of its own, and all that it starts."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        from huggingface_hub import constants

        self.store = self.folder / "store"
        command = ["analyze", NAME, "--store", str(self.store), "--run", "r", "--memory", "100MB"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SMALL_TILES + IN_ONE, *command],
            env=os.environ | {
                "TEST_JOB": self.mark, "HF_ENDPOINT": constants.ENDPOINT, "HF_TOKEN": TOKEN + self.mark,
            },
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def processes(self, name: str) -> list[int]:
        """Return what it has started by the name of a program."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if (
                    folder.name.isdigit()
                    and (folder / "cmdline").read_bytes().split(b"\0")[0].endswith(name.encode())
                    and self.mark.encode() in (folder / "environ").read_bytes()
                ):
                    found.append(int(folder.name))
        return found

    def wait_for(self, name: str) -> int:
        while not (found := self.processes(name)):
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        return found[0]

    def wait_for_tiles(self, hub: Hub) -> None:
        """Return when some tiles are done, and have the others take their time."""
        hub.bytes_per_s = 4e6
        while len(list(self.store.glob("_tiles/run=r/*/*.safetensors"))) < 2:
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        hub.bytes_per_s = 0.2e6

    def ended(self) -> tuple[int, list[str]]:
        """Return the exit code, and what was printed on standard error but for progress."""
        _, errors = self.process.communicate(timeout=60)
        lines = [line for line in errors.splitlines() if not line.startswith("r: ")]
        return self.process.returncode, [line for line in lines if "B/s, " not in line]


def children(process: int) -> list[int]:
    """Return what a process has started, and is still there."""
    by_threads = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for of_thread in by_threads for child in of_thread.read_text().split()]


@contextlib.contextmanager
def job(folder: Path) -> Iterator[Job]:
    found = Job(folder)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.communicate()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_while_ray_starts(hub: Hub, tmp_path: Path, number: signal.Signals) -> None:
    with job(tmp_path) as started:
        started.wait_for("gcs_server")
        started.process.send_signal(number)
        assert started.ended() == (130, [f"interrupted ({number.name}): {KEPT}"])
        assert not started.store.exists()


def test_two_signals_at_work(hub: Hub, tmp_path: Path) -> None:
    """The second comes while Ray is being shut down, which takes its handlers of signals away.

    And none of Ray's processes has had the user's token, or is put behind other programs.
    """
    with job(tmp_path) as started:
        started.wait_for_tiles(hub)
        workers = children(started.wait_for("raylet"))
        assert {os.getpriority(os.PRIO_PROCESS, worker) for worker in workers} == {
            os.getpriority(os.PRIO_PROCESS, 0)
        }
        holders = in_processes([TOKEN + started.mark], but=[])
        assert holders == [f"/proc/{started.process.pid}/environ"]
        started.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        started.process.send_signal(signal.SIGTERM)
        assert started.ended() == (130, [f"interrupted (SIGTERM): {KEPT}"])


@pytest.mark.parametrize("name", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)])
def test_ray_dies(hub: Hub, tmp_path: Path, name: str) -> None:
    with job(tmp_path) as started:
        started.wait_for_tiles(hub)
        os.kill(started.wait_for(name), signal.SIGKILL)
        code, (first, second) = started.ended()
    assert code == 1
    assert first.startswith(f"error: Ray on this machine died (its {name} ended with -9)")
    assert second == f"hint: {KEPT}"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Exception("The current node timed out during startup. This"), " within 30 s"),
        (PermissionError("/tmp/ray"), ": '/tmp/ray'"),
    ],
)
def test_a_ray_that_does_not_start(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    """As on a machine that is too busy, which cannot be had at will."""

    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr("ray.init", init)
    done = hallmarks("analyze", suite, "--store", tmp_path / "store")
    assert done.returncode == 1
    error_line, hint = done.stderr.splitlines()[-2:]
    assert error_line == f"error: Ray did not start on this machine{told}"
    assert hint == "hint: use --executor local to run without Ray"


def refused(suite: str, store: Path, address: str) -> list[str]:
    done = hallmarks("analyze", suite, "--store", store, "--address", address)
    assert (done.returncode, done.stdout, store.exists()) == (2, "", False), done.stderr
    return done.stderr.splitlines()


@pytest.fixture
def suite(tmp_path: Path) -> str:
    return str(write_suite(tmp_path / "suite", {"w": trajectory("walk", 3, 90, 0.1)}))


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:9", "Connection refused"),
        ("nobody.invalid:6379", "Name or service not known"),
        ("nonsense", "'Invalid address format: nonsense'"),
    ],
)
def test_no_cluster_there(suite: str, tmp_path: Path, address: str, why: str) -> None:
    """Said at once, before Ray knocks for five minutes."""
    error, hint = refused(suite, tmp_path / "store", address)
    assert error.startswith(f"error: no Ray cluster at '{address}': {why}")
    assert hint == "hint: check --address and RAY_ADDRESS, or unset both"


def test_something_else_is_there(suite: str, tmp_path: Path) -> None:
    """It accepts a connection and says nothing: there is an end to the wait."""
    store = tmp_path / "store"
    short = "from pipeline.execute.ray import session\nsession.START_S = 3.0\n"
    with socket.create_server(("", 0)) as server:
        kept: list[socket.socket] = []
        threading.Thread(target=lambda: kept.append(server.accept()[0]), daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        command = ["analyze", suite, "--store", str(store), "--address", address]
        done = subprocess.run(  # Ray goes on knocking for as long as this process lives
            [sys.executable, "-c", short + IN_ONE, *command], capture_output=True, text=True, timeout=100
        )  # fmt: skip
    assert (done.returncode, done.stdout, store.exists()) == (2, "", False), done.stderr
    *_, error, hint = done.stderr.splitlines()
    assert error == f"error: no Ray cluster at '{address}': no answer within 3 s"
    assert hint == "hint: check --address and RAY_ADDRESS, or unset both"
