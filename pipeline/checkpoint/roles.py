"""From a tensor's name to what it is: layer, component, kind, and whether it is a weight at all.

All of it is data: tables of patterns, tried in order, the first that matches decides. A name
that no pattern knows is `other`, without a layer: still analysed, still in `model`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.checkpoint.dtypes import DTYPES

# Nine digits fit the tables' 32-bit columns; a longer number is no index.
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|resblocks)\.(\d{1,9})\.")
_EXPERT = re.compile(r"(?:^|\.)experts\.(\d{1,9})\.")
# Of other networks: the path down to the first index, `layer1.0` or `features.10`.
_BLOCK = re.compile(r"^(.*?(?:^|\.)\d{1,9})\.")
_T5 = (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))
_STACKS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (stack, re.compile(rf"(?:^|\.)(?:{pattern})\."))
    for stack, pattern in (
        ("vision", r"vision_model|vision_tower|visual"),
        ("text", r"text_model|language_model"),
        ("encoder", r"encoder"),
        ("decoder", r"decoder"),
    )
)

# Of a tensor's module. `ln_` may be anywhere in it: `ln_f`, `ln_attn`.
_NORM = re.compile(r"(?:[nN]orm|ln|bn)\d*\Z|ln_")
# Modules that are no ends of a network, and so are all within them: `mlp.fc` is no classifier,
# `attention.heads.0.q_proj` no head.
_INNER = re.compile(
    r"(?:(?:self_|cross_|encoder_)?att(?:entio)?n|mlp|ffn?|feed_?forward|experts?|(?:block_sparse_)?moe)\d*"
)
_ENDS = frozenset({"embed", "position", "unembed"})

# Anchored at a name part, so that `q_proj` is not found inside `freq_proj`. Each takes a time that
# grows with a name's length and no faster: no two repetitions in one can match the same characters.
_COMPONENTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (component, re.compile(rf"(?:^|\.)(?:{pattern})"))
    for component, pattern in (
        ("position", r"wpe\.|[^.]*position(?:al)?_embeddings?|embed_positions|pos_embed"),
        ("embed", r"wte\.|shared\.weight$|embed_tokens|embed_in\.|[^.]*word_embeddings|tok_embeddings|patch_embed"),
        ("unembed", r"(?:lm_head|embed_out|final_linear|classifier|score|heads?|fc)\.|cls\.predictions\.|transformer\.ff_out\."),
        ("cross_q", r"(?:encoder_attn|crossattention|cross_attn)\.(?:q_proj|query|q)\."),
        ("cross_k", r"(?:encoder_attn|crossattention|cross_attn)\.(?:k_proj|key|k)\."),
        ("cross_v", r"(?:encoder_attn|crossattention|cross_attn)\.(?:v_proj|value|v)\."),
        ("cross_out", r"(?:encoder_attn|crossattention|cross_attn)\.(?:out_proj|o_proj|o)\."),
        # T5 and its kin: `wo` is the way down in the MLP, elsewhere the attention's way out
        *((f"cross_{label}", rf"EncDecAttention\.{name}\.") for label, name in _T5),
        *((f"attn_{label}", rf"SelfAttention\.{name}\.") for label, name in _T5),
        ("mlp_gate", r"DenseReluDense\.wi_0\."),
        ("mlp_up", r"DenseReluDense\.wi(?:_1)?\."),
        ("mlp_down", r"DenseReluDense\.wo\."),
        ("attn_qkv", r"query_key_value\.|c_attn\.|qkv_proj\.|Wqkv\.|att_proj\.|qkv\.|in_proj_(?:weight|bias)$"),
        ("attn_q", r"(?:q_proj|query|wq|q_lin)\."),
        ("attn_k", r"(?:k_proj|key|wk|k_lin)\."),
        ("attn_v", r"(?:v_proj|value|wv|v_lin)\."),
        ("attn_out", r"(?:o_proj|wo|attn_out|out_lin)\.|(?:self_)?att(?:entio)?n\.(?:out_proj|c_proj|dense|proj|output\.dense)\."),
        ("router", r"(?:mlp|block_sparse_moe)\.gate\.|router\."),
        ("mlp_gate", r"(?:gate_proj|w1|ff_gate)\.|experts\.mlp\.w1$"),
        ("mlp_up", r"experts\.gate_up_proj|experts\.mlp\.v1$|(?:gate_up_proj|ff_proj|up_proj|w3|c_fc|fc1|fc_in|dense_h_to_4h|lin1)\.|intermediate\.dense\."),
        ("mlp_down", r"experts\.down_proj|experts\.mlp\.w2$|(?:down_proj|w2|fc2|fc_out|dense_4h_to_h|lin2)\.|mlp\.c_proj\.|\d+\.(?:ff_out|output\.dense)\."),
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
    head: int | None = None
    """Number of the attention head, where a part is one head's."""
    expert: int | None = None
    """Number of the expert, where a part is one expert's."""


