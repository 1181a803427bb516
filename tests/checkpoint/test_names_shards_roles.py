"""Names to steps, listings to shards, tensor names to roles: the tables and their examples."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint.names import position
from pipeline.checkpoint.parts import parts
from pipeline.checkpoint.roles import reason_to_leave_out, role, roles
from pipeline.checkpoint.shards import weight_files
from pipeline.errors import FormatError

SHARDS = tuple(f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3))
INDEX = "model.safetensors.index.json"


def chosen(paths: tuple[str, ...], index: object = None) -> tuple[str, ...]:
    return weight_files(set(paths), lambda path: json.dumps(index).encode(), "there").paths


def test_shards_that_are_taken() -> None:
    assert chosen(("model.safetensors", "config.json", *SHARDS)) == ("model.safetensors",)
    assert chosen(SHARDS) == SHARDS
    assert chosen(("other.safetensors",)) == ("other.safetensors",)
    assert chosen(("sub/model.safetensors",)) == ()
    index = {"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}
    paths = (INDEX, "x.safetensors", "y.safetensors", "z.safetensors")
    assert chosen(paths, index) == ("x.safetensors", "y.safetensors")


@pytest.mark.parametrize(
    ("paths", "index", "message"),
    [
        (SHARDS[:2], None, "00003-of-00003.safetensors' .* is absent"),
        ((INDEX, *SHARDS[:2]), {"weight_map": {"a": SHARDS[2]}}, "named in .* is absent"),
        ((INDEX,), {"weight_map": {"a": "../../etc/passwd"}}, "is absent"),
        ((INDEX,), [], "weight_map"),
        ((INDEX,), {"weight_map": {"a": 3}}, "weight_map"),
        ((INDEX,), {"weight_map": {}}, "weight_map"),
        (("a.safetensors", "b.safetensors"), None, "2 files with no index"),
    ],
)
def test_shards_that_are_refused(paths: tuple[str, ...], index: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        chosen(paths, index)


ROLES = {
    "gpt_neox.embed_in.weight": (None, "embed"),
    "embed_out.weight": (None, "unembed"),
    "gpt_neox.layers.3.attention.query_key_value.weight": (3, "attn_qkv"),
    "gpt_neox.layers.3.attention.query_key_value.bias": (3, "attn_qkv"),
    "gpt_neox.layers.3.attention.dense.weight": (3, "attn_out"),
    "gpt_neox.layers.3.mlp.dense_h_to_4h.weight": (3, "mlp_up"),
    "gpt_neox.layers.3.mlp.dense_4h_to_h.bias": (3, "mlp_down"),
    "gpt_neox.layers.11.input_layernorm.weight": (11, "norm"),
    "gpt_neox.final_layer_norm.bias": (None, "norm"),
    "model.layers.0.self_attn.q_proj.weight": (0, "attn_q"),
    "model.layers.0.self_attn.k_norm.weight": (0, "norm"),
    "model.layers.0.self_attn.o_proj.weight": (0, "attn_out"),
    "model.layers.0.mlp.gate_proj.weight": (0, "mlp_gate"),
    "model.layers.0.mlp.experts.7.down_proj.weight": (0, "mlp_down"),
    "model.layers.0.mlp.gate.weight": (0, "router"),
    "model.embed_tokens.weight": (None, "embed"),
    "model.norm.weight": (None, "norm"),
    "lm_head.weight": (None, "unembed"),
    "transformer.wte.weight": (None, "embed"),
    "wpe.weight": (None, "position"),
    "h.2.attn.c_attn.weight": (2, "attn_qkv"),
    "transformer.h.2.attn.c_proj.weight": (2, "attn_out"),
    "transformer.h.2.mlp.c_fc.weight": (2, "mlp_up"),
    "transformer.h.2.mlp.c_proj.bias": (2, "mlp_down"),
    "transformer.ln_f.weight": (None, "norm"),
    "something.else": (None, "other"),
}


@pytest.mark.parametrize("name", ROLES)
def test_roles(name: str) -> None:
    found = role(name)
    assert (found.layer, found.component) == ROLES[name]
    assert found.kind == ("bias" if name.endswith("bias") else "weight")


def test_buffers_are_no_weights_and_biases_are() -> None:
    assert reason_to_leave_out("h.0.attn.bias", "F32", (1, 1, 8, 8))
    assert reason_to_leave_out("l.attention.masked_bias", "F16", ())
    assert reason_to_leave_out("l.rotary_emb.inv_freq", "F32", (8,))
    assert reason_to_leave_out("bn.running_mean", "F32", (8,))
    assert reason_to_leave_out("step", "I64", ())
    assert reason_to_leave_out("l.attention.bias", "U8", (1, 1, 4, 4))
    assert reason_to_leave_out("l.attention.dense.bias", "F32", (8,)) is None
    assert reason_to_leave_out("encoder.attention.bias", "F32", (8,)) is None


@pytest.mark.parametrize("shape", [(24, 8), (24,)])
def test_fused_layouts(shape: tuple[int, ...]) -> None:
    """Against views of the flat elements as the networks take them; parts cover all, once."""
    flat = np.arange(np.prod(shape))
    neox = {"model_type": "gpt_neox", "num_attention_heads": 4}
    of_heads = flat.reshape(4, 3, -1)
    for number, part in enumerate(parts("h.0.c_attn.weight", "attn_qkv", shape, neox)):
        inside = (flat % part.period >= part.start) & (flat % part.period < part.stop)
        assert flat[inside].tolist() == of_heads[:, number].reshape(-1).tolist()
    columns = parts(
        "h.0.c_attn.weight", "attn_qkv", tuple(reversed(shape)), {"model_type": "gpt2", "n_head": 4}
    )
    of_columns = flat.reshape(*tuple(reversed(shape))[:-1], 3, 8)
    for number, part in enumerate(columns):
        inside = (flat % part.period >= part.start) & (flat % part.period < part.stop)
        assert flat[inside].tolist() == of_columns[..., number, :].reshape(-1).tolist()


def test_unknown_layouts_stay_whole() -> None:
    for config in ({}, {"model_type": "gpt_neox", "num_attention_heads": 5}, {"model_type": "x"}):
        assert [part.label for part in parts("h.0.c_attn.weight", "attn_qkv", (24, 8), config)] == [
            ""
        ]


def test_blocks_of_other_networks() -> None:
    """A residual network: blocks are numbered over all stages, the stem and the head have none."""
    shapes = {
        "conv1.weight": (8, 3, 3, 3), "bn1.weight": (8,), "fc.weight": (10, 8),
        "layer1.0.conv1.weight": (8, 8, 3, 3), "layer1.0.bn1.bias": (8,),
        "layer1.1.conv1.weight": (8, 8, 3, 3), "layer2.0.downsample.0.weight": (8, 8, 1, 1),
        "layer10.0.conv2.weight": (8, 8, 3, 3), "layer2.0.conv1.weight": (8, 8, 3, 3),
    }  # fmt: skip
    found = {name: (entry.layer, entry.component) for name, entry in roles(shapes).items()}
    assert found == {
        "conv1.weight": (None, "conv"), "bn1.weight": (None, "norm"),
        "fc.weight": (None, "unembed"), "layer1.0.conv1.weight": (0, "conv"),
        "layer1.0.bn1.bias": (0, "norm"), "layer1.1.conv1.weight": (1, "conv"),
        "layer2.0.downsample.0.weight": (2, "conv"), "layer2.0.conv1.weight": (2, "conv"),
        "layer10.0.conv2.weight": (3, "conv"),
    }  # fmt: skip
    vgg = roles({"features.10.weight": (8, 8, 3, 3), "features.2.weight": (8, 8, 3, 3)})
    assert [(e.layer, e.component) for e in vgg.values()] == [(1, "conv"), (0, "conv")]


def test_stacks() -> None:
    """Encoder and decoder where there are both; BERT's one encoder is no stack."""
    import transformers

    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    found = roles({name: tuple(t.shape) for name, t in model.state_dict().items()})
    stacks = {(entry.stack, entry.layer) for entry in found.values() if entry.layer is not None}
    assert stacks == {(stack, layer) for stack in ("encoder", "decoder") for layer in (0, 1)}
    components = {entry.component for entry in found.values() if entry.stack == "decoder"}
    assert components >= {
        "attn_q", "attn_k", "attn_v", "attn_out", "cross_q", "cross_k", "cross_v", "cross_out",
        "mlp_gate", "mlp_up", "mlp_down", "norm",
    }  # fmt: skip
    assert found["shared.weight"].component == "embed"
    bert = {"bert.encoder.layer.0.output.dense.weight": (8, 8), "bert.pooler.dense.weight": (8, 8)}
    assert {entry.stack for entry in roles(bert).values()} == {None}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(index=JSON | st.fixed_dictionaries({"weight_map": JSON}) | st.binary(max_size=50))
