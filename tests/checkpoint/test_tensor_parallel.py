"""Networks in parts of ranks, put together: against the whole, and against how torch itself divides it."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pipeline
from pipeline.errors import FormatError
from tests.checkpoint import values

State = dict[str, torch.Tensor]
STEPS = (10, 20, 30)
WIDTH, INNER, VOCABULARY, LAYERS = 8, 12, 32, 2


def matrices(step: int, shapes: dict[str, tuple[int, ...]]) -> State:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def layers(shapes: dict[str, tuple[int, ...]], prefix: str) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{n}.{name}": shape for n in range(LAYERS) for name, shape in shapes.items()}


def classic(step: int) -> State:
    """Megatron-LM's GPT, with biases and positions, as its nested dictionaries are called."""
    shapes = {
        "self_attention.query_key_value.weight": (3 * WIDTH, WIDTH),
        "self_attention.query_key_value.bias": (3 * WIDTH,),
        "self_attention.dense.weight": (WIDTH, WIDTH), "self_attention.dense.bias": (WIDTH,),
        "mlp.dense_h_to_4h.weight": (INNER, WIDTH), "mlp.dense_h_to_4h.bias": (INNER,),
        "mlp.dense_4h_to_h.weight": (WIDTH, INNER), "mlp.dense_4h_to_h.bias": (WIDTH,),
        "input_norm.weight": (WIDTH,), "post_attention_norm.bias": (WIDTH,),
    }  # fmt: skip
    return matrices(
        step,
        {
            "language_model.embedding.word_embeddings.weight": (VOCABULARY, WIDTH),
            "language_model.embedding.position_embeddings.weight": (6, WIDTH),
            **layers(shapes, "language_model.encoder.layers."),
            "language_model.encoder.final_norm.weight": (WIDTH,),
            "language_model.output_layer.weight": (VOCABULARY, WIDTH),
        },
    )


def gated(step: int) -> State:
    """Megatron-core's, with a gate before the way up in one matrix, experts, fewer keys than queries."""
    shapes = {
        "self_attention.linear_qkv.weight": (2 * WIDTH, WIDTH),
        "self_attention.linear_qkv.layer_norm_weight": (WIDTH,),
        "self_attention.linear_proj.weight": (WIDTH, WIDTH),
        "mlp.router.weight": (4, WIDTH),
        "mlp.experts.local_experts.0.linear_fc1.weight": (2 * INNER, WIDTH),
        "mlp.experts.local_experts.0.linear_fc2.weight": (WIDTH, INNER),
        "mlp.shared_experts.linear_fc1.weight": (4 * INNER, WIDTH),
        "mlp.shared_experts.linear_fc2.weight": (WIDTH, 2 * INNER),
        "pre_mlp_layernorm.weight": (WIDTH,),
    }
    return matrices(
        step,
        {
            "embedding.word_embeddings.weight": (VOCABULARY, WIDTH),
            **layers(shapes, "decoder.layers."),
            "decoder.final_layernorm.weight": (WIDTH,),
            "output_layer.weight": (VOCABULARY, WIDTH),
        },
    )


def neox(step: int) -> State:
    """GPT-NeoX's Llama, as its files of layers are named here."""
    shapes = {
        "attention.query_key_value.weight": (3 * WIDTH, WIDTH),
        "attention.dense.weight": (WIDTH, WIDTH),
        "mlp.w1.weight": (INNER, WIDTH), "mlp.w3.weight": (INNER, WIDTH),
        "mlp.w2.weight": (WIDTH, INNER),
        "input_layernorm.scale": (WIDTH,), "post_attention_layernorm.scale": (WIDTH,),
    }  # fmt: skip
    return matrices(
        step,
        {
            "word_embeddings.weight": (VOCABULARY, WIDTH),
            **layers(shapes, "layers."),
            "norm.scale": (WIDTH,),
            "final_linear.weight": (VOCABULARY, WIDTH),
        },
    )


# What the modules of Megatron-LM divide: `ColumnParallelLinear`, `VocabParallelEmbedding` by rows,
# `RowParallelLinear` by columns, its bias not at all.
BY_ROWS = ("query_key_value", "dense_h_to_4h", "linear_qkv", "linear_fc1", "w1.", "w3.",
           "word_embeddings", "output_layer", "final_linear")  # fmt: skip
