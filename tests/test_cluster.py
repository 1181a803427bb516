"""A cluster that fails in every way while a job runs: the figures are the same to the bit.

One real Ray of a head and two nodes on this machine, with its health checks made quick before the head
starts. The suite is served slowly, so that there is a middle to fail in.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.errors import StoreUnusable
from pipeline.execute import pool
from pipeline.numerics.partial import TileResult
from pipeline.planning.plan import make_plan
from pipeline.planning.request import Request
from pipeline.results import Summary
from pipeline.store.tiles import TileFolder
from tests.conftest import serving
from tests.hub import Hub
from tests.suites import trajectory, write_suite
from tests.test_bits import everything

pytestmark = [pytest.mark.ray, pytest.mark.timeout(60)]

NAME = "org/walk"
CHECKPOINTS, ELEMENTS = 8, 2_000_000


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """128 MB, in 16 tiles."""
    hub = Hub()
    rows = trajectory("walk", CHECKPOINTS, ELEMENTS, 0.1)
    suite = write_suite(tmp_path_factory.mktemp("walk"), {"a": rows, "b": rows})
    for folder in suite.iterdir():
        hub.repository(NAME).commit_folder(folder, branch=folder.name)
    with serving(hub):
        yield hub


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.planning.tiles.MIN_TILE_BYTES", 1 << 20)


class Nodes:
    """The cluster, and what can be done to it."""

    def __init__(self, cluster: Any, mark: str) -> None:
        """`mark`: in the environment of all that is this cluster's: others may run beside it."""
        self.cluster, self.mark = cluster, mark
        self.address: str = cluster.address
        self.workers = [self.add(), self.add()]

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=4, object_store_memory=80_000_000)

    def whole(self) -> None:
        """Make it two nodes again."""
        alive = [node for node in self.workers if node.any_processes_alive()]
        self.workers = alive + [self.add() for _ in range(2 - len(alive))]
        self.cluster.wait_for_nodes()

    def other(self) -> Any:
        """Return a node that this process, which is the driver, is not connected through."""
        import ray

        own = ray._private.worker._global_node.raylet_socket_name  # no public name tells it
        return next(node for node in self.workers if node.raylet_socket_name != own)

    def lose(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)

    def join_late(self) -> None:
        """Add a node by command: the other way sets a signal's handler, which a thread may not."""
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=4",
            f"--address={self.address}", "--object-store-memory=80000000",
        ]  # fmt: skip
        quiet = subprocess.DEVNULL
        self.late = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)

    def end_late(self) -> None:
        """Kill the node that joined late, with its workers."""
        os.killpg(self.late.pid, signal.SIGKILL)
        self.late.wait()

    @staticmethod
    def raylet(node: Any) -> int:
        return node.all_processes["raylet"][0].process.pid

    def processes(self, of: str) -> list[int]:
        """Return this cluster's workers that run an actor's class or a task."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if (
                    folder.name.isdigit()
                    and (folder / "cmdline").read_bytes().startswith(b"ray::" + of.encode())
                    and self.mark.encode() in (folder / "environ").read_bytes()
                ):
                    found.append(int(folder.name))
        return found

    def actors(self) -> list[int]:
        return self.processes("_Actor")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "initial_delay_ms": "1000", "period_ms": "500", "timeout_ms": "1000",
            "failure_threshold": "3",
        }.items():  # fmt: skip
            patch.setenv(f"RAY_health_check_{name}", value)
        patch.setenv("TEST_CLUSTER", mark := uuid.uuid4().hex)
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            yield Nodes(cluster, mark)
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def undisturbed(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """What the local executor makes of it."""
    store = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.planning.tiles.MIN_TILE_BYTES", 1 << 20)
        pipeline.analyze(NAME, str(store), executor="local", run="r")
    return everything(store)


def analysed(
    hub: Hub, nodes: Nodes, store: Path, trouble: Callable[[], None], **options: Any
) -> Summary:
    """Run the job, and make trouble when a few tiles are done."""
    hub.reset()
    hub.bytes_per_s = 24e6  # five seconds
    over = threading.Event()

    def wait() -> None:
        while len(list(store.glob("_tiles/run=r/*/*.safetensors"))) < 3 and not over.is_set():
            time.sleep(0.02)
        trouble()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        return pipeline.analyze(
            NAME, str(store), run="r", executor="ray", address=nodes.address, memory="200MiB",
            **options,
        )  # fmt: skip
    finally:
        over.set()
        thread.join()
        hub.bytes_per_s = None


def test_nothing_happens(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], tmp_path: Path
) -> None:
    summary = analysed(hub, nodes, tmp_path, lambda: None)
    assert summary.complete and summary.workers == 2
    assert everything(tmp_path) == undisturbed
    assert not [path for path in tmp_path.glob("_tiles/**/*") if path.is_file()]


def test_a_worker_is_killed(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], tmp_path: Path
) -> None:
    summary = analysed(hub, nodes, tmp_path, lambda: os.kill(nodes.actors()[0], signal.SIGKILL))
    assert summary.complete
    assert everything(tmp_path) == undisturbed


def test_a_worker_is_stopped(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Ray does not notice: it is the lack of progress that ends it."""
    monkeypatch.setattr(pool, "NO_PROGRESS_S", 8.0)
    stopped = []

    def stop() -> None:
        stopped.append(nodes.actors()[0])
        os.kill(stopped[0], signal.SIGSTOP)

    summary = analysed(hub, nodes, tmp_path, stop)
    assert summary.complete
    assert everything(tmp_path) == undisturbed
    deadline = time.monotonic() + 20
    while stopped[0] in nodes.actors() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert stopped[0] not in nodes.actors()


