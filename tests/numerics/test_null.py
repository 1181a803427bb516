"""Closed forms of the made-up paths, against their explicit weights."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.numerics.indicators import INDICATORS
from pipeline.numerics.null import random_walk, straight_line
from pipeline.numerics.spectrum import centered, eigenvalues
from tests import reference
from tests.numerics.examples import EXAMPLES
from tests.numerics.test_indicators import assert_figures, schedule
from tests.numerics.test_trajectory import repeatable, small_weights, trajectory_of
from tests.reference import Matrix


def squared_lengths(weights: Matrix) -> Matrix:
    return np.diagonal(trajectory_of(weights).increments, axis1=1, axis2=2)


def by_name(values: Matrix) -> dict[str, float]:
    (row,) = values
    return dict(zip(INDICATORS, row.tolist(), strict=True))


def assert_null(weights: Matrix, *times: np.ndarray) -> None:
    lengths = squared_lengths(weights)
    walked, straightened = reference.orthogonal_walk(weights), reference.parallel_walk(weights)
    for made_up, rows in ((random_walk, walked), (straight_line, straightened)):
        expected = reference.indicators(rows, *times)
        expected["decay_start_step"] = math.nan  # of lengths alone, which are those of the run
        assert_figures(by_name(made_up(lengths, *times)), expected)


SHORT = [name for name in EXAMPLES if not name.startswith("long")]


@pytest.mark.parametrize("name", [*SHORT, "long decay", "long walk from zero"])
def test_null_values(name: str) -> None:
    weights = EXAMPLES[name]()
    assert_null(weights, *schedule(len(weights)))


@repeatable
@given(small_weights, st.booleans())
def test_null_values_of_whole_numbers(weights: Matrix, known: bool) -> None:
    elapsed, steps, numbers = schedule(len(weights))
    unknown = np.full(len(weights), math.nan)
    times = (elapsed, steps, numbers) if known else (unknown, unknown, numbers)
    assert_null(weights, *times)


@pytest.mark.parametrize("name", ["copies", "spiral", "long decay", "late start"])
def test_the_spectrum_of_a_walk_is_that_of_its_dense_matrix(name: str) -> None:
    weights = EXAMPLES[name]()
    found = by_name(random_walk(squared_lengths(weights), *schedule(len(weights))))
    walked = reference.orthogonal_walk(weights)[:, 1:]  # theta_0 is common to all
    dense = eigenvalues(centered((walked @ walked.T)[np.newaxis]))[0]
    shares = dense / dense.sum()
    for rank in (1, 2, 3):
        assert found[f"pca_share_{rank}"] == pytest.approx(shares[rank - 1], abs=1e-12)
    positive = shares[shares > 0]
    entropy = -(positive * np.log(positive)).sum()
    assert found["effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-12)


def test_an_even_random_walk_has_the_published_null_values() -> None:
    even = np.append(1.0, np.ones(399))[np.newaxis]
    values = by_name(random_walk(even, *[np.arange(400.0)] * 3))
    assert values["relative_mds"] == pytest.approx(2 / 3, abs=2e-3)
    for rank in (1, 2, 3):
        expected = 6 / (math.pi * rank) ** 2
        assert values[f"pca_share_{rank}"] == pytest.approx(expected, abs=1e-4)
    assert values["pca_share_1"] + values["pca_share_2"] == pytest.approx(0.76, abs=1e-3)
    assert values["mean_update_angle_deg"] == values["mean_turn_16_deg"] == 90
    assert values["linearity_time"] == pytest.approx(0.6, abs=1e-3)
    assert values["relative_share_1"] == pytest.approx(8 / math.pi**2, abs=1e-3)
    assert values["backbone_share"] == pytest.approx(0.692, abs=2e-3)
    assert values["norm_balance"] == values["radial_share"] == 0
    assert values["diffusion_exponent"] == pytest.approx(1)
    assert values["straightness"] == pytest.approx(1 / math.sqrt(399))
    assert values["predictability_8"] == values["lookahead_share"] == 0
