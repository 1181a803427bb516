"""The right to write a run, in a directory and on object storage: one driver has it, and one only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import HallmarksError, LeaseLost, StoreUnusable
from pipeline.store import lease as leases
from pipeline.store.attempts import final, row_path
from pipeline.store.folder import Folder
from pipeline.store.lease import Lease
from pipeline.store.write import RunWriter
from tests import buckets


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with buckets.served() as endpoint, pytest.MonkeyPatch.context() as patch:
        yield buckets.named("leases", endpoint, patch)


@pytest.fixture(params=["bucket", "directory"])
def folder(request: pytest.FixtureRequest, bucket: str, tmp_path: Path) -> Folder:
    return Folder(
        f"{bucket}/{tmp_path.name}" if request.param == "bucket" else str(tmp_path / "store")
    )


def left_behind(folder: Folder, monkeypatch: pytest.MonkeyPatch, age_s: float) -> Lease:
    """Return the lease of a driver in another container that renewed it last some time ago."""
    then = time.time() - age_s
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(leases.time, "time", lambda: then)
        elsewhere.setattr(leases, "_process", lambda: {"boot": "b", "namespace": 1, "began": 2})
        lease = Lease(folder, "r")
        lease.acquire()
        lease._released.set()  # it renews no more
    return lease


def test_of_many_drivers_one_takes_a_stale_lease(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(folder, monkeypatch, 61.0)
    everyone, is_over = threading.Barrier(4), leases._is_over

    def when_all_have_looked(holder: dict) -> bool:
        if holder.get("boot") == "b":
            everyone.wait(10)
        return is_over(holder)

    outcomes: list[Lease | str] = []

    def drive() -> None:
        lease = Lease(folder, "r")
        try:
            lease.acquire()
            outcomes.append(lease)
        except StoreUnusable as error:
            outcomes.append(error.message)

    monkeypatch.setattr(leases, "_is_over", when_all_have_looked)
    drivers = [threading.Thread(target=drive) for _ in range(4)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(30)
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    others = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert len(others) == 3 and all("is being written by process" in each for each in others)
    winner.release()
    (left,) = folder.list("_leases")
    assert json.loads(folder.read(left) or b"")["released"]


def test_a_lease_is_renewed_and_a_lost_one_noticed(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWED_EVERY_S", 0.05)
    lease = Lease(folder, "r")
    lease.acquire()
    (path,) = folder.list("_leases")
    first = folder.read(path)
    deadline = time.monotonic() + 30
    while folder.read(path) == first:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lease.check()
    lease._released.set()
    for thread in threading.enumerate():
        if thread.name == "lease":
            thread.join()  # a renewal under way would write the lease again
    folder.delete([path])
    other = Lease(folder, "r")
    other.acquire()
    with pytest.raises(LeaseLost, match="this process lost the lease on run r"):
        lease.check()
    lease.release()
    assert not json.loads(folder.read(folder.list("_leases")[-1]) or b"")["released"]
    other.check()
    other.release()


def test_who_lost_the_lease_cannot_end_the_run(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not it notices in time: its row has no place to go."""
    late = left_behind(folder, monkeypatch, 61.0)
    successor = Lease(folder, "r")
    successor.acquire()
    assert successor.token > late.token
    writer = RunWriter(folder, "r", final(late.token))
    writer._row = b"what it would have written"
    with pytest.raises(HallmarksError, match="lost the lease on run r while writing it"):
        writer.commit()
    writer = RunWriter(folder, "r", final(successor.token))
    writer._row = b"what counts"
    writer.commit()
    writer.commit()  # an answer that got lost
    assert folder.read(row_path("r", final(successor.token))) == b"what counts"
    successor.release()


def test_numbers_only_rise(folder: Folder) -> None:
    """Even if somebody removes the leases: rows have numbers, too."""
    tokens = []
    for _ in range(3):
        lease = Lease(folder, "r")
        lease.acquire()
        tokens.append(lease.token)
        lease.release()
    assert tokens == [1, 2, 3] and len(folder.list("_leases")) == 1
    folder.create(row_path("r", final(7)), b"")
    folder.delete(folder.list("_leases"))
    lease = Lease(folder, "r")
    lease.acquire()
    assert lease.token == 8
    lease.release()


@pytest.mark.parametrize(
    "contents", [b"", b"\xff", b"[]", b"{}", b"[" * 100_000, b'{"host":1,"pid":[],"renewed":"x"}',
                 b'{"host": "h", "pid": 1e400, "released": 0, "renewed": 1}'],
)  # fmt: skip
def test_a_damaged_lease_is_nobodys(tmp_path: Path, contents: bytes) -> None:
    folder = Folder(str(tmp_path))
    folder.replace("_leases/run=r/0000000004", contents)
    folder.replace("_leases/run=r/odd name", contents)
    lease = Lease(folder, "r")
    lease.acquire()
    assert lease.token == 5
    lease.release()


ACQUIRE = """
import sys, time
from pipeline.store.folder import Folder; from pipeline.store.lease import Lease
Lease(Folder(sys.argv[1]), 'r').acquire()
print('acquired', flush=True)
sys.stdin.read()
"""


def driver(store: Path, *before: str) -> subprocess.Popen[str]:
    """Start a process that takes the lease and keeps it until it is told to end."""
    return subprocess.Popen(
        [*before, sys.executable, "-c", ACQUIRE, str(store)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def acquired(process: subprocess.Popen[str]) -> bool:
    assert process.stdout and process.stderr
    if process.stdout.readline() == "acquired\n":
        return True
    assert "run r is being written by process" in process.stderr.read()
    return False


IN_ITS_OWN_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.mark.parametrize("first_apart", [False, True])
@pytest.mark.parametrize("second_apart", [False, True])
def test_a_live_driver_is_not_taken_for_a_dead_one(
    tmp_path: Path, first_apart: bool, second_apart: bool
) -> None:
    """Containers of one host name see different processes under the same numbers."""
    apart = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"]).returncode:
        pytest.skip("needs the right to make PID namespaces")
    first = driver(tmp_path, *(apart if first_apart else ()))
    assert acquired(first)
    second = driver(tmp_path, *(apart if second_apart else ()))
    assert not acquired(second)
    for process in (first, second):
        process.communicate()


def test_a_dead_driver_of_this_machine_is_succeeded_at_once(tmp_path: Path) -> None:
    first = driver(tmp_path)
    assert acquired(first)
    first.kill()  # it stays a zombie: nobody has waited for it
    second = driver(tmp_path)
    assert acquired(second)
    first.communicate()
    second.communicate()


def test_another_process_with_its_number_is_not_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(leases, "_began", lambda pid: 12345)
        before = Lease(folder, "r")
        before.acquire()  # under the number of this process, which began at another time
        before._released.set()
    lease = Lease(folder, "r")
    lease.acquire()
    lease.release()
