"""Every indicator, against the explicit weights."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.numerics import indicators as numerics
from pipeline.numerics.indicators import INDICATORS, differ_from_null, time_weights
from pipeline.numerics.null import random_walk, straight_line
from pipeline.numerics.spectrum import spectrum
from pipeline.numerics.trajectory import Trajectory, cosines, present_increments
from tests import reference
from tests.numerics.examples import EXAMPLES, spiral, straight, walk
from tests.numerics.test_trajectory import repeatable, small_weights, trajectory_of
from tests.reference import Matrix

NAN = math.nan
EQUAL = ("rank_95", "rank_99", "saturation_step", "settled_step", "decay_start_step")
RELATIVE = ("path_length", "displacement", "norm_ratio")


def schedule(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Uneven times from 0, steps that restart half-way, numbers with a gap."""
    numbers = np.arange(count, dtype=np.float64) + (np.arange(count) > 2)
    elapsed = np.round(numbers**1.7)
    steps = np.where(numbers < count / 2, elapsed, elapsed - elapsed[count // 2])
    return elapsed, steps, numbers


def indicators(trajectory: Trajectory, *times: np.ndarray, **known: np.ndarray) -> dict[str, float]:
    """Those of the only group of a stack, by name."""
    (values,) = numerics.indicators(trajectory, *times, **known)
    return dict(zip(INDICATORS, values.tolist(), strict=True))


def assert_figures(found: dict[str, float], expected: dict[str, float]) -> None:
    """To the accuracy owed by docs/method.md, but without its allowance for paths that fold."""
    assert tuple(found) == tuple(expected) == INDICATORS
    for name, value in found.items():
        assert not math.isinf(value) and isinstance(value, float)
        if name in EQUAL:
            tolerance = {"rel": 0, "abs": 0}
        elif name in RELATIVE:
            tolerance = {"rel": 1e-6, "abs": 0}
        elif name == "origin_angle_deg":
            tolerance = {"rel": 1e-5, "abs": 1e-9}
        elif name.endswith("_deg"):
            tolerance = {"rel": 0, "abs": 1e-3}
        else:
            tolerance = {"rel": 0, "abs": 1e-6}
        assert value == pytest.approx(expected[name], **tolerance, nan_ok=True), name


@pytest.mark.parametrize("name", EXAMPLES)
def test_indicators(name: str) -> None:
    weights = EXAMPLES[name]()
    times = schedule(len(weights))
    assert_figures(
        indicators(trajectory_of(weights), *times), reference.indicators(weights, *times)
    )


@repeatable
@given(small_weights, st.booleans())
def test_indicators_of_whole_numbers(weights: Matrix, known: bool) -> None:
    elapsed, steps, numbers = schedule(len(weights))
    times = (elapsed, steps, numbers) if known else (elapsed * NAN, steps * NAN, numbers)
    assert_figures(
        indicators(trajectory_of(weights), *times), reference.indicators(weights, *times)
    )


@pytest.mark.parametrize("absent", [(0, 1), (5,), (3, 4, 8), (11,), (0, 5, 10, 11)])
@pytest.mark.parametrize("name", ["late start", "pauses", "closed", "copies of small steps"])
def test_absent_checkpoints(name: str, absent: tuple[int, ...]) -> None:
    weights = EXAMPLES[name]()
    gone = np.isin(np.arange(12), absent)
    increments = present_increments(reference.increment_gram(weights)[np.newaxis], gone)
    labels = reference.labels(weights)[np.newaxis, ~gone]
    trajectory = Trajectory.from_increments(increments, labels)
    elapsed, steps, _ = schedule(12)
    times = elapsed[~gone], np.where(steps > 8, NAN, steps)[~gone], np.flatnonzero(~gone) * 1.0
    expected = reference.indicators(weights[~gone], *times)
    assert_figures(indicators(trajectory, *times), expected)


def test_known_eigenvalues_give_the_same() -> None:
    trajectory, times = trajectory_of(EXAMPLES["spiral"]()), schedule(40)
    known = spectrum(trajectory).eigenvalues
    centered, relative = known["centered"], known["relative"]
    shared = indicators(trajectory, *times, centered=centered, relative=relative)
    assert shared == pytest.approx(indicators(trajectory, *times), rel=1e-9, nan_ok=True)
    assert indicators(trajectory, *times, centered=np.eye(40)[:1])["stable_rank"] == 1.0


def test_a_straight_path_has_its_known_values() -> None:
    # Two thirds of the way take the first step, the rest comes in three equal ones.
    weights = np.array([[0.0, 1], [6, 1], [7, 1], [8, 1], [9, 1]])
    times = schedule(5)
    values = indicators(trajectory_of(weights), *times)
    assert values["relative_mds"] == values["straightness"] == pytest.approx(1)
    assert values["mean_update_angle_deg"] == values["cone_angle_deg"] == 0.0
    assert values["predictability_1"] == values["lookahead_share"] == pytest.approx(1)
    assert values["rank_99"] == 1 and values["effective_rank"] == pytest.approx(1)
    assert values["saturation_step"] == times[1][1]
    assert values["settled_step"] == times[1][4]


@pytest.mark.parametrize(
    ("count", "undefined"),
    [
        (1, {"mds_offdiagonal", "relative_mds", "mds_time_weighted", "straightness",
             "cone_angle_deg", "pca_share_1", "effective_rank", "rank_95", "predictability_1",
             "lookahead_share", "saturation_step", "norm_growth_exponent", "diffusion_exponent",
             "mean_turn_2_deg", "linearity_time", "relative_share_1", "norm_balance"}),
        (2, {"mean_update_angle_deg", "mean_apex_angle_next_deg", "cone_angle_deg",
             "predictability_1", "lookahead_share", "norm_growth_exponent", "diffusion_exponent",
             "mean_turn_2_deg", "linearity_time"}),
        (3, {"diffusion_exponent", "mean_turn_2_deg"}),
        (4, {"mean_turn_2_deg"}),
        (5, {"mean_turn_4_deg"}),
        (9, {"mean_turn_8_deg"}),
        (32, {"mean_turn_16_deg"}),
        (33, set[str]()),
    ],
)  # fmt: skip
def test_what_needs_more_checkpoints_is_undefined(count: int, undefined: set[str]) -> None:
    values = indicators(trajectory_of(spiral(count, 0.1)), *schedule(count))
    also = {name for name, value in values.items() if math.isnan(value)}
    also.remove("decay_start_step")  # needs 21 checkpoints, and a decay
    implied = {
        "relative_mds": {"relative_mds_time_weighted"},
        "saturation_step": {"settled_step"},
        "rank_95": {"rank_99"},
        "pca_share_1": {"pca_share_2", "pca_share_3"},
        "effective_rank": {"participation_ratio", "stable_rank"},
        "predictability_1": {"predictability_2", "predictability_4", "predictability_8"},
        "mean_apex_angle_next_deg": {"mean_apex_angle_last_deg"},
        "straightness": {"mean_update_angle_deg", "mean_apex_angle_next_deg",
                         "mean_apex_angle_last_deg"},
        "mean_turn_2_deg": {"mean_turn_4_deg", "mean_turn_8_deg", "mean_turn_16_deg"},
        "mean_turn_4_deg": {"mean_turn_8_deg", "mean_turn_16_deg"},
        "mean_turn_8_deg": {"mean_turn_16_deg"},
        "linearity_time": {"linearity_index"},
        "relative_share_1": {"backbone_share"},
        "norm_balance": {"radial_share"},
    }  # fmt: skip
    assert also == undefined.union(*(implied.get(name, set()) for name in undefined))


def test_a_start_at_zero_has_no_norm_ratio_and_no_cosine() -> None:
    weights = EXAMPLES["five from zero"]()
    trajectory = trajectory_of(weights)
    values = indicators(trajectory, *schedule(5))
    assert math.isnan(values["norm_ratio"]) and math.isnan(values["origin_angle_deg"])
    assert np.isnan(cosines(trajectory.dots)[0, 0]).all()
    # Displacements are the weights themselves, so both means run over the same four rows.
    assert values["mds"] == pytest.approx(values["relative_mds"], abs=1e-12)


def test_time_weights_span_half_the_time_to_both_neighbours() -> None:
    np.testing.assert_array_equal(time_weights(np.array([0.0, 1, 2, 10])), [0.5, 1, 4.5, 4])
    np.testing.assert_array_equal(time_weights(np.array([3.0])), [0.0])
    assert np.isnan(time_weights(np.array([0.0, 1, 2, NAN]))).all()


@pytest.mark.parametrize("unknown", [0, 2, 5])
def test_one_unknown_time_leaves_what_needs_time_undefined(unknown: int) -> None:
    elapsed, steps, numbers = schedule(6)
    elapsed[unknown] = NAN
    values = indicators(trajectory_of(walk(6, 0.1)), elapsed, steps, numbers)
    timed = {"mds_time_weighted", "relative_mds_time_weighted", "norm_growth_exponent"}
    timed |= {"linearity_time", "mean_turn_4_deg", "mean_turn_8_deg", "mean_turn_16_deg"}
    timed.add("decay_start_step")  # which needs 21 checkpoints, and a decay
    assert {name for name, value in values.items() if math.isnan(value)} == timed


def test_equal_times_leave_no_weight() -> None:
    values = indicators(trajectory_of(walk(6, 0.1)), np.ones(6), np.ones(6), np.arange(6.0))
    timed = ("mds_time_weighted", "norm_growth_exponent", "linearity_time")
    assert all(math.isnan(values[name]) for name in timed)


def test_unknown_steps_are_given_by_number() -> None:
    weights = straight(10, 0.1)
    steps, numbers = np.full(10, NAN), np.arange(10.0) + 3
    values = indicators(trajectory_of(weights), steps, steps, numbers)
    assert values["saturation_step"] == 4.0
    assert values["settled_step"] == 12.0


def test_a_path_that_leaves_again_is_not_saturated_before() -> None:
    away = np.array([[0.0, 0], [5, 0], [0, 5], [5, 0.01], [5, 0]])
    values = indicators(trajectory_of(away + 7), *schedule(5))
    steps = schedule(5)[1]
    assert values["saturation_step"] == values["settled_step"] == steps[3]


def test_differences_from_the_null_value() -> None:
    def differs(value: float, null: float, straight: float, stderr: float) -> bool:
        (found,) = differ_from_null(*(np.array([x]) for x in (value, null, straight, stderr)))
        return bool(found)

    assert differs(0.80, null=0.67, straight=1.0, stderr=0.01)
    assert not differs(0.80, null=0.67, straight=1.0, stderr=0.1)
    assert not differs(0.68, null=0.67, straight=1.0, stderr=0.0)
    assert differs(0.69, null=0.67, straight=1.0, stderr=0.0)
    assert differs(0.6, null=0.67, straight=1.0, stderr=NAN)
    assert differs(0.6, null=0.67, straight=NAN, stderr=0.0)
    assert not differs(NAN, null=0.67, straight=1.0, stderr=0.0)
    assert not differs(0.67, null=NAN, straight=NAN, stderr=NAN)


def test_what_is_equal_by_definition_does_not_differ() -> None:
    trajectory, times = trajectory_of(walk(2, 0.1)), schedule(2)
    squared_lengths = np.diagonal(trajectory.increments, axis1=1, axis2=2)
    values = numerics.indicators(trajectory, *times)
    null, line = random_walk(squared_lengths, *times), straight_line(squared_lengths, *times)
    differ = dict(zip(INDICATORS, differ_from_null(values, null, line, 0 * values)[0], strict=True))
    for name in ("path_length", "displacement", "relative_mds", "straightness", "pca_share_1"):
        assert not differ[name], name
