"""A cluster that fails in every way while a job runs: the figures are the same to the bit.

One real Ray of a head and two nodes on this machine, with its health checks made quick before the head
starts. The suite is served slowly, so that there is a middle to fail in. The store is a directory, or
on object storage.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.errors import Interrupted, StoreUnusable
from pipeline.execute.drive import loop
from pipeline.job import snapshots
from pipeline.job.summary import Summary
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request
from pipeline.statistics.parts import Sums
from pipeline.statistics.statistic import ArraySpec
from pipeline.store.folder import Folder
from pipeline.store.tiles import TileFolder
from tests import buckets
from tests.conftest import serving
from tests.hub import Hub
from tests.nodes import Nodes, two_nodes
from tests.suites import trajectory, write_suite
from tests.test_bits import everything
from tests.test_status import told

pytestmark = pytest.mark.ray

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


@pytest.fixture(scope="module", autouse=True)
def bucket() -> Iterator[str]:
    """Object storage, for this process and those that it starts: nodes, too."""
    with buckets.served() as endpoint, pytest.MonkeyPatch.context() as patch:
        yield buckets.named("cluster", endpoint, patch)


@pytest.fixture
def store(bucket: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that is not there yet: in a directory, unless the test asks for a bucket."""
    kind = getattr(request, "param", "directory")
    return f"{bucket}/{tmp_path.name}" if kind == "bucket" else str(tmp_path / "store")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as found:
        yield found


@pytest.fixture(autouse=True)
def whole(nodes: Nodes) -> Iterator[None]:
    """Leave two sound nodes to the next test."""
    yield
    nodes.whole()


@pytest.fixture(scope="module")
def undisturbed(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """What the local executor makes of it."""
    store = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.planning.tiles.MIN_TILE_BYTES", 1 << 20)
        pipeline.analyze(NAME, str(store), executor="local", run="r")
    return everything(store)


Trouble = Callable[[Nodes], None]


def tiles(store: str) -> list[str]:
    """Return what is kept of a run that is not complete."""
    return [path for path in Folder(store).list("_tiles") if path.endswith(".safetensors")]


def analysed(
    hub: Hub, nodes: Nodes, store: str, trouble: Trouble | None = None, **options: Any
) -> Summary:
    """Run the job, and make trouble when a few tiles are done."""
    hub.reset()
    over = threading.Event()

    def wait() -> None:
        while len(tiles(store)) < 3 and not over.is_set():
            time.sleep(0.02)
        assert not over.is_set(), "the job was over before there was trouble"
        trouble(nodes)

    thread = threading.Thread(target=wait)
    if trouble:
        hub.bytes_per_s = 24e6  # five seconds
        thread.start()
    try:
        return pipeline.analyze(
            NAME, store, run="r", executor="ray", address=nodes.address, memory="200MiB", **options
        )
    finally:
        over.set()
        if trouble:
            thread.join()
        hub.bytes_per_s = None


@pytest.mark.parametrize("pull", ["actor", "tasks"])
def test_nothing_happens(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], store: str, pull: str
) -> None:
    summary = analysed(hub, nodes, store, pull=pull)
    assert summary.complete and summary.workers == 2
    assert everything(store) == undisturbed
    assert Folder(store).list("_tiles") == []


def a_worker_is_killed(nodes: Nodes) -> None:
    os.kill(nodes.actors()[0], signal.SIGKILL)


def a_node_is_lost_with_its_workers_and_another_joins(nodes: Nodes) -> None:
    nodes.lose(nodes.other())
    nodes.join_late()


def a_raylet_is_killed_and_its_workers_write_late(nodes: Nodes) -> None:
    nodes.hurt.append(nodes.other())
    os.kill(nodes.raylet(nodes.hurt[0]), signal.SIGKILL)


def a_raylet_is_stopped_and_goes_on(nodes: Nodes) -> None:
    nodes.hurt.append(nodes.other())
    pid = nodes.raylet(nodes.hurt[0])
    os.kill(pid, signal.SIGSTOP)
    time.sleep(8)
    os.kill(pid, signal.SIGCONT)


