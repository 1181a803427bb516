"""What the writers of trainers leave: every tensor is read, with its role, and every other file is named."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint import save as save_distributed
from torch.distributed.checkpoint.metadata import Metadata

import pipeline
from tests.checkpoint import values

State = dict[str, torch.Tensor]
STEPS = (100, 200, 1000)
WIDTH, LAYERS = 8, 2


def state_of(step: int, layer: dict[str, tuple[int, ...]], outside: dict[str, tuple[int, ...]],
             prefix: str = "layers.") -> State:  # fmt: skip
    generator = torch.Generator().manual_seed(step)
    shapes = {f"{prefix}{n}.{name}": shape for n in range(LAYERS) for name, shape in layer.items()}
    return {n: torch.randn(s, generator=generator) for n, s in (outside | shapes).items()}


def square(*names: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH, WIDTH) for name in names}


ENDS = {"tok_embeddings.weight": (40, WIDTH), "norm.weight": (WIDTH,), "output.weight": (40, WIDTH)}
ATTENTION = square("attention.wq", "attention.wk", "attention.wv", "attention.wo")


def titan(step: int) -> State:
    mlp = square("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
    return state_of(step, ATTENTION | mlp | {"attention_norm.weight": (WIDTH,)}, ENDS)


def experts(step: int) -> State:
    """One tensor of all experts, under the names that torchtitan has given them since 2026."""
    mlp = {"moe.router.gate.weight": (4, WIDTH), "moe.experts.w1_EFD": (4, 16, WIDTH),
           "moe.experts.w2_EDF": (4, WIDTH, 16), "moe.experts.w3_EFD": (4, 16, WIDTH)}  # fmt: skip
    return state_of(step, ATTENTION | mlp, ENDS)


def olmo(step: int) -> State:
    layer = square("attention.w_q", "attention.w_k", "attention.w_v", "attention.w_out",
                   "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")  # fmt: skip
    layer |= {"attention_norm.weight": (WIDTH,), "attention.q_norm.weight": (WIDTH,)}
    outside = {"embeddings.weight": (40, WIDTH), "lm_head.w_out.weight": (40, WIDTH),
               "lm_head.norm.weight": (WIDTH,)}  # fmt: skip
    return state_of(step, layer, outside, "blocks.")


def gpt(step: int, prefix: str = "") -> State:
    layer = {"self_attention.linear_qkv.weight": (3 * WIDTH, WIDTH),
             "self_attention.linear_qkv.layer_norm_weight": (WIDTH,),
             "self_attention.linear_proj.weight": (WIDTH, WIDTH),
             "mlp.linear_fc1.weight": (32, WIDTH), "mlp.linear_fc2.weight": (WIDTH, 32)}  # fmt: skip
    outside = {"embedding.word_embeddings.weight": (40, WIDTH),
               "decoder.final_layernorm.weight": (WIDTH,), "output_layer.weight": (40, WIDTH)}  # fmt: skip
    state = state_of(step, layer, outside, "decoder.layers.")
    return {prefix + name: tensor for name, tensor in state.items()}


def llama(step: int) -> State:
    layer = square("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    return state_of(step, layer, {"model.embed_tokens.weight": (40, WIDTH)}, "model.layers.")


def litgpt(step: int) -> State:
    layer = square("attn.qkv", "attn.proj", "mlp.fc_1", "mlp.fc_2", "mlp.proj")
    outside = {"lm_head.weight": (40, WIDTH), "transformer.wte.weight": (40, WIDTH)}
    return state_of(step, layer, outside, "transformer.h.")


# ---- writers: the folder of the run, the state, the step


def moments(state: State) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def distributed(folder: Path, state: dict[str, Any]) -> Path:
    save_distributed(state, checkpoint_id=folder, no_dist=True)
    return folder / ".metadata"


def torchtitan(root: Path, state: State, step: int) -> None:
    flat = {f"optimizer.state.{name}.exp_avg": tensor for name, tensor in moments(state).items()}
    buffer = {"freqs_cis": torch.polar(torch.ones(16, 4), torch.arange(64.0).view(16, 4))}
    distributed(root / f"step-{step}", state | flat | buffer)


def torchtitan_file(root: Path, state: State, step: int) -> None:
    root.mkdir(exist_ok=True)
    buffer = {"freqs_cis": torch.zeros(16, 4, dtype=torch.complex64)}
    torch.save({"model": state | buffer}, root / f"step_{step}.pt")


@dataclasses.dataclass
class StorageInfo:
    relative_path: str
    offset: int
    length: int


@dataclasses.dataclass
class CoreMetadata(Metadata):
    mcore_data: dict[str, Any] = dataclasses.field(default_factory=dict)


# Pickles hold the name of a class and its attributes: ours have the names of theirs.
NAMES = {
    StorageInfo: ("olmo_core.distributed.checkpoint.filesystem", "_StorageInfo"),
    CoreMetadata: ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"),
}
for kind, (module, name) in NAMES.items():
    kind.__module__, kind.__qualname__ = module, name


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, (module, name) in NAMES.items():
        for end in range(1, module.count(".") + 2):
            part = ".".join(module.split(".")[:end])
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        setattr(sys.modules[module], name, kind)


def olmo_core(root: Path, state: State, step: int) -> None:
    folder = root / f"step{step}"
    optimizer = {"state": {n: {"exp_avg": t} for n, t in moments(state).items()}}
    path = distributed(folder / "model_and_optim", {"model": state, "optim": optimizer})
    metadata = pickle.loads(path.read_bytes())
    metadata.storage_data = {
        key: StorageInfo(info.relative_path, info.offset, info.length)
        for key, info in metadata.storage_data.items()
    }
    path.write_bytes(pickle.dumps(metadata))
    assert b"olmo_core.distributed.checkpoint.filesystem" in path.read_bytes()
    (folder / "train").mkdir()
    torch.save({"global_step": step}, folder / "train" / "rank0.pt")
    (folder / "config.json").write_text(json.dumps({"model": {"d_model": WIDTH, "n_layers": 2}}))
    (folder / ".metadata.json").write_text('{"version": "1.0"}')


def together(state: State) -> State:
    """All layers in one tensor each, as Megatron-core before 0.15 keeps layers that are alike."""
    stacked: State = {}
    for name in state:
        before, between, after = name.partition("decoder.layers.")
        if between:
            rest = after.partition(".")[2]
            of_layers = [state[f"{before}{between}{n}.{rest}"] for n in range(LAYERS)]
            stacked[f"{before}{between}{rest}"] = torch.stack(of_layers)
        else:
            stacked[name] = state[name]
    return stacked


def megatron(folder: Path, state: State, as_class: bool) -> None:
    data = {
        name: {"nd_reformulated_orig_global_shape": tuple(t.shape)} for name, t in state.items()
    }
    extra: dict[str, Any] = {
        "decoder.layers.self_attention.core_attention._extra_state/shard_0_2": io.BytesIO(b"x")
    }
    optimizer = {f"optimizer.state.exp_avg.{name}": t for name, t in moments(state).items()}
    path = distributed(folder, state | extra | optimizer)
    metadata = pickle.loads(path.read_bytes())
    if as_class:
        metadata = CoreMetadata(mcore_data=data, **vars(metadata))
    else:
        metadata.mcore_data = data
    path.write_bytes(pickle.dumps(metadata))
    torch.save(
        {"args": argparse.Namespace(num_layers=LAYERS), "iteration": 1}, folder / "common.pt"
    )
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')


def stacked_layers(root: Path, state: State, step: int) -> None:
    megatron(root / f"iter_{step:07d}", together(state), as_class=False)
    (root / "latest_checkpointed_iteration.txt").write_text(str(step))


def single_layers(root: Path, state: State, step: int) -> None:
    megatron(root / f"iter_{step:07d}", state, as_class=True)


def nemo(root: Path, state: State, step: int) -> None:
    folder = root / f"model--val_loss=1.50-step={step}-consumed_samples={8 * step}.0"
    megatron(folder / "weights", together(state), as_class=True)
    (folder / "context").mkdir()
    (folder / "context" / "model.yaml").write_text("num_layers: 2")


def litgpt_file(root: Path, state: State, step: int) -> None:
    folder = root / f"step-{step:08d}"
    folder.mkdir(parents=True)
    torch.save({"model": state, "iter_num": step, "step_count": step}, folder / "lit_model.pth")
    (folder / "model_config.yaml").write_text("n_layer: 2")


def litgpt_sharded(root: Path, state: State, step: int) -> None:
    folder = root / f"step-{step:08d}"
    distributed(folder / "lit_model.pth", {"model": state})
    torch.save({"iter_num": step}, folder / "lit_model.pth" / "meta.pt")
    (folder / "model_config.yaml").write_text("n_layer: 2")


def engine(folder: Path, state: State, step: int) -> None:
    """What DeepSpeed's engine saves beside the module, and its optimizer."""
    folder.mkdir(parents=True)
    beside: dict[str, Any] = {
        "buffer_names": [], "optimizer": None, "param_shapes": [{n: t.shape for n, t in state.items()}],
        "frozen_param_shapes": None, "shared_params": {}, "lr_scheduler": None, "random_ltd": None,
        "sparse_tensor_module_names": {"a", "b"}, "global_steps": step, "dp_world_size": 1,
        "mp_world_size": 1, "ds_config": {"zero_optimization": {"stage": 1}}, "ds_version": "0.18.0",
    }  # fmt: skip
    torch.save({"module": state} | beside, folder / "mp_rank_00_model_states.pt")
    optimizer = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": {}}, folder / optimizer)


