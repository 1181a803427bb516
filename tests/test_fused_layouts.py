"""Which slice of a fused projection is Q, K or V: held against the networks' own gradients.

With two tokens and a loss on the second one's output, the gradient of a query's row is a multiple
of the second token's input to the projection, because only that query is used. Rows of keys and
values see both tokens. With the values zero, attention adds nothing: as with its output zero.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.checkpoint.parts import Part, by_head, parts
from pipeline.checkpoint.roles import role

SMALL = {"vocab_size": 32}
HEADS = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 1, "n_positions": 8}

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("GPTNeoX", {**HEADS, "intermediate_size": 64, "max_position_embeddings": 8}),
    "bloom": ("Bloom", {"hidden_size": 32, "n_head": 4, "n_layer": 1}),
    "falcon": ("Falcon", {**HEADS, "multi_query": False, "new_decoder_architecture": False}),
    "falcon-mq": ("Falcon", {**HEADS, "multi_query": True, "new_decoder_architecture": False}),
    "falcon-new": ("Falcon", {**HEADS, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "gpt2": ("GPT2", GPT),
    "gpt_bigcode": ("GPTBigCode", {**GPT, "multi_query": False}),
    "gpt_bigcode-mq": ("GPTBigCode", {**GPT, "multi_query": True}),
    "mpt": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 8}),
    "phi3": ("Phi3", {**HEADS, "num_key_value_heads": 2, "intermediate_size": 48,
                      "pad_token_id": 0}),
    "dbrx": ("Dbrx", {"d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 8,
                      "attn_config": {"kv_n_heads": 2, "clip_qkv": 1e3, "rope_theta": 10_000.0},
                      "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 2}}),
    "llama": ("Llama", {**HEADS, "num_key_value_heads": 2, "intermediate_size": 48}),
    "codegen": ("CodeGen", {**GPT, "n_embd": 64, "rotary_dim": 8}),
    "persimmon": ("Persimmon", {**HEADS, "intermediate_size": 64, "qk_layernorm": False}),
}  # fmt: skip


@pytest.fixture(params=NETWORKS, scope="module")
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import transformers

    name, settings = NETWORKS[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL, **settings)
    model = getattr(transformers, f"{name}Model")(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp(name)
    config.save_pretrained(folder)
    return model, json.loads((folder / "config.json").read_text()), folder


def is_fused(network: Any) -> None:
    if network[1]["model_type"] == "llama":
        pytest.skip("not fused")


def fused(model: Any, config: dict) -> tuple[str, Any, list[Part]]:
    name = next(
        name
        for name, weight in model.named_parameters()
        if role(name).component == "attn_qkv" and weight.ndim == 2
    )
    found = parts(name, role(name).component, tuple(model.get_parameter(name).shape), config)
    assert {part.component for part in found} == {"attn_q", "attn_k", "attn_v"}
    return name, model.get_submodule(name.rpartition(".")[0]), list(found)


def inside(part: Part, numel: int) -> np.ndarray:
    offsets = np.arange(numel) % part.period
    return (offsets >= part.start) & (offsets < part.stop)


def output(model: Any) -> torch.Tensor:
    return model(torch.tensor([[3, 7]])).last_hidden_state[0]


def test_parts_are_what_the_network_takes_them_for(network: Any) -> None:
    is_fused(network)
    model, config, _ = network
    name, module, found = fused(model, config)
    weight = model.get_parameter(name)
    masks = {part.label: inside(part, weight.numel()) for part in found}
    assert (sum(mask.astype(int) for mask in masks.values()) == 1).all()

    seen: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    loss = output(model)[1] @ torch.linspace(-1, 1, model.config.hidden_size).double()
    hook.remove()
    model.zero_grad()
    loss.backward()
    last = seen[0].reshape(2, -1)[1]
    transposed = config["model_type"] == "gpt2"
    gradient = weight.grad.T if transposed else weight.grad

    def rows(label: str) -> torch.Tensor:
        mask = torch.from_numpy(masks[label]).view(weight.shape)
        return gradient[(mask.T if transposed else mask).all(dim=1)]

    def off_axis(rows: torch.Tensor) -> float:
        along = (rows @ last)[:, None] * last / (last @ last)
        return float((rows - along).norm() / rows.norm())

    assert off_axis(rows("q")) < 1e-9
    assert off_axis(rows("k")) > 1e-3
    assert off_axis(rows("v")) > 1e-3


def test_without_values_attention_adds_nothing(network: Any) -> None:
    is_fused(network)
    model, config, _ = network
    name, module, found = fused(model, config)
    weight, bias = model.get_parameter(name), getattr(module, "bias", None)
    dense = next(n for n, w in model.named_parameters()
                 if role(n).component == "attn_out" and w.ndim == 2)  # fmt: skip
    kept = [(p, p.detach().clone()) for p in model.parameters()]
    with torch.no_grad():
        whole = output(model)
        (values,) = (part for part in found if part.label == "v")
        weight.view(-1)[torch.from_numpy(inside(values, weight.numel()))] = 0
        if bias is not None:
            (of_bias,) = (
                part
                for part in parts(
                    name.replace("weight", "bias"), role(name).component, tuple(bias.shape), config
                )
                if part.label == "v"
            )
            bias[torch.from_numpy(inside(of_bias, bias.numel()))] = 0
        without_values = output(model)
        for parameter, before in kept:
            parameter.copy_(before)
        model.get_parameter(dense).zero_()
        without_output = output(model)
        for parameter, before in kept:
            parameter.copy_(before)
    assert torch.allclose(without_values, without_output, atol=1e-10)
    assert not torch.allclose(whole, without_output, atol=1e-3)


def of_component(model: Any, config: dict, component: str) -> dict[int, list[tuple[Any, Any]]]:
    """Return by head the (parameter, mask) of its weights and biases."""
    found: dict[int, list[tuple[Any, Any]]] = {}
    for name, parameter in model.named_parameters():
        shape, numel = tuple(parameter.shape), parameter.numel()
        for part in by_head(parts(name, role(name).component, shape, config), numel, config):
            if part.component == component and part.head is not None:
                mask = torch.from_numpy(inside(part, numel))
                found.setdefault(part.head, []).append((parameter, mask))
    return found


def without(model: Any, places: list[tuple[Any, Any]]) -> torch.Tensor:
    """Return the output with some weights zero."""
    with torch.no_grad():
        kept = [(parameter, parameter.detach().clone()) for parameter, _ in places]
        for parameter, mask in places:
            parameter.view(-1)[mask] = 0
        found = output(model)
        for parameter, before in reversed(kept):
            parameter.copy_(before)
    return found


def test_heads(network: Any) -> None:
    """A head's values gone is its share of the output projection gone; a head's keys gone is the
    queries that look at them gone: attention is even then."""
    model, config, _ = network
    queries, keys, values = (of_component(model, config, f"attn_{label}") for label in "qkv")
    count, groups = len(queries), len(keys)
    assert count == 4 and len(values) == groups
    assert groups in (1, 2, 4)
    dense = next(w for n, w in model.named_parameters()
                 if role(n).component == "attn_out" and w.ndim == 2)  # fmt: skip
    transposed = config["model_type"] == "gpt2" or (
        config["model_type"] == "gpt_bigcode" and type(dense).__name__ == "Conv1D"
    )
    size = dense.shape[0 if transposed else 1] // count
    whole = output(model)
    for group in range(groups):
        served = range(group * count // groups, (group + 1) * count // groups)
        mask = torch.zeros(dense.shape, dtype=torch.bool)
        for head in served:
            block = slice(head * size, (head + 1) * size)
            (mask.T if transposed else mask)[:, block] = True
        no_values = without(model, values[group])
        assert torch.allclose(no_values, without(model, [(dense, mask.view(-1))]), atol=1e-10)
        assert not torch.allclose(no_values, whole, atol=1e-6)
        no_queries = without(model, [place for head in served for place in queries[head]])
        assert torch.allclose(without(model, keys[group]), no_queries, atol=1e-10)
        assert not torch.allclose(no_queries, whole, atol=1e-9)


def test_heads_add_up(tmp_path: Path) -> None:
    """The heads' Gram matrices add up to the tensor's, and are queried as a scope."""
    import transformers

    import pipeline

    config = transformers.LlamaConfig(**SMALL, **NETWORKS["llama"][1])
    for k in range(3):
        torch.manual_seed(k)
        transformers.LlamaModel(config).save_pretrained(tmp_path / "suite" / f"step{k}")
    for name, heads in (("by-head", True), ("whole", False)):
        pipeline.analyze(
            str(tmp_path / "suite"), str(tmp_path), executor="local", run=name, by_head=heads
        )
    query = """SELECT component, i, j, sum(dot), count(*) FROM similarity
        WHERE run = '{}' AND scope = '{}' AND component IN ('attn_q', 'attn_k', 'attn_v')
        GROUP BY ALL ORDER BY ALL"""
    store = pipeline.open_store(str(tmp_path))
    of_heads = store.sql(query.format("by-head", "head")).fetchall()
    of_tensors = store.sql(query.format("whole", "tensor")).fetchall()
    assert {(row[0], row[4]) for row in of_heads} == {("attn_q", 4), ("attn_k", 2), ("attn_v", 2)}
    for head, tensor in zip(of_heads, of_tensors, strict=True):
        assert head[:3] == tensor[:3]
        assert head[3] == pytest.approx(tensor[3], rel=1e-6, abs=1e-5)
    assert store.sql(query.format("whole", "head")).fetchall() == []


def test_gate_and_up() -> None:
    """Phi-3: only the gate goes through the activation, so that it has no gradient at -inf."""
    import transformers
    from transformers.models.phi3.modeling_phi3 import Phi3MLP

    config = transformers.Phi3Config(hidden_size=8, intermediate_size=6, pad_token_id=0)
    mlp = Phi3MLP(config)
    found = parts("layers.0.mlp.gate_up_proj.weight", "mlp_up", (12, 8), {"model_type": "phi3"})
    assert [part.component for part in found] == ["mlp_gate", "mlp_up"]
    with torch.no_grad():
        mlp.gate_up_proj.weight.view(-1)[torch.from_numpy(inside(found[0], 96))] = -100.0
        assert float(mlp(torch.ones(1, 8)).abs().max()) == 0  # silu(-800)
        mlp.gate_up_proj.weight.view(-1)[torch.from_numpy(inside(found[0], 96))] = 100.0
        assert float(mlp(torch.ones(1, 8)).abs().max()) > 0


def test_parts_add_up(network: Any, tmp_path: Path) -> None:
    """The Gram matrices of Q, K and V are those of slices, and their sum that of the tensor."""
    is_fused(network)
    import pipeline

    model, config, folder = network
    name, _, found = fused(model, config)
    rows = []
    for k in range(3):
        target = tmp_path / "suite" / f"step{k}"
        model.float().save_pretrained(target)
        (target / "config.json").write_text((folder / "config.json").read_text())
        rows.append(model.get_parameter(name).detach().double().reshape(-1).numpy().copy())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.double()
    store = str(tmp_path / "store")
    pipeline.analyze(str(tmp_path / "suite"), store, executor="local", run="r")
    dots = dict(
        pipeline.open_store(store)
        .sql("SELECT tensor, dot FROM similarity WHERE scope = 'tensor' AND i = 0 AND j = 2")
        .fetchall()
    )
    for part in found:
        mask = inside(part, rows[0].size)
        (dot,) = (dot for tensor, dot in dots.items() if tensor == f"{name}[{part.label}]")
        assert dot == pytest.approx(rows[0][mask] @ rows[2][mask], rel=1e-6, abs=1e-6)
    total = sum(dots[f"{name}[{part.label}]"] for part in found)
    assert total == pytest.approx(rows[0] @ rows[2], rel=1e-6, abs=1e-6)


def test_a_configuration_within_another_says_how_many_heads() -> None:
    from pipeline.checkpoint.config import of_part

    text = {"model_type": "qwen2", "num_attention_heads": 4, "num_key_value_heads": 2}
    vision = {"model_type": "vit", "num_attention_heads": 8}
    config = {"vision_config": vision, "thinker": {"text_config": text}, "hidden_size": 3}
    assert of_part(config, "vision") == vision
    assert of_part(config, "text") == of_part(config, None) == of_part(config, "model") == text
    assert of_part({**config, "n_head": 2}, "vision")["n_head"] == 2
    assert of_part({}, "text") == {}