TROUBLES = (
    a_worker_is_killed,
    a_node_is_lost_with_its_workers_and_another_joins,
    a_raylet_is_killed_and_its_workers_write_late,
    a_raylet_is_stopped_and_goes_on,
)
QUICK = (
    (a_worker_is_killed, "bucket"),
    (a_node_is_lost_with_its_workers_and_another_joins, "directory"),
)


@pytest.mark.parametrize(
    ("trouble", "store"),
    [
        pytest.param(trouble, kind, marks=[] if (trouble, kind) in QUICK else pytest.mark.slow)
        for trouble in TROUBLES
        for kind in ("directory", "bucket")
    ],
    indirect=["store"],
)
def test_when(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], store: str, trouble: Trouble
) -> None:
    summary = analysed(hub, nodes, store, trouble)
    assert summary.complete
    assert everything(store) == undisturbed


def test_a_worker_is_stopped(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Ray does not notice: it is the lack of progress that ends it."""
    monkeypatch.setattr(loop, "NO_PROGRESS_S", 8.0)
    stopped = []

    def stop(nodes: Nodes) -> None:
        stopped.append(nodes.actors()[0])
        os.kill(stopped[0], signal.SIGSTOP)

    summary = analysed(hub, nodes, store, stop)
    assert summary.complete
    assert everything(store) == undisturbed
    deadline = time.monotonic() + 20
    while stopped[0] in nodes.actors() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert stopped[0] not in nodes.actors()


PROGRAM = """
from pipeline.job import snapshots
from pipeline.planning import tiles
snapshots.SNAPSHOT_AFTER_S, tiles.MIN_TILE_BYTES = 0, 1 << 20
from jobs.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("store", ["directory", "bucket"], indirect=True)
def test_a_driver_is_killed_and_another_cluster_goes_on(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], store: str
) -> None:
    """The other cluster is the Ray that a command without an address starts."""
    from huggingface_hub import constants

    def hallmarks(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments, "--store", store],
            env=os.environ | {"HF_ENDPOINT": constants.ENDPOINT},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def asked() -> list[dict[str, Any]]:
        query = (
            "SELECT complete, count(*) AS pairs FROM runs JOIN similarity USING (run) GROUP BY ALL"
        )
        answer, _ = hallmarks("sql", query, "--format", "json").communicate()
        return json.loads(answer)

    analyze = ("analyze", NAME, "--run", "r", "--memory", "200MiB", "--json")
    hub.reset()
    hub.bytes_per_s = 8e6  # at twice that it was complete before it was killed, once
    try:
        driver = hallmarks(*analyze, "--address", nodes.address)
        while not Folder(store).list("runs"):  # there is an estimate
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.05)
        driver.kill()
        driver.communicate()
    finally:
        hub.bytes_per_s = None
    left = told(store)["r"]
    assert left["state"] == "reading" and left["pid"] == driver.pid
    [estimated] = asked()
    kept = len(tiles(store))
    assert not estimated["complete"] and kept >= snapshots.LEAST_TILES
    again = hallmarks(*analyze)
    output, errors = again.communicate()
    assert again.returncode == 0, errors
    summary = json.loads(output)
    assert summary["executor"] == "ray" and summary["resumed_tiles"] >= kept
    assert summary["bytes_read"] < summary["bytes_total"]
    assert not any(secret in output + errors for secret in buckets.SECRETS)
    assert told(store) == {"r": {"run": "r", "state": "complete"}}
    assert asked() == [estimated | {"complete": True}]
    assert everything(store) == undisturbed


