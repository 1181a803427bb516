"""Roles of real networks, held against what the networks say of themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.checkpoint.roles import Role, roles
from tests.networks import language_models, stored

LANGUAGE = stored("language")
VISION = stored("vision")

MOSTLY_KNOWN = 0.95
UNKNOWN_AT_MOST = 0.05
# Of the weights of layers more than that are `other`.
EXCEPTIONS = {
    "MobileBertForMaskedLM": "bottlenecks: linear maps between two widths, beside attention and MLP",
    "XmodForCausalLM": "adapters for each language, a role that no component has",
    "XmodForMaskedLM": "adapters for each language",
}


def shapes_of(network: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in network["shapes"].items()}


def unknown_share(found: Mapping[str, Role], shapes: Mapping[str, tuple[int, ...]]) -> float:
    inside = [name for name, entry in found.items() if entry.layer is not None]
    unknown = [name for name in inside if found[name].component == "other"]
    return sum(math.prod(shapes[n]) for n in unknown) / sum(math.prod(shapes[n]) for n in inside)


def test_there_are_enough() -> None:
    assert len(LANGUAGE) > 200 and len(VISION) >= 30


@pytest.mark.parametrize("name", LANGUAGE)
def test_ends_are_what_the_network_says(name: str) -> None:
    """Names of a tied pair may be either; else the input is `embed` and the output `unembed`."""
    network = LANGUAGE[name]
    found = roles(shapes_of(network))
    embed, head = {*network["embed"]}, {*network["head"]}
    assert {found[n].component for n in embed - head} <= {"embed"}
    assert {found[n].component for n in head - embed} <= {"unembed"}
    assert {found[n].component for n in embed & head} <= {"embed", "unembed"}
    ends = {n for n, e in found.items() if e.component in ("embed", "position", "unembed")}
    assert not [n for n in ends if found[n].layer is not None]
    if len(embed & head) > 1:
        assert {found[n].component for n in embed & head} == {"embed", "unembed"}


@pytest.mark.parametrize("shuffled", [False, True])
def test_weights_of_layers_have_roles(shuffled: bool) -> None:
    """Also where a file stores them by name, as safetensors does."""
    shares: dict[str, float] = {}
    for name, network in LANGUAGE.items():
        shapes = shapes_of(network)
        if shuffled:
            shapes = dict(sorted(shapes.items()))
        found = roles(shapes)
        shares[name] = unknown_share(found, shapes)
        if shuffled:
            for end, component in (("embed", "embed"), ("head", "unembed")):
                other = {*network["embed"]} & {*network["head"]}
                assert {found[n].component for n in network[end] if n not in other} <= {component}
    worse = {name for name, share in shares.items() if share > UNKNOWN_AT_MOST}
    assert worse == set(EXCEPTIONS)
    assert len(worse) <= (1 - MOSTLY_KNOWN) * len(shares)


@pytest.mark.slow
def test_the_data_are_what_transformers_gives() -> None:
    assert dict(language_models()) == LANGUAGE


@pytest.mark.parametrize("name", VISION)
def test_vision_networks(name: str) -> None:
    network = VISION[name]
    shapes = shapes_of(network)
    found = roles(shapes)
    assert {found[n].component for n in network["head"]} == {"unembed"}
    assert len({entry.layer for entry in found.values()} - {None}) == network["blocks"]
    assert {entry.stack for entry in found.values()} == {None}
    kernels = {n for n, s in shapes.items() if len(s) == 4 and min(s[2:]) > 1}
    assert {found[n].component for n in kernels} <= {"conv", "embed", "position", "unembed"}
    assert not [n for n in kernels if found[n].layer is not None and found[n].component != "conv"]
    others = {n for n, e in found.items() if e.component == "unembed"} - {*network["head"]}
    assert all("pre_logits" in n for n in others)  # of VGG: a part of its head


# ---- structure, where names are silent

LAYER = "layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("embedding", "head"),
    [
        ("tok_embeddings.weight", "output.weight"),
        ("embedding.word_embeddings.weight", "output_layer.weight"),
        ("backbone.embeddings.weight", "lm_head.weight"),
        ("token_embedding.weight", "text_projection"),
        ("emb.weight", "head.weight"),
        ("encoder.weight", "decoder.weight"),
        ("a.weight", "z.weight"),
        ("wee.table", "to_vocabulary.matrix"),
        ("model.tokens_in.weight", "model.logits.weight"),
    ],
)
def test_ends_by_the_size_of_the_vocabulary(embedding: str, head: str) -> None:
    for shape in ((100, 8), (8, 100)):
        shapes = {embedding: (100, 8), LAYER: (16, 8), "final.weight": (8,), head: shape}
        found = roles({**shapes, f"{head}.bias": (100,), "aside.weight": (8, 8)})
        assert found[embedding].component == "embed"
        assert found[head].component == "unembed"
        assert found[LAYER].component == "mlp_up"
        assert found["aside.weight"].component == "other"
        assert found["final.weight"].component == "norm"


def test_a_vocabulary_that_only_the_configuration_tells() -> None:
    """Two widths, and a second tensor as large: what nested configurations state decides."""
    shapes = {"first.weight": (103, 8), LAYER: (16, 8), "second.weight": (200, 8)}
    assert {roles(shapes)[n].component for n in ("first.weight", "second.weight")} == {"other"}
    config = {"vision_config": {"hidden_size": 8}, "text_config": {"vocab_size": 100}}
    found = roles(shapes, config)
    assert found["first.weight"].component == "embed"
    assert found["second.weight"].component == "other"


def test_layers_of_a_plain_network_are_no_ends() -> None:
    shapes = {"fc1.weight": (100, 784), "fc2.weight": (100, 100), "out.weight": (10, 100)}
    assert {entry.component for entry in roles(shapes).values()} == {"other"}
    blocks = {"0.weight": (64, 8), "2.weight": (64, 64), "4.weight": (8, 64)}
    assert [entry.layer for entry in roles(blocks).values()] == [0, 1, 2]


TWO = {
    "open_clip": ("visual.transformer.resblocks", "transformer.resblocks", "vision", "text"),
    "qwen2_5_vl": ("visual.blocks", "model.layers", "vision", "text"),
    "mtp": ("mtp.layers", "model.layers", "mtp", "model"),
    "mtp_beside": ("model.mtp_layers", "model.layers", "mtp", "model"),
    "qwen2_audio": ("audio_tower.layers", "language_model.model.layers", "audio", "text"),
    "molmo": (
        "model.vision_backbone.image_vit.transformer.resblocks", "model.transformer.blocks",
        "vision", "text",
    ),
    "minicpm": ("vpm.encoder.layers", "llm.model.layers", "vision", "text"),
    "llava": (
        "vision_tower.vision_model.encoder.layers", "language_model.model.layers", "vision", "text",
    ),
    "t5": ("encoder.block", "decoder.block", "encoder", "decoder"),
    "whisper": ("model.encoder.layers", "model.decoder.layers", "encoder", "decoder"),
    "dino": ("teacher.backbone.blocks", "student.backbone.blocks", "teacher", "student"),
    "adapter": ("adapter.layers", "base.layers", "adapter", "base"),
    "gan": ("generator.blocks", "discriminator.blocks", "generator", "discriminator"),
    "actor": ("actor.model.layers", "critic.model.layers", "actor", "critic"),
    "wav2vec": ("feature_extractor.conv_layers", "encoder.layers", "feature_extractor", "encoder"),
    "wrapped": ("module.draft.layers", "module.target._orig_mod.layers", "draft", "target"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TWO)
def test_two_networks_in_one_file(kind: str) -> None:
    first, second, one, other = TWO[kind]
    shapes = {f"{prefix}.{n}.mlp.fc1.weight": (16, 8) for prefix in (first, second) for n in (0, 1)}
    found = roles({**shapes, "temperature": ()})
    assert [(entry.stack, entry.layer) for entry in found.values()] == [
        (one, 0), (one, 1), (other, 0), (other, 1), (None, None),
    ]  # fmt: skip


def test_towers_of_two_pairs_are_four_stacks() -> None:
    prefixes = ("teacher.vision.blocks", "teacher.text.blocks", "student.vision.blocks",
                "student.text.blocks")  # fmt: skip
    found = roles({f"{prefix}.0.mlp.fc1.weight": (16, 8) for prefix in prefixes})
    assert [entry.stack for entry in found.values()] == [
        "teacher.vision", "teacher.text", "student.vision", "student.text",
    ]  # fmt: skip


def test_one_network_in_several_lists_has_no_stacks() -> None:
    """Lists that are not numbered alike; a head called `decoder`; one list for each operation."""
    apart = roles({"first.layers.0.fc1.weight": (4, 4), "second.layers.1.fc1.weight": (4, 4)})
    masked = roles({"bert.encoder.layer.0.output.dense.weight": (8, 8),
                    "cls.predictions.decoder.weight": (40, 8)})  # fmt: skip
    xlm = roles({f"transformer.{name}.weight": (8, 8) for name in (
        "attentions.0.q_lin", "ffns.0.lin1", "layer_norm1.0", "attentions.1.q_lin", "ffns.1.lin1",
    )})  # fmt: skip
    for found in (apart, masked, xlm):
        assert {entry.stack for entry in found.values()} == {None}
    assert [entry.layer for entry in xlm.values()] == [0, 0, 0, 1, 1]


def test_experts() -> None:
    """Their number is the first dimension of what experts hold; of attention's, too."""
    shapes = {
        "layers.0.moe.experts.w1": (4, 16, 8),
        "layers.0.moe.experts.w2_EDF": (4, 8, 16),
        "layers.0.mlp.experts.gate_up_proj": (4, 32, 8),
        "layers.0.mlp.experts.gate_up_proj_bias": (4, 32),
        "layers.0.block_sparse_moe.input_linear.weight": (4, 32, 8),
        "layers.0.feed_forward.experts.unheard_of": (4, 8, 16),
        "layers.0.moe.experts.3.w1.weight": (16, 8),
        "layers.0.moe.shared_expert.w1.weight": (16, 8),
        "layers.0.moe.router.gate.weight": (4, 8),
    }
    found = {name: (e.component, e.experts, e.expert) for name, e in roles(shapes).items()}
    assert list(found.values()) == [
        ("mlp_gate", 4, None), ("mlp_down", 4, None), ("mlp_up", 4, None), ("mlp_up", 4, None),
        ("mlp_up", 4, None), ("mlp_down", 4, None), ("mlp_gate", 0, 3), ("mlp_gate", 0, None),
        ("router", 0, None),
    ]  # fmt: skip


