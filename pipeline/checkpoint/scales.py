"""Quantized weights: which tensors are codes, which are the scales that they are multiplied with.

Names and shapes tell. 8-bit codes with a scale for each block, row or tensor are weights once each code is
multiplied with its scale; codes that are packed several to a byte or word are not decoded.

Sources: transformers' integrations of `finegrained_fp8` (DeepSeek: `weight_scale_inv`), `fbgemm_fp8` and
compressed-tensors (`weight_scale`), DeepSeek's own files (`scale`), ComfyUI (`scale_weight`); AutoGPTQ
and AutoAWQ (`qweight`, `qzeros`, `scales`, `g_idx`), bitsandbytes (`absmax`, `quant_map`, `quant_state`,
`SCB`), gpt-oss (`_blocks`, `_scales`), modelopt (`weight_scale_2`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.stored import Scales, StoredTensor

Held = Mapping[str, tuple[int, StoredTensor]]
"""The tensors of one checkpoint by name: index of the file, place in it."""

_CODES = frozenset({"F8_E4M3", "F8_E5M2"})
"""Number formats that are mostly stored with scales."""
_SCALE_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E8M0"})
_NAMES_OF_SCALES = ("{}_scale_inv", "{}_scale", "{module}scale", "{module}scale_weight")
"""Of the scales of a tensor; `module`: its name without the last part, where that is `weight`."""

_INTEGERS = frozenset({"U8", "I8", "I16", "U16", "I32", "U32", "I64", "F4", "F6_E2M3", "F6_E3M2"})
_PACKED = re.compile(
    r"(?:^|[._])(?:weight|qweight|weight_packed|w_q|\w+_(?:blocks|qweight|packed))$"
)
"""Names of what is packed, if it is stored as integers."""
_BESIDE = re.compile(
    r"(?:weight[._])?(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state[.\w]*|SCB"
    r"|weight_format|scales?|weight_scale(?:_2|_inv)?|weight_global_scale|weight_zero_point|weight_shape"
    r"|weight_g_idx|qzeros|g_idx|zeros|bias_scale|\w*_scales|(?:input|output|activation|act|k|v|q|kv)"
    r"(?:_\w+)?_scale(?:_ub|_inv)?|(?:input|output)_(?:global_scale|zero_point|activation_scale)"
    r"|scale_(?:input|weight))"
)
"""What lies in a module beside codes, and is none of its weights."""


def with_scales(tensors: Held) -> dict[str, tuple[int, StoredTensor]]:
    """Return a checkpoint's tensors, codes with their scales, and what is neither weight with its reason."""
    told = dict(tensors)
    modules: dict[str, str] = {}
    for name, (file, tensor) in tensors.items():
        if tensor.unreadable:
            continue
        if tensor.dtype in _CODES and (scale := _scale_of(name, tensors)):
            place, scales = tensors[scale]
            joined = _scales(tensor, place - file, scales)
            reason = f"scales of {name}"
            if joined is None:
                shown = f"{list(scales.shape)} {scales.dtype} for {list(tensor.shape)}"
                lost = f"codes whose scales are not understood: {shown}"
                told[name] = file, replace(tensor, unreadable=lost, lost=True)
            else:
                told[name] = file, replace(tensor, scales=joined)
                reason += ", multiplied in"
            told[scale] = place, replace(scales, unreadable=reason)
            modules[_module(name)] = "beside codes with scales"
        elif tensor.dtype in _INTEGERS and tensor.numel > 1 and _is_packed(name, tensor, tensors):
            reason = f"weights packed as {tensor.dtype}, which are not decoded"
            told[name] = file, replace(tensor, unreadable=reason, lost=True)
            modules[_module(name)] = "beside packed weights"
    for name, (file, tensor) in told.items():
        module, rest = _of_module(name, modules)
        if module is not None and not tensor.unreadable and _BESIDE.fullmatch(rest):
            told[name] = file, replace(tensor, unreadable=modules[module])
    return told


def _scale_of(name: str, tensors: Held) -> str | None:
    """Return the name of a tensor's scales."""
    module = name.removesuffix("weight") if name.endswith("weight") else f"{name}."
    names = (pattern.format(name, module=module) for pattern in _NAMES_OF_SCALES)
    return next((scale for scale in names if scale in tensors), None)


def _scales(tensor: StoredTensor, file: int, scales: StoredTensor) -> Scales | None:
    """Return how scales are multiplied with codes; None: it is not clear.

    A scale belongs to as many elements of each dimension as their numbers say: to a power of two of them,
    the last one to fewer, or else to equal numbers.
    """
    if scales.dtype not in _SCALE_DTYPES or scales.order or tensor.order or scales.unreadable:
        return None
    shape = scales.shape
    if scales.numel == 1:
        shape = (1,) * len(tensor.shape)
    elif len(shape) == 1 and len(tensor.shape) == 2 and shape[0] == tensor.shape[0]:
        shape = (shape[0], 1)
    if len(shape) != len(tensor.shape) or not scales.numel:
        return None
    blocks: list[int] = []
    for length, count in zip(tensor.shape, shape, strict=True):
        block = _block(length, count)
        if block is None:
            return None
        blocks.append(block)
    return Scales(file, scales.dtype, scales.start, scales.extents, shape, tuple(blocks))


def _block(length: int, count: int) -> int | None:
    """Return how many elements of a dimension share a scale."""
    if count in (1, length):
        return max(1, length // count)
    power = 1 << max(0, math.ceil(math.log2(length / count)))
    if count and -(-length // power) == count:
        return power
    return length // count if count and length % count == 0 else None


def _is_packed(name: str, tensor: StoredTensor, tensors: Held) -> bool:
    """Return whether integers are weights: by their name, with something beside them that decodes them."""
    if not _PACKED.search(name):
        return False
    module = _module(name)
    if name.endswith(("qweight", "_packed", "_blocks")) or DTYPES[tensor.dtype].bits < 8:
        return True
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
