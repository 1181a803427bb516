"""A small copy of every public suite's shape: names, exposure, format, buffers, fusing.

Names and formats are those of the suites' own pages; weights are those of the networks'
libraries where those have the architecture. Each is read as a user would: its name, nothing else.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pipeline
from pipeline.planning.make import make_plan
from pipeline.planning.plan import Plan
from pipeline.planning.request import Request
from tests.hub import Hub

State = dict[str, torch.Tensor]
Files = dict[str, bytes | Path]


def network(name: str, **settings: Any) -> tuple[State, dict]:
    """Return the state dict and the config of a tiny network of transformers."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**settings)
    kind = {"Bert": "BertForMaskedLM"}.get(name, f"{name}ForCausalLM")
    if name in ("GPT2",):
        kind = "GPT2LMHeadModel"
    model = getattr(transformers, kind)(config)
    described = json.loads(config.to_json_string(use_diff=False))
    described["architectures"] = [kind]
    return {n: t.detach().clone() for n, t in model.state_dict().items()}, described


SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**SIZES, "intermediate_size": 24}


def neox() -> tuple[State, dict]:
    """Pythia's files hold buffers: masks as bytes, a value for masked positions, frequencies."""
    state, config = network("GPTNeoX", **LLAMA)
    state = {name: value.half() for name, value in state.items()}
    for layer in range(2):
        prefix = f"gpt_neox.layers.{layer}.attention."
        state[prefix + "bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8).tril()
        state[prefix + "masked_bias"] = torch.tensor(-1e9).half()
        state[prefix + "rotary_emb.inv_freq"] = torch.ones(2).half()
    return state, config


def gpt2() -> tuple[State, dict]:
    settings = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8}
    state, config = network("GPT2", **settings)
    for layer in range(2):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return state, config


def bloom() -> tuple[State, dict]:
    settings = {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 2}
    state, config = network("Bloom", **settings)
    del state["lm_head.weight"]  # tied; the files are of the bare model
    return {n.removeprefix("transformer."): t.half() for n, t in state.items()}, config


def olmoe() -> tuple[State, dict]:
    """In memory experts are one tensor; in files, as transformers saves them, each is its own."""
    import transformers

    config = transformers.OlmoeConfig(**LLAMA, num_experts=3)
    with tempfile.TemporaryDirectory() as folder:
        transformers.OlmoeForCausalLM(config).save_pretrained(folder)
        described = json.loads((Path(folder) / "config.json").read_text())
        return load_file(Path(folder) / "model.safetensors"), described


def crystal() -> tuple[State, dict]:
    """Code of its own, after GPT-2: how its projection is laid out is not known here."""
    state, config = gpt2()
    return state, config | {"model_type": "crystalcoder", "architectures": ["CrystalCoder"]}


def olmo_native() -> tuple[State, dict]:
    config = {"model_type": "hf_olmo", "n_heads": 2, "d_model": 16, "weight_tying": True}
    state: State = {"model.transformer.wte.weight": torch.randn(40, 16)}
    for layer in range(2):
        prefix = f"model.transformer.blocks.{layer}."
        state[prefix + "att_proj.weight"] = torch.randn(48, 16)
        state[prefix + "attn_out.weight"] = torch.randn(16, 16)
        state[prefix + "ff_proj.weight"] = torch.randn(64, 16)
        state[prefix + "ff_out.weight"] = torch.randn(16, 32)
    return state, config


def one_safetensors(state: State, config: dict, folder: Path) -> None:
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def one_bin(state: State, config: dict, folder: Path) -> None:
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))


