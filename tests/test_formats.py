"""The same weights in every format: the same figures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint import save as save_distributed

import pipeline
from pipeline.planning.plan import Plan
from tests.suites import trajectory

COUNT = 5


def weights(k: int) -> dict[str, torch.Tensor]:
    rows = torch.from_numpy(trajectory("walk", COUNT, 6000, 0.1)).float()
    return {
        "layers.0.q_proj.weight": rows[k, :4800].view(60, 80),
        "layers.0.q_proj.bias": rows[k, 4800:4860].clone(),
        "norm.weight": rows[k, 4860:4940].clone(),
        "head.weight": rows[k, 4940:5900].view(12, 80).clone(),
    }


def sharded(state: dict[str, torch.Tensor], folder: Path) -> None:
    import json

    names = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(state)}
    for file in set(names.values()):
        torch.save({n: t for n, t in state.items() if names[n] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))


def gaps(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Matrices as columns of wider ones."""
    stored = dict(state)
    for name, value in state.items():
        if value.ndim == 2:
            wide = torch.randn(len(value), value.shape[1] + 7)
            stored[name] = wide[:, 3:-4]
            stored[name].copy_(value)
    torch.save(stored, folder / "m.pt")


WRITERS: dict[str, Callable[[dict[str, torch.Tensor], Path], None]] = {
    "safetensors": lambda state, folder: save_file(state, folder / "model.safetensors"),
    "bin": lambda state, folder: torch.save(state, folder / "pytorch_model.bin"),
    "legacy": lambda state, folder: torch.save(
        state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    ),
    "sharded": sharded,
    "trainer": lambda state, folder: (
        torch.save(state, folder / "pytorch_model.bin"),
        torch.save({"state": {0: torch.ones(3)}}, folder / "optimizer.pt"),
        torch.save({"python": 1}, folder / "rng_state.pth"),
    ),
    "nested": lambda state, folder: torch.save({"model": state, "step": 1}, folder / "ckpt.pt"),
    "wrapped": lambda state, folder: torch.save(
        {("module." if "step0" in str(folder) else "") + n: t for n, t in state.items()},
        folder / "model.pth",
    ),
    "gaps": gaps,
    "distributed": lambda state, folder: save_distributed(
        {"model": state, "optimizer": {"state": {"x": torch.ones(7)}}, "step": 3},
        checkpoint_id=folder,
        no_dist=True,
    ),
    "transposed": lambda state, folder: torch.save(
        {n: t.T.contiguous().T if t.ndim == 2 else t for n, t in state.items()}, folder / "m.pt"
    ),
}


def suite(kind: str, directory: Path) -> Path:
    for k in range(COUNT):
        folder = directory / kind / f"checkpoint-{10 * k}"
        if kind == "wrapped":
            folder = directory / kind / f"step{k}"
        folder.mkdir(parents=True)
        WRITERS[kind](weights(k), folder)
    return directory / kind


def planned(directory: Path) -> Plan:
    return pipeline.plan(str(directory))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list:
    directory = tmp_path_factory.mktemp("expected")
    return figures(suite("safetensors", directory), directory / "store")


