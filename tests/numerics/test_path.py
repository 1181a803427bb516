"""The columns of the view `path`, against the explicit weights."""

import math

import numpy as np
import pytest
from hypothesis import given

from pipeline.numerics.path import path as paths
from pipeline.numerics.path import with_absent
from pipeline.numerics.trajectory import Trajectory, present_increments
from tests import reference
from tests.numerics.examples import EXAMPLES, straight, walk
from tests.numerics.test_trajectory import repeatable, small_weights, trajectory_of
from tests.reference import Matrix

COLUMNS = [
    "norm", "displacement", "increment", "path_length", "update_angle_deg",
    "angle_to_first_deg", "angle_to_last_deg", "apex_angle_next_deg", "apex_angle_last_deg",
    "noise_floor_deg", "turn_2_deg", "turn_4_deg", "turn_8_deg", "turn_16_deg",
    "radial_increment", "angular_speed_deg", "remaining", "along_end", "off_end",
]  # fmt: skip


def times(count: int) -> np.ndarray:
    """Uneven, two of them equal, one unknown."""
    elapsed = np.arange(float(count)) ** 1.5
    elapsed[3:4], elapsed[7:8] = elapsed[2:3], math.nan
    return elapsed


def path(trajectory: Trajectory, rounding: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of the only group of a stack."""
    columns = paths(trajectory, times(rounding.size), rounding[np.newaxis])
    return {name: column for name, (column,) in columns.items()}


def assert_columns(found: dict[str, np.ndarray], weights: Matrix, rounding: np.ndarray) -> None:
    expected = reference.path(weights, times(len(weights)), rounding)
    assert list(found) == COLUMNS
    fold = reference.fold(weights)[0, -1]
    for name, values in expected.items():
        match name:
            case "angle_to_first_deg" | "angle_to_last_deg":
                tolerance = {"rtol": 1e-5, "atol": 1e-9}
            case "angular_speed_deg":
                tolerance = {"rtol": 1e-5, "atol": 1e-9}
            case "remaining" | "along_end" | "off_end":
                tolerance = {"rtol": 0, "atol": 1e-6 * fold}
            case "radial_increment":
                tolerance = {"rtol": 0, "atol": 1e-9 * np.nanmax(expected["norm"])}
            case name if name.endswith("_deg") and name != "noise_floor_deg":
                tolerance = {"rtol": 0, "atol": 1e-3}
            case "noise_floor_deg":
                tolerance = {"rtol": 1e-6, "atol": 0}
            case _:
                tolerance = {"rtol": 1e-6, "atol": 0}
        np.testing.assert_allclose(found[name], values, **tolerance, err_msg=name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_columns(name: str) -> None:
    weights = EXAMPLES[name]()
    moves = np.diff(weights, axis=0, prepend=0)
    rounding = np.random.default_rng(8).uniform(0, 0.2, len(weights)) * (moves**2).sum(axis=1).min()
    assert_columns(path(trajectory_of(weights), rounding), weights, rounding)


@repeatable
@given(small_weights)
def test_columns_of_whole_numbers(weights: Matrix) -> None:
    rounding = np.full(len(weights), 0.05)
    assert_columns(path(trajectory_of(weights), rounding), weights, rounding)


def test_noise_floor_of_a_path_stored_in_few_digits() -> None:
    # Rounding to a grid, as a storage dtype does: the floor must cover what it does to the angle.
    grid, count = 2.0**-6, 20
    exact = straight(count, 0.05)
    stored = np.round(exact / grid) * grid
    rounding = np.full(count, exact.shape[1] * grid**2 / 12)
    columns = path(trajectory_of(stored), rounding)
    inside = slice(1, -1)
    ratio = columns["noise_floor_deg"][inside] / columns["update_angle_deg"][inside]
    assert 0.9 < ratio.mean() < 1.6


def test_noise_floor_is_at_most_90_degrees_and_never_below_the_products_error() -> None:
    trajectory = trajectory_of(walk(4, 1e-3))
    coarse = path(trajectory, np.full(4, 1.0))["noise_floor_deg"]
    exact = path(trajectory, np.zeros(4))["noise_floor_deg"]
    assert coarse[1] == coarse[2] == 90.0
    assert exact[1] == pytest.approx(math.degrees(math.acos(1 - 2e-7)))


def test_noise_floor_is_undefined_where_the_update_angle_is() -> None:
    columns = path(trajectory_of(EXAMPLES["pauses"]()), np.full(12, 1e-6))
    undefined = np.isnan(columns["update_angle_deg"])
    assert undefined.sum() == 2 + 6  # both ends, and beside increments 4, 5, 9, 11
    np.testing.assert_array_equal(np.isnan(columns["noise_floor_deg"]), undefined)


def test_absent_checkpoints_are_gaps() -> None:
    weights = walk(9, 0.1)
    absent = np.isin(np.arange(9), (0, 4, 8))
    increments = present_increments(reference.increment_gram(weights)[np.newaxis], absent)
    trajectory = Trajectory.from_increments(increments, np.arange(6)[np.newaxis])
    columns = path(trajectory, np.zeros(6))
    assert_columns(columns, weights[~absent], np.zeros(6))
    stacks = {name: column[np.newaxis] for name, column in columns.items()}
    spread = {name: column for name, (column,) in with_absent(stacks, absent).items()}
    defined = {name: np.flatnonzero(~np.isnan(values)).tolist() for name, values in spread.items()}
    present = [1, 2, 3, 5, 6, 7]
    assert defined == {
        "norm": present,
        "displacement": present,
        "increment": [2, 3, 6, 7],
        "path_length": present,
        "update_angle_deg": [2, 6],
        "angle_to_first_deg": present,
        "angle_to_last_deg": present,
        "apex_angle_next_deg": [2, 5, 6],
        "apex_angle_last_deg": [2, 3, 5, 6],
        "noise_floor_deg": [2, 6],
        "turn_2_deg": [],
        "turn_4_deg": [],
        "turn_8_deg": [],
        "turn_16_deg": [],
        "radial_increment": [2, 3, 6, 7],
        "angular_speed_deg": [2, 3, 6, 7],
        "remaining": present,
        "along_end": present,
        "off_end": present,
    }
    assert spread["norm"][5] == columns["norm"][3]


def test_without_absences_columns_stay_as_they_are() -> None:
    columns = paths(trajectory_of(walk(5, 0.1), walk(5, 0.2)), times(5), np.zeros((2, 5)))
    for name, values in with_absent(columns, np.zeros(5, dtype=bool)).items():
        np.testing.assert_array_equal(values, columns[name])