def test_the_driver_is_interrupted_while_it_waits(hub: Hub, nodes: Nodes, store: str) -> None:
    """What the handler of a signal raises comes through Ray as it is."""

    def stop(*_: Any) -> None:
        raise Interrupted("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Interrupted, match="SIGTERM"):
            analysed(hub, nodes, store, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(tiles(store)) >= 3


class Deadly(TileFolder):
    """A store that kills whoever puts one tile's result."""

    def put(self, tile_name: str, result: Sums) -> None:
        if tile_name.startswith("000005-"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().put(tile_name, result)


def test_a_tile_that_kills_is_given_up_and_no_other(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.job.analyze.TileFolder", Deadly)
    summary = analysed(hub, nodes, store)
    assert not summary.complete
    assert len(summary.lost) == 1 and summary.lost[0].startswith("tile 5: a worker died")
    monkeypatch.setattr("pipeline.job.analyze.TileFolder", TileFolder)
    summary = analysed(hub, nodes, store)
    assert summary.complete and summary.resumed_tiles == len(make_plan(Request(NAME))[0].tiles) - 1
    assert everything(store) == undisturbed


class Elsewhere(TileFolder):
    """A store that lies somewhere else on every node but the driver's."""

    def __reduce__(self) -> Any:
        return _elsewhere, (self._folder.root, self._marker, self._specs)


def _elsewhere(root: str, marker: str, specs: Sequence[ArraySpec]) -> TileFolder:
    found = TileFolder(Folder(root + "-elsewhere"), "r", "digest", specs)
    found._marker = marker
    return found


def test_a_node_that_does_not_see_the_store_is_named(
    hub: Hub, nodes: Nodes, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.job.analyze.TileFolder", Elsewhere)
    with pytest.raises(
        StoreUnusable, match=r"^node [\d.]+: --store .* is not the driver's"
    ) as raised:
        analysed(hub, nodes, store)
    assert raised.value.exit_code == 2
    assert tiles(store) == []


class WhereItRuns(TileFolder):
    """A store that is what the environment of a node makes of it."""

    def __reduce__(self) -> Any:
        plain = TileFolder.__new__(TileFolder)
        plain.__dict__.update(self.__dict__)
        return _where_it_runs, (pickle.dumps(plain),)


def _where_it_runs(stored: bytes) -> TileFolder:
    kind = os.environ.get("TEST_NODE")
    if kind == "without the program":
        raise ModuleNotFoundError("No module named 'pipeline'")
    found = pickle.loads(stored)
    if kind == "without the store":
        found._folder = Folder(found._folder.root + "-elsewhere")
    return found


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("without the store", r"node [\d.]+: --store .* is not the driver's: it is left out"),
        (
            "without the program",
            "a worker cannot start: .*No module named 'pipeline'.*left out",
        ),
    ],
)
@pytest.mark.slow
def test_a_late_node_that_fails_its_check_is_left_out(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], store: str, kind: str, message: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It is named, once, and the others go on."""
    monkeypatch.setattr("pipeline.job.analyze.TileFolder", WhereItRuns)

    def join(nodes: Nodes) -> None:
        hub.bytes_per_s = 1e6  # the job is not over before the node is there
        nodes.join_late(TEST_NODE=kind)
        deadline = time.monotonic() + 30
        while "left out" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        hub.bytes_per_s = None

    summary = analysed(hub, nodes, store, join)
    assert summary.complete
    told = [record.getMessage() for record in caplog.records if record.name == "pipeline"]
    assert len([line for line in told if re.match(message, line)]) == 1, told
    assert everything(store) == undisturbed


@pytest.mark.slow
def test_workers_that_no_node_has_room_for_are_announced(
    hub: Hub, nodes: Nodes, store: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Another job holds all CPUs; when it has gone the work begins."""
    monkeypatch.setattr(loop, "ROOM_S", 1.0)
    script = (
        "import ray, sys\n"
        f"ray.init(address={nodes.address!r}, log_to_driver=False)\n"
        "@ray.remote(num_cpus=4)\n"
        "class Other:\n"
        "    def here(self): ...\n"
        "others = [Other.remote() for _ in range(2)]\n"
        "ray.get([other.here.remote() for other in others])\n"
        "print('full', flush=True)\n"
        "sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def leave_when_announced() -> None:
        while "no node has 4 CPU free" not in caplog.text and not over.is_set():
            time.sleep(0.05)
        other.kill()

    over = threading.Event()
    thread = threading.Thread(target=leave_when_announced)
    try:
        assert other.stdout is not None and b"full" in other.stdout.readline()
        thread.start()
        assert analysed(hub, nodes, store).complete
    finally:
        over.set()
        other.kill()
        other.communicate()
    thread.join()
    assert "0 workers at work, others wait: no node has 4 CPU free" in caplog.text
