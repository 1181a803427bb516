"""Gram matrices of trajectories: absent checkpoints, equality, distances, angles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.numerics.stack import first_equal
from pipeline.numerics.trajectory import (
    Trajectory,
    angles_between,
    apex_angles,
    cosines,
    present_increments,
)
from tests import reference
from tests.numerics.examples import EXAMPLES
from tests.reference import Matrix

repeatable = settings(derandomize=True, deadline=None, max_examples=150)

# Whole numbers: products and sums are exact, and zeros, copies and pauses come often.
small_weights = st.tuples(st.integers(1, 8), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-2, 2).map(float))
)


@st.composite
def weights_and_absences(draw: st.DrawFn) -> tuple[Matrix, np.ndarray]:
    weights = draw(small_weights)
    return weights, draw(arrays(np.bool_, len(weights)))


def trajectory_of(*weights: Matrix) -> Trajectory:
    """A stack of them."""
    return Trajectory.from_increments(
        np.stack([reference.increment_gram(each) for each in weights]),
        np.stack([reference.labels(each) for each in weights]),
    )


@repeatable
@given(weights_and_absences())
def test_absent_checkpoints_leave_the_gram_matrix_of_the_others(
    case: tuple[Matrix, np.ndarray],
) -> None:
    weights, absent = case
    (found,) = present_increments(reference.increment_gram(weights)[np.newaxis], absent)
    if absent.all():
        assert found.shape == (0, 0)
    else:
        np.testing.assert_array_equal(found, reference.increment_gram(weights[~absent]))


@repeatable
@given(weights_and_absences())
def test_merging_absent_checkpoints_is_linear(case: tuple[Matrix, np.ndarray]) -> None:
    weights, absent = case
    both = np.stack([reference.increment_gram(weights), reference.increment_gram(weights[::-1])])
    one, other = present_increments(both, absent)
    (sums,) = present_increments(both[:1] + 3 * both[1:], absent)
    np.testing.assert_array_equal(sums, one + 3 * other)


def test_merging_leaves_its_input_alone() -> None:
    increments = reference.increment_gram(EXAMPLES["five"]())[np.newaxis]
    before = increments.copy()
    present_increments(increments, np.array([False, True, False, False, False]))
    trajectory = Trajectory.from_increments(increments, np.array([[0, 1, 1, 3, 4]]))
    assert not trajectory.increments[0, 2].any()
    np.testing.assert_array_equal(increments, before)


@repeatable
@given(small_weights)
def test_matrices_are_exact_on_whole_numbers(weights: Matrix) -> None:
    trajectory = trajectory_of(weights)
    away = weights - weights[0]
    apart = weights[:, np.newaxis] - weights
    np.testing.assert_array_equal(trajectory.dots[0], weights @ weights.T)
    np.testing.assert_array_equal(trajectory.relative_dots[0], away @ away.T)
    np.testing.assert_array_equal(trajectory.squared_distances[0], (apart**2).sum(axis=-1))
    for i in range(len(weights)):
        for j in range(i + 1, len(weights)):
            onward = weights[j] - weights[i]
            assert trajectory.onward_dots[0, i, j] == weights[i] @ onward
            assert trajectory.relative_onward_dots[0, i, j] == away[i] @ onward


@repeatable
@given(small_weights, st.integers(0, 2**32 - 1))
def test_equal_checkpoints_are_exactly_equal(pattern: Matrix, seed: int) -> None:
    # The same coincidences as in the pattern, on weights whose products all round.
    labels = reference.labels(pattern)
    weights = np.random.default_rng(seed).normal(size=(len(pattern), 20))[labels]
    trajectory = trajectory_of(weights)
    equal = labels[:, np.newaxis] == labels
    (cosine,) = cosines(trajectory.dots)
    (distances,) = trajectory.squared_distances
    assert (cosine[equal] == 1.0).all()
    assert (distances[equal] == 0.0).all()
    assert (distances[~equal] > 0.0).all()
    assert not trajectory.relative_dots[0, labels == 0].any()
    assert (cosines(trajectory.relative_dots)[0][equal & (labels > 0)] == 1.0).all()
    for (matrix,) in (trajectory.dots, trajectory.relative_dots, trajectory.squared_distances):
        np.testing.assert_array_equal(matrix, matrix[labels])
        np.testing.assert_array_equal(matrix, matrix.T)
    i, j = np.nonzero(equal)
    assert (angles_between(trajectory, i, j) == 0.0).all()


@pytest.mark.parametrize("name", EXAMPLES)
def test_cosines_distances_and_angles(name: str) -> None:
    weights = EXAMPLES[name]()
    trajectory = trajectory_of(weights)
    count = len(weights)
    away = weights - weights[0]
    i, j = (index.ravel() for index in np.indices((count, count)))
    pairs = range(0, len(i), 1 + len(i) // 2000)  # all pairs, but for the longest examples
    (cosine,), (relative_cosine,) = cosines(trajectory.dots), cosines(trajectory.relative_dots)
    (angle,), (apex,) = angles_between(trajectory, i, j), apex_angles(trajectory, i, j)
    close = {"rtol": 0, "atol": 2e-7, "equal_nan": True}
    for pair in pairs:
        a, b = i[pair], j[pair]
        distance = reference.norm(weights[a] - weights[b])
        assert np.isclose(cosine[a, b], reference.cosine(weights[a], weights[b]), **close)
        assert np.isclose(relative_cosine[a, b], reference.cosine(away[a], away[b]), **close)
        assert np.sqrt(trajectory.squared_distances[0, a, b]) == pytest.approx(distance, rel=1e-6)
        expected = reference.angle(weights[a], weights[b])
        assert angle[pair] == pytest.approx(expected, rel=1e-5, abs=1e-9, nan_ok=True)
        expected = reference.angle(away[a], away[b])
        assert apex[pair] == pytest.approx(expected, rel=1e-5, abs=2e-5, nan_ok=True)


def test_small_angles_keep_their_digits() -> None:
    weights = np.array([[1.0, 0.0], [1.0, 1e-9], [1.0, 3e-9]])
    trajectory = trajectory_of(weights)
    (angles,) = angles_between(trajectory, np.array([0, 1, 2]), np.array([2, 2, 1]))
    expected = np.degrees([3e-9, 2e-9, 2e-9])
    np.testing.assert_allclose(angles, expected, rtol=1e-9)


def test_opposite_checkpoints_lie_at_180_degrees() -> None:
    trajectory = trajectory_of(np.array([[1.0, 2.0], [-2.0, -4.0]]))
    assert angles_between(trajectory, np.array([0]), np.array([1]))[0, 0] == pytest.approx(180)
    assert cosines(trajectory.dots)[0, 0, 1] == pytest.approx(-1)


def test_cosines_of_zero_vectors_are_undefined_and_others_clipped() -> None:
    dots = np.array([[4.0, 0.0, 6.1], [0.0, 0.0, 0.0], [6.1, 0.0, 9.0]])
    found, opposite = cosines(np.stack([dots, -dots + 2 * np.diag(np.diag(dots))]))
    np.testing.assert_array_equal(found[0], [1.0, np.nan, 1.0])
    np.testing.assert_array_equal(opposite[0, 2], -1.0)
    assert np.isnan(found[1]).all()


def test_a_checkpoint_of_zeros_has_no_cosine() -> None:
    weights = EXAMPLES["zeros inside"]()
    trajectory = trajectory_of(weights)
    assert np.diagonal(trajectory.dots[0])[4] == 0.0
    assert np.isnan(cosines(trajectory.dots)[0, 4]).all()


def test_labels_may_have_any_numbering() -> None:
    labels = np.array([[7, -1, 7, 30, -1], [1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(first_equal(labels), [[0, 1, 0, 3, 1], [0, 0, 0, 3, 3]])
    words = np.stack([labels // 4, labels], axis=2).astype(np.uint64)
    np.testing.assert_array_equal(first_equal(words), first_equal(labels))


@repeatable
@given(
    arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.integers(0, 4))
)
def test_first_equal_labels(labels: np.ndarray) -> None:
    expected = [[row.tolist().index(label) for label in row] for row in labels]
    np.testing.assert_array_equal(first_equal(labels), expected)
