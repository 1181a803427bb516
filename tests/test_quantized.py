"""Figures of quantized weights are those of their values, as the format or transformers gives them.

Each run holds codes and, after each of them, a copy of their values that is not quantized: between the
two nothing has moved, which holds only if every element has its own code and its own scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

import pipeline
from pipeline.planning.machine import available_cores
from pipeline.planning.memory import project

LINEAR = "model.layers.0.mlp.up_proj."
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
COUNT = 3
State = dict[str, torch.Tensor]

F8, F8_COARSE, POWER = torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu


def _codes(k: int, dtype: torch.dtype, rows: int = 300, columns: int = 140) -> torch.Tensor:
    generator = torch.Generator().manual_seed(k)
    return (torch.randn(rows, columns, generator=generator) * 50).to(dtype)


def _bytes(k: int, *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Every byte is two codes of four bits."""
    generator = torch.Generator().manual_seed(k)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8).view(dtype)


def _scales(k: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 + k)
    return torch.rand(shape, generator=generator) * 4.0**k / 100 + 1e-3


def _exponents(k: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 + k)
    return torch.randint(115, 125, shape, generator=generator, dtype=torch.uint8) + k


def times(codes: torch.Tensor, scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Multiply each code with the scale of its block, in float32."""
    codes, scales = codes.float(), scales.float()
    values = torch.empty_like(codes)
    for i in range(len(codes)):
        for j in range(0, codes.shape[1], columns):
            values[i, j : j + columns] = codes[i, j : j + columns] * scales[i // rows, j // columns]
    return values


def e2m1(stored: torch.Tensor) -> torch.Tensor:
    """Two codes a byte, the lower half first: a sign, two bits of exponent (bias 1), one of fraction."""
    values = []
    for byte in stored.view(torch.uint8).reshape(-1).tolist():
        for code in (byte & 15, byte >> 4):
            exponent, fraction = code >> 1 & 3, code & 1
            size = fraction / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + fraction / 2)
            values.append(math.copysign(size, -1 if code >> 3 else 1))
    return torch.tensor(values).reshape(*stored.shape[:-1], 2 * stored.shape[-1])


def by_transformers(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Blocks of 8-bit floats or of pairs, as transformers dequantizes them while it loads."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    of_linear: Any = {"weight": codes, "weight_scale_inv": scales}
    values: Any = Fp8Dequantize(None).convert(of_linear)["weight"]
    return values.float()


def of_gpt_oss(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """As transformers dequantizes gpt-oss, with its transposition undone."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    return values.transpose(1, 2).contiguous()


def by_table(stored: torch.Tensor, table: list[float], absmax: torch.Tensor) -> torch.Tensor:
    """Two codes a byte, the upper half first; a scale for each 64 of them, whatever the rows."""
    values = [
        table[code] for byte in stored.view(torch.uint8).reshape(-1).tolist() for code in (byte >> 4, byte & 15)
    ]  # fmt: skip
    return times(torch.tensor(values)[:, None], absmax[:, None], 64, 1)


# bitsandbytes: quantiles of the normal distribution; a sign, two bits of exponent and one of fraction
NF4 = [
    -1.0, -0.696192801, -0.525073051, -0.394917488, -0.284441382, -0.184773430, -0.0910500363, 0.0,
    0.0795802996, 0.160930201, 0.246112302, 0.337915242, 0.440709829, 0.562617004, 0.722956836, 1.0,
]  # fmt: skip
FP4 = [sign * size / 12 for sign in (1, -1) for size in (0, 0.0625, 8, 12, 4, 6, 2, 3)]


class Scheme(NamedTuple):
    state: Callable[[int], State]
    """What checkpoint k holds: codes first, then scales."""
    values: Callable[..., torch.Tensor]
    """Of the codes, given all of it."""
    dtype: str
    weight: str = LINEAR + "weight"


def _linear(**tensors: torch.Tensor) -> State:
    return {LINEAR + name: tensor for name, tensor in tensors.items()}


SCHEMES = {
    "blocks": Scheme(
        lambda k: _linear(weight=_codes(k, F8, 256, 384), weight_scale_inv=_scales(k, 2, 3)),
        by_transformers, "F8_E4M3"),
    "blocks, cut at the edges": Scheme(
        lambda k: _linear(weight=_codes(k, F8), weight_scale_inv=_scales(k, 3, 2)),
        lambda codes, scales: times(codes, scales, 128, 128), "F8_E4M3"),
    "rows": Scheme(
        lambda k: _linear(weight=_codes(k, F8), weight_scale=_scales(k, 300, 1)),
        lambda codes, scales: times(codes, scales, 1, 140), "F8_E4M3"),
    "one": Scheme(
        lambda k: _linear(weight=_codes(k, F8_COARSE), weight_scale=_scales(k)),
        lambda codes, scale: codes.float() * scale, "F8_E5M2"),
    "half": Scheme(
        lambda k: _linear(weight=_codes(k, F8), weight_scale=_scales(k, 3, 2).bfloat16()),
        lambda codes, scales: times(codes, scales, 128, 128), "F8_E4M3"),
    "powers": Scheme(
        lambda k: _linear(weight=_codes(k, F8, 256, 256), scale=_exponents(k, 2, 2).view(POWER)),
        by_transformers, "F8_E4M3"),
    "MXFP8": Scheme(
        lambda k: _linear(weight=_codes(k, F8, 300, 160), weight_scale=_exponents(k, 300, 5)),
        by_transformers, "F8_E4M3"),
    "torchao": Scheme(
        lambda k: _linear(_weight_qdata=_codes(k, F8), _weight_scale=_scales(k, 300, 1)),
        lambda codes, scales: times(codes, scales, 1, 140), "F8_E4M3"),
    "integers": Scheme(
        lambda k: _linear(weight=_codes(k, torch.int8), weight_scale=_scales(k, 300, 4).bfloat16()),
        lambda codes, scales: times(codes, scales, 1, 35), "INT8"),
    "integers of bitsandbytes": Scheme(
        lambda k: _linear(weight=_codes(k, torch.int8), SCB=_scales(k, 300), weight_format=torch.tensor(0, dtype=torch.uint8)),
        lambda codes, most, _: times(codes, most[:, None] * torch.tensor(1 / 127), 1, 140), "INT8"),
    "gpt-oss": Scheme(
        lambda k: {f"{EXPERTS}_blocks": _bytes(k, 4, 96, 3, 16), f"{EXPERTS}_scales": _exponents(k, 4, 96, 3)},
        of_gpt_oss, "E2M1", EXPERTS),
    "MXFP4": Scheme(
        lambda k: _linear(weight_packed=_bytes(k, 300, 80), weight_scale=_exponents(k, 300, 5)),
        lambda codes, scales: by_transformers(codes.view(torch.int8), scales), "E2M1"),
    "MXFP4 as signed bytes": Scheme(
        lambda k: _linear(weight=_bytes(k, 300, 80, dtype=torch.int8), scale=_exponents(k, 300, 5).view(POWER)),
        by_transformers, "E2M1"),
    "NF4": Scheme(
        lambda k: _linear(weight=_bytes(k, 20_011, 1), **{
            "weight.absmax": _scales(k, 626), "weight.quant_map": torch.tensor(NF4),
            "weight.quant_state.bitsandbytes__nf4": _bytes(0, 90)}),
        lambda codes, absmax, *_: by_table(codes, NF4, absmax), "NF4"),
    "FP4 stored as bf16": Scheme(
        lambda k: _linear(weight=_bytes(k, 20_000, dtype=torch.bfloat16)[:, None], **{
            "weight.absmax": _scales(k, 625), "weight.quant_state.bitsandbytes__fp4": _bytes(0, 90)}),
        lambda codes, absmax, *_: by_table(codes, FP4, absmax), "FP4"),
    "NVFP4": Scheme(
        lambda k: _linear(weight=_bytes(k, 300, 80), weight_scale=_codes(k, F8, 300, 10), weight_scale_2=_scales(k)),
        lambda codes, scales, above: times(e2m1(codes), scales.float() * above, 1, 16), "E2M1"),
    "NVFP4 of compressed-tensors": Scheme(
        lambda k: _linear(weight_packed=_bytes(k, 300, 80), weight_scale=_codes(k, F8, 300, 10), weight_global_scale=_scales(k, 1)),
        lambda codes, scales, above: times(e2m1(codes), scales.float() / above, 1, 16), "E2M1"),
}  # fmt: skip


def _write(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors"
    )


def _suite(folder: Path, scheme: Scheme) -> list[torch.Tensor]:
    """Write codes and copies in turn; return the values of each."""
    expected = []
    for k in range(COUNT):
        state = scheme.state(k)
        values = scheme.values(*state.values())
        _write(folder / f"checkpoint-{2 * k}", state)
        _write(folder / f"checkpoint-{2 * k + 1}", {scheme.weight: values})
        expected.append(values.double().reshape(-1))
    return expected


@pytest.mark.parametrize("name", SCHEMES)
def test_figures_are_those_of_the_values(name: str, tmp_path: Path) -> None:
    scheme, suite = SCHEMES[name], tmp_path / "suite"
    expected = _suite(suite, scheme)
    (tensor,) = pipeline.plan(suite).tensors
    assert tensor.name == scheme.weight and set(tensor.dtypes) == {scheme.dtype, "F32"}
    for fraction in (None, 0.3):
        pipeline.analyze(
            suite, tmp_path / "store", executor="local", run="r", replace=True, fraction=fraction
        )
        store = pipeline.open_store(tmp_path / "store")
        query = "SELECT distance FROM similarity WHERE scope = 'model' AND i % 2 = 0 AND j = i + 1"
        assert store.sql(query).fetchall() == [(0.0,)] * COUNT
        kinds = {kind for (kind,) in store.sql("SELECT kind FROM findings").fetchall()}
        assert not kinds & {"valueless_tensor", "missing_tensor", "shape_changed"}
        if fraction:
            continue
        for i, j, dot in store.sql(
            "SELECT i, j, dot FROM similarity WHERE scope = 'model'"
        ).fetchall():
            one, other = expected[i // 2], expected[j // 2]
            assert abs(dot - one @ other) <= 1e-6 * one.norm() * other.norm()


@pytest.mark.parametrize("name", ["blocks, cut at the edges", "gpt-oss", "NVFP4"])
def test_the_division_into_blocks_changes_nothing(name: str, tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    _suite(suite, SCHEMES[name])
    plan = pipeline.plan(suite)
    calls = available_cores()
    least = project(plan.tensors, plan.tiles, 1 << 40, calls).least
    assert project(plan.tensors, plan.tiles, least, calls).row_bytes < 80_000  # three blocks
    figures = []
    for memory in ("1GiB", least):
        pipeline.analyze(
            suite, tmp_path / "store", executor="local", run="r", memory=memory, replace=True, fresh=True
        )  # fmt: skip
        store = pipeline.open_store(tmp_path / "store")
        figures.append(
            store.sql("SELECT i, j, dot FROM similarity WHERE scope = 'model'").fetchall()
        )
    assert figures[0] == figures[1]


@pytest.mark.parametrize("name", SCHEMES)
def test_sizes_count_codes_as_stored_and_scales(name: str, tmp_path: Path) -> None:
    expected = 0
    for k in range(2):
        state = SCHEMES[name].state(k)
        _write(tmp_path / f"checkpoint-{k}", state)
        expected += sum(
            tensor.nbytes for name, tensor in state.items() if not re.search("quant_|_format", name)
        )
    plan = pipeline.plan(tmp_path)
    assert plan.bytes_total == plan.bytes_to_read == expected


def test_equal_codes_of_other_scales_are_other_weights(tmp_path: Path) -> None:
    for k in range(3):
        state = _linear(weight=_codes(0, F8), weight_scale_inv=_scales(k, 3, 2))
        _write(tmp_path / "suite" / f"checkpoint-{k}", state)
    pipeline.analyze(tmp_path / "suite", tmp_path / "store", executor="local", run="r")
    store = pipeline.open_store(tmp_path / "store")
    kinds = [row[0] for row in store.sql("SELECT kind FROM findings").fetchall()]
    assert "frozen_tensor" not in kinds and not any("repeat" in kind for kind in kinds)


def test_what_is_not_decoded_is_a_warning(tmp_path: Path) -> None:
    for k in range(3):
        state = _linear(qweight=torch.full((4, 8), k, dtype=torch.int32), scales=torch.ones(1, 8))
        _write(tmp_path / "suite" / f"checkpoint-{k}", {**state, "norm.weight": torch.ones(8) + k})
    pipeline.analyze(tmp_path / "suite", tmp_path / "store", executor="local", run="r")
    store = pipeline.open_store(tmp_path / "store")
    query = "SELECT message FROM findings WHERE kind = 'valueless_tensor' AND severity = 'warning'"
    ((message,),) = store.sql(query).fetchall()
    assert "qweight: weights packed as I32" in message
    assert [t.name for t in pipeline.plan(tmp_path / "suite").tensors] == ["norm.weight"]


def test_the_changes_that_are_expected_are_those_of_scaled_codes(tmp_path: Path) -> None:
    """Spacing is counted by its power of two, beside what scales have beyond it in the mean."""
    generator = torch.Generator().manual_seed(0)
    weights, scales = 0.02 * torch.randn(300, 320, generator=generator), torch.full((300, 1), 6e-4)
    for k in range(3):
        weights = weights + 2e-4 * torch.randn(weights.shape, generator=generator)
        codes = (weights / scales).round().clamp(-127, 127).to(torch.int8)
        state = _linear(weight=codes, weight_scale=scales)
        _write(tmp_path / "suite" / f"checkpoint-{k}", state)
    pipeline.analyze(
        tmp_path / "suite", tmp_path / "store", executor="local", run="r", statistics=["sparsity"]
    )
    query = "SELECT changed, changed_expected FROM sparsity WHERE scope = 'model' AND k > 0"
    for changed, expected in pipeline.open_store(tmp_path / "store").sql(query).fetchall():
        assert changed > 0.1 and abs(expected / changed - 1) < 0.02