NAMES = {
    "decoder.layers.self_attention.linear_qkv.weight": "attn_qkv",
    "decoder.layers.mlp.linear_fc2.weight": "mlp_down",
    "decoder.layers.3.self_attention.linear_qkv.layer_norm_weight": "norm",
    "transformer.h.0.attn.qkv.weight": "attn_qkv",
    "transformer.h.0.attn.proj.weight": "attn_out",
    "transformer.h.0.mlp.fc_1.weight": "mlp_gate",
    "transformer.h.0.mlp.fc_2.weight": "mlp_up",
    "transformer.h.0.mlp.proj.weight": "mlp_down",
    "transformer.h.0.norm_1.weight": "norm",
    "blocks.0.ffn.key.weight": "mlp_up",
    "blocks.0.att.key.weight": "attn_k",
    "layers.0.mixer.in_proj.weight": "attn_qkv",
    "layers.0.mixer.conv1d.weight": "conv",
    "layers.0.mlp.gate.router_mlp.fc1.weight": "router",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": "attn_q",
    "layers.0.self_attn._fsdp_wrapped_module.o_proj.weight": "attn_out",
    "layers.0.encoder_attn.v_proj.bias": "cross_v",
    "layers.0.mlp.bottleneck.weight": "other",
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    assert roles({name: (24, 8)})[name].component == NAMES[name]