def deepspeed(root: Path, state: State, step: int) -> None:
    engine(root / f"global_step{step}", state, step)
    (root / "latest").write_text(f"global_step{step}")
    (root / "zero_to_fp32.py").write_text("")


def openrlhf(root: Path, state: State, step: int) -> None:
    engine(root / "_actor" / f"global_step{step}", state, step)


def lightning_state(step: int) -> dict[str, Any]:
    return {
        "epoch": 0, "global_step": step, "pytorch-lightning_version": "2.6.0",
        "loops": {"fit_loop": {"state_dict": {}}}, "lr_schedulers": [], "hparams_name": "kwargs",
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(2.0)}},
        "hyper_parameters": {"args": argparse.Namespace(lr=1e-3, path=Path("/x"))},
    }  # fmt: skip


def lightning(root: Path, state: State, step: int) -> None:
    root.mkdir(exist_ok=True)
    optimizer = [{"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}}]
    saved = lightning_state(step) | {"state_dict": state, "optimizer_states": optimizer}
    torch.save(saved, root / f"epoch=0-step={step}.ckpt")


def lightning_sharded(root: Path, state: State, step: int) -> None:
    folder = root / f"epoch=0-step={step}.ckpt"
    distributed(folder, {"model": state, "optimizer_0": {"state": {"x": torch.ones(3)}}})
    torch.save(lightning_state(step), folder / "meta.pt")


def lightning_deepspeed(root: Path, state: State, step: int) -> None:
    engine(root / f"epoch=0-step={step}.ckpt" / "checkpoint", state, step)
    (root / f"epoch=0-step={step}.ckpt" / "latest").write_text("checkpoint")


def adapters(step: int) -> State:
    """LoRA's: B is zero at the start."""
    layer = {"self_attn.q_proj.lora_A.weight": (4, WIDTH), "self_attn.q_proj.lora_B.weight": (WIDTH, 4),
             "mlp.down_proj.lora_A.weight": (4, WIDTH), "mlp.down_proj.lora_B.weight": (WIDTH, 4)}  # fmt: skip
    state = state_of(step, layer, {}, "base_model.model.model.layers.")
    if step == STEPS[0]:
        return {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in state.items()}
    return state


def peft(root: Path, state: State, step: int) -> None:
    folder = root / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin"):
        torch.save({}, folder / name)


WRITERS: dict[str, tuple[Callable[[int], State], Callable[[Path, State, int], None]]] = {
    "torchtitan": (titan, torchtitan),
    "torchtitan, one file": (titan, torchtitan_file),
    "torchtitan, experts": (experts, torchtitan),
    "OLMo-core": (olmo, olmo_core),
    "Megatron-core, layers in one tensor": (gpt, stacked_layers),
    "Megatron-core, layer by layer": (gpt, single_layers),
    "NeMo 2": (lambda step: gpt(step, "module."), nemo),
    "LitGPT": (litgpt, litgpt_file),
    "LitGPT, sharded": (litgpt, litgpt_sharded),
    "DeepSpeed": (llama, deepspeed),
    "OpenRLHF": (llama, openrlhf),
    "PEFT": (adapters, peft),
    "Lightning": (llama, lightning),
    "Lightning, sharded": (llama, lightning_sharded),
    "Lightning, DeepSpeed": (llama, lightning_deepspeed),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_tensor_is_read_and_every_file_is_named(writer: str, tmp_path: Path) -> None:
    made, write = WRITERS[writer]
    for step in STEPS:
        write(tmp_path / "run", made(step), step)
    plan = pipeline.plan(tmp_path / "run")
    assert [checkpoint.step for checkpoint in plan.checkpoints] == list(STEPS)
    for k, step in enumerate(STEPS):
        state, held = made(step), values(plan, k)
        assert held.keys() == state.keys()
        for name, tensor in state.items():
            assert np.array_equal(held[name], tensor.numpy().reshape(-1)), name
    roles = {tensor.name: tensor.role for tensor in plan.tensors}
    assert not [name for name, role in roles.items() if role.component == "other"]
    assert {role.layer for role in roles.values()} - {None} == {*range(LAYERS)}
    unread = {path: kind for files in plan.unread for path, kind in files.items()}
    unread |= {each.path: each.kind for each in plan.account.beside}
    assert not {
        path: kind.what
        for path, kind in unread.items()
        if kind.what in ("weights that are not read", "not understood")
    }
    left_out = {entry.name: entry.reason for entry in plan.left_out_tensors}
    buffer = {"freqs_cis": "not a weight: stored as C64"}
    assert left_out == (buffer if writer.startswith("torchtitan") else {})
    assert not plan.account.lacking


def test_roles_of_olmo_core() -> None:
    from pipeline.checkpoint.roles import roles

    known = roles({name: tuple(tensor.shape) for name, tensor in olmo(0).items()})
    expected = {
        "blocks.0.attention.w_q.weight": "attn_q", "blocks.0.attention.w_k.weight": "attn_k",
        "blocks.0.attention.w_v.weight": "attn_v", "blocks.0.attention.w_out.weight": "attn_out",
        "blocks.0.feed_forward.w2.weight": "mlp_down", "lm_head.w_out.weight": "unembed",
    }  # fmt: skip
    assert {name: known[name].component for name in expected} == expected