def figures(directory: Path, store: Path) -> list:
    pipeline.analyze(str(directory), str(store), executor="local", run="r")
    query = """SELECT scope, layer, component, tensor, i, j, dot FROM similarity
        ORDER BY ALL"""
    return pipeline.open_store(str(store)).sql(query).fetchall()


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind not in ("safetensors",)])
def test_figures_do_not_depend_on_the_format(kind: str, expected: list, tmp_path: Path) -> None:
    found = figures(suite(kind, tmp_path), tmp_path / "store")
    assert [row[:-1] for row in found] == [row[:-1] for row in expected]
    for row, other in zip(found, expected, strict=True):
        # sums over tensors are in the order in which files hold them
        close = 1e-6 if kind == "transposed" else 0 if row[0] == "tensor" else 1e-14
        assert row[-1] == pytest.approx(other[-1], rel=close, abs=1e-9 if close == 1e-6 else 0)


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_shards_of_several_ranks(ranks: int, expected: list, tmp_path: Path) -> None:
    """Matrices cut by rows and by columns, each rank's part in a file of its own."""
    command = [
        sys.executable,
        "-m",
        "tests.distributed_writer",
        str(tmp_path / "suite"),
        str(ranks),
    ]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in range(ranks)]
    assert [process.wait(120) for process in processes] == [0] * ranks
    assert len(list((tmp_path / "suite" / "step0" / "model_and_optim").glob("*.distcp"))) == ranks
    found = figures(tmp_path / "suite", tmp_path / "store")
    assert [row[:-1] for row in found] == [row[:-1] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row[-1] == pytest.approx(other[-1], rel=0 if row[0] == "tensor" else 1e-14)


def test_pipeline_layers_of_neox(tmp_path: Path) -> None:
    for k in range(3):
        folder = tmp_path / f"global_step{10 * k}"
        folder.mkdir()
        moved = torch.arange(64.0).view(8, 8) + k
        files = {
            0: {"word_embeddings.weight": moved},
            2: {"attention.query_key_value.weight": moved, "input_layernorm.weight": moved[0]},
            3: {"attention.query_key_value.weight": moved, "input_layernorm.weight": moved[0]},
            5: {"norm.weight": moved[0]},
            6: {"final_linear.weight": moved},
        }
        for layer, state in files.items():
            torch.save(state, folder / f"layer_{layer:02d}-model_00-model_states.pt")
        torch.save({"module": None, "iteration": k}, folder / "mp_rank_00_model_states.pt")
    plan = planned(tmp_path)
    assert {(t.name, t.role.layer, t.role.component) for t in plan.tensors} == {
        ("word_embeddings.weight", None, "embed"),
        ("layers.0.attention.query_key_value.weight", 0, "attn_qkv"),
        ("layers.0.input_layernorm.weight", 0, "norm"),
        ("layers.1.attention.query_key_value.weight", 1, "attn_qkv"),
        ("layers.1.input_layernorm.weight", 1, "norm"),
        ("norm.weight", None, "norm"),
        ("final_linear.weight", None, "unembed"),
    }


def test_a_tensor_of_single_elements_is_left_out_and_named(tmp_path: Path) -> None:
    for k in range(2):
        (tmp_path / f"step{k}").mkdir()
        state = weights(k)
        state["sliced"] = state["head.weight"][:, ::2]
        state["shared"] = state["norm.weight"]
        torch.save(state, tmp_path / f"step{k}" / "model.pt")
    plan = planned(tmp_path)
    reasons = {entry.name: entry.reason for entry in plan.left_out_tensors}
    assert "side by side" in reasons["sliced"]
    assert reasons["shared"] == "tied to norm.weight"
    assert len(plan.tensors) == 4


def test_eight_bits(tmp_path: Path) -> None:
    """Weights of 8 bits are read; their rounding is known."""
    for k in range(4):
        folder = tmp_path / "suite" / f"step{k}"
        folder.mkdir(parents=True)
        state = weights(k)
        halves = {n: t.to(torch.float8_e4m3fn) for n, t in state.items()}
        save_file(halves, folder / "model.safetensors")
    store = tmp_path / "store"
    pipeline.analyze(str(tmp_path / "suite"), str(store), executor="local", run="r")
    rows = [
        torch.cat([t.to(torch.float8_e4m3fn).double().flatten() for t in weights(k).values()])
        for k in range(4)
    ]
    opened = pipeline.open_store(str(store))
    dots = opened.sql("SELECT dot FROM similarity WHERE scope = 'model' ORDER BY i, j").fetchall()
    exact = [float(rows[i] @ rows[j]) for i in range(4) for j in range(i, 4)]
    assert [dot for (dot,) in dots] == pytest.approx(exact, rel=2e-6)
    floor = opened.sql(
        "SELECT noise_floor_deg FROM path WHERE scope = 'model' AND k = 1"
    ).fetchall()[0][0]
    assert floor > 1  # steps of a tenth of a weight, three bits of fraction
