"""Quantized weights: which tensors are codes, which are the scales that they are multiplied with.

Names, number formats and shapes tell. Codes with a scale for each block, row or tensor are weights once each
code is multiplied with its scale, whether they lie in a byte each or two to a byte.

Sources: transformers' integrations of `finegrained_fp8` (DeepSeek: `weight_scale_inv`), `fbgemm_fp8`, torchao
(`_weight_qdata`, `_weight_scale`) and gpt-oss (`_blocks`, `_scales`), whose own files say `.blocks` and
`.scales`; compressed-tensors (`weight_packed`, `weight_scale`, `weight_global_scale`), modelopt
(`weight_scale_2`), DeepSeek's own files (`scale`), ComfyUI (`scale_weight`); bitsandbytes (`SCB`; `absmax`,
`quant_map`, `quant_state`); AutoGPTQ and AutoAWQ (`qweight`, `qzeros`, `scales`, `g_idx`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.stored import Scales, StoredTensor

Held = Mapping[str, tuple[int, StoredTensor]]
"""The tensors of one checkpoint by name: index of the file, place in it."""


class _Scheme(NamedTuple):
    """How codes and their scales are named and stored.

    In names `{}` is the weights' and `{module}` their module's, with its dot.
    """

    ends: tuple[str, str]
    """What names of codes end with, and what those of their weights do instead."""
    stored: frozenset[str]
    """Formats of the codes."""
    scales: str
    scale_dtypes: frozenset[str]
    dtype: str = ""
    """What the codes are; empty: what they are stored as."""
    block: int = 0
    """How many codes of a row share a scale; 0: as many as the shapes say."""
    above: str = ""
    """What the scales are multiplied with, or divided by."""
    divide: bool = False
    factor: float = 1.0
    """What the scales are multiplied with besides."""
    flat: str = ""
    """What lies beside where shapes are not those of the weights: codes and scales are in columns."""


_SAME = ("", "")
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_F32 = frozenset({"F32"})
_EXPONENTS = frozenset({"F8_E8M0", "U8"})
"""Scales of the OCP Microscaling formats; U8 where a writer had no dtype for them."""
_E4M3 = frozenset({"F8_E4M3"})
_F8 = frozenset({"F8_E4M3", "F8_E5M2"})
_I8 = frozenset({"I8"})
_PAIRS = frozenset({"U8", "I8", "F4"})
_STORAGE = frozenset({"U8", "F16", "BF16", "F32"})
"""Of bitsandbytes: codes may be called floats, for what shards floats only (`bnb_4bit_quant_storage`)."""
_STATE = "{}.quant_state.bitsandbytes__"
_NESTED = "{}.nested_absmax"
"""Beside scales that are codes themselves, to which a number is added that stands in a text."""

_SCHEMES = (
    _Scheme(_SAME, _F8, "{}_scale_inv", _FLOATS | _EXPONENTS),
    _Scheme(_SAME, _F8, "{}_scale", _FLOATS | _EXPONENTS),
    _Scheme(_SAME, _F8, "{module}scale", _FLOATS | _EXPONENTS),
    _Scheme(_SAME, _F8, "{module}scale_weight", _FLOATS | _EXPONENTS),
    _Scheme(("_weight_qdata", "weight"), _F8, "{module}_weight_scale", _FLOATS),
    _Scheme(_SAME, _I8, "{}_scale", _FLOATS, "INT8"),
    _Scheme(_SAME, _I8, "{module}SCB", _FLOATS, "INT8", factor=1 / 127),
    _Scheme(_SAME, _STORAGE, "{}.absmax", _F32, "NF4", flat=f"{_STATE}nf4"),
    _Scheme(_SAME, _STORAGE, "{}.absmax", _F32, "FP4", flat=f"{_STATE}fp4"),
    _Scheme(("_blocks", ""), _PAIRS, "{}_scales", _EXPONENTS, "E2M1", 32),
    _Scheme((".blocks", ""), _PAIRS, "{}.scales", _EXPONENTS, "E2M1", 32),
    _Scheme(("_packed", ""), _PAIRS, "{}_scale", _EXPONENTS, "E2M1", 32),
    _Scheme(_SAME, _PAIRS, "{}_scale", _EXPONENTS, "E2M1", 32),
    _Scheme(_SAME, _PAIRS, "{}_scale_inv", _EXPONENTS, "E2M1", 32),
    _Scheme(_SAME, _PAIRS, "{module}scale", _EXPONENTS, "E2M1", 32),
    _Scheme(("_packed", ""), _PAIRS, "{}_scale", _E4M3, "E2M1", 16, "{}_global_scale", divide=True),
    _Scheme(_SAME, _PAIRS, "{}_scale", _E4M3, "E2M1", 16, "{}_scale_2"),
)
_OF_CODES = {
    dtype: tuple(scheme for scheme in _SCHEMES if dtype in scheme.stored)
    for dtype in frozenset().union(*(scheme.stored for scheme in _SCHEMES))
}
_ENDS_OF_SCALES = tuple({scheme.scales.format("", module="") for scheme in _SCHEMES})
_NOT_SCALES_ALONE = ("{}_zero_point", "{}_g_idx", _NESTED)
"""What lies beside codes that scales alone do not decode."""

_INTEGERS = frozenset({"U8", "I8", "I16", "U16", "I32", "U32", "I64", "F4", "F6_E2M3", "F6_E3M2"})
_PACKED = re.compile(
    r"(?:^|[._])(?:weight|qweight|weight_packed|w_q|\w+_(?:blocks|qweight|packed|qdata)|\w+_weight\.blocks)$"
)
"""Names of what is packed, if it is stored as integers."""
_BESIDE = re.compile(
    r"(?:weight[._])?(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state[.\w]*|SCB"
    r"|weight_format|scales?|_?weight_scale(?:_2|_inv)?|weight_global_scale|_?weight_zero_point"
    r"|weight_shape|weight_g_idx|qzeros|g_idx|zeros|bias_scale|\w*_scales"
    r"|(?:input|output|activation|act|k|v|q|kv)(?:_\w+)?_scale(?:_ub|_inv)?"
    r"|(?:input|output)_(?:global_scale|zero_point|activation_scale)|scale_(?:input|weight))"
)
"""What lies in a module beside codes, and is none of its weights."""


def with_scales(tensors: Held) -> dict[str, tuple[int, StoredTensor]]:
    """Return a checkpoint's tensors, codes with their scales, and what is neither weight with its reason.

    Codes of several names are under that of their weights.
    """
    if not any(
        tensor.dtype in _INTEGERS or name.endswith(_ENDS_OF_SCALES)
        for name, (_, tensor) in tensors.items()
    ):
        return dict(tensors)  # 12,000 tensors in 1 ms; one by one it takes 40
    told = dict(tensors)
    modules: dict[str, str] = {}
    for name, (file, tensor) in tensors.items():
        if tensor.unreadable or not tensor.numel:
            continue
        if paired := _paired(name, tensor, told):
            weight, scheme, names = paired
            joined = _joined(file, tensor, scheme, [tensors[scale] for scale in names])
            reason = f"scales of {weight}"
            if joined is None:
                place, scales = tensors[names[0]]
                shown = f"{list(scales.shape)} {scales.dtype} for {list(tensor.shape)}"
                lost = f"codes whose scales are not understood: {shown}"
                told[name] = file, replace(tensor, unreadable=lost, lost=True)
            else:
                del told[name]
                told[weight] = file, joined
                reason += ", multiplied in"
            for scale in names:
                place, scales = tensors[scale]
                told[scale] = place, replace(scales, unreadable=reason)
            modules[_module(name)] = "beside codes with scales"
        elif tensor.numel > 1 and _is_packed(name, tensor, tensors):
            reason = f"weights packed as {tensor.dtype}, which are not decoded"
            told[name] = file, replace(tensor, unreadable=reason, lost=True)
            modules[_module(name)] = "beside packed weights"
    for name, (file, tensor) in told.items() if modules else ():
        module, rest = _of_module(name, modules)
        if module is not None and not tensor.unreadable and _BESIDE.fullmatch(rest):
            told[name] = file, replace(tensor, unreadable=modules[module])
    return told


def _paired(
    name: str, tensor: StoredTensor, tensors: Held
) -> tuple[str, _Scheme, list[str]] | None:
    """Return the name of the weights that codes are, by which scheme, and the names of all scales."""
    for scheme in _OF_CODES.get(tensor.dtype, ()):
        end, of_weights = scheme.ends
        if not name.endswith(end):
            continue
        weight = name.removesuffix(end) + of_weights
        module = weight.removesuffix("weight") if weight.endswith("weight") else f"{weight}."
        patterns = filter(None, (scheme.scales, scheme.above))
        names = [pattern.format(weight, module=module) for pattern in patterns]
        if (
            all(scale in tensors for scale in names)
            # 8-bit floats whose scales are odd are no weights without them
            and (tensor.dtype in _F8 or tensors[names[0]][1].dtype in scheme.scale_dtypes)
            and (weight == name or weight not in tensors)
            and (not scheme.flat or scheme.flat.format(weight) in tensors)
            and not (scheme.dtype and any(p.format(weight) in tensors for p in _NOT_SCALES_ALONE))
        ):
            return weight, scheme, names
    return None


def _joined(
    file: int, tensor: StoredTensor, scheme: _Scheme, held: list[tuple[int, StoredTensor]]
) -> StoredTensor | None:
    """Return codes with their scales; None: it is not clear how they are multiplied.

    Args:
        held: the scales, and what these are multiplied with if there is something.
    """
    first, *rest = (stored for _, stored in held)
    if first.dtype not in scheme.scale_dtypes or any(s.dtype not in _FLOATS for s in rest):
        return None
    shape, is_packed = tensor.shape, scheme.flat or scheme.block
    if tensor.order or (is_packed and tensor.extents):
        return None
    if scheme.flat:
        shape = tensor.numel * DTYPES[tensor.dtype].bits // 4, 1
        first = replace(first, shape=(first.numel, 1))
    elif scheme.block:
        shape = _unpacked(tensor, first)
    files = [place - file for place, _ in held]
    scales, *above = map(_scales, (shape, first.shape), files, (first, *rest))
    if scales is None or None in above:
        return None
    if scheme.flat and scales.blocks[0] & (scales.blocks[0] - 1) and first.numel > 1:
        return None
    if scheme.block and scales.blocks != (*(1 for _ in shape[:-1]), scheme.block):
        return None
    scales = scales._replace(
        factor=scheme.factor, scales=above[0] if above else None, divide=scheme.divide
    )
    return replace(tensor, dtype=scheme.dtype or tensor.dtype, shape=shape, scales=scales)


def _unpacked(codes: StoredTensor, scales: StoredTensor) -> tuple[int, ...]:
    """Return the shape of the weights of packed codes: their blocks may be a dimension of their own."""
    *rows, columns = codes.shape or (1,)
    columns *= 1 if codes.dtype == "F4" else 2
    if rows and len(scales.shape) == len(rows):
        columns *= rows.pop()
    return *rows, columns


def _scales(of: tuple[int, ...], file: int, scales: StoredTensor) -> Scales | None:
    """Return how scales are multiplied with codes of a shape; None: it is not clear.

    A scale belongs to as many elements of each dimension as their numbers say: to a power of two of them,
    the last one to fewer, or else to equal numbers.
    """
    dtype = "F8_E8M0" if scales.dtype == "U8" else scales.dtype
    if scales.order or scales.unreadable or not scales.numel:
        return None
    shape = scales.shape
    if scales.numel == 1:
        shape = (1,) * len(of)
    elif len(shape) == 1 and len(of) == 2 and shape[0] == of[0]:
        shape = (shape[0], 1)
    if len(shape) != len(of):
        return None
    blocks: list[int] = []
    for length, count in zip(of, shape, strict=True):
        block = _block(length, count)
        if block is None:
            return None
        blocks.append(block)
    return Scales(file, dtype, scales.start, scales.extents, shape, tuple(blocks))


def _block(length: int, count: int) -> int | None:
    """Return how many elements of a dimension share a scale."""
    if count in (1, length):
        return max(1, length // count)
    power = 1 << max(0, math.ceil(math.log2(length / count)))
    if count and -(-length // power) == count:
        return power
    return length // count if count and length % count == 0 else None


def _is_packed(name: str, tensor: StoredTensor, tensors: Held) -> bool:
    """Return whether something is codes: by its name, with something beside it that decodes them."""
    if DTYPES[tensor.dtype].bits < 8 or f"{name}.absmax" in tensors:
        return True
    if tensor.dtype not in _INTEGERS or not _PACKED.search(name):
        return False
    if name.endswith(("qweight", "_packed", "_blocks", ".blocks", "_qdata")):
        return True
    module = _module(name)
    return len(tensor.shape) > 1 or f"{module}SCB" in tensors or f"{name}_scale" in tensors


def _module(name: str) -> str:
    """Return a name up to its last part, and the part's own name where its codes are one of several."""
    head, dot, _ = name.rpartition(".")
    return head + dot


def _of_module(name: str, modules: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the module with codes that a tensor lies in, and its name there."""
    head = name
    while head:
        head = head.rpartition(".")[0]
        module = f"{head}." if head else ""
        if module in modules:
            return module, name[len(module) :]
    return None, name