def shards(state: State, config: dict, folder: Path) -> None:
    names = {name: f"model-{1 + i % 3:05d}-of-00003.safetensors" for i, name in enumerate(state)}
    for file in set(names.values()):
        save_file({n: t for n, t in state.items() if names[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "config.json").write_text(json.dumps(config))


def trainer(state: State, config: dict, folder: Path) -> None:
    one_safetensors(state, config, folder)
    torch.save({"state": {0: {"exp_avg": torch.ones(3)}}}, folder / "optimizer.pt")
    torch.save({"base_lrs": [0.1]}, folder / "scheduler.pt")
    torch.save({"python": random.getstate()}, folder / "rng_state.pth")
    torch.save({"args": 1}, folder / "training_args.bin")
    (folder / "trainer_state.json").write_text("{}")


def deepspeed(state: State, config: dict, folder: Path) -> None:
    del config
    found = {"module": state, "global_steps": 7, "ds_version": "0.16", "lr_scheduler": {"last": 1}}
    torch.save(found, folder / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")


@dataclass
class Suite:
    exposure: str
    """branches, tags, commits, repositories, directory, folders."""
    checkpoints: dict[str, tuple[int | None, int | None, float | None]]
    """name: stage, step, tokens; in the order of the path."""
    make: Callable[[], tuple[State, dict]]
    write: Callable[[State, dict, Path], None]
    components: set[str]
    left_out: set[str] = field(default_factory=set)
    others: tuple[str, ...] = ()
    """Revisions that are not on the path."""


FUSED = {"attn_q", "attn_k", "attn_v", "attn_out", "mlp_up", "mlp_down", "norm", "embed"}
LLAMA_PARTS = FUSED | {"mlp_gate", "unembed"}
WHOLE_QKV = FUSED - {"attn_q", "attn_k", "attn_v"} | {"attn_qkv"}
B = 1e9

SUITES: dict[str, Suite] = {
    "pythia": Suite(
        "branches",
        {f"step{s}": (None, s, None) for s in (0, 1, 2, 512, 1000, 143_000)},
        neox, one_bin, FUSED | {"unembed"},
        {"buffer: causal mask", "buffer: value of masked positions", "buffer: rotary frequencies"},
        ("main",),
    ),
    "olmo-2-7b": Suite(
        "branches",
        {"step150-tokens1B": (None, 150, B), "stage1-step1000-tokens5B": (1, 1000, 5 * B),
         "stage1-step10000-tokens42B": (1, 10_000, 42 * B),
         "stage2-ingredient1-step1000-tokens5B": (2, 1000, 5 * B)},
        lambda: network("Olmo2", **LLAMA), shards, LLAMA_PARTS, set(),
        ("main", "stage2-ingredient2-step1000-tokens5B", "stage2-ingredient3-step1000-tokens5B"),
    ),
    "olmo-3": Suite(
        "branches",
        {"stage1-step1000": (1, 1000, None), "stage1-step2000": (1, 2000, None),
         "stage2-step500": (2, 500, None), "stage3-step100": (3, 100, None)},
        lambda: network("Olmo3", **LLAMA), shards, LLAMA_PARTS,
    ),
    "olmo-1-native": Suite(
        "branches",
        {f"step{s}-tokens{t}B": (None, s, t * B) for s, t in ((1000, 4), (2000, 8), (10_000, 44))},
        olmo_native, one_safetensors,
        {"attn_q", "attn_k", "attn_v", "attn_out", "mlp_gate", "mlp_up", "mlp_down", "embed"},
    ),
    "amber": Suite(
        "branches",
        {**{f"ckpt_{n:03d}": (None, n, None) for n in (0, 1, 10, 100)}, "main": (None, None, None)},
        lambda: network("Llama", **LLAMA), shards, LLAMA_PARTS,
    ),
    "bloom": Suite(
        "tags",
        {f"global_step{s}": (None, s, None) for s in (1000, 10_000, 100_000)},
        bloom, one_bin, FUSED, set(), ("main",),
    ),
    "smollm2": Suite(
        "branches",
        {f"step-{s}": (None, s, None) for s in (160_000, 320_000, 1_280_000)},
        lambda: network("Llama", **LLAMA, tie_word_embeddings=True), one_safetensors,
        LLAMA_PARTS - {"unembed"}, {"tied to model.embed_tokens.weight"},
    ),
    "smollm3": Suite(
        "branches",
        {"stage1-step-40000": (1, 40_000, None), "stage1-step-80000": (1, 80_000, None),
         "stage3-step-4720000": (3, 4_720_000, None),
         "lc-4k-to-32k-step-4000": (4, 4000, None)},
        lambda: network("Llama", **LLAMA), one_safetensors, LLAMA_PARTS,
    ),
    "apertus": Suite(
        "branches",
        {f"step{s}-tokens{t}B": (None, s, t * B) for s, t in ((50_000, 210), (100_000, 420))},
        lambda: network("Llama", **LLAMA), one_safetensors, LLAMA_PARTS,
    ),
    "tinyllama": Suite(
        "repositories",
        {"TinyLlama-1.1B-step-50K-105b": (None, 50_000, 105 * B),
         "TinyLlama-1.1B-intermediate-step-480k-1T": (None, 480_000, 1000 * B),
         "TinyLlama-1.1B-intermediate-step-1431k-3T": (None, 1_431_000, 3000 * B)},
        lambda: network("Llama", **LLAMA), one_bin, LLAMA_PARTS,
    ),
    "multiberts": Suite(
        "repositories",
        {f"multiberts-seed_0-step_{s}k": (None, s * 1000, None) for s in (20, 40, 200, 2000)},
        lambda: network("Bert", **LLAMA), one_bin,
        {"attn_q", "attn_k", "attn_v", "attn_out", "mlp_up", "mlp_down", "norm", "embed",
         "position", "unembed", "other"},
        {"tied to bert.embeddings.word_embeddings.weight", "tied to cls.predictions.bias"},
    ),
    "mistral-crfm": Suite(
        "branches",
        {f"checkpoint-{s}": (None, s, None) for s in (10, 100, 2000, 400_000)},
        gpt2, one_bin, FUSED | {"position"},
        {"buffer: causal mask", "buffer: value of masked positions",
         "tied to transformer.wte.weight"},
    ),
    "mistral-crfm-commits": Suite(
        "commits",
        {f"checkpoint-{s} contents": (None, s, None) for s in (10, 100, 2000)},
        gpt2, one_bin, FUSED | {"position"},
        {"buffer: causal mask", "buffer: value of masked positions",
         "tied to transformer.wte.weight"},
    ),
    "pico": Suite(
        "commits",
        {f"Saving HF Model -- Step {s}": (None, s, None) for s in (0, 1000, 2000)},
        lambda: network("Llama", **LLAMA), one_safetensors, LLAMA_PARTS,
    ),
    "crystal": Suite(
        "branches",
        {"CrystalCoder_phase1_checkpoint_055500": (1, 55_500, None),
         "CrystalCoder_phase2_checkpoint_020000": (2, 20_000, None),
         "CrystalCoder_phase2_checkpoint_220000": (2, 220_000, None)},
        crystal, one_bin, WHOLE_QKV | {"position"},
        {"buffer: causal mask", "buffer: value of masked positions",
         "tied to transformer.wte.weight"},
    ),
    "k2": Suite(
        "branches",
        {f"ckpt_{n:03d}": (None, n, None) for n in (1, 60, 360)},
        lambda: network("Llama", **LLAMA), shards, LLAMA_PARTS,
    ),
    "olmoe": Suite(
        "branches",
        {f"step{s}-tokens{t}B": (None, s, t * B) for s, t in ((5000, 20), (10_000, 41))},
        olmoe, shards, LLAMA_PARTS | {"router"},
    ),
    "trainer": Suite(
        "directory",
        {f"checkpoint-{s}": (None, s, None) for s in (500, 1000, 10_000)},
        lambda: network("Llama", **LLAMA), trainer, LLAMA_PARTS,
    ),
    "deepspeed": Suite(
        "directory",
        {f"global_step{s}": (None, s, None) for s in (5, 50, 100)},
        neox, deepspeed, WHOLE_QKV | {"unembed"},
        {"buffer: causal mask", "buffer: value of masked positions", "buffer: rotary frequencies"},
    ),
    "folders-of-one-repository": Suite(
        "folders",
        {f"step-{s:04d}": (None, s, None) for s in (0, 250, 1000)},
        lambda: network("Llama", **LLAMA), one_safetensors, LLAMA_PARTS,
    ),
}  # fmt: skip


def expose(suite: Suite, name: str, hub: Hub, directory: Path) -> str:
    """Write all checkpoints, publish them as the suite does, and return the SOURCE."""
    torch.manual_seed(0)
    state, config = suite.make()
    folders: dict[str, Path] = {}
    for number, checkpoint in enumerate(suite.checkpoints):
        folders[checkpoint] = directory / "suite" / checkpoint
        folders[checkpoint].mkdir(parents=True)
        moved = {
            n: (t + 0.01 * number).to(t.dtype) if t.is_floating_point() else t
            for n, t in state.items()
        }
        if "lm_head.weight" in moved and config.get("tie_word_embeddings"):
            tied = "transformer.wte.weight" if "transformer.wte.weight" in moved else None
            if tied:
                moved["lm_head.weight"] = moved[tied]
        if "cls.predictions.decoder.weight" in moved:
            moved["cls.predictions.decoder.weight"] = moved[
                "bert.embeddings.word_embeddings.weight"
            ]
            moved["cls.predictions.decoder.bias"] = moved["cls.predictions.bias"]
        suite.write(moved, config, folders[checkpoint])
    shuffled = list(folders)
    random.Random(0).shuffle(shuffled)
    repository = hub.repository(f"org/{name}")
    match suite.exposure:
        case "directory":
            return str(directory / "suite")
        case "branches":
            for checkpoint in shuffled:
                repository.commit_folder(folders[checkpoint], checkpoint)
        case "tags":
            for checkpoint in shuffled:
                repository.tag(checkpoint, repository.commit_folder(folders[checkpoint], "main"))
        case "commits":
            for checkpoint in folders:
                repository.commit_folder(folders[checkpoint], "main", checkpoint)
        case "folders":
            files: Files = {
                f"{checkpoint}/{path.name}": path
                for checkpoint in shuffled
                for path in folders[checkpoint].iterdir()
            }
            repository.commit(files)
        case "repositories":
            for checkpoint in shuffled:
                hub.repository(f"org/{checkpoint}").commit_folder(folders[checkpoint], "main")
            manifest = directory / "manifest.csv"
            manifest.write_text("uri\n" + "".join(f"org/{c}\n" for c in shuffled))
            return str(manifest)
    last = folders[list(suite.checkpoints)[-1]]
    for other in suite.others:
        repository.commit_folder(last, other, "again")
    return f"org/{name}"


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_read_without_a_word(name: str, served_hub: Hub, tmp_path: Path) -> None:
    suite, hub = SUITES[name], served_hub
    plan, _ = make_plan(Request(expose(suite, name, hub, tmp_path)))
    found = {c.name.rpartition("/")[2]: (c.stage, c.step, c.tokens) for c in plan.checkpoints}
    assert list(found.items()) == list(suite.checkpoints.items())
    assert {entry.name for entry in plan.left_out_checkpoints} == set(suite.others)
    parts = {part.component for _, tensor in plan.counted for part in tensor.parts}
    assert parts == suite.components
    assert {entry.reason for entry in plan.all_left_out} == suite.left_out
    assert {tensor.role.layer for tensor in plan.tensors} == {None, 0, 1}
    _costs_little(suite, plan, hub)


def _costs_little(suite: Suite, plan: Plan, hub: Hub) -> None:
    """One refs call, one tree a revision, one resolve and at most three reads a file."""
    if suite.exposure in ("branches", "tags"):
        revisions = len(plan.checkpoints) + len(suite.others)
        assert hub.count("refs") == 1
        assert hub.count("tree") <= revisions
        files = len(plan.files) + len(plan.checkpoints) + 1  # an index each, one config
        assert hub.count("resolve_head") <= files
        assert hub.count("cdn") <= 3 * files


HELD = [name for name in SUITES if name not in ("olmo-1-native", "crystal", "deepspeed")]
"""Suites whose network transformers has, and whose files say which it is."""


@pytest.mark.parametrize("name", HELD)
def test_queries_keys_values_and_heads_are_the_networks_own(
    name: str, served_hub: Hub, tmp_path: Path
) -> None:
    suite, store = SUITES[name], tmp_path / "store"
    source = expose(suite, name, served_hub, tmp_path)
    pipeline.analyze(source, str(store), run="r", executor="local", by_head=True)
    stored = pipeline.open_store(str(store))
    with torch.no_grad():
        slices = [own_slices(tmp_path / "suite" / checkpoint) for checkpoint in suite.checkpoints]
    i, j = 0, len(slices) - 1
    for label in ("q", "k", "v"):
        first, last = slices[i][label], slices[j][label]
        where = f"component = 'attn_{label}' AND layer = 1 AND i = {i} AND j = {j}"
        (dot,) = _one(
            stored, f"SELECT dot FROM similarity WHERE scope = 'layer_component' AND {where}"
        )
        assert dot == pytest.approx(float((first * last).sum()), rel=1e-6)
        (dot,) = _one(
            stored,
            f"SELECT dot FROM similarity WHERE scope = 'head' AND head = 1 AND {where}"
            " AND NOT contains(tensor, 'bias')",
        )
        weights = first[1, :, :-1] * last[1, :, :-1]  # the last column is the bias
        assert dot == pytest.approx(float(weights.sum()), rel=1e-6)


def _one(store: Any, query: str) -> tuple:
    (row,) = store.sql(query).fetchall()
    return row


def own_slices(folder: Path) -> dict[str, torch.Tensor]:
    """Return (heads, width, inputs + 1) weights and biases of the second layer's q, k and v.

    They are what the network's own attention makes of one input at a time, none for the bias,
    at position 0, where rotary embeddings turn nothing.
    """
    import transformers

    config = json.loads((folder / "config.json").read_text())
    model = getattr(transformers, config["architectures"][0])(
        transformers.AutoConfig.for_model(**config)
    ).double()
    state: State = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            state |= load_file(file)
        elif file.name == "pytorch_model.bin":
            state |= torch.load(file, weights_only=True)
    own = model.state_dict()
    prefix = "" if any(n in own for n in state) else "transformer."
    known = {prefix + n: t.double() for n, t in state.items() if prefix + n in own}
    missing, _ = model.load_state_dict(known, strict=False)
    assert not any("attn" in n or "attention" in n for n in missing), missing
    attention = [m for m in model.modules() if type(m).__name__.endswith("Attention")][-1]
    inner = [m for m in attention.modules() if type(m).__name__.endswith("SelfAttention")]
    return _probed(
        inner[-1] if inner else attention,
        config["hidden_size"] if "hidden_size" in config else config["n_embd"],
    )


def _probed(attention: Any, inputs: int) -> dict[str, torch.Tensor]:
    hidden = torch.cat((torch.eye(inputs), torch.zeros(1, inputs))).double()[:, None, :]
    seen: list[torch.Tensor] = []

    def probe(module: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> tuple[Any, None]:
        del module
        seen.extend((q, k, v))
        return torch.zeros_like(q).transpose(1, 2), None

    if hasattr(attention, "_reshape"):  # BLOOM computes its attention itself
        seen.extend(attention._reshape(attention.query_key_value(hidden)))
    else:
        from transformers import AttentionInterface

        AttentionInterface.register("probe", probe)
        attention.config._attn_implementation = "probe"
        for norm in ("q_norm", "k_norm"):  # not linear; which weights make a head is the same
            if hasattr(attention, norm):
                setattr(attention, norm, torch.nn.Identity())
        width = getattr(attention, "head_dim", None) or getattr(attention, "head_size", inputs)
        turns = torch.ones(len(hidden), 1, width).double()
        more: dict[str, Any] = {"position_embeddings": (turns, torch.zeros_like(turns))}
        attention(hidden, attention_mask=None, **more)
    found = {}
    for label, values in zip("qkv", seen, strict=True):
        each = values[:, :, 0].permute(1, 2, 0)  # (heads, width, inputs + 1)
        found[label] = torch.cat((each[..., :-1] - each[..., -1:], each[..., -1:]), dim=-1)
    return found