BY_COLUMNS = ("dense.weight", "dense_4h_to_h.weight", "linear_proj", "linear_fc2", "w2.")


def divided(state: State, ranks: int) -> list[State]:
    parts: list[State] = [{} for _ in range(ranks)]
    for name, tensor in state.items():
        if "linear_fc1" in name and "layer_norm" not in name:
            gate, up = (half.chunk(ranks) for half in tensor.chunk(2))
            of_ranks = [torch.cat(pair) for pair in zip(gate, up, strict=True)]
        elif "layer_norm" not in name and any(word in name for word in BY_ROWS):
            of_ranks = list(tensor.chunk(ranks))
        elif any(word in name for word in BY_COLUMNS):
            of_ranks = list(tensor.chunk(ranks, 1))
        else:
            of_ranks = [tensor] * ranks
        for part, of_rank in zip(parts, of_ranks, strict=True):
            part[name] = of_rank.clone()
    return parts


# ---- writers: a folder, what each rank holds, in the files of one library


def deepspeed(folder: Path, parts: list[State], **stated: Any) -> None:
    folder.mkdir(parents=True)
    for rank, part in enumerate(parts):
        saved = {"module": part, "mp_world_size": len(parts), "ds_version": "0.18"} | stated
        torch.save(saved, folder / f"mp_rank_{rank:02d}_model_states.pt")
        torch.save({}, folder / f"zero_pp_rank_0_mp_rank_{rank:02d}_optim_states.pt")


def nested(part: State) -> dict[str, Any]:
    """As `state_dict_for_save_checkpoint` nests it: the modules, then flat names."""
    inner: dict[str, Any] = {}
    for name, tensor in part.items():
        if not name.startswith("language_model."):
            return part
        _, module, rest = name.split(".", 2)
        inner.setdefault(module, {})[rest] = tensor
    return {"language_model": inner}


def megatron(folder: Path, parts: list[State], stages: int = 1, **stated: Any) -> None:
    sizes = {"tensor_model_parallel_size": len(parts), "pipeline_model_parallel_size": stages}
    for rank, part in enumerate(parts):
        for stage, held in enumerate(staged(part, stages)):
            below = folder / (f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else ""))
            below.mkdir(parents=True)
            saved = {"args": argparse.Namespace(**sizes | stated), "iteration": 3,
                     "model": nested(held), "optimizer": {"x": torch.ones(2)}}  # fmt: skip
            torch.save(saved, below / "model_optim_rng.pt")
            torch.save({}, below / "distrib_optim.pt")


def staged(part: State, stages: int) -> Iterator[State]:
    """Yield what each stage of a pipeline holds: a layer or more, numbered from 0."""
    each = LAYERS // stages
    for stage in range(stages):
        held: State = {}
        for name, tensor in part.items():
            before, between, after = name.partition("layers.")
            number, _, rest = after.partition(".")
            if between and int(number) // each == stage:
                held[f"{before}layers.{int(number) % each}.{rest}"] = tensor
            elif not between and ("embedding" in name) == (stage == 0) and stage in (0, stages - 1):
                held[name] = tensor
        if stages == 1:
            held = part
        yield held


def files_of_layers(folder: Path, parts: list[State], first: int = 2) -> None:
    folder.mkdir(parents=True)
    for rank, part in enumerate(parts):
        files: dict[int, State] = {}
        for name, tensor in part.items():
            number = first - 2 if "word_embeddings" in name else first + LAYERS + 1
            number += name.startswith("final_linear")
            if name.startswith("layers."):
                number, name = int(name.split(".")[1]) + first, name.split(".", 2)[2]
            files.setdefault(number, {})[name] = tensor
        for number, held in files.items():
            torch.save(held, folder / f"layer_{number:02d}-model_{rank:02d}-model_states.pt")
        torch.save({"module": None}, folder / f"mp_rank_{rank:02d}_model_states.pt")


