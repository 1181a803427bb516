"""Packed arrays against a reader of their own, and the error that packing may make."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest

from pipeline.report.packing import FloatArray, Packed, half_chords, pack


def unpacked(packed: Packed) -> list[float]:
    """Read a packed array number by number."""
    width, low, high = packed["width"], packed["low"], packed["high"]
    planes = zlib.decompress(base64.b64decode(packed["data"]))
    count, codes = len(planes) // width, 256**width
    values, code = [], 0
    for at in range(count):
        step = int.from_bytes(bytes(planes[plane * count + at] for plane in range(width)), "big")
        code = (code + step) % codes
        undefined = code == codes - 1
        values.append(float("nan") if undefined else low + code * (high - low) / (codes - 2))
    return values


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("seed", range(20))
def test_a_value_is_off_by_half_a_level_at_most(width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(rng.integers(1, 60)) * 10.0 ** rng.integers(-6, 7)
    values[rng.random(len(values)) < 0.2] = rng.choice([np.nan, np.inf, -np.inf])
    packed = pack(values, width)
    read = unpacked(packed)
    half_a_level = (packed["high"] - packed["low"]) / (256**width - 2) / 2
    for value, back in zip(values, read, strict=True):
        if np.isfinite(value):
            assert abs(back - value) <= half_a_level * (1 + 1e-6)
        else:
            assert np.isnan(back)


def cosines_of(kind: str) -> FloatArray:
    rng = np.random.default_rng(0)
    if kind == "walk":
        lengths = np.arange(1.0, 155.0)
        square = np.sqrt(np.minimum.outer(lengths, lengths) / np.maximum.outer(lengths, lengths))
        return square[np.triu_indices(154)]
    if kind == "near one":
        return 1.0 - 1e-6 * rng.random(5000)
    return np.append(rng.uniform(-1, 1, 5000), [-1.0, 0.0, 1.0, np.nan])


@pytest.mark.parametrize(("width", "bound"), [(1, 0.005), (2, 2e-5)])
@pytest.mark.parametrize("kind", ["walk", "near one", "any"])
def test_cosines_keep_what_the_report_promises(kind: str, width: int, bound: float) -> None:
    cosines = cosines_of(kind)
    packed = pack(half_chords(cosines), width)
    error = np.abs(1 - 2 * np.array(unpacked(packed)) ** 2 - cosines)
    assert np.array_equal(np.isnan(error), np.isnan(cosines))
    # the least cosine of a random walk of 154 steps is 0.08, of any 154 directions -1
    assert np.nanmax(error) <= bound * (1 if kind != "any" else 2)
    if kind == "near one":
        assert np.nanmax(error) <= 1e-8
    ones = cosines == 1.0
    assert np.all(error[ones] <= 1e-12)


def test_nothing_defined() -> None:
    packed = pack(np.full(7, np.nan), 2)
    assert np.isnan(unpacked(packed)).all()
    assert (packed["low"], packed["high"]) == (0.0, 0.0)
    assert unpacked(pack(np.full(3, 0.25), 1)) == [0.25] * 3
