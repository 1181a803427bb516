"""Turns at every scale, against the explicit weights, and what they say of known paths."""

import numpy as np
import pytest
from hypothesis import given, settings

from pipeline.numerics.turns import SCALES, turning, turns
from tests import reference
from tests.numerics.examples import EXAMPLES, from_moves, start, straight, walk, with_copies
from tests.numerics.test_trajectory import repeatable, small_weights, trajectory_of
from tests.reference import Matrix


def found(weights: Matrix) -> dict[int, np.ndarray]:
    return {scale: angles for scale, (angles,) in turns(trajectory_of(weights)).items()}


def expected(weights: Matrix, scale: int) -> list[float]:
    return [reference.turn(weights, k, scale) for k in range(len(weights))]


def wide(weights: Matrix) -> Matrix:
    """Every checkpoint and a point half-way to the next, so that small examples have large scales."""
    between = (weights[1:] + weights[:-1]) / 2
    return np.insert(weights, range(1, len(weights)), between, axis=0)


@pytest.mark.parametrize("name", EXAMPLES)
def test_turns(name: str) -> None:
    weights = EXAMPLES[name]()
    for scale, angles in found(weights).items():
        np.testing.assert_allclose(angles, expected(weights, scale), rtol=0, atol=1e-4)


@settings(repeatable, max_examples=40)
@given(small_weights)
def test_turns_of_whole_numbers(weights: Matrix) -> None:
    weights = wide(wide(weights))
    for scale, angles in found(weights).items():
        np.testing.assert_allclose(angles, expected(weights, scale), rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8, 9, 16, 17, 32, 33, 34])
def test_as_many_checkpoints_on_both_sides(count: int) -> None:
    for scale, angles in found(walk(count, 0.1)).items():
        inside = max(0, count - 2 * scale)
        assert np.flatnonzero(~np.isnan(angles)).tolist() == list(range(scale, scale + inside))


def test_noise_over_a_drift_turns_less_at_larger_scales() -> None:
    rng = start(11)
    drift = np.full(4000, 0.3)
    weights = from_moves(rng.normal(size=4000), drift + rng.normal(size=(63, 4000)))
    # of h increments the drift is h times as long, the noise √h times
    for scale, angles in found(weights).items():
        angle = np.degrees(np.arccos(0.09 * scale / (0.09 * scale + 1)))
        assert np.nanmean(angles) == pytest.approx(angle, abs=1)


def test_small_steps_keep_their_turns() -> None:
    path = np.cumsum(1e-6 * (1 + 0.5 * np.cos(np.arange(40))))
    weights = np.stack([np.ones(40), path, 0.2 * path**2 / path[-1]], axis=1)
    for scale, angles in found(weights).items():
        np.testing.assert_allclose(angles, expected(weights, scale), rtol=0, atol=1e-3)


def test_copies_have_no_way_between_them() -> None:
    angles = found(with_copies(walk(12, 0.1), {4: 2, 11: 7}))
    assert np.flatnonzero(np.isnan(angles[2])[2:-2]).tolist() == [0, 2]
    assert np.flatnonzero(np.isnan(angles[4])[4:-4]).tolist() == [3]


@pytest.mark.parametrize("name", ["walk", "straight", "pauses", "late start", "copies", "two"])
def test_paths_turn_where_both_parts_move(name: str) -> None:
    weights = EXAMPLES[name]()
    moved = np.any(np.diff(weights, axis=0) != 0, axis=1)
    straightened = np.append(0.0, np.cumsum(moved))[:, np.newaxis]
    for scale in (1, *SCALES):
        (turns_anywhere,) = turning(moved[np.newaxis], scale)
        angles = [reference.turn(straightened, k, scale) for k in range(len(weights))]
        assert turns_anywhere == (not np.isnan(angles).all())


def test_a_straight_path_does_not_turn() -> None:
    for angles in found(straight(40, 1e-3)).values():
        assert np.nanmax(angles) < 1e-5