def test_a_node_is_lost_with_its_workers_and_another_joins(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], tmp_path: Path
) -> None:
    def lose() -> None:
        nodes.lose(nodes.other())
        nodes.join_late()

    summary = analysed(hub, nodes, tmp_path, lose)
    assert summary.complete
    assert everything(tmp_path) == undisturbed
    nodes.end_late()
    nodes.whole()


@pytest.mark.slow
def test_a_raylet_is_killed_and_its_workers_write_late(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], tmp_path: Path
) -> None:
    gone = []

    def kill() -> None:
        gone.append(nodes.other())
        os.kill(nodes.raylet(gone[0]), signal.SIGKILL)

    summary = analysed(hub, nodes, tmp_path, kill)
    assert summary.complete
    assert everything(tmp_path) == undisturbed
    nodes.lose(gone[0])
    nodes.whole()


@pytest.mark.slow
def test_a_raylet_is_stopped_and_goes_on(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], tmp_path: Path
) -> None:
    stopped = []

    def stop() -> None:
        stopped.append(nodes.other())
        pid = nodes.raylet(stopped[0])
        os.kill(pid, signal.SIGSTOP)
        time.sleep(8)
        os.kill(pid, signal.SIGCONT)

    summary = analysed(hub, nodes, tmp_path, stop)
    assert summary.complete
    assert everything(tmp_path) == undisturbed
    nodes.lose(stopped[0])
    nodes.whole()


class Deadly(TileFolder):
    """A store that kills whoever puts one tile's result."""

    def put(self, tile_name: str, result: TileResult) -> None:
        if tile_name.startswith("000005-"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().put(tile_name, result)


def test_a_tile_that_kills_is_given_up_and_no_other(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.analysis.TileFolder", Deadly)
    summary = analysed(hub, nodes, tmp_path, lambda: None)
    assert not summary.complete
    assert len(summary.lost) == 1 and summary.lost[0].startswith("tile 5: a worker died")
    monkeypatch.setattr("pipeline.analysis.TileFolder", TileFolder)
    summary = analysed(hub, nodes, tmp_path, lambda: None)
    assert summary.complete and summary.resumed_tiles == len(make_plan(Request(NAME))[0].tiles) - 1
    assert everything(tmp_path) == undisturbed


class Elsewhere(TileFolder):
    """A store that lies somewhere else on every node but the driver's."""

    def __reduce__(self) -> Any:
        return _elsewhere, (self._folder.root, self._mark)


def _elsewhere(root: str, mark: str) -> TileFolder:
    from pipeline.store.folder import Folder

    found = TileFolder(Folder(root + "-elsewhere"), "r", "digest")
    found._mark = mark
    return found


def test_a_node_that_does_not_see_the_store_is_named(
    hub: Hub, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.analysis.TileFolder", Elsewhere)
    with pytest.raises(
        StoreUnusable, match=r"^node [\d.]+: --store .* is not the driver's"
    ) as raised:
        analysed(hub, nodes, tmp_path / "store", lambda: None)
    assert raised.value.exit_code == 2
    assert not list((tmp_path / "store").rglob("*.safetensors"))
