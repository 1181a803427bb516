"""Which steps a schedule has, against those that are written down."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from pipeline.errors import RequestError
from pipeline.recorder.schedule import recorded_steps, steps

PYTHIA = [0, *(2**i for i in range(10)), *range(1000, 143_001, 1000)]


@pytest.mark.parametrize(
    ("schedule", "last", "expected"),
    [
        ("linear:20", 70, [0, 20, 40, 60, 70]),
        ("linear:20", 60, [0, 20, 40, 60]),
        ("linear:1000", 7, [0, 7]),
        ("logarithmic:1", 100, [0, 1, 2, 4, 8, 16, 32, 64, 100]),
        # of 2^(i/2): 1, 1.41, 2, 2.83, 4, 5.66, 8, 11.3, 16
        ("logarithmic:2", 16, [0, 1, 2, 3, 4, 6, 8, 11, 16]),
        ("pythia", 143_000, PYTHIA),
        ("pythia:5", 17, [0, 1, 2, 4, 5, 10, 15, 17]),
        ("pythia:4", 9, [0, 1, 2, 4, 8, 9]),
        ("pythia:1", 3, [0, 1, 2, 3]),
        ([7, 0, 3, 3], 9, [0, 3, 7, 9]),
        ((step for step in (5, 2)), 5, [2, 5]),
        (np.array([1, 4]), 4, [1, 4]),
        ("linear:20", 0, [0]),
    ],
)
def test_steps_of_a_schedule(schedule: Any, last: int, expected: list[int]) -> None:
    assert recorded_steps(schedule, last) == expected


def test_pythia_s_checkpoints() -> None:
    """154, as its paper says."""
    assert len(recorded_steps("pythia", 143_000)) == 154


@pytest.mark.parametrize("schedule", ["linear:7", "logarithmic:8", "pythia:64"])
def test_schedules_have_no_end(schedule: str) -> None:
    first = list(itertools.islice(steps(schedule, None), 200))
    assert first == sorted(set(first)) and first[0] == 0
    assert first == list(itertools.takewhile(lambda step: step <= first[-1], steps(schedule, None)))
    assert recorded_steps(schedule, first[-1]) == first
    assert 5000 in itertools.islice(steps(schedule, 5000), 800)


@pytest.mark.parametrize(
    ("schedule", "why"),
    [
        ("linear", "found 'linear'"),
        ("linear:0", "expected a schedule"),
        ("linear:-5", "expected a schedule"),
        ("linear:²", "expected a schedule"),
        ("linear:1e3", "expected a schedule"),
        ("logarithmic:", "expected a schedule"),
        ("pythia:", "expected a schedule"),
        ("cosine:3", "expected a schedule"),
        ("", "expected a schedule"),
        ("linear:9999999999", "expected a schedule"),
        (20, "expected a schedule"),
        (None, "expected a schedule"),
        ([], "expected steps"),
        ([1, -1], "from 0 on, found '-1'"),
        ([1, 2.5], "found '2.5'"),
        ([True], "found 'True'"),
        (["1"], "found '1'"),
        ([3, 12], "step 12 is after the last step, 9"),
    ],
)
def test_what_is_no_schedule(schedule: Any, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        recorded_steps(schedule, 9)
