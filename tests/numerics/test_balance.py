"""Growth of the norm, linearity in time and the chord: known paths, and what they owe at small steps."""

import math

import numpy as np
import pytest

from pipeline.numerics import indicators as numerics
from pipeline.numerics.balance import balance_figures, line_balance, walk_balance
from pipeline.numerics.chord import chord_columns
from pipeline.numerics.indicators import INDICATORS, differ_from_null
from pipeline.numerics.linearity import line_linearity, linearity, walk_linearity
from pipeline.numerics.null import random_walk, straight_line
from pipeline.numerics.stack import diagonal
from tests import reference
from tests.numerics.examples import EXAMPLES, oscillating, spiral, straight, walk
from tests.numerics.test_trajectory import trajectory_of
from tests.reference import Matrix


def balance(weights: Matrix) -> dict[str, float]:
    figures = balance_figures(trajectory_of(weights))
    return {name: float(value) for name, (value,) in figures.items()}


def turned(count: int, angle: float, growth: float = 1.0) -> Matrix:
    """A point on a circle whose radius grows."""
    k = np.arange(count)
    radius = growth**k
    return np.stack([radius * np.cos(angle * k), radius * np.sin(angle * k)], axis=1)


def test_a_constant_norm_is_balanced_and_a_growing_one_is_not() -> None:
    assert balance(turned(20, 0.1))["norm_balance"] == pytest.approx(1)
    assert balance(turned(20, 0.1, 0.99))["norm_balance"] > 1
    assert balance(turned(20, 0.1, 1.1))["norm_balance"] < 0


def test_growth_along_the_weights_is_radial() -> None:
    start = np.array([3.0, 4.0])
    figures = balance(np.outer(1.1 ** np.arange(6), start))
    assert figures["radial_share"] == pytest.approx(1)
    assert balance(turned(20, 1e-3))["radial_share"] == pytest.approx(2.5e-7, rel=1e-3)


