"""Which slices of a fused tensor are of which role, and which of its elements are one head's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pipeline.checkpoint.config import HEADS
from pipeline.checkpoint.roles import MOST_EXPERTS


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

    def below(self, stop: int) -> int:
        """Return how many of the elements [0, stop) of its tensor belong to it."""
        periods, rest = divmod(stop, self.period)
        size = self.stop - self.start
        return periods * size + min(max(rest - self.start, 0), size)


@dataclass(frozen=True, slots=True)
class Fused:
    """How outputs of a fused projection follow each other: `groups` times, each label's units in this
    order."""

    groups: int
    units: tuple[tuple[str, int], ...]
    columns: bool = False
    """Outputs are columns of the stored matrix, not rows."""


def _grouped(heads: int, kv_heads: int) -> Fused:
    """A key and a value after the queries that look at them; one query where heads are not shared."""
    return Fused(kv_heads, (("q", heads // kv_heads), ("k", 1), ("v", 1)))


def _contiguous(heads: int, kv_heads: int) -> Fused:
    """All queries, all keys, all values."""
    return Fused(1, (("q", heads), ("k", kv_heads), ("v", kv_heads)))


def _in_four_blocks(heads: int, kv_heads: int) -> Fused:
    """One block for each core of the machine that CodeGen was trained on; values before keys."""
    return Fused(4, (("q", heads), ("v", kv_heads), ("k", kv_heads)))


# Sources: the attention modules of transformers 5 (their `view` and `split` calls); OLMo's own
# `fused_dims` for `hf_olmo`. tests/test_fused_layouts.py holds them against the modules' gradients.
_ATTENTION: dict[str, Callable[[int, int], Fused]] = {
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
# Rows of all experts one after the other, in two dimensions (DBRX).
_STACKED_EXPERTS = re.compile(r"(?:^|\.)experts\.mlp\.(?:w1|v1|w2)$")
_MOST_HEADS = 4096  # far above any network; a part each must not be what a config says
LABELS = {"q": "attn", "k": "attn", "v": "attn", "gate": "mlp", "up": "mlp", "down": "mlp"}
"""What is fused, and the module that it is of."""
_GATE_UP = re.compile(r"(?:^|\.)(?:gate_up_proj|ff_proj)\.")


def parts(
    name: str,
    component: str,
    shape: tuple[int, ...],
    config: dict[str, Any],
    experts: int = 0,
    fused: Fused | None = None,
) -> tuple[Part, ...]:
    """Return the slices of a tensor by role: several if it is fused in a known layout, else one.

    Args:
        component: what the whole tensor is.
        config: the checkpoint's `config.json`; empty where there is none.
        experts: of how many experts it holds the weights, one after the other; 0: not of several.
        fused: how it is stated to be fused; default: what is known of its network.
    """
    if len(shape) == 2 and _STACKED_EXPERTS.search(name):
        experts = _stated_experts(config)
    if experts and fused is None:
        return _by_expert(component, shape, experts) or divided(shape, component, None)
    return divided(shape, component, fused or _layout(name, component, config))


def divided(shape: tuple[int, ...], component: str, fused: Fused | None) -> tuple[Part, ...]:
    """Return the slices of a fused tensor; all of it where it is not fused, or does not fit."""
    numel = math.prod(shape)
    whole = (Part("", component, numel, 0, numel),)
    if fused is None:
        return whole
    outputs = shape[-1:] if fused.columns else shape[:1]
    units = sum(count for _, count in fused.units)
    if not outputs or not numel or outputs[0] % (fused.groups * units):
        return whole
    period = numel // fused.groups
    if fused.columns:
        period = outputs[0] // fused.groups
    made, start = [], 0
    for label, count in fused.units:
        stop = start + period // units * count
        made.append(Part(label, f"{LABELS[label]}_{label}", period, start, stop))
        start = stop
    return tuple(made)


def _layout(name: str, component: str, config: dict[str, Any]) -> Fused | None:
    model = _model_type(config)
    if _GATE_UP.search(name) and model in _MLP:
        return Fused(1, tuple((label, 1) for label in _MLP[model]))
    heads, kv_heads = _head_counts(config)
    if component != "attn_qkv" or model not in _ATTENTION or not heads or not kv_heads:
        return None
    if heads % kv_heads:
        return None
    return replace(_ATTENTION[model](heads, kv_heads), columns=model in _COLUMNS)


def _by_expert(component: str, shape: tuple[int, ...], experts: int) -> tuple[Part, ...]:
    """Return a part for each expert of a tensor of all, or nothing if their number does not fit.

    What `gate_up_proj` holds of one expert stays together: it is interleaved in some networks and
    not in others.
    """
    if shape[0] % experts:
        return ()
    numel = math.prod(shape)
    each = numel // experts
    return tuple(
        Part("", component, numel, n * each, (n + 1) * each, expert=n) for n in range(experts)
    )


def _stated_experts(config: dict[str, Any]) -> int:
    settings = config.get("ffn_config")
    count = settings.get("moe_num_experts") if isinstance(settings, dict) else None
    return count if type(count) is int and 0 < count <= MOST_EXPERTS else 0


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

    heads = first(*HEADS)
    model = _model_type(config)
    if model == "gpt_bigcode" or (model == "falcon" and not config.get("new_decoder_architecture")):
        return heads, 1 if config.get("multi_query", True) else heads
    if model == "dbrx":
        attention = config.get("attn_config")
        config = attention if isinstance(attention, dict) else {}
    kv_heads = first("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_n_heads")
    return heads, kv_heads or heads
