"""Predictability by elimination, against projections of the explicit increments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.numerics.predictability import MEMORIES, predictabilities
from tests import reference
from tests.numerics.examples import EXAMPLES, spiral, straight, walk
from tests.numerics.test_trajectory import repeatable, small_weights, trajectory_of
from tests.reference import Matrix


def found_of(*weights: Matrix) -> list[np.ndarray]:
    found = predictabilities(trajectory_of(*weights).increments[:, 1:, 1:])
    return [found[f"predictability_{memory}"] for memory in MEMORIES]


def expected_of(weights: Matrix) -> list[float]:
    return [reference.predictability(weights, memory) for memory in MEMORIES]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str) -> None:
    weights = EXAMPLES[name]()
    found = np.array(found_of(weights))[:, 0]
    np.testing.assert_allclose(found, expected_of(weights), rtol=0, atol=1e-9)


@repeatable
@given(small_weights)
def test_whole_numbers(weights: Matrix) -> None:
    """Increments are dependent more often than not."""
    found = np.array(found_of(weights))[:, 0]
    np.testing.assert_allclose(found, expected_of(weights), rtol=0, atol=1e-9)


@repeatable
@given(st.integers(0, 2**32 - 1), st.floats(-9, 0), st.integers(2, 14))
def test_nearly_dependent_increments(seed: int, exponent: float, count: int) -> None:
    """Eigenvalues on both sides of what counts as zero, and the bound that leaves them to a closer look."""
    rng = np.random.default_rng(seed)
    moves = rng.normal(size=(count, 3)) @ rng.normal(size=(3, 30))
    moves += 10.0**exponent * rng.normal(size=moves.shape)
    weights = np.vstack([np.zeros(30), np.cumsum(moves, axis=0)])
    found = np.array(found_of(weights))[:, 0]
    for value, memory in zip(found, MEMORIES, strict=True):
        near = []  # an eigenvalue so near to the limit may count or not
        for k in range(1, count):
            recent = moves[max(0, k - memory) : k]
            recent = recent / np.linalg.norm(recent, axis=1, keepdims=True)
            values = np.linalg.svd(recent, compute_uv=False) ** 2
            near.append((np.abs(values / values[0] / 1e-6 - 1) < 1e-3).any())
        if not any(near):
            assert value == pytest.approx(reference.predictability(weights, memory), abs=1e-7)


def test_directions_that_repeat_are_ignored() -> None:
    # Increments e1, e1, e1 + e2, e2: the window of two is dependent once, and misses e2 once.
    moves = np.array([[1.0, 0], [1, 0], [1, 1], [0, 1]])
    weights = np.vstack([np.zeros(2), np.cumsum(moves, axis=0)])
    one, two, *_ = np.array(found_of(weights))[:, 0]
    assert one == pytest.approx((1 + 1 + 0.5) / 4)
    assert two == pytest.approx((1 + 1 + 1) / 4)


def test_many_groups_are_those_of_each_alone() -> None:
    """More steps than are worked on at once, of paths of many kinds, pauses included."""
    paths = [make(154, 0.02) for make in (spiral, straight, walk)] * 4
    paths[5] = paths[5][[*range(50), *[49] * 10, *range(60, 154)]]
    together = found_of(*paths)
    for number, path in enumerate(paths):
        alone = np.array(found_of(path))[:, 0]
        np.testing.assert_array_equal([values[number] for values in together], alone)
