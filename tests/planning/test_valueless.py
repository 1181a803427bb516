"""A checkpoint without values is left out and named; the others keep their tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import pipeline
from pipeline.planning.make import make_joint_plan
from pipeline.planning.plan import Plan
from pipeline.planning.request import Request
from tests.commands import hallmarks

State = dict[str, torch.Tensor]
COUNT = 5


def weights(k: int) -> State:
    generator = torch.Generator().manual_seed(k)
    state = {
        f"layers.{n}.mlp.up_proj.weight": torch.randn(16, 8, generator=generator) for n in "012"
    }
    return state | {"norm.weight": torch.ones(8) + 0.1 * k}


def empty(state: State) -> State:
    """As a rank of ZeRO-3 writes it."""
    return {n: torch.empty(0) if "mlp" in n else t for n, t in state.items()}


def no_rows(state: State) -> State:
    return {n: t[:0].clone() if "mlp" in n else t for n, t in state.items()}


def packed(state: State) -> State:
    """Two codes a byte."""
    return {
        n: torch.zeros(t.numel() // 2, 1, dtype=torch.uint8) if "mlp" in n else t
        for n, t in state.items()
    }


def codes(state: State) -> State:
    """Codes of another name, of which none is a weight."""
    found = {n: t for n, t in state.items() if "mlp" not in n}
    for name, tensor in state.items():
        if "mlp" in name:
            rows, columns = tensor.shape
            module = name.removesuffix("weight")
            found[f"{module}qweight"] = torch.zeros(columns // 8, rows, dtype=torch.int32)
            found[f"{module}qzeros"] = torch.zeros(1, rows // 8, dtype=torch.int32)
            found[f"{module}scales"] = torch.ones(1, rows, dtype=torch.float16)
            found[f"{module}g_idx"] = torch.zeros(columns, dtype=torch.int32)
    return found


KINDS: dict[str, Callable[[State], State]] = {
    "empty": empty, "no rows": no_rows, "packed": packed, "codes": codes,
}  # fmt: skip


def suite(folder: Path, without: dict[int, Callable[[State], State]], count: int = COUNT) -> Path:
    for k in range(count):
        path = folder / f"checkpoint-{10 * (k + 1)}"
        path.mkdir(parents=True)
        save_file(without.get(k, dict)(weights(k)), path / "model.safetensors")
    return folder


def names(plan: Plan) -> list[str]:
    return sorted(tensor.name for tensor in plan.tensors)


@pytest.mark.parametrize("k", [0, 2, COUNT - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_wherever_it_stands(kind: str, k: int, tmp_path: Path) -> None:
    source = suite(tmp_path / "suite", {k: KINDS[kind]})
    plan = pipeline.plan(source)
    lacking = f"checkpoint-{10 * (k + 1)}"
    assert [c.name for c in plan.checkpoints] == [
        f"checkpoint-{10 * (n + 1)}" for n in range(COUNT) if n != k
    ]
    assert names(plan) == sorted(weights(0))
    (entry,) = plan.account.lacking
    assert entry.name == lacking and "in place of 384 of 392 weights" in entry.reason


def test_figures_and_the_finding(tmp_path: Path) -> None:
    """They are those of the series without it."""
    kinds = {"whole": {}, "with": {2: empty}}
    for name, without in kinds.items():
        suite(tmp_path / name, without)
    import shutil

    shutil.rmtree(tmp_path / "whole" / "checkpoint-30")
    found = []
    for name in kinds:
        done = hallmarks(
            "analyze", tmp_path / name, "--store", tmp_path / "store", "--executor", "local"
        )
        assert done.returncode == 0, done.stderr
    store = pipeline.open_store(tmp_path / "store")
    query = "SELECT i, j, dot FROM similarity WHERE run = '{}' AND scope = 'model' ORDER BY ALL"
    found = [store.sql(query.format(name)).fetchall() for name in kinds]
    assert found[0] == found[1]
    rows = store.sql(
        "SELECT severity, kind, message FROM findings WHERE run = 'with' AND severity = 'warning'"
    ).fetchall()
    assert any("checkpoint-30: tensors of no elements" in message for _, _, message in rows)


def test_half_of_them(tmp_path: Path) -> None:
    plan = pipeline.plan(suite(tmp_path, {1: empty, 3: packed}, 4))
    assert [c.name for c in plan.checkpoints] == ["checkpoint-10", "checkpoint-30"]
    assert names(plan) == sorted(weights(0))


def test_all_of_them(tmp_path: Path) -> None:
    """Then nothing is left out but the tensors, with a warning."""
    plan = pipeline.plan(suite(tmp_path, dict.fromkeys(range(COUNT), empty)))
    assert len(plan.checkpoints) == COUNT and names(plan) == ["norm.weight"]
    assert {tensor.kind for tensor in plan.left_out_tensors} == {"valueless_tensor"}


def test_one_tensor_of_a_checkpoint(tmp_path: Path) -> None:
    def without_one(state: State) -> State:
        return state | {"layers.0.mlp.up_proj.weight": torch.empty(0)}

    plan = pipeline.plan(suite(tmp_path, {2: without_one}))
    assert len(plan.checkpoints) == COUNT
    (left_out,) = plan.left_out_tensors
    assert left_out.kind == "valueless_tensor" and left_out.k == 2
    assert left_out.reason == "empty at 1 checkpoints, first checkpoint-30"


def test_paths_of_a_joint_plan(tmp_path: Path) -> None:
    sources = [suite(tmp_path / "a", {0: empty}), suite(tmp_path / "b", {4: packed})]
    plan, _ = make_joint_plan([Request(str(source)) for source in sources], "both")
    assert len(plan.checkpoints) == 2 * COUNT - 2 and plan.firsts == (0, COUNT - 1)
    for alone, name in zip(plan.alone(), ("checkpoint-10", "checkpoint-50"), strict=True):
        assert [entry.name for entry in alone.account.lacking] == [name]
        assert len(alone.checkpoints) == COUNT - 1