def role(name: str) -> Role:
    """Return what the tensor of this name is."""
    layer, expert = _LAYER.search(name), _EXPERT.search(name)
    return Role(
        stack=None,
        layer=int(layer[1]) if layer else None,
        component=_component(name, in_layer=layer is not None),
        expert=int(expert[1]) if expert else None,
        kind="bias" if name.endswith("bias") else "weight",
    )


def _component(name: str, in_layer: bool) -> str:
    """Return a tensor's component; what is in a layer belongs to neither end of the network."""
    path, _, leaf = name.rpartition(".")
    if leaf in ("weight", "bias") and _NORM.search(path.rpartition(".")[2]):
        return "norm"
    for component, pattern in _COMPONENTS:
        match = pattern.search(name)
        if match and not (component in _ENDS and (in_layer or _is_inner(name[: match.start()]))):
            return component
    return "other"


def _is_inner(path: str) -> bool:
    return any(_INNER.fullmatch(part) for part in path.split("."))


def roles(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Role]:
    """Return what each tensor of a network is, by the names and shapes of all.

    Beside what a name says by itself (`role`): stacks, where there are several; in networks that
    are no transformers the blocks, numbered in the natural order of their names' indices; and
    what has three dimensions or more and no other role is a convolution.
    """
    by_name = {name: role(name) for name in shapes}
    stacks = {name: _stack(name) for name in shapes}
    if len({stack for stack in stacks.values() if stack}) > 1:
        by_name = {name: replace(entry, stack=stacks[name]) for name, entry in by_name.items()}
    if all(entry.layer is None for entry in by_name.values()):
        blocks = {name: block for name in shapes if (block := _block(name)) is not None}
        ordered = sorted(set(blocks.values()), key=_natural)
        numbers = {block: number for number, block in enumerate(ordered)}
        for name, block in blocks.items():
            component = _component(name, in_layer=True)
            by_name[name] = replace(by_name[name], layer=numbers[block], component=component)
    return {
        name: replace(entry, component="conv")
        if entry.component == "other" and len(shapes[name]) >= 3 and not _is_inner(name)
        else entry
        for name, entry in by_name.items()
    }


def _block(name: str) -> str | None:
    """Return the path of the block that a tensor is in; `classifier.6` is the head, and none."""
    match = _BLOCK.match(name)
    if match is None or _component(match[1] + ".", in_layer=False) in _ENDS:
        return None
    return match[1]


