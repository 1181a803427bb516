"""`--verify`: files against the hashes that the Hub publishes, in the read that tiles make anyway."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import pipeline
from pipeline.errors import Corrupted, RequestError
from pipeline.execute.work.worker import Worker
from pipeline.statistics.accumulator import Accumulator
from tests import fault_table
from tests.commands import hallmarks
from tests.fault_table import NAME, bytes_sent
from tests.hub import Fault, Hub
from tests.test_bits import everything


@pytest.fixture
def hub(served_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A suite of 19 MB, in many tiles."""
    fault_table.fill(served_hub, tmp_path / "suite")
    monkeypatch.setattr("pipeline.planning.tiles.MIN_TILE_BYTES", 1 << 20)
    return served_hub


def analysed(store: Path, **options: Any) -> dict[str, list]:
    pipeline.analyze(NAME, str(store), executor="local", run="r", **options)
    return everything(store)


def test_a_whole_run_verifies_in_the_same_read(hub: Hub, tmp_path: Path) -> None:
    quiet = analysed(tmp_path / "quiet")
    hub.reset()
    assert analysed(tmp_path / "verified", verify=True) == quiet
    sent, covered = bytes_sent(hub)
    sizes = [
        file.size
        for commit in hub.repositories[NAME].commits.values()
        for file in commit.files.values()
    ]
    assert covered == sum(sizes)
    assert sent < 1.001 * covered  # the byte that says a file's tag


def test_what_no_tile_reads_is_read_for_the_hash(hub: Hub, tmp_path: Path) -> None:
    quiet = analysed(tmp_path / "quiet", exclude=["a"])
    hub.reset()
    assert analysed(tmp_path / "verified", exclude=["a"], verify=True) == quiet
    sent, covered = bytes_sent(hub)
    assert covered == sum(
        file.size for c in hub.repositories[NAME].commits.values() for file in c.files.values()
    )
    assert sent < 1.001 * covered


def test_tiles_that_start_late_are_hashed_in_their_turn(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads begin when they are let: every other tile begins after the next one here."""
    begin = Worker._accumulator

    def late(worker: Worker, index: int) -> Accumulator:
        time.sleep(0.03 * (index % 2 == 0))
        return begin(worker, index)

    monkeypatch.setattr(Worker, "_accumulator", late)
    quiet = analysed(tmp_path / "quiet")
    hub.reset()
    assert analysed(tmp_path / "verified", verify=True) == quiet
    sent, covered = bytes_sent(hub)
    assert sent < 1.001 * covered


def test_tensors_in_another_order_verify_too(hub: Hub, tmp_path: Path) -> None:
    """One checkpoint's file has its tensors the other way round: some is read twice, all is right."""
    folder = tmp_path / "suite" / "step4"
    tensors = load_file(folder / "model.safetensors")
    assert list(tensors) == ["a", "b"]
    moved = {"a": tensors["a"].clone(), "b": tensors["b"].clone().half()}  # wider ones come first
    moved["a"], moved["b"] = moved["a"].half(), moved["b"].float()
    save_file(moved, folder / "model.safetensors")
    hub.repository(NAME).commit_folder(folder, branch="step4", message="the other way round")
    plan = pipeline.plan(NAME)
    starts = [(tensor.name, tensor.starts[4]) for tensor in plan.tensors]
    assert starts[0][1] > starts[1][1]
    assert analysed(tmp_path / "verified", verify=True) == analysed(tmp_path / "quiet")


@pytest.mark.parametrize("complete", [False, True])
def test_wrong_bytes_of_the_right_length_are_found(
    hub: Hub, tmp_path: Path, complete: bool
) -> None:
    """No header tells of them; what was made from them is dropped, a finished run is left alone."""
    if complete:
        analysed(tmp_path / "store")
    hub.faults.add(Fault("changed_file", occurrences={25}))
    with pytest.raises(Corrupted, match="expected contents with the hash [0-9a-f]{64}, found"):
        analysed(tmp_path / "store", verify=True)
    assert [fault.action for fault, _ in hub.faults.applied] == ["changed_file"]
    assert not list((tmp_path / "store").glob("_tiles/run=r/*/*"))
    hub.faults.clear()
    assert analysed(tmp_path / "store", verify=True) == analysed(tmp_path / "quiet")


def test_an_interrupted_run_verifies_all_of_it(hub: Hub, tmp_path: Path) -> None:
    """Tiles of an earlier attempt are not read again but for the hash."""
    hub.faults.add(Fault("status", status=404, occurrences={25}))
    store = str(tmp_path / "store")
    assert not pipeline.analyze(NAME, store, executor="local", run="r").complete
    hub.reset()
    summary = pipeline.analyze(NAME, store, executor="local", run="r", verify=True)
    assert summary.complete and summary.resumed_tiles > 1
    assert bytes_sent(hub)[1] > 2 * summary.bytes_read
    assert everything(tmp_path / "store") == analysed(tmp_path / "quiet")


def test_a_sample_is_no_whole_file(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--verify needs whole files"):
        analysed(tmp_path / "store", fraction=0.1, verify=True)
    assert not (tmp_path / "store").exists()


def test_the_command(hub: Hub, tmp_path: Path) -> None:
    hub.faults.add(Fault("changed_file", occurrences={30}))
    options = ["--store", tmp_path / "store", "--executor", "local", "--json", "--verify"]
    done = hallmarks("analyze", NAME, *options)
    assert done.returncode == 1
    assert "error: " in done.stderr and "expected contents with the hash" in done.stderr
    hub.faults.clear()
    done = hallmarks("analyze", NAME, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"]
    said = f"verified: {fault_table.CHECKPOINTS} files match the hashes"
    assert said in done.stderr
    done = hallmarks("analyze", NAME, *options)
    assert json.loads(done.stdout)["already_complete"] and said in done.stderr
