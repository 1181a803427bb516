"""From a tensor's name to what it is: layer, component, kind, and whether it is a weight at all.

All of it is data: tables of patterns, tried in order, the first that matches decides. A name
that no pattern knows is `other`, without a layer: still analysed, still in `model`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.checkpoint.dtypes import DTYPES

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|resblocks)\.(\d+)\.")
_EXPERT = re.compile(r"(?:^|\.)experts\.(\d+)\.")

# Anchored at a name part, so that `q_proj` is not found inside `freq_proj`.
_COMPONENTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (component, re.compile(rf"(?:^|\.)(?:{pattern})"))
    for component, pattern in (
        ("norm", r"[^.]*(?:norm|ln_[^.]*|ln|bn)\d*\.(?:weight|bias)$"),
        ("position", r"wpe\.|[^.]*position(?:al)?_embeddings?|embed_positions|pos_embed"),
        ("embed", r"wte\.|embed_tokens|embed_in\.|[^.]*word_embeddings|tok_embeddings|patch_embed"),
        ("unembed", r"(?:lm_head|embed_out|classifier|score|head)\."),
        ("cross_q", r"(?:encoder_attn|crossattention|cross_attn)\.(?:q_proj|query|q)\."),
        ("cross_k", r"(?:encoder_attn|crossattention|cross_attn)\.(?:k_proj|key|k)\."),
        ("cross_v", r"(?:encoder_attn|crossattention|cross_attn)\.(?:v_proj|value|v)\."),
        ("cross_out", r"(?:encoder_attn|crossattention|cross_attn)\.(?:out_proj|o_proj|o)\."),
        ("attn_qkv", r"query_key_value\.|c_attn\.|qkv_proj\.|Wqkv\.|att_proj\.|qkv\.|in_proj_"),
        ("attn_q", r"(?:q_proj|query|wq|q_lin)\."),
        ("attn_k", r"(?:k_proj|key|wk|k_lin)\."),
        ("attn_v", r"(?:v_proj|value|wv|v_lin)\."),
        ("attn_out", r"(?:o_proj|wo|attn_out|out_lin)\.|(?:self_)?att(?:entio)?n\.(?:out_proj|c_proj|dense|proj)\."),
        ("router", r"(?:mlp|block_sparse_moe)\.gate\.|router\."),
        ("mlp_gate", r"(?:gate_proj|w1|ff_gate)\."),
        ("mlp_up", r"(?:up_proj|w3|c_fc|fc1|fc_in|dense_h_to_4h|lin1)\.|intermediate\.dense\."),
        ("mlp_down", r"(?:down_proj|w2|fc2|fc_out|dense_4h_to_h|lin2)\.|mlp\.c_proj\."),
        ("conv", r"conv\d*[a-z]?\."),
    )
)  # fmt: skip

# Things in a weight file that no optimizer moves. Sources: `_keys_to_ignore_on_load_unexpected`
# in transformers 5; `register_buffer` of torch's normalisation layers.
_BUFFERS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"(?:^|\.)masked_bias$", "buffer: value of masked positions"),
        (r"(?:^|\.)rotary_emb\.inv_freq$", "buffer: rotary frequencies"),
        (r"(?:^|\.)(?:running_mean|running_var)$", "buffer: batch-norm statistics"),
    )
)
_MASK_NAME = re.compile(r"(?:^|\.)(?:attn|attention|self_attention)\.bias$")


@dataclass(frozen=True, slots=True)
class Role:
    """What one tensor is within its network."""

    stack: str | None
    layer: int | None
    component: str
    expert: int | None
    kind: str
    """`weight` or `bias`."""


@dataclass(frozen=True, slots=True)
class Part:
    """One slice of a fused tensor: the elements whose flat index modulo `period` is in [start, stop)."""

    label: str
    """`q`, `k`, `v`, `gate`, `up`; empty for a whole tensor."""
    component: str
    period: int
    start: int
    stop: int


def role(name: str) -> Role:
    """Return what the tensor of this name is."""
    layer, expert = _LAYER.search(name), _EXPERT.search(name)
    component = next((label for label, pattern in _COMPONENTS if pattern.search(name)), "other")
    return Role(
        stack=None,
        layer=int(layer[1]) if layer else None,
        component=component,
        expert=int(expert[1]) if expert else None,
        kind="bias" if name.endswith("bias") else "weight",
    )


def reason_to_leave_out(name: str, dtype: str, shape: tuple[int, ...]) -> str | None:
    """Return why a stored tensor is not a trained weight, or None if it is one."""
    if not DTYPES[dtype].is_weight:
        return f"not a weight: stored as {dtype}"
    if 0 in shape:
        return "empty"
    if _MASK_NAME.search(name) and len(shape) == 4 and shape[:2] == (1, 1):
        return "buffer: causal mask"
    return next((reason for pattern, reason in _BUFFERS if pattern.search(name)), None)


def parts(shape: tuple[int, ...], component: str, config: dict) -> tuple[Part, ...]:
    """Return the slices of a tensor by role: several if it is fused in a known layout, else one.

    Args:
        config: the checkpoint's `config.json`; empty where there is none.

    Source of the layouts: the attention modules of transformers 5
    (`modeling_gpt_neox`: view(heads, 3, head size); `modeling_gpt2`: Conv1D, columns Q|K|V).
    """
    numel = 1
    for length in shape:
        numel *= length
    whole = (Part("", component, numel, 0, numel),)
    if component != "attn_qkv":
        return whole
    match config.get("model_type"):
        case "gpt_neox":
            heads = config.get("num_attention_heads")
            if not isinstance(heads, int) or heads < 1 or shape[0] % (3 * heads):
                return whole
            length = numel // (3 * heads)
        case "gpt2":
            if shape[-1] % 3:
                return whole
            length = shape[-1] // 3
        case _:
            return whole
    return tuple(
        Part(label, f"attn_{label}", 3 * length, i * length, (i + 1) * length)
        for i, label in enumerate("qkv")
    )
