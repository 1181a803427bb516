"""Spectra, what they sum up to, and the projection, against singular values of the weights."""

import math

import numpy as np
import pytest

from pipeline.numerics import spectrum as spectra
from pipeline.numerics.trajectory import Trajectory, random_walk
from tests import reference
from tests.numerics.examples import EXAMPLES, straight
from tests.numerics.test_trajectory import trajectory_of


@pytest.mark.parametrize("name", EXAMPLES)
def test_eigenvalues(name: str) -> None:
    weights = EXAMPLES[name]()
    found = spectra.spectrum(trajectory_of(weights)).eigenvalues
    expected = reference.spectra(weights)
    assert list(found) == ["trajectory", "relative", "centered", "increments"]
    for basis, values in found.items():
        assert values.shape == expected[basis].shape
        # where nothing moves the reference leaves rounding of the weights' own size
        tolerance = 1e-6 * expected[basis][:1].sum() + 1e-24 * np.square(weights).sum()
        np.testing.assert_allclose(values, expected[basis], rtol=0, atol=tolerance)
        assert (np.diff(values) <= 0).all() and (values >= 0).all()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_projection_splits_the_centered_gram_matrix(name: str) -> None:
    weights = EXAMPLES[name]()
    trajectory = trajectory_of(weights)
    found = spectra.spectrum(trajectory)
    values, coordinates = found.eigenvalues["centered"], found.projection
    centered = weights - weights.mean(axis=0)
    tolerance = 1e-9 * values[0] + 1e-300
    leading = np.diag(np.append(values, [0.0, 0.0])[:3])
    np.testing.assert_allclose(coordinates.T @ coordinates, leading, rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        centered @ (centered.T @ coordinates), coordinates @ leading, rtol=0,
        atol=tolerance * math.sqrt(values[0]) + 1e-300,
    )  # fmt: skip
    assert (coordinates[-1] >= 0).all()
    assert not np.signbit(coordinates[coordinates == 0]).any()


@pytest.mark.parametrize("name", ["two", "three", "five", "spiral", "long spiral", "copies"])
def test_projection_of_distinct_components(name: str) -> None:
    weights = EXAMPLES[name]()
    found = spectra.spectrum(trajectory_of(weights)).projection
    expected = reference.projection(weights)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["one", "standing", "all zeros"])
def test_nothing_moves(name: str) -> None:
    found = spectra.spectrum(trajectory_of(EXAMPLES[name]()))
    centered = found.eigenvalues["centered"]
    assert not centered.any() and not found.projection.any()
    assert np.isnan(spectra.shares(centered)).all()
    assert np.isnan(spectra.leading_shares(centered)).all()
    figures = (spectra.effective_rank, spectra.participation_ratio, spectra.stable_rank)
    assert all(math.isnan(figure(centered)) for figure in figures)
    assert math.isnan(spectra.rank_holding(centered, 0.95))


def test_no_checkpoint_at_all() -> None:
    nothing = Trajectory.from_increments(np.zeros((0, 0)), np.zeros(0, dtype=int))
    found = spectra.spectrum(nothing)
    assert all(values.shape == (0,) for values in found.eigenvalues.values())
    assert found.projection.shape == (0, 3)


def test_figures_of_known_eigenvalues() -> None:
    values = np.array([6.0, 3.0, 1.0, 0.0])
    np.testing.assert_allclose(spectra.shares(values), [0.6, 0.3, 0.1, 0.0])
    entropy = -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1))
    assert spectra.effective_rank(values) == pytest.approx(math.exp(entropy))
    assert spectra.participation_ratio(values) == pytest.approx(100 / 46)
    assert spectra.stable_rank(values) == pytest.approx(10 / 6)
    ranks = [spectra.rank_holding(values, share) for share in (0.5, 0.6, 0.61, 0.89, 0.91)]
    assert ranks == [1, 1, 2, 2, 3]


def test_shares_of_ranks_that_do_not_exist_are_zero() -> None:
    assert spectra.leading_shares(np.array([2.0])) == (1.0, 0.0, 0.0)
    three = spectra.spectrum(trajectory_of(EXAMPLES["three"]())).eigenvalues["centered"]
    first, second, third = spectra.leading_shares(three)
    assert first + second == pytest.approx(1) and third == 0.0


def test_a_straight_path_has_one_component() -> None:
    values = spectra.spectrum(trajectory_of(straight(154, 1e-2))).eigenvalues["centered"]
    assert spectra.effective_rank(values) == pytest.approx(1, abs=1e-9)
    assert spectra.rank_holding(values, 0.99) == 1


def test_rounding_noise_is_no_eigenvalue() -> None:
    # Rank one, but not to the last bit: 1e-17 of noise on 30 further ranks.
    vector = np.random.default_rng(0).normal(size=31)
    values = spectra.eigenvalues(np.outer(vector, vector))
    assert np.count_nonzero(values) == 1


def test_an_even_random_walk_shows_shares_of_six_over_pi_squared() -> None:
    even = Trajectory.from_increments(np.eye(400), np.arange(400))
    shares = spectra.shares(spectra.eigenvalues(spectra.centered_gram(random_walk(even))))
    expected = [6 / (math.pi * rank) ** 2 for rank in (1, 2, 3)]
    np.testing.assert_allclose(shares[:3], expected, rtol=0, atol=1e-4)
