"""One tensor under several names: the same figures as a run whose names never changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pipeline
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request

COUNT = 4
SHAPES = {
    "transformer.wte.weight": (40, 8),
    "transformer.h.0.attn.c_attn.weight": (24, 8),
    "transformer.h.1.attn.c_attn.weight": (24, 8),
    "transformer.ln_f.weight": (8,),
}
Rename = Callable[[str], str]


def states(shapes: dict[str, tuple[int, ...]]) -> list[dict[str, torch.Tensor]]:
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    made = []
    for _ in range(COUNT):
        rows = {name: values + 0.1 * rng.normal(size=values.shape) for name, values in rows.items()}
        made.append({name: torch.from_numpy(values).float() for name, values in rows.items()})
    return made


def write(directory: Path, made: list[dict[str, torch.Tensor]], config: Any = None) -> Path:
    for k, state in enumerate(made):
        folder = directory / f"step{k}"
        folder.mkdir(parents=True)
        save_file(
            {name: values.contiguous() for name, values in state.items()},
            folder / "model.safetensors",
        )
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
    return directory


def cosines(source: Path, store: Path) -> list[tuple[Any, ...]]:
    pipeline.analyze(str(source), str(store), executor="local")
    query = """SELECT scope, layer, component, i, j, dot FROM similarity
        WHERE scope <> 'tensor' ORDER BY ALL"""
    return pipeline.open_store(str(store)).sql(query).fetchall()


WAYS: dict[str, Rename] = {
    "ddp": lambda n: f"module.{n}",
    "compiled": lambda n: f"_orig_mod.{n}",
    "both": lambda n: f"module._orig_mod.{n}",
    "both, the other way round": lambda n: f"_orig_mod.module.{n}",
    "three": lambda n: f"_forward_module.module._orig_mod.{n}",
    "fsdp in the middle": lambda n: f"_fsdp_wrapped_module.{n}".replace(
        "h.0.", "h.0._fsdp_wrapped_module._checkpoint_wrapped_module."
    ),
    "bare": lambda n: n.removeprefix("transformer."),
    "held twice": lambda n: f"model.model.{n}",
    "held and wrapped": lambda n: f"state.model.module.{n}",
    "a module in the middle": lambda n: n.replace("attn.", "attn.module."),
}


@pytest.mark.parametrize("way", WAYS)
def test_wrappers_come_and_go(way: str, tmp_path: Path) -> None:
    made = states(SHAPES)
    rename = WAYS[way]
    mixed = [{rename(n): v for n, v in s.items()} if k >= 2 else s for k, s in enumerate(made)]
    plan, _ = make_plan(Request(str(write(tmp_path / "mixed", mixed))))
    assert len(plan.tensors) == len(SHAPES) and not plan.all_left_out
    plain = cosines(write(tmp_path / "plain", made), tmp_path / "a")
    assert cosines(tmp_path / "mixed", tmp_path / "b") == plain


def test_names_stay_where_nothing_is_gained(tmp_path: Path) -> None:
    """A tensor that comes later changes no name; nor does a spelling that makes two tensors one."""
    made = states(SHAPES)
    made[3]["transformer.late.weight"] = torch.ones(3)
    plan, _ = make_plan(Request(str(write(tmp_path / "late", made))))
    assert {tensor.name for tensor in plan.tensors} == set(SHAPES)
    two = states({"model.a.weight": (4, 4), "a.weight": (4, 4)})
    two[1] = {f"module.{name}": values for name, values in two[1].items()}
    plan, _ = make_plan(Request(str(write(tmp_path / "two", two))))
    assert {tensor.name for tensor in plan.tensors} == {"model.a.weight", "a.weight"}


def test_weight_norm_is_one_tensor_before_and_after_torch_2_1(tmp_path: Path) -> None:
    shapes = {
        "conv.weight_g": (1, 1, 4),
        "conv.weight_v": (8, 4, 4),
        "layers.0.q_proj.weight": (8, 8),
    }
    made = states(shapes)
    for state in made[2:]:
        state["conv.parametrizations.weight.original0"] = state.pop("conv.weight_g")
        state["conv.parametrizations.weight.original1"] = state.pop("conv.weight_v")
    plan, _ = make_plan(Request(str(write(tmp_path / "run", made))))
    assert {tensor.name for tensor in plan.tensors} == set(shapes)


@pytest.mark.parametrize("order", ["single first", "fused first"])
def test_experts_apart_and_in_one_tensor(order: str, tmp_path: Path) -> None:
    """Against the same run with single experts throughout."""
    experts, inner, outer = 3, 6, 8
    prefix = "model.layers.0.mlp.experts."
    shapes = {
        f"{prefix}{n}.{label}.weight": shape
        for n in range(experts)
        for label, shape in (
            ("gate_proj", (inner, outer)), ("up_proj", (inner, outer)), ("down_proj", (outer, inner)),
        )
    }  # fmt: skip
    made = states({**shapes, "model.layers.0.self_attn.q_proj.weight": (8, 8)})
    mixed = []
    for k, state in enumerate(made):
        if (k < 2) is (order == "single first"):
            mixed.append(state)
            continue

        def together(label: str, state: dict[str, torch.Tensor] = state) -> torch.Tensor:
            return torch.stack([state[f"{prefix}{n}.{label}.weight"] for n in range(experts)])

        mixed.append({n: v for n, v in state.items() if n not in shapes} | {
            prefix + "gate_up_proj": torch.cat((together("gate_proj"), together("up_proj")), 1),
            prefix + "down_proj": together("down_proj"),
        })  # fmt: skip
    plain = cosines(write(tmp_path / "plain", made), tmp_path / "a")
    assert cosines(write(tmp_path / "mixed", mixed), tmp_path / "b") == plain
    for state in mixed:  # of other shapes: transposed, as some networks have them
        for name in (prefix + "gate_up_proj", prefix + "down_proj"):
            if name in state:
                state[name] = state[name].transpose(1, 2)
    plan, _ = make_plan(Request(str(write(tmp_path / "other", mixed))))
    assert [tensor.name for tensor in plan.tensors] == ["model.layers.0.self_attn.q_proj.weight"]


# ---- a vocabulary that grows


def test_the_rows_that_all_have_count(tmp_path: Path) -> None:
    ends = ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias")
    shapes = {
        ends[0]: (40, 8),
        ends[1]: (40, 8),
        ends[2]: (40,),
        "model.layers.0.fc1.weight": (16, 8),
    }
    made = states(shapes)
    grown = [
        {
            n: torch.cat((v, torch.full((8, *v.shape[1:]), 9.0))) if n in ends else v
            for n, v in s.items()
        }
        if k == 2
        else s
        for k, s in enumerate(made)
    ]
    plain = cosines(write(tmp_path / "plain", made), tmp_path / "a")
    assert cosines(write(tmp_path / "grown", grown), tmp_path / "b") == plain
    query = "SELECT severity, kind, k, message FROM findings WHERE severity <> 'info'"
    (row,) = pipeline.open_store(str(tmp_path / "b")).sql(query).fetchall()
    assert row[:3] == ("warning", "shape_changed", 2)
    assert "40 rows, 48 from step2 (step 2) on" in row[3]


def test_columns_that_change_and_layers_that_grow_are_left_out(tmp_path: Path) -> None:
    made = states({"embed_tokens.weight": (40, 8), "layers.0.fc1.weight": (16, 8),
                   "layers.0.fc2.weight": (8, 16)})  # fmt: skip
    made[2]["embed_tokens.weight"] = torch.ones(40, 9)
    made[2]["layers.0.fc1.weight"] = torch.ones(17, 8)
    plan, _ = make_plan(Request(str(write(tmp_path / "run", made))))
    assert [tensor.name for tensor in plan.tensors] == ["layers.0.fc2.weight"]
    assert {entry.kind for entry in plan.all_left_out} == {"shape_changed"}
