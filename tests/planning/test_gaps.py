"""What is missing from a series, and what is only spaced so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.planning.gaps import Gap, gaps

PYTHIA = [0, *(2**i for i in range(10)), *range(1000, 143_001, 1000)]


@pytest.mark.parametrize(
    "steps",
    [
        PYTHIA,
        [0, 1, 2, 4, 8, 16],
        [*range(0, 100, 10), *range(100, 1000, 100)],
        [*range(100, 1000, 100), *range(1000, 1050, 10)],
        [0, 100, 400],
        [5],
        [],
    ],
)
def test_schedules_without_gaps(steps: list[int]) -> None:
    assert gaps(steps) == []


def test_gaps_are_found() -> None:
    assert gaps([s for s in PYTHIA if s != 40_000]) == [Gap(None, 39_000, 41_000, 1)]
    assert gaps([s for s in PYTHIA if s not in (8, 16)], 1) == [Gap(1, 4, 32, 2)]
    assert gaps([0, 10, 20, 30, 50, 60, 70, 110, 120]) == [
        Gap(None, 30, 50, 1),
        Gap(None, 70, 110, 3),
    ]


@given(
    spacing=st.integers(1, 1000),
    count=st.integers(6, 50),
    data=st.data(),
)
def test_any_inner_checkpoint_is_missed(spacing: int, count: int, data: st.DataObject) -> None:
    gone = data.draw(st.integers(2, count - 3))
    steps = [spacing * k for k in range(count) if k != gone]
    assert gaps(steps) == [Gap(None, spacing * (gone - 1), spacing * (gone + 1), 1)]
