"""Trainings of several processes: rank 0 records, or all together what each has a part of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import pipeline
from pipeline.errors import RequestError
from pipeline.recorder.recorder import Recorder
from tests.recorder.ranks import STEPS
from tests.recorder.test_recorder import assert_same, checkpoint, recorded

RANKS = 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.recorder.ranks", str(directory), str(RANKS)]
    ranks = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in range(RANKS)
    ]
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    return directory


def states(directory: Path, name: str) -> list[dict[str, Tensor]]:
    return torch.load(directory / f"{name}.pt")


def test_rank_0_records_what_all_have(trained: Path) -> None:
    assert recorded(trained / "ddp") == list(range(STEPS))
    for step, state in enumerate(states(trained, "ddp-0")):
        assert_same(checkpoint(trained / "ddp", step), state)
    log = (trained / "ddp" / "metrics.jsonl").read_text()
    assert log == "".join(f'{{"step": {step}, "rank": 0.0}}\n' for step in range(STEPS))


def test_ranks_record_their_parts_together(trained: Path, tmp_path: Path) -> None:
    """And go on: what `analyze` makes of it is what it makes of the whole tensors."""
    whole = [*states(trained, "fsdp-0"), *states(trained, f"fsdp-{STEPS}")]
    assert recorded(trained / "fsdp") == list(range(len(whole)))
    for step, state in enumerate(whole):
        folder = tmp_path / "whole" / f"step-{step}"
        folder.mkdir(parents=True)
        save_file(state, folder / "model.safetensors")
    tables = [
        analyzed(directory, tmp_path / "store")
        for directory in (trained / "fsdp", tmp_path / "whole")
    ]
    assert tables[0] == tables[1] and len(tables[0]) > 10


def analyzed(directory: Path, store: Path) -> list[tuple[Any, ...]]:
    pipeline.analyze(str(directory), str(store), executor="local", fresh=True)
    rows = pipeline.open_store(store).sql(
        "SELECT * EXCLUDE (run, source_i, source_j) FROM similarity WHERE run = ? ORDER BY ALL",
        [directory.name],
    )
    return rows.fetchall()


@pytest.mark.parametrize("name", ["taken", "moved", "full"])
def test_what_fails_on_one_rank_is_raised_on_all(name: str, trained: Path) -> None:
    said = {(trained / f"{name}-{rank}").read_text() for rank in range(RANKS)}
    assert len(said) == 1
    expected = {
        "taken": "holds checkpoints up to step 0 of an earlier training",
        "moved": f"step-{2 * STEPS - 1}' holds other weights than the network has now",
        "full": "step-0.partial' cannot be written by all ranks: [Errno 27] File too large",
    }
    assert expected[name] in said.pop()
    assert not list((trained / "full").iterdir())


class FullyShardedDataParallel(nn.Module):
    """By its name alone is the older way known, whose state dict needs all ranks at once."""


def test_other_ways_to_divide_tensors_are_refused(tmp_path: Path) -> None:
    zero_3 = nn.Linear(2, 2)
    zero_3.weight.ds_id = 0  # type: ignore[attr-defined]
    for model in (nn.Sequential(FullyShardedDataParallel()), zero_3):
        with pytest.raises(
            RequestError, match="expected whole tensors or those of fully_shard"
        ) as refused:
            Recorder(model, tmp_path, [0])
        assert "fully_shard" in refused.value.hint
