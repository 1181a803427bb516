"""Sketches taken in the loop that trains: the same as of saved checkpoints, whatever happens to the loop."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import nn

import pipeline
from pipeline.errors import HallmarksError, RequestError
from pipeline.follow import Sketcher, follow_once
from pipeline.report.content import content
from pipeline.store import progress
from pipeline.store.folder import Folder

COUNT = 4


def network(seed: int = 0) -> nn.Module:
    """Parts of both kinds, a buffer of integers, and a convolution whose values lie in another order."""
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Embedding(200, 64),
        nn.Linear(64, 300),
        nn.BatchNorm1d(300),
        nn.Unflatten(1, (3, 10, 10)),
        nn.Conv2d(3, 32, 3),
    )
    return made.to(memory_format=torch.channels_last)


def move(made: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)


def records(store: Path, run: str) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of every record of a run, in the order in which they came."""
    paths = sorted((store / "_follow" / f"run={run}").rglob("*.safetensors"))
    return {path.name[:6]: load_file(path) for path in paths}


def tables(store: Path, run: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return what does not say where it is from."""
    opened = pipeline.open_store(store)
    of_source = {"similarity": "run, source_i, source_j"}
    return {
        view: sorted(
            opened.sql(
                f"SELECT * EXCLUDE ({of_source.get(view, 'run')}) FROM {view} WHERE run = ?", [run]
            ).fetchall(),
            key=repr,
        )
        for view in ("similarity", "path", "indicators", "values", "spectrum")
    }


def assert_same(store: Path, run: str, other: str) -> None:
    one, two = records(store, run), records(store, other)
    assert len(one) == len(two) == COUNT
    for first, second in zip(one.values(), two.values(), strict=True):
        assert first.keys() == second.keys()
        for name, array in first.items():
            if name != "keys":
                assert array.tobytes() == second[name].tobytes(), name
    assert tables(store, run) == tables(store, other)


def test_the_same_as_of_checkpoints_that_were_saved(tmp_path: Path) -> None:
    made, store = network(), tmp_path / "store"
    made[1].bfloat16()
    with Sketcher(made, store, run="live") as sketcher:
        for k in range(COUNT):
            folder = tmp_path / "run" / f"step{10 * k}"
            folder.mkdir(parents=True)
            state = {name: tensor.contiguous() for name, tensor in made.state_dict().items()}
            save_file(state, folder / "model.safetensors")
            followed = sketcher.update(10 * k)
            assert followed is not None and followed.checkpoints == k + 1
            move(made, k)
            assert [each.state for each in progress.records(Folder(str(store)))] == ["following"]
    follow_once(tmp_path / "run", store, run="saved")
    assert_same(store, "live", "saved")
    assert not (store / "_tiles").exists()  # nobody follows, and no empty folders are left
    shown = content(pipeline.open_store(store), str(store), ["live"])["runs"][0]["command"]
    assert shown == f"pipeline.follow.Sketcher(model, '{store}', run='live')"
    row = pipeline.open_store(store).sql(
        "SELECT checkpoints, complete, followed, source FROM runs WHERE run = 'live'"
    )
    assert row.fetchall() == [(COUNT, False, True, "Sequential")]


def test_parts_of_fused_tensors_by_the_configuration(tmp_path: Path) -> None:
    from tests.trained import model

    made = model("gpt2")
    with Sketcher(made, tmp_path, run="live") as sketcher:
        for k in range(2):
            sketcher.update(k)
            move(made, k)
    found = pipeline.open_store(tmp_path).sql(
        "SELECT DISTINCT component FROM groups WHERE scope = 'component' AND component LIKE 'attn%'"
    )
    assert sorted(found.fetchall()) == [("attn_k",), ("attn_out",), ("attn_q",), ("attn_v",)]


LOOP = """
import sys
from pipeline.follow import Sketcher
from tests.follow.test_sketcher import COUNT, move, network

made, began = network(), int(sys.argv[2])
for k in range(began):
    move(made, k)
with Sketcher(made, sys.argv[1], run="killed") as sketcher:
    for k in range(began, COUNT):
        print(k, flush=True)
        sketcher.update(10 * k)
        move(made, k)
"""


@pytest.mark.slow
def test_killed_and_started_again(tmp_path: Path) -> None:
    """While a step is taken, or just after; the loop then begins with that step again."""
    made = network()
    with Sketcher(made, tmp_path, run="whole") as sketcher:
        for k in range(COUNT):
            sketcher.update(10 * k)
            move(made, k)
    begin = 0
    for kill_at in (1, 2):
        loop = subprocess.Popen(
            [sys.executable, "-c", LOOP, tmp_path, str(begin)], stdout=subprocess.PIPE, text=True
        )
        assert loop.stdout is not None
        for line in loop.stdout:
            if int(line) == kill_at:
                loop.send_signal(signal.SIGKILL)
        assert loop.wait() == -signal.SIGKILL
        begin = kill_at
    made = network()
    for k in range(begin):
        move(made, k)
    with Sketcher(made, tmp_path, run="killed") as sketcher:
        for k in range(begin, COUNT):
            sketcher.update(10 * k)
            move(made, k)
    assert tables(tmp_path, "whole") == tables(tmp_path, "killed")


def test_a_step_that_is_taken_again_is_replaced(tmp_path: Path) -> None:
    made = network()
    with Sketcher(made, tmp_path, run="live") as sketcher:
        sketcher.update(0)
        sketcher.update(1)
        move(made, 1)
        followed = sketcher.update(1)
    assert followed is not None and followed.checkpoints == 2
    ((increment,),) = (
        pipeline.open_store(tmp_path)
        .sql("SELECT increment FROM path WHERE scope = 'model' AND k = 1")
        .fetchall()
    )
    assert increment > 0


@contextlib.contextmanager
def distributed(backend: str, rank: int, size: int) -> Iterator[None]:
    store: Any = torch.distributed.HashStore()
    if backend == "fake":
        from torch.testing._internal.distributed.fake_pg import FakeStore

        store = FakeStore()
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def test_names_are_those_of_the_bare_network(tmp_path: Path) -> None:
    with distributed("gloo", 0, 1):
        wrapped = nn.parallel.DistributedDataParallel(torch.compile(network(), backend="eager"))
        with Sketcher(wrapped, tmp_path, run="live") as sketcher:
            sketcher.update(0)
            move(wrapped, 0)
            sketcher.update(1)
    rows = pipeline.open_store(tmp_path).sql("SELECT tensor FROM tensors WHERE included").fetchall()
    named = {name for (name,) in rows}
    assert "1.weight" in named and not any("module" in name or "_orig" in name for name in named)


def test_other_ranks_do_nothing(tmp_path: Path) -> None:
    with distributed("fake", 1, 2), Sketcher(network(), tmp_path / "s", run="live") as sketcher:
        assert sketcher.update(0) is None
    assert not (tmp_path / "s").exists()


def test_parts_of_tensors_are_refused(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    with distributed("gloo", 0, 1), Sketcher(network(), tmp_path, run="live") as sketcher:
        mesh = init_device_mesh("cpu", (1,))
        state = {"w": distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)])}
        with pytest.raises(RequestError, match="'w' to be a DTensor") as refused:
            sketcher.update(0, state)
    assert "get_model_state_dict" in (refused.value.hint or "")
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("step", "state", "message"),
    [
        (0, {"w": torch.ones(4, device="meta")}, "'w': on the meta device"),
        (0, {"w": torch.eye(4).to_sparse()}, "'w': float32, torch.sparse_coo"),
        (0, {"w": torch.ones(4, dtype=torch.complex128)}, "'w': complex128"),
        (0, {"w": torch.ones(4, dtype=torch.int64)}, "no tensor is left"),
        (-1, None, "expected a number from 0 on, found -1"),
        (1.5, None, "found 1.5"),
        (True, None, "found True"),
    ],
)
def test_what_cannot_be_taken(step: Any, state: Any, message: str, tmp_path: Path) -> None:
    with (
        Sketcher(network(), tmp_path, run="live") as sketcher,
        pytest.raises(HallmarksError, match=message),
    ):
        sketcher.update(step, state)


def test_two_of_one_run(tmp_path: Path) -> None:
    with Sketcher(network(), tmp_path, run="live"), pytest.raises(HallmarksError, match="live"):
        Sketcher(network(), tmp_path, run="live")


def test_views_of_memory_in_any_order(tmp_path: Path) -> None:
    """Transposed, expanded, from the middle of another, of one value, and none."""
    base = torch.arange(60_000.0).reshape(200, 300)
    state = {
        "layers.0.a.weight": base.T,
        "layers.0.b.weight": base[3:50, 7:200],
        "layers.0.c.weight": torch.tensor([2.5]).expand(1000),
        "layers.0.d.weight": torch.tensor(3.5),
        "extra": {"no": "tensor"},
    }
    with Sketcher(network(), tmp_path, run="live") as sketcher:
        for step in (0, 1):
            sketcher.update(step, state)
    found = dict(
        pipeline.open_store(tmp_path)
        .sql("SELECT tensor, norm FROM path WHERE scope = 'tensor' AND k = 1")
        .fetchall()
    )
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            assert found[name] == pytest.approx(float(tensor.double().norm()), rel=1e-12)