def test_any_index_is_read_or_refused(index: object) -> None:
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    try:
        found = weight_files({INDEX, *SHARDS}, lambda _: text, "there").paths
    except FormatError:
        return
    assert set(found) <= set(SHARDS)


NUMBERS = st.integers(0, 10**400).map(str) | st.text("0123456789kmbtKMBT.", max_size=12)
WORDS = st.sampled_from(["step", "stage", "tokens", "layers.", "experts.", "blocks", "-", ".", "x"])


@given(name=st.lists(NUMBERS | WORDS | st.text(max_size=3), max_size=8).map("".join))
def test_any_name_is_read_into_what_the_tables_hold(name: str) -> None:
    found = position(name)
    assert found.step is None or 0 <= found.step < 2**63
    assert found.stage is None or 0 <= found.stage < 2**31
    for entry in roles({name: (2,), f"{name}.1.weight": (2,)}).values():
        assert entry.layer is None or 0 <= entry.layer < 2**31
        assert entry.expert is None or 0 <= entry.expert < 2**31


@pytest.mark.parametrize(
    ("name", "shape", "config", "component"),
    [
        ("model.layers.0.mlp.experts.gate_up_proj", (4, 6, 10), {}, "mlp_up"),
        ("model.layers.0.mlp.experts.down_proj_bias", (4, 6), {}, "mlp_down"),
        ("model.layers.0.mlp.experts.down_proj", (4, 5, 6), {}, "mlp_down"),
        ("h.blocks.1.ffn.experts.mlp.w1", (12, 7), {"moe_num_experts": 4}, "mlp_gate"),
        ("h.blocks.1.ffn.experts.mlp.v1", (12, 7), {"moe_num_experts": 4}, "mlp_up"),
        ("h.blocks.1.ffn.experts.mlp.w2", (12, 7), {"moe_num_experts": 5}, "mlp_down"),
    ],
)
def test_experts_in_one_tensor(
    name: str, shape: tuple[int, ...], config: dict, component: str
) -> None:
    """Each is a run of rows; a tensor whose number of experts is not known stays whole."""
    found = parts(name, role(name).component, shape, {"ffn_config": config})
    values = np.arange(math.prod(shape)).reshape(shape)
    assert {part.component for part in found} == {component}
    if len(found) == 1:
        assert found[0].expert is None
        return
    assert [part.expert for part in found] == [0, 1, 2, 3]
    experts = values.reshape(4, -1) if len(shape) == 2 else values
    for part in found:
        assert part.period == values.size
        assert list(range(part.start, part.stop)) == experts[part.expert].reshape(-1).tolist()
