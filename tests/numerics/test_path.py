"""The columns of the view `path`, against the explicit weights."""

import math

import numpy as np
import pytest
from hypothesis import given

from pipeline.numerics.path import path as paths
from pipeline.numerics.path import with_absent
from pipeline.numerics.straight_turns import SCALES
from pipeline.numerics.trajectory import Trajectory, present_increments
from tests import reference
from tests.numerics.examples import EXAMPLES, walk
from tests.numerics.test_trajectory import repeatable, small_weights, trajectory_of
from tests.reference import Matrix

COLUMNS = [
    "norm", "displacement", "increment", "path_length", "update_angle_deg",
    "angle_to_first_deg", "angle_to_last_deg", "apex_angle_next_deg", "apex_angle_last_deg",
    "turn_2_deg", "turn_4_deg", "turn_8_deg", "turn_16_deg",
    "straight_turn_1_deg", "straight_turn_2_deg", "straight_turn_4_deg", "straight_turn_8_deg",
    "straight_turn_16_deg",
    "radial_increment", "angular_speed_deg", "remaining", "along_end", "off_end",
]  # fmt: skip


def times(count: int) -> np.ndarray:
    """Uneven, two of them equal, one unknown."""
    elapsed = np.arange(float(count)) ** 1.5
    elapsed[3:4], elapsed[7:8] = elapsed[2:3], math.nan
    return elapsed


def straight_sums(count: int) -> np.ndarray:
    """(2, scales, count) products and lengths of straight paths, rounded; at k = 2 nothing is left of the steps."""
    rng = np.random.default_rng(count)
    lengths = rng.uniform(0.5, 2, (len(SCALES), count))
    products = lengths * rng.uniform(0, 1, lengths.shape)
    products[:, 2:3], lengths[:, 2:3] = 0, 0
    products[:, 1:2] = lengths[:, 1:2]  # nothing is rounded
    return np.stack((products, lengths))


def path(trajectory: Trajectory) -> dict[str, np.ndarray]:
    """The columns of the only group of a stack."""
    count = trajectory.same.shape[1]
    columns = paths(trajectory, times(count), straight_sums(count)[np.newaxis])
    return {name: column for name, (column,) in columns.items()}


def assert_columns(found: dict[str, np.ndarray], weights: Matrix) -> None:
    expected = reference.path(weights, times(len(weights)))
    assert list(found) == COLUMNS
    for number, scale in enumerate(SCALES):
        turns = expected["update_angle_deg" if scale == 1 else f"turn_{scale}_deg"]
        for k, angle in enumerate(found[f"straight_turn_{scale}_deg"].tolist()):
            product, length = straight_sums(len(weights))[:, number, k]
            cosine = max(product / length - 2e-7, 0) if length else 0
            truth = math.nan if math.isnan(turns[k]) else math.degrees(math.acos(cosine))
            assert angle == pytest.approx(truth, rel=1e-12, nan_ok=True)
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
            case name if name.endswith("_deg"):
                tolerance = {"rtol": 0, "atol": 1e-3}
            case _:
                tolerance = {"rtol": 1e-6, "atol": 0}
        np.testing.assert_allclose(found[name], values, **tolerance, err_msg=name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_columns(name: str) -> None:
    weights = EXAMPLES[name]()
    assert_columns(path(trajectory_of(weights)), weights)


@repeatable
@given(small_weights)
def test_columns_of_whole_numbers(weights: Matrix) -> None:
    assert_columns(path(trajectory_of(weights)), weights)


def test_absent_checkpoints_are_gaps() -> None:
    weights = walk(9, 0.1)
    absent = np.isin(np.arange(9), (0, 4, 8))
    increments = present_increments(reference.increment_gram(weights)[np.newaxis], absent)
    trajectory = Trajectory.from_increments(increments, np.arange(6)[np.newaxis])
    columns = path(trajectory)
    assert_columns(columns, weights[~absent])
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
        "straight_turn_1_deg": [2, 6],
        **{f"{turn}_{scale}_deg": [] for turn in ("turn", "straight_turn") for scale in SCALES[1:]},
        "radial_increment": [2, 3, 6, 7],
        "angular_speed_deg": [2, 3, 6, 7],
        "remaining": present,
        "along_end": present,
        "off_end": present,
    }
    assert spread["norm"][5] == columns["norm"][3]


def test_without_absences_columns_stay_as_they_are() -> None:
    columns = paths(
        trajectory_of(walk(5, 0.1), walk(5, 0.2)), times(5), np.stack([straight_sums(5)] * 2)
    )
    for name, values in with_absent(columns, np.zeros(5, dtype=bool)).items():
        np.testing.assert_array_equal(values, columns[name])