WRITERS: dict[str, tuple[Callable[[int], State], Callable[..., None]]] = {
    "DeepSpeed": (classic, deepspeed),
    "Megatron-LM": (classic, megatron),
    "Megatron-core": (gated, megatron),
    "GPT-NeoX": (neox, files_of_layers),
}


def suite(root: Path, writer: str, *ranks: int, **options: Any) -> Path:
    """Write a checkpoint for each step, of so many ranks."""
    made, write = WRITERS[writer]
    for step, count in zip(STEPS, ranks, strict=True):
        write(root / f"global_step{step}", divided(made(step), count), **options)
    return root


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("writer", WRITERS)
def test_parts_make_the_whole(writer: str, ranks: int, tmp_path: Path) -> None:
    made, _ = WRITERS[writer]
    plan = pipeline.plan(suite(tmp_path, writer, ranks, ranks, ranks))
    assert [checkpoint.step for checkpoint in plan.checkpoints] == list(STEPS)
    assert {tensor.name: tensor.shape for tensor in plan.tensors} == {
        name: tuple(tensor.shape) for name, tensor in made(0).items()
    }
    for k, step in enumerate(STEPS):
        for name, elements in values(plan, k).items():
            whole = made(step)[name]
            if any(word in name for word in BY_COLUMNS):  # rank by rank
                whole = torch.cat([part.flatten() for part in whole.chunk(ranks, 1)])
            assert np.array_equal(elements, whole.numpy().reshape(-1)), name
    assert not any(
        kind.what.startswith("weights") for files in plan.unread for kind in files.values()
    )


def figures(source: Path, store: Path) -> list[tuple]:
    pipeline.analyze(str(source), str(store), executor="local", run="r")
    query = "SELECT scope, layer, component, tensor, i, j, dot FROM similarity ORDER BY ALL"
    return pipeline.open_store(str(store)).sql(query).fetchall()


def test_figures_are_those_of_the_whole(tmp_path: Path) -> None:
    for step in STEPS:
        (tmp_path / "whole" / f"step{step}").mkdir(parents=True)
        save_file(gated(step), tmp_path / "whole" / f"step{step}" / "model.safetensors")
    expected = figures(tmp_path / "whole", tmp_path / "a")
    for number, ranks in enumerate(((2, 2, 2), (1, 2, 4))):
        source = suite(tmp_path / str(ranks), "Megatron-core", *ranks)
        rows = figures(source, tmp_path / f"b{number}")
        assert [row[:-1] for row in rows] == [row[:-1] for row in expected]
        assert [row[-1] for row in rows] == pytest.approx([row[-1] for row in expected], rel=1e-13)


def test_another_number_of_ranks_in_the_middle_of_a_run(tmp_path: Path) -> None:
    """Columns are read row by row then: each element is where it is in the whole."""
    plan = pipeline.plan(suite(tmp_path, "DeepSpeed", 2, 4, 1))
    for k, step in enumerate(STEPS):
        for name, elements in values(plan, k).items():
            assert np.array_equal(elements, classic(step)[name].numpy().reshape(-1)), name


def test_rows_that_would_be_too_many_are_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.planning import columns

    monkeypatch.setattr(columns, "MAX_EXTENTS", (2 + 4 + 4) * WIDTH)
    plan = pipeline.plan(suite(tmp_path, "DeepSpeed", 2, 4, 4))
    (reason,) = {entry.reason for entry in plan.left_out_tensors}
    assert "other numbers of ranks" in reason
    assert {entry.kind for entry in plan.left_out_tensors} == {"valueless_tensor"}
    assert len(plan.left_out_tensors) == 2 * LAYERS - 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_stages_of_a_pipeline(ranks: int, tmp_path: Path) -> None:
    plan = pipeline.plan(suite(tmp_path, "Megatron-core", *[ranks] * 3, stages=2))
    assert {tensor.name for tensor in plan.tensors} == gated(0).keys()
    held = values(plan, 1)
    for name in ("decoder.layers.0.pre_mlp_layernorm.weight", "decoder.layers.1.mlp.router.weight"):
        assert np.array_equal(held[name], gated(20)[name].numpy().reshape(-1))


