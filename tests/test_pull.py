"""`--pull tasks`: the same bits as when workers pull, through object stores that spill nothing.

A real Ray of a head and two nodes whose object stores are as small as Ray has them, 80 MB. What needs it
is slow; that tasks give the same bits is in test_cluster.py too.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from pipeline.errors import HallmarksError, PlanDoesNotFit, RequestError
from pipeline.execute.drive import admission
from pipeline.execute.drive.admission import Admission, largest_block
from pipeline.execute.drive.placement import choose_pull
from pipeline.job.summary import Summary
from pipeline.planning.memory import project
from tests.conftest import serving
from tests.fault_table import bytes_sent
from tests.hub import Fault, Hub
from tests.nodes import Nodes, two_nodes
from tests.suites import trajectory, write_suite
from tests.test_bits import everything

NAME = "org/pulled"
CHECKPOINTS, ELEMENTS = 16, 2_500_000


class World:
    """Workers, the blocks that they want and hold, and stores of 1,000 bytes."""

    STORE = 1000

    def __init__(self) -> None:
        self.admission = Admission()
        self.wanted: list[tuple[int, int, int]] = []
        self.held: dict[int, list[int]] = {worker: [] for worker in range(4)}
        self.asked = 0

    def ask(self, worker: int, size: int) -> None:
        self.asked += 1
        self.admission.ask(worker, self.asked, size)
        self.wanted.append((worker, self.asked, size))

    def admit(self) -> None:
        for worker, number in self.admission.admitted(self.STORE):
            assert (worker, number) == self.wanted[0][:2]  # in the order of asking
            self.held[worker].append(self.wanted.pop(0)[2])

    def total(self) -> int:
        return sum(map(sum, self.held.values()))


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "leave", "die"]), st.integers(0, 3), st.integers(1, 250)),
        max_size=60,
    )
)
def test_what_is_admitted_fits_and_everything_is(deeds: list[tuple[str, int, int]]) -> None:
    world = World()
    for deed, worker, size in deeds:
        if deed == "ask":
            world.ask(worker, size)
        elif deed == "leave" and world.held[worker]:
            world.admission.left(worker, world.held[worker].pop())
        elif deed == "die":
            world.admission.forget(worker)
            world.held[worker] = []
            world.wanted = [asked for asked in world.wanted if asked[0] != worker]
        world.admit()
        assert 2 * world.total() <= world.STORE / 2
        if world.wanted:  # nothing waits that would fit
            assert 2 * (world.total() + world.wanted[0][2]) > world.STORE / 2
    while world.wanted:
        worker = next(worker for worker, held in world.held.items() if held)
        world.admission.left(worker, world.held[worker].pop())
        world.admit()


def test_a_block_that_does_not_fit_is_refused_not_waited_for() -> None:
    asked = Admission()
    asked.ask("worker", 1, 251)
    with pytest.raises(HallmarksError, match="counted twice, does not fit into half of"):
        list(asked.admitted(1000))


GPU, HELPER = {"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0}


@pytest.mark.parametrize(
    ("device", "cluster", "expected"),
    [
        ("cpu", [HELPER, HELPER], "actor"),
        ("cuda", [GPU], "actor"),
        ("cuda", [GPU, GPU, HELPER], "actor"),
        ("cuda", [GPU, HELPER], "tasks"),
        ("cuda", [GPU, GPU, HELPER, HELPER], "tasks"),
    ],
)
def test_who_pulls_by_default(device: str, cluster: list[dict[str, float]], expected: str) -> None:
    assert choose_pull(device, cluster) == expected


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"executor": "local"}, "--pull tasks cannot be combined with --executor local"),
        ({"verify": True}, "--pull tasks cannot be combined with --verify"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    rows = trajectory("walk", 3, 1000, 0.1)
    suite = write_suite(tmp_path / "suite", {"a": rows})
    with pytest.raises(RequestError, match=match):
        pipeline.analyze(str(suite), str(tmp_path / "store"), pull="tasks", **options)
    assert not (tmp_path / "store").exists()


def test_blocks_are_made_small_enough_or_the_plan_is_refused(tmp_path: Path) -> None:
    rows = trajectory("walk", 16, 200_000, 0.1)
    plan = pipeline.plan(str(write_suite(tmp_path / "suite", {"a": rows})))
    fits = project(plan.tensors, plan.tiles, 1 << 30, 4, largest_block=16_000_000)
    assert 16 * fits.row_bytes <= 16_000_000 / 8
    with pytest.raises(PlanDoesNotFit, match=r"a block of 16 checkpoints takes at least 1\.0MiB"):
        project(plan.tensors, plan.tiles, 1 << 30, 4, largest_block=400_000)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """320 MB, in five tiles."""
    hub = Hub()
    rows = trajectory("walk", CHECKPOINTS, ELEMENTS, 0.1)
    suite = write_suite(tmp_path_factory.mktemp("pulled"), {"a": rows, "b": rows})
    for folder in suite.iterdir():
        hub.repository(NAME).commit_folder(folder, branch=folder.name)
    with serving(hub):
        yield hub


@pytest.fixture(scope="module")
def undisturbed(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """What the local executor makes of it."""
    store = tmp_path_factory.mktemp("undisturbed")
    pipeline.analyze(NAME, str(store), executor="local", run="r")
    return everything(store)


class Stores:
    """What has been in the object stores of a cluster."""

    def __init__(self, address: str) -> None:
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address

        state = get_state_from_address(address)
        self._look = lambda: get_memory_info_reply(state).store_stats  # no public name tells it
        self._spilled = self._look().spilled_bytes_total
        self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Stores:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()
        self.spilled = self._look().spilled_bytes_total - self._spilled

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.peak = max(self.peak, self._look().object_store_bytes_used)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as found:
        yield found


Trouble = Callable[[Nodes], None]


def analysed(
    hub: Hub, nodes: Nodes, store: Path, trouble: Trouble = lambda _: None, ranges: int = 40
) -> Summary:
    """Run the job, and make trouble when some ranges have been read."""
    over = threading.Event()

    def wait() -> None:
        while hub.count("cdn") < ranges and not over.is_set():
            time.sleep(0.02)
        trouble(nodes)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        return pipeline.analyze(
            NAME, str(store), run="r", executor="ray", address=nodes.address, pull="tasks",
            memory="1GiB",
        )  # fmt: skip
    finally:
        over.set()
        thread.join()
        hub.bytes_per_s = None


def stop_and_go_on(nodes: Nodes) -> None:
    """Stop the workers that compute: what has been asked for piles up in the object stores."""
    for pid in nodes.processes("WorkerActor"):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(5)
    for pid in nodes.processes("WorkerActor"):
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.ray
def test_blocks_that_pile_up_fit_into_the_object_stores(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], tmp_path: Path,
) -> None:  # fmt: skip
    hub.reset()
    with Stores(nodes.address) as stores:
        summary = analysed(hub, nodes, tmp_path, stop_and_go_on)
    assert summary.complete and everything(tmp_path) == undisturbed
    sent, covered = bytes_sent(hub)
    assert sent < 1.01 * covered  # planning reads headers
    assert stores.spilled == 0 and stores.peak > 20e6


@pytest.mark.slow
@pytest.mark.ray
def test_without_the_bound_they_do_not(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The same, with nothing counted."""
    monkeypatch.setattr(admission, "SHARE", 1000.0)
    hub.reset()
    with Stores(nodes.address) as stores:
        summary = analysed(hub, nodes, tmp_path, stop_and_go_on)
    assert summary.complete and everything(tmp_path) == undisturbed
    assert stores.spilled > 0


