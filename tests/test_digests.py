"""Digests of stored values against their definition, done slowly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.checkpoint.parts import Part
from pipeline.statistics import digest as digest_module
from pipeline.statistics.accumulator import Accumulator
from pipeline.statistics.parts import PartKey
from pipeline.statistics.piece import TensorFacts
from pipeline.statistics.table import ALWAYS

CHUNK = 64
DTYPES = ("F16", "F32", "F8_E4M3")
SIZES = (2, 4, 1)
KEY = PartKey(0, 0)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_module, "CHUNK", CHUNK)


@settings(derandomize=True, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 90).flatmap(
        lambda period: st.tuples(
            st.just(period), st.integers(0, period - 1), st.integers(1, period)
        )
    ),
    st.lists(st.integers(1, 399)),
    st.integers(0, 9),
)
def test_a_digest_is_of_the_parts_bytes_wherever_blocks_end(
    numel: int, of_part: tuple[int, int, int], cuts: list[int], column: int
) -> None:
    period, start, length = of_part
    part = Part("", "other", period, start, min(period, start + length))
    facts = TensorFacts(part, numel, DTYPES)
    rng = np.random.default_rng(numel)
    stored = [rng.integers(0, 256, numel * size, np.uint8) for size in SIZES]

    accumulator = Accumulator([KEY], ALWAYS, len(DTYPES))
    bounds = sorted({0, numel, *(cut for cut in cuts if cut < numel)})
    for first, stop in itertools.pairwise(bounds):
        rows = [
            np.concatenate((np.zeros(column, np.uint8), row[first * size : stop * size])).data
            for row, size in zip(stored, SIZES, strict=True)
        ]
        accumulator.add_stored([(KEY, facts)], first, stop, rows, column)
    words = accumulator.result("").arrays["digest.words"][0]

    for k, size in enumerate(SIZES):
        sums = [0, 0]
        for chunk in range(0, numel, CHUNK):
            elements = range(chunk, min(chunk + CHUNK, numel))
            raw = b"".join(
                stored[k][e * size : (e + 1) * size].tobytes()
                for e in elements
                if part.start <= e % period < part.stop
            )
            if raw:
                whole = xxhash.xxh3_128_intdigest(raw, seed=chunk // CHUNK)
                sums = [sums[0] + (whole >> 64), sums[1] + whole % 2**64]
        assert words[k].tolist() == [value % 2**64 for value in sums]
