"""Codes and scales: which belong together, by names and shapes; against the definitions, written slowly."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.checkpoint.aligned_scales import aligned_scales
from pipeline.checkpoint.scales import with_scales
from pipeline.checkpoint.stored import StoredTensor


def stored(dtype: str, *shape: int) -> tuple[int, StoredTensor]:
    return 0, StoredTensor(dtype, shape, 0, 0)


# name of the scales: (their shape, shape of the codes, elements that share a scale)
PAIRS = {
    "l.weight_scale_inv": ((4, 3), (512, 384), (128, 128)),
    "l.weight_scale": ((8, 1), (8, 6), (1, 6)),
    "l.scale": ((5, 56), (576, 7168), (128, 128)),
    "l.scale_weight": ((), (8, 6), (8, 6)),
    "l.weight_scale ": ((1,), (8, 6), (8, 6)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str) -> None:
    shape, of, blocks = PAIRS[name]
    scale = name.strip()
    told = with_scales({"l.weight": stored("F8_E4M3", *of), scale: stored("F32", *shape)})
    scales = told["l.weight"][1].scales
    assert scales is not None and scales.blocks == blocks
    assert told[scale][1].unreadable == "scales of l.weight, multiplied in"
    assert not told[scale][1].lost and not told["l.weight"][1].unreadable


@pytest.mark.parametrize(
    ("of", "shape"),
    [((10, 7), (3, 2)), ((9, 6), (9, 1)), ((2, 10, 8), (2, 3, 2)), ((3, 4, 6), (3, 1, 6)),
     ((2, 9, 5), (1, 3, 1)), ((5,), (1,)), ((130, 33), (2, 33))],
)  # fmt: skip
def test_each_element_has_the_scale_of_its_block(
    of: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    told = with_scales({"w": stored("F8_E4M3", *of), "w_scale": stored("F32", *shape)})
    scales = told["w"][1].scales
    assert scales is not None
    place = aligned_scales(scales, of, [0], 0)
    grid = np.arange(math.prod(shape)).reshape(shape)
    expected = [
        grid[tuple(i // b for i, b in zip(index, scales.blocks, strict=True))]
        for index in itertools.product(*map(range, of))
    ]
    count = math.prod(of)
    for first, stop in ((0, count), (1, 2), (count // 3, count - 1), (count - 1, count)):
        begin, end = place.needed(first, stop)
        indexes = begin + place.indexes(first, stop)
        assert indexes.tolist() == expected[first:stop]
        assert begin <= min(indexes) and max(indexes) < end <= grid.size


def test_scales_that_are_not_understood() -> None:
    told = with_scales({"l.weight": stored("F8_E4M3", 10, 7), "l.weight_scale": stored("F32", 3)})
    assert told["l.weight"][1].lost and "not understood: [3] F32" in told["l.weight"][1].unreadable
    assert told["l.weight_scale"][1].unreadable


Place = tuple[str, tuple[int, ...]]
# name of the codes: (their format and shape, name of the weights, their format and shape, scales)
PACKED: dict[str, tuple[str, tuple[int, ...], str, str, tuple[int, ...], dict[str, Place]]] = {
    "e.gate_up_proj_blocks": ("U8", (2, 6, 3, 16), "e.gate_up_proj", "E2M1", (2, 6, 96),
                              {"e.gate_up_proj_scales": ("U8", (2, 6, 3))}),
    "e.mlp1_weight.blocks": ("U8", (2, 6, 3, 16), "e.mlp1_weight", "E2M1", (2, 6, 96),
                             {"e.mlp1_weight.scales": ("U8", (2, 6, 3))}),
    "l.weight_packed": ("U8", (8, 48), "l.weight", "E2M1", (8, 96),
                        {"l.weight_scale": ("F8_E4M3", (8, 6)), "l.weight_global_scale": ("F32", (1,))}),
    "l.weight": ("U8", (8, 48), "l.weight", "E2M1", (8, 96),
                 {"l.weight_scale": ("F8_E4M3", (8, 6)), "l.weight_scale_2": ("F32", ())}),
    "w": ("F4", (8, 96), "w", "E2M1", (8, 96), {"w_scale": ("F8_E8M0", (8, 3))}),
    "b.weight": ("BF16", (40, 1), "b.weight", "NF4", (160, 1),
                 {"b.weight.absmax": ("F32", (3,)), "b.weight.quant_state.bitsandbytes__nf4": ("U8", (9,))}),
    "m.weight": ("I8", (8, 6), "m.weight", "INT8", (8, 6), {"m.SCB": ("F32", (8,))}),
}  # fmt: skip


@pytest.mark.parametrize("codes", PACKED)
def test_codes_are_under_the_name_of_their_weights(codes: str) -> None:
    dtype, shape, weight, kind, unpacked, scales = PACKED[codes]
    beside = {name: stored(kind, *shape) for name, (kind, shape) in scales.items()}
    told = with_scales({codes: stored(dtype, *shape), **beside})
    assert told.keys() == {weight, *scales}
    tensor = told[weight][1]
    assert (tensor.dtype, tensor.shape, tensor.unreadable) == (kind, unpacked, "")
    assert tensor.scales is not None
    joined = 1 + (tensor.scales.scales is not None)
    reasons = [told[name][1].unreadable for name in scales]
    assert all(reasons) and sum(reason.endswith("multiplied in") for reason in reasons) == joined
    assert joined == 1 + any("global" in name or "_2" in name for name in scales)


FAULTS = ("shape", "format", "absent", "transposed", "single")
RENAMED = [codes for codes in PACKED if codes != PACKED[codes][2]]


@pytest.mark.parametrize(
    ("codes", "fault"),
    [*itertools.product(PACKED, FAULTS), *itertools.product(RENAMED, ["taken"])],
)
def test_codes_that_cannot_be_paired_are_lost(codes: str, fault: str) -> None:
    dtype, shape, weight, _, _, scales = PACKED[codes]
    name, *above = scales
    beside = {name: stored(kind, *shape) for name, (kind, shape) in scales.items()}
    held = stored(dtype, *shape)
    if fault == "shape":
        beside[name] = stored(scales[name][0], *(length + 1 for length in scales[name][1]))
    elif fault == "format":
        beside[name] = stored("I64", *scales[name][1])
    elif fault == "absent":
        del beside[(above or [name])[0]]
    elif fault == "transposed":
        held = 0, replace(held[1], order=(1, 0))
    elif fault == "single":
        held = stored(dtype)
    else:  # the name of the weights
        beside[weight] = stored("F32", *shape)
    told = with_scales({codes: held, **beside})
    assert told[codes][1].lost or fault == "single"
    assert not any(tensor.scales for _, tensor in told.values())


NOT_DECODED = {
    "GPTQ": {"l.qweight": "I32", "l.qzeros": "I32", "l.scales": "F16", "l.g_idx": "I32"},
    "bitsandbytes, nested": {
        "l.weight": "U8", "l.weight.absmax": "U8", "l.weight.quant_map": "F32",
        "l.weight.nested_absmax": "F32", "l.weight.nested_quant_map": "F32",
        "l.weight.quant_state.bitsandbytes__nf4": "U8",
    },
    "bitsandbytes, nested, as floats": {
        "l.weight": "BF16", "l.weight.absmax": "U8", "l.weight.nested_absmax": "F32",
        "l.weight.quant_state.bitsandbytes__nf4": "U8",
    },
    "zero points": {"l.weight": "I8", "l.weight_scale": "F32", "l.weight_zero_point": "I8"},
    "compressed-tensors": {"l.weight_packed": "I32", "l.weight_scale": "BF16",
                           "l.weight_shape": "I64"},
    "torchao": {"l._weight_qdata": "I8", "l._weight_scale": "F32", "l._weight_zero_point": "I8"},
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_DECODED)
def test_packed_weights_are_lost_and_nothing_beside_them_is_a_weight(kind: str) -> None:
    told = with_scales({name: stored(dtype, 8, 4) for name, dtype in NOT_DECODED[kind].items()})
    first, *others = NOT_DECODED[kind]
    assert told[first][1].lost and "packed as" in told[first][1].unreadable
    assert all(told[name][1].unreadable and not told[name][1].lost for name in others)


def test_codes_of_no_elements_are_left_as_they_are() -> None:
    """Some ranks save tensors of no elements."""
    tensors = {"l.weight": stored("F8_E4M3", 0, 4), "l.weight_scale": stored("F32", 2, 1)}
    assert with_scales(tensors) == tensors


def test_what_is_no_code() -> None:
    """Plain 8-bit floats, integers that are no weights, and names that look like scales."""
    tensors = {
        "a.weight": stored("F8_E4M3", 8, 4), "a.scale": stored("F32", 8), "b.scales": stored("F32", 8),
        "b.weight": stored("F32", 8, 4), "b.position_ids": stored("I64", 1, 8),
        "b.num_batches_tracked": stored("I64"), "b.g_idx": stored("F32", 3),
    }  # fmt: skip
    del tensors["a.scale"]
    assert with_scales(tensors) == tensors