def one_that_pulls_is_killed(nodes: Nodes) -> None:
    os.kill(nodes.processes("_pull")[0], signal.SIGKILL)


def a_worker_is_killed_that_owns_what_is_pulled(nodes: Nodes) -> None:
    os.kill(nodes.actors()[0], signal.SIGKILL)


def a_node_is_lost_with_what_it_pulled(nodes: Nodes) -> None:
    nodes.lose(nodes.other())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    "trouble", [a_worker_is_killed_that_owns_what_is_pulled, a_node_is_lost_with_what_it_pulled]
)
def test_when(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], tmp_path: Path, trouble: Trouble
) -> None:
    hub.reset()
    hub.bytes_per_s = 50e6
    summary = analysed(hub, nodes, tmp_path, trouble)
    nodes.whole()
    assert summary.complete
    assert everything(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.ray
def test_the_network_fails_and_a_process_that_pulls(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], tmp_path: Path,
) -> None:  # fmt: skip
    """What a task cannot do itself, it asks for: new addresses, and that others leave a host alone."""
    hub.reset()
    faults = (
        Fault("status", status=429, headers={"Retry_After": "1"}, occurrences={100, 400}),
        Fault("status", status=403, probability=0.02),
        Fault("reset", after_share=0.5, probability=0.02),
    )
    for fault in faults:
        hub.faults.add(fault)
    try:
        summary = analysed(hub, nodes, tmp_path, one_that_pulls_is_killed, ranges=200)
        seen = {(fault.action, fault.status) for fault, _ in hub.faults.applied}
    finally:
        hub.faults.clear()
    assert summary.complete and everything(tmp_path) == undisturbed
    assert seen == {(fault.action, fault.status) for fault in faults}


@pytest.mark.slow
@pytest.mark.ray
def test_a_plan_whose_blocks_do_not_fit_is_refused(
    hub: Hub, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(admission, "SHARE", 0.01)
    assert largest_block(80_000_000) == 400_000
    with pytest.raises(PlanDoesNotFit, match=r"a block of 16 checkpoints takes at least 1\.0MiB"):
        analysed(hub, nodes, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_what_cannot_be_read_is_lost_and_gives_its_room_back(
    hub: Hub, nodes: Nodes, undisturbed: dict[str, list], tmp_path: Path
) -> None:  # fmt: skip
    """A tile fails with blocks computed, on their way and waiting; the rest needs all the room."""
    hub.reset()
    hub.faults.add(Fault("status", status=404, occurrences={300}))
    summary = analysed(hub, nodes, tmp_path)
    assert not summary.complete and len(summary.lost) == 1
    assert "HTTP 404" in summary.lost[0] and f"{NAME}@" in summary.lost[0]
    hub.faults.clear()
    assert analysed(hub, nodes, tmp_path).resumed_tiles == 4
    assert everything(tmp_path) == undisturbed
