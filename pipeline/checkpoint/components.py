"""What the words of a tensor's name say: its component, one role that every network has.

A name is read from its end; the first part that says something decides. Some words say it wherever
they stand (`q_proj`), others only within attention or within an MLP (`key`, `dense`, `proj`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from pipeline.checkpoint.blocks import Path

ENDS = frozenset({"embed", "position", "unembed"})
OTHER = "other"
COMPONENTS = (
    "embed", "position", "unembed", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_out", "cross_q",
    "cross_k", "cross_v", "cross_out", "mlp_gate", "mlp_up", "mlp_down", "router", "norm", "conv", OTHER,
)  # fmt: skip
"""All that there are (docs/contract.md, §4)."""

_LONGEST_WORD = 64
"""Longer ones say nothing: what a word takes to read is bounded, whatever a header holds."""
_MOST_WORDS = 12
"""Of the end of a name; likewise."""

# What a module of this name is; the first that matches.
_MEANINGS = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("router", r"(?:.*_)?router(?:_.*)?|(?:.*_)?expert_gate"),
        # of the network's own, beside attention and MLP: no component has them
        ("aside", r".*bottleneck|.*adapter.*"),
        ("norm", r".*norm_?\d*[a-z]?|(?:.*_)?(?:ln|bn)_?\d*[a-z]?|ln_.*"),
        ("cross", r"(?:encoder_|cross_?)att(?:entio)?n|EncDecAttention"),
        # what mixes tokens: attention, and what stands in its place (state spaces, linear
        # attention, recurrences, short convolutions)
        ("mixer", r"(?:.*_|self|multihead)?att(?:entio)?n?s?\d*|.*selfattention|.*mixer|.*mamba\d?|ssm"
                  r"|[ms]lstm_layer|temporal_block|time_mix|conv"),
        ("mlp", r"(?:.*_)?(?:mlp|ffn?|feed_?forward)s?\d*(?:_block)?|DenseReluDense|channel_mix"),
        ("experts", r".*experts?|.*moe"),
        ("convolution", r"(?:.*_)?(?:dw|pw)?conv(?:olution)?_?\d*[a-z]?\d*|conv_.*"),
    )
)  # fmt: skip
# What a wrapper or an adapter adds behind a module's own name: `q_proj.lora_A.default.weight`,
# `conv.parametrizations.weight.original0`.
_WITHIN_A_MODULE = re.compile(
    r"lora_.*|default|base_layer|parametrizations|original\d?|linear|weight|bias|scale"
)
_PARAMETER = re.compile(r"(?:(.+?)_)?(?:weight|bias)(?:_[gv])?|(.+)_[A-Z]{3}")


def _table(**words: str) -> dict[str, str]:
    return {word: role for role, listed in words.items() for word in listed.split()}


_ANYWHERE = _table(
    attn_q="q_proj query wq q_lin query_proj to_q q_head Wq project_q q_a_proj q_b_proj wq_a wq_b"
    " w_q query_global e2e_query e2w_query w2e_query",
    attn_k="k_proj key wk k_lin key_proj to_k k_head Wk project_k w_k key_global",
    attn_v="v_proj value wv v_lin value_proj to_v v_head Wv project_v w_v value_global v_proj_current"
    " v_proj_delayed",
    attn_qkv="query_key_value c_attn qkv_proj Wqkv att_proj qkv kv_proj kv_a_proj_with_mqa kv_a_proj"
    " kv_b_proj to_qkv to_kv linear_qkv query_key in_proj_qkv in_proj_qkvz wkv_a wkv_b",
    attn_out="o_proj wo attn_out out_lin o_a_proj o_b_proj linear_proj attention_out post_proj to_out"
    " post_attention",
    mlp_gate="gate_proj w1 ff_gate wi_0 per_layer_input_gate",
    mlp_up="gate_up_proj gate_up_proj_adapter_list ff_proj up_proj w3 c_fc fc1 fc_in dense_h_to_4h lin1 linear1 linear_fc1 v1"
    " wi_1 intermediate w_in proj_up",
    mlp_down="down_proj w2 fc2 fc_out dense_4h_to_h lin2 linear2 linear_fc2 ff_out output_linear w_out"
    " proj_down ffn_output per_layer_projection",
)
# Gates, decays, and B and C of a state space count with the fused projection that holds them in
# other networks.
_IN = {
    "mixer": _table(
        attn_q="q receptance e2q input_linear",
        attn_k="k r r_kernel r_proj relative_pos_embeddings",
        attn_v="v",
        attn_qkv="kv qk in_proj x_proj dt_proj in_proj_z in_proj_ba in_proj_a in_proj_b attn g_proj g_a_proj g_b_proj"
        " gate_proj f_proj f_a_proj f_b_proj output_gate q_gate_proj ogate_preact linear_x linear_y",
        attn_out="o out_proj c_proj dense proj output Wo output_linear linear_out w_out",
        router="gate",
    ),
    "mlp": _table(
        mlp_gate="proj_up_gate receptance w_0 fc_1",
        mlp_up="wi Wi key input_linear fc dense1 w_1 fc_2",
        mlp_down="wo Wo value c_proj proj dense2 output",
        router="gate",
    ),
    "": _table(mlp_down="output"),
}

_WITHOUT_HEADS = frozenset(
    [
        "q_a_proj",
        "wq_a",
        "input_linear",
        "receptance",
        "r",
        "r_kernel",
        "r_proj",
        "relative_pos_embeddings",
    ]
)

_OUTSIDE: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (component, re.compile(rf"(?:^|\.)(?:{pattern})"))
    for component, pattern in (
        ("position", r"wpe\.|[^.]*position(?:al)?_embeddings?|embed_positions|pos_embed|[^.]*pos_embed(?:ding)?\b"),
        ("embed", r"wte\.|shared\.weight$|embed_tokens(?:_per_layer)?\.|[^.]*input_embeddings?\.|embed_in\.|[^.]*word_embeddings?\.|tok_embeddings|"
                  r"[^.]*token_embeddings?\.|tok_emb\.|emb\.weight$|embeddings?\.weight$|patch_embed(?:ding)?s?\d*\.|conv_proj\."),
        ("unembed", r"(?:lm_head|embed_out|final_linear|classifier|score|heads?|fc|output_layer|output_projection|"
                    r"lm_loss|pred_layer|vocab_projector|proj_out|generator_lm_head|last_linear|head_dist|classif)\.|"
                    r"cls\.predictions\.|transformer\.ff_out\.|predictions\.decoder\."),
    )
)  # fmt: skip


def in_a_block(inside: Path, shape: tuple[int, ...]) -> str:
    """Return the component of a tensor within a block, by the parts of its name there.

    Where words are silent, by its shape: within an MLP what makes more of its input is the way up,
    within attention a matrix with three outputs an input is the fused projection.
    """
    words = _words(inside)
    return _by_words(words) or _by_shape(_place(words), shape[-2:]) or OTHER


def outside(path: Path) -> str:
    """Return the component of a tensor in no block; attention and MLPs are no ends of a network."""
    words = _words(path)
    if words and _means(words[-1]) == "norm":
        return "norm"
    name = ".".join(path)
    for component, pattern in _OUTSIDE:
        match = pattern.search(name)
        if match and not is_inner(name[: match.start()].split(".")):
            return component
    return (_by_words(words) if _place(words) else None) or _by_kind(words) or OTHER


def is_inner(path: Sequence[str]) -> bool:
    """Return whether a path leads through attention, an MLP or experts."""
    return any(_means(part) in ("mixer", "cross", "mlp", "experts") for part in path)


def has_heads(path: Path) -> bool:
    """Return whether rows of a projection are its heads': not of maps to a few dimensions or from
    positions, nor of those that only choose what is attended to."""
    words = _words(path)
    return bool(words) and words[-1] not in _WITHOUT_HEADS and "indexer" not in words


def is_expert(path: Sequence[str]) -> bool:
    """Return whether a path leads through experts."""
    return any(_means(part) == "experts" for part in path)


def _words(path: Path) -> Sequence[str]:
    """Return the parts that name modules: `c_fc.weight`, `in_proj_weight` and `w1_EFD` have one."""
    *words, last = path[-_MOST_WORDS:]
    match = _PARAMETER.fullmatch(last) if len(last) <= _LONGEST_WORD else None
    words += [word for word in match.groups() if word] if match else [last]
    while words and _WITHIN_A_MODULE.fullmatch(words[-1]):
        words.pop()
    return words


def _by_words(words: Sequence[str]) -> str | None:
    meanings = [_means(word) for word in words]
    if meanings and meanings[-1] == "norm":
        return "norm"
    if "router" in meanings:
        return "router"
    if any(m == "aside" and w not in _ANYWHERE for w, m in zip(words, meanings, strict=True)):
        return OTHER
    for i in range(len(words) - 1, -1, -1):
        place = _place(words[:i])
        known = _IN[place].get(words[i]) or _ANYWHERE.get(words[i])
        if known:
            if any(w == "gate" and _place(words[:n]) == "mlp" for n, w in enumerate(words[:i])):
                return "router"  # a router that is a network itself
            crosses = place == "mixer" and "cross" in meanings and known != "attn_qkv"
            return known.replace("attn_", "cross_") if crosses else known
        if meanings[i] in ("norm", "mixer", "cross", "mlp", "experts"):
            break
    return _by_kind(words)


def _by_kind(words: Sequence[str]) -> str | None:
    """Return what the last word says by itself."""
    kind = _means(words[-1]) if words else None
    return {"norm": "norm", "convolution": "conv"}.get(kind or "")


def _by_shape(place: str, matrix: tuple[int, ...]) -> str | None:
    if len(matrix) < 2:
        return None
    rows, columns = matrix
    if place == "mixer":
        return "attn_qkv" if rows == 3 * columns else None
    if place == "mlp" and rows != columns:
        return "mlp_up" if rows > columns else "mlp_down"
    return None


def _place(words: Sequence[str]) -> str:
    """Return what the words lead into: experts may be of attention, too."""
    meanings = [_means(word) for word in words]
    inner = [each for each in meanings if each in ("mixer", "cross", "mlp")]
    if inner:
        return "mlp" if inner[-1] == "mlp" else "mixer"
    return "mlp" if "experts" in meanings else ""


@functools.lru_cache(1 << 14)
def _means(word: str) -> str | None:
    """Return what kind of module a word names, if any; networks have few different ones."""
    if len(word) > _LONGEST_WORD:
        return None
    return next((kind for kind, pattern in _MEANINGS if pattern.fullmatch(word)), None)