def test_files_of_layers_that_begin_later(tmp_path: Path) -> None:
    """As Megatron-DeepSpeed counts them, by version, and with a final norm that has no name."""
    for first in (2, 3):
        for step in STEPS:
            state = neox(step)
            state = {n.replace("scale", "weight"): t for n, t in state.items()}
            state["weight"] = state.pop("norm.weight")
            folder = tmp_path / str(first) / f"global_step{step}"
            files_of_layers(folder, divided(state, 2), first)
            for file in sorted(folder.glob(f"layer_{first - 2:02d}-*")):
                file.rename(folder / file.name.replace(f"_{first - 2:02d}-", "_01-", 1))
        plan = pipeline.plan(tmp_path / str(first))
        assert {t.role.layer for t in plan.tensors} == {None, 0, 1}
        assert "final_layernorm.weight" in {t.name for t in plan.tensors}
        assert "layers.0.attention.dense.weight" in {t.name for t in plan.tensors}


# ---- torch divides it itself

WRITER = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore
torch.set_default_dtype(torch.float32)
class Norm(torch.nn.Module):
    def __init__(self): super().__init__(); self.weight = torch.nn.Parameter(torch.rand(8))
def linear(a, b): return torch.nn.Linear(b, a, bias=False)
def network():
    block = torch.nn.ModuleDict(dict(
        attention=torch.nn.ModuleDict(dict(wq=linear(16, 8), wk=linear(4, 8), wv=linear(4, 8), wo=linear(8, 16))),
        feed_forward=torch.nn.ModuleDict(dict(w1=linear(12, 8), w2=linear(8, 12), w3=linear(12, 8))),
        attention_norm=Norm(), ffn_norm=Norm()))
    return torch.nn.ModuleDict(dict(tok_embeddings=torch.nn.Embedding(32, 8),
        layers=torch.nn.ModuleList([block]), norm=Norm(), output=linear(32, 8)))
col, row = ColwiseParallel, RowwiseParallel
ways = {"tok_embeddings": row, "output": col, "layers.*.attention.w[qkv]": col, "layers.*.attention.wo": row,
        "layers.*.feed_forward.w[13]": col, "layers.*.feed_forward.w2": row}
root, count = sys.argv[1], int(sys.argv[2])
for step in (10, 20):
    for rank in range(count):
        torch.manual_seed(step)
        net = network()
        torch.save(net.state_dict(), f"{root}/whole{step}.pt")
        dist.init_process_group("fake", rank=rank, world_size=count, store=FakeStore())
        mesh = init_device_mesh("cpu", (count,))
        parallelize_module(net, mesh, {n: way() for n, way in ways.items()}, src_data_rank=None)
        local = {n: t.to_local().clone() if isinstance(t, DTensor) else t for n, t in net.state_dict().items()}
        import os; os.makedirs(f"{root}/run/step{step}", exist_ok=True)
        torch.save({"module": local}, f"{root}/run/step{step}/mp_rank_{rank:02d}_model_states.pt")
        dist.destroy_process_group()
