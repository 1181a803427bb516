"""Spectra, what they sum up to, and the projection, against singular values of the weights."""

import math

import numpy as np
import pytest

from pipeline.numerics import spectrum as spectra
from tests import reference
from tests.numerics.examples import EXAMPLES, straight
from tests.numerics.test_trajectory import trajectory_of
from tests.reference import Matrix


def spectrum_of(weights: Matrix) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The eigenvalues and the projection of one group."""
    found = spectra.spectrum(trajectory_of(weights))
    return {basis: values for basis, (values,) in found.eigenvalues.items()}, found.projection[0]


@pytest.mark.parametrize("name", EXAMPLES)
def test_eigenvalues(name: str) -> None:
    weights = EXAMPLES[name]()
    found, _ = spectrum_of(weights)
    expected = reference.spectra(weights)
    assert tuple(found) == spectra.BASES
    for basis, values in found.items():
        assert values.shape == expected[basis].shape
        # where nothing moves the reference leaves rounding of the weights' own size
        tolerance = 1e-6 * expected[basis][:1].sum() + 1e-24 * np.square(weights).sum()
        np.testing.assert_allclose(values, expected[basis], rtol=0, atol=tolerance)
        assert (np.diff(values) <= 0).all() and (values >= 0).all()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_projection_splits_the_centered_gram_matrix(name: str) -> None:
    weights = EXAMPLES[name]()
    found, coordinates = spectrum_of(weights)
    values = found["centered"]
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
    _, found = spectrum_of(weights)
    expected = reference.projection(weights)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["one", "standing", "all zeros"])
def test_nothing_moves(name: str) -> None:
    found, projection = spectrum_of(EXAMPLES[name]())
    centered = found["centered"][np.newaxis]
    assert not centered.any() and not projection.any()
    assert np.isnan(spectra.shares(centered)).all()
    assert np.isnan(spectra.leading_shares(centered)).all()
    figures = (spectra.effective_rank, spectra.participation_ratio, spectra.stable_rank)
    assert all(np.isnan(figure(centered)).all() for figure in figures)
    assert np.isnan(spectra.rank_holding(centered, 0.95)).all()


def test_figures_of_known_eigenvalues() -> None:
    """Of a group with fewer ranks, and of one that does not move, in one stack."""
    values = np.array([[6.0, 3.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [4.0, 4.0, 1.0, 1.0]])
    np.testing.assert_allclose(spectra.shares(values)[0], [0.6, 0.3, 0.1, 0.0])
    ranks = [
        math.exp(-sum(share * math.log(share) for share in shares)) if shares else math.nan
        for shares in ((0.6, 0.3, 0.1), (), (0.4, 0.4, 0.1, 0.1))
    ]
    np.testing.assert_allclose(spectra.effective_rank(values), ranks)
    np.testing.assert_allclose(spectra.participation_ratio(values), [100 / 46, math.nan, 100 / 34])
    np.testing.assert_allclose(spectra.stable_rank(values), [10 / 6, math.nan, 10 / 4])
    ranks = [spectra.rank_holding(values, share)[0] for share in (0.5, 0.6, 0.61, 0.89, 0.91)]
    assert ranks == [1, 1, 2, 2, 3]


def test_shares_of_ranks_that_do_not_exist_are_zero() -> None:
    assert spectra.leading_shares(np.array([[2.0]])).tolist() == [[1.0, 0.0, 0.0]]
    three = spectrum_of(EXAMPLES["three"]())[0]["centered"]
    first, second, third = spectra.leading_shares(three[np.newaxis])[0]
    assert first + second == pytest.approx(1) and third == 0.0


def test_a_straight_path_has_one_component() -> None:
    values = spectrum_of(straight(154, 1e-2))[0]["centered"][np.newaxis]
    assert spectra.effective_rank(values) == pytest.approx(1, abs=1e-9)
    assert spectra.rank_holding(values, 0.99) == 1


def test_rounding_noise_is_no_eigenvalue() -> None:
    # Rank one, but not to the last bit: 1e-17 of noise on 30 further ranks.
    vector = np.random.default_rng(0).normal(size=31)
    values = spectra.eigenvalues(np.outer(vector, vector)[np.newaxis])
    assert np.count_nonzero(values) == 1