def _stack(name: str) -> str | None:
    return next((stack for stack, pattern in _STACKS if pattern.search(name)), None)


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort key: numbers by their size, which is first their length, whatever that is."""
    return [
        (len(number := word.lstrip("0")), number) if word.isdecimal() else (0, word)
        for word in re.split(r"(\d+)", text)
    ]


def reason_to_leave_out(name: str, dtype: str, shape: tuple[int, ...]) -> str | None:
    """Return why a stored tensor is not a trained weight, or None if it is one."""
    if _MASK_NAME.search(name) and len(shape) == 4 and shape[:2] == (1, 1):
        return "buffer: causal mask"
    if not DTYPES[dtype].is_weight:
        return f"not a weight: stored as {dtype}"
    if 0 in shape:
        return "empty"
    return next((reason for pattern, reason in _BUFFERS if pattern.search(name)), None)


@dataclass(frozen=True, slots=True)
class _Fused:
    """How rows (outputs) of a fused projection follow each other: `groups` times, each label's
    units in this order."""

    groups: int
    units: tuple[tuple[str, int], ...]


def _grouped(heads: int, kv_heads: int) -> _Fused:
    """A key and a value after the queries that look at them; one query where heads are not shared."""
    return _Fused(kv_heads, (("q", heads // kv_heads), ("k", 1), ("v", 1)))


def _contiguous(heads: int, kv_heads: int) -> _Fused:
    """All queries, all keys, all values."""
    return _Fused(1, (("q", heads), ("k", kv_heads), ("v", kv_heads)))


def _in_four_blocks(heads: int, kv_heads: int) -> _Fused:
    """One block for each core of the machine that CodeGen was trained on; values before keys."""
    return _Fused(4, (("q", heads), ("v", kv_heads), ("k", kv_heads)))


# Sources: the attention modules of transformers 5 (their `view` and `split` calls); OLMo's own
# `fused_dims` for `hf_olmo`. tests/test_fused_layouts.py holds them against the modules' gradients.
_ATTENTION: dict[str, Callable[[int, int], _Fused]] = {
    "gpt_neox": _grouped,
    "bloom": _grouped,
    "persimmon": _grouped,
    "falcon": _grouped,
    "gpt_bigcode": _grouped,
    "gpt2": _contiguous,
    "mpt": _contiguous,
    "dbrx": _contiguous,
    "phi3": _contiguous,
    "hf_olmo": _contiguous,
    "codegen": _in_four_blocks,
}
_COLUMNS = frozenset({"gpt2"})  # Conv1D stores (inputs, outputs): Q, K and V are thirds of each row
_MLP: dict[str, tuple[str, str]] = {
    "phi3": ("gate", "up"),
    "glm": ("gate", "up"),
    "glm4": ("gate", "up"),
    "hf_olmo": ("up", "gate"),
}
# All experts of a layer in one tensor: (experts, …) by transformers 5, or experts' rows one after
# the other by DBRX.
_EXPERTS = re.compile(r"(?:^|\.)experts\.(?:gate_up_proj|down_proj|mlp\.(?:w1|v1|w2))(?:_bias)?$")
_MOST_EXPERTS = 4096  # far above any network; a part each must not be what a shape of a file says
_MOST_HEADS = 4096  # likewise of what a config says
_GATE_UP = re.compile(r"(?:^|\.)(?:gate_up_proj|ff_proj)\.")


def parts(
    name: str, component: str, shape: tuple[int, ...], config: dict[str, Any]
) -> tuple[Part, ...]:
    """Return the slices of a tensor by role: several if it is fused in a known layout, else one.

    Args:
        component: what the whole tensor is.
        config: the checkpoint's `config.json`; empty where there is none.
    """
    numel = math.prod(shape)
    whole = (Part("", component, numel, 0, numel),)
    if _EXPERTS.search(name):
        return _by_expert(component, shape, config) or whole
    model = _model_type(config)
    if _GATE_UP.search(name) and model in _MLP:
        prefix, fused = "mlp", _Fused(1, tuple((label, 1) for label in _MLP[model]))
    elif component == "attn_qkv" and model in _ATTENTION:
        heads, kv_heads = _head_counts(config)
        if not heads or not kv_heads or heads % kv_heads:
            return whole
        prefix, fused = "attn", _ATTENTION[model](heads, kv_heads)
    else:
        return whole
    outputs = shape[-1:] if model in _COLUMNS else shape[:1]
    units = sum(count for _, count in fused.units)
    if not outputs or outputs[0] % (fused.groups * units):
        return whole
    groups = numel // outputs[0] if model in _COLUMNS else fused.groups
    period = numel // groups
    made, start = [], 0
    for label, count in fused.units:
        stop = start + period // units * count
        made.append(Part(label, f"{prefix}_{label}", period, start, stop))
        start = stop
    return tuple(made)


def _by_expert(component: str, shape: tuple[int, ...], config: dict[str, Any]) -> tuple[Part, ...]:
    """Return a part for each expert of a tensor of all, or nothing if their number is not known.

    What `gate_up_proj` holds of one expert stays together: it is interleaved in some networks and
    not in others.
    """
    settings = config.get("ffn_config")
    settings = settings if isinstance(settings, dict) else {}
    count = settings.get("moe_num_experts")
    if len(shape) == 3:
        count = shape[0]
    numel = math.prod(shape)
    if type(count) is not int or not 0 < count <= _MOST_EXPERTS or shape[0] % count:
        return ()
    each = numel // count
    return tuple(
        Part("", component, numel, n * each, (n + 1) * each, expert=n) for n in range(count)
    )


def by_head(whole: tuple[Part, ...], numel: int, config: dict[str, Any]) -> tuple[Part, ...]:
    """Return parts with those of queries, keys and values divided into attention heads.

    Heads follow each other in the rows of a part, group after group; in a Conv1D they are blocks
    of columns. With grouped-query attention keys and values have fewer. A part stays whole where
    `config.json` does not say how many heads there are, or the number does not fit.
    """
    heads, kv_heads = _head_counts(config)
    divided: list[Part] = []
    for part in whole:
        count = {"attn_q": heads, "attn_k": kv_heads, "attn_v": kv_heads}.get(part.component)
        length = part.stop - part.start
        groups = 1 if _model_type(config) in _COLUMNS else numel // part.period
        if not count or count % groups or length % (count // groups):
            divided.append(part)
            continue
        each = count // groups
        width, period = length // each, part.period if groups == 1 else numel
        for head in range(count):
            start = head // each * part.period + part.start + head % each * width
            divided.append(Part(part.label, part.component, period, start, start + width, head))
    return tuple(divided)


def _model_type(config: dict[str, Any]) -> str:
    model_type = config.get("model_type")
    return model_type if isinstance(model_type, str) else ""


def _head_counts(config: dict[str, Any]) -> tuple[int | None, int | None]:
    """Return the numbers of query heads and of key and value heads that a config states."""

    def first(*names: str) -> int | None:
        values = (config.get(name) for name in names)
        return next((v for v in values if type(v) is int and 0 < v <= _MOST_HEADS), None)

    heads = first("num_attention_heads", "n_head", "n_heads")
    model = _model_type(config)
    if model == "gpt_bigcode" or (model == "falcon" and not config.get("new_decoder_architecture")):
        return heads, 1 if config.get("multi_query", True) else heads
    if model == "dbrx":
        attention = config.get("attn_config")
        config = attention if isinstance(attention, dict) else {}
    kv_heads = first("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_n_heads")
    return heads, kv_heads or heads