@pytest.mark.parametrize("step", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("path", [walk, spiral, oscillating])
def test_balance_at_small_steps(path: object, step: float) -> None:
    assert callable(path)
    weights = path(30, step)
    truth = reference.balance(weights)
    found = balance(weights)
    owed = 1e-6 * max(1.0, abs(truth["norm_balance"]))
    assert found["norm_balance"] == pytest.approx(truth["norm_balance"], rel=0, abs=owed)
    assert found["radial_share"] == pytest.approx(truth["radial_share"], rel=0, abs=1e-6)


@pytest.mark.parametrize("name", ["standing", "one", "all zeros", "zeros inside", "five from zero"])
def test_where_balance_says_nothing(name: str) -> None:
    figures, truth = balance(EXAMPLES[name]()), reference.balance(EXAMPLES[name]())
    assert math.isnan(figures["radial_share"])  # a norm before an increment is 0, or nothing moves
    assert math.isnan(figures["norm_balance"]) == math.isnan(truth["norm_balance"])
    assert figures["norm_balance"] == pytest.approx(truth["norm_balance"], nan_ok=True)


@pytest.mark.parametrize("name", ["pauses", "walk", "late start", "long decay", "five from zero"])
def test_balance_of_made_up_paths(name: str) -> None:
    weights = EXAMPLES[name]()
    squared = diagonal(trajectory_of(weights).increments)
    made = {"walk": walk_balance, "line": line_balance}
    paths = {
        "walk": reference.orthogonal_walk(weights),
        "line": reference.parallel_walk(weights),
    }
    for which, figures in made.items():
        found = figures(squared[:, 0], np.ascontiguousarray(squared[:, 1:]))
        for key, truth in reference.balance(paths[which]).items():
            assert found[key][0] == pytest.approx(truth, rel=1e-9, abs=1e-12, nan_ok=True), key


TIMES = {
    "even": np.arange(40.0),
    "growing": 1.3 ** np.arange(40),
    "restarted": np.arange(40.0) % 20,
    "large": 1e12 + 1e6 * np.arange(40),
    "equal": np.full(40, 7.0),
    "unknown": np.append(np.arange(39.0), math.nan),
}


@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("name", ["walk", "straight, small steps", "copies", "oscillating"])
def test_linearity(name: str, when: str) -> None:
    weights, x = EXAMPLES[name](), TIMES[when]
    trajectory = trajectory_of(weights)
    about = weights - weights.mean(axis=0)
    total = np.array([np.sum(about**2)])
    (found,) = linearity(trajectory.increments[:, 1:, 1:], total, x)
    assert found == pytest.approx(reference.linearity(weights, x), rel=0, abs=1e-6, nan_ok=True)
    squared = np.ascontiguousarray(diagonal(trajectory.increments)[:, 1:])
    made_up = (
        (walk_linearity, reference.orthogonal_walk(weights)),
        (line_linearity, reference.parallel_walk(weights)),
    )
    for figure, path in made_up:
        about = path - path.mean(axis=0)
        (made,) = figure(squared, np.array([np.sum(about**2)]), x)
        assert made == pytest.approx(reference.linearity(path, x), rel=0, abs=1e-6, nan_ok=True)


def test_a_path_that_is_linear_in_time_is_all_explained() -> None:
    x = np.array([0.0, 1, 10, 11, 40])
    weights = 5 + np.outer(x, [1.0, -2.0])
    values = numerics.indicators(trajectory_of(weights), x, x, np.arange(5.0))
    figures = dict(zip(INDICATORS, values[0], strict=True))
    assert figures["linearity_time"] == pytest.approx(1) and figures["linearity_time"] <= 1
    assert figures["linearity_index"] < 0.9


def test_a_path_of_two_straight_parts_is_off_its_chord_by_the_height_of_the_corner() -> None:
    legs = np.array([[0.0, 0], [1, 1], [2, 2], [3, 1], [4, 0]]) + 100
    columns = {name: column[0] for name, column in chord_columns(trajectory_of(legs)).items()}
    np.testing.assert_allclose(columns["along_end"], [0, 0.25, 0.5, 0.75, 1], atol=1e-12)
    np.testing.assert_allclose(columns["off_end"], [0, 0.25, 0.5, 0.25, 0], atol=1e-12)
    np.testing.assert_allclose(columns["remaining"], [1, *np.sqrt([10, 8, 2]) / 4, 0], atol=1e-12)


@pytest.mark.parametrize("off", [1e-1, 1e-2, 1e-3])
def test_small_distances_from_the_chord_keep_their_digits(off: float) -> None:
    along = np.linspace(0, 1e-5, 30)
    aside = off * 1e-5 * np.sin(np.pi * np.linspace(0, 1, 30))
    weights = np.stack([np.ones(30), along, aside], axis=1)
    (found,) = chord_columns(trajectory_of(weights))["off_end"]
    np.testing.assert_allclose(found, aside / 1e-5, rtol=0, atol=1e-6)


def test_a_closed_path_has_no_chord() -> None:
    for column in chord_columns(trajectory_of(EXAMPLES["closed"]())).values():
        assert np.isnan(column).all()


def test_a_random_walk_is_at_most_half_its_chord_away() -> None:
    walked = reference.orthogonal_walk(np.arange(401.0)[:, np.newaxis])
    columns = {name: column[0] for name, column in chord_columns(trajectory_of(walked)).items()}
    k = np.arange(401) / 400
    np.testing.assert_allclose(columns["along_end"], k, atol=1e-12)
    np.testing.assert_allclose(columns["off_end"], np.sqrt(k - k**2), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "path", "differ"),
    [
        ("mean_turn_4_deg", straight(40, 1e-2), True),
        ("linearity_index", straight(40, 1e-2), True),
        ("relative_share_1", straight(40, 1e-2), True),
        ("backbone_share", straight(40, 1e-2), True),
        ("radial_share", reference.orthogonal_walk(walk(40, 1e-2)), False),
        ("norm_balance", reference.orthogonal_walk(walk(40, 1e-2)), False),
        ("mean_turn_16_deg", reference.orthogonal_walk(walk(40, 1e-2)), False),
        ("backbone_share", reference.orthogonal_walk(walk(40, 1e-2)), False),
        ("linearity_time", reference.orthogonal_walk(walk(40, 1e-2)), False),
    ],
)
def test_what_differs_from_a_random_walk(name: str, path: Matrix, differ: bool) -> None:
    trajectory, times = trajectory_of(path), [np.arange(float(len(path)))] * 3
    squared = diagonal(trajectory.increments)
    values = numerics.indicators(trajectory, *times)
    nulls, line = random_walk(squared, *times), straight_line(squared, *times)
    differs = differ_from_null(values, nulls, line, np.zeros_like(values))
    assert dict(zip(INDICATORS, differs[0], strict=True))[name] == differ