"""


def test_what_torch_has_divided(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path), "2"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    plan = pipeline.plan(tmp_path / "run")
    for k, step in enumerate((10, 20)):
        whole = torch.load(tmp_path / f"whole{step}.pt")
        held = values(plan, k)
        assert held.keys() == whole.keys()
        for name, elements in held.items():
            expected = whole[name]
            if name.endswith(("wo.weight", "w2.weight")):
                expected = torch.cat([part.flatten() for part in expected.chunk(2, 1)])
            assert np.array_equal(elements, expected.numpy().reshape(-1)), name


# ---- what is not certain


def test_biases_that_ranks_may_have_summed_are_left_out_and_named(tmp_path: Path) -> None:
    def with_biases(step: int) -> State:
        state = neox(step)
        for n in range(LAYERS):
            state[f"layers.{n}.attention.dense.bias"] = torch.ones(WIDTH)
            state[f"layers.{n}.mlp.w1.bias"] = torch.ones(INNER)
        return state

    for step in STEPS:
        parts = divided(with_biases(step), 2)
        for part in parts:
            for n in range(LAYERS):
                name = f"layers.{n}.mlp.w1.bias"
                part[name] = part[name][: INNER // 2].clone()
        files_of_layers(tmp_path / f"global_step{step}", parts)
    plan = pipeline.plan(tmp_path)
    left_out = {entry.name: entry for entry in plan.left_out_tensors}
    assert left_out.keys() == {f"layers.{n}.attention.dense.bias" for n in range(LAYERS)}
    assert {entry.kind for entry in left_out.values()} == {"valueless_tensor"}
    assert {t.name: t.shape for t in plan.tensors}["layers.1.mlp.w1.bias"] == (INNER,)


ABSENT: dict[str, tuple[str, str, str]] = {
    # what is removed of one checkpoint: by which writer, which file, what is said
    "the first rank": ("DeepSpeed", "mp_rank_00_model_states.pt", "00_model_states.pt' is absent"),
    "the last rank": ("DeepSpeed", "mp_rank_03_model_states.pt", "files of 4 ranks, found 3"),
    "a rank's folder": (
        "Megatron-LM",
        "mp_rank_01/model_optim_rng.pt",
        "'mp_rank_01/.*' is absent",
    ),
    "the last folder": ("Megatron-LM", "mp_rank_03/model_optim_rng.pt", "of 4 ranks, found 3"),
    "a rank of a layer": ("GPT-NeoX", "layer_02-model_03-model_states.pt", "model_03.*' is absent"),
    "a layer": ("GPT-NeoX", "layer_02-model_*-model_states.pt", "file of layer 2 is absent"),
}


@pytest.mark.parametrize("kind", ABSENT)
def test_a_checkpoint_that_lacks_a_part_is_left_out_and_named(kind: str, tmp_path: Path) -> None:
    writer, pattern, message = ABSENT[kind]
    source = suite(tmp_path, writer, 4, 4, 4)
    for file in (source / "global_step20").glob(pattern):
        file.unlink()
    plan = pipeline.plan(source)
    assert [checkpoint.step for checkpoint in plan.checkpoints] == [10, 30]
    (entry,) = plan.account.lacking
    assert entry.name == "global_step20" and re.search(message, entry.reason), entry.reason


def test_one_rank_of_several_is_no_network(tmp_path: Path) -> None:
    source = suite(tmp_path, "DeepSpeed", 2, 2, 2)
    for file in source.glob("*/mp_rank_01_model_states.pt"):
        file.unlink()
    with pytest.raises(FormatError, match="expected the files of 2 ranks, found 1"):
        pipeline.plan(source)


REFUSED: dict[str, tuple[Callable[[list[State]], None], str]] = {
    "a matrix that names do not tell": (
        lambda parts: [part.update(pooler=torch.ones(4, WIDTH)) for part in parts] and None,
        "neither its name nor its shape says",
    ),
    "a shape that fits no role": (
        lambda parts: (
            [
                part.update(
                    {"decoder.layers.0.self_attention.linear_proj.weight": torch.ones(5, 4)}
                )
                for part in parts
            ]
            and None
        ),
        "neither its name nor its shape says",
    ),
    "shapes that differ": (
        lambda parts: parts[1].update({"output_layer.weight": torch.ones(3, WIDTH)}),
        r"expected \[16, 8\] F32 on every rank, found \[3, 8\] F32 on rank 1",
    ),
    "a tensor of one rank": (
        lambda parts: parts[1].update({"decoder.layers.0.more.weight": torch.ones(2)}),
        "the same tensors on every rank",
    ),
    "codes of 8 bits": (
        lambda parts: (
            [
                part.update({n: t.to(torch.float8_e4m3fn) for n, t in part.items() if "fc2" in n})
                for part in parts
            ]
            and None
        ),
        "neither its name nor its shape says",
    ),
    "no norms": (
        lambda parts: [part.pop(n) for part in parts for n in list(part) if "norm" in n] and None,
        "neither its name nor its shape says",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_networks_that_are_refused(kind: str, tmp_path: Path) -> None:
    change, message = REFUSED[kind]
    for step in STEPS:
        parts = divided(gated(step), 2)
        change(parts)
        deepspeed(tmp_path / f"step{step}", parts)
    with pytest.raises(FormatError, match=message) as raised:
        pipeline.plan(tmp_path)
    assert "step10" in raised.value.message
