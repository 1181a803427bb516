"""Largest eigenvalues alone, against all of them, and the shares of displacements along one direction."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.numerics.leading import (
    backbone_share,
    largest_eigenvalues,
    relative_share,
    walk_shares,
)
from pipeline.numerics.trajectory import cosines
from tests import reference
from tests.numerics.examples import EXAMPLES
from tests.numerics.test_trajectory import repeatable, small_weights, trajectory_of
from tests.reference import Matrix


def largest(matrices: Matrix) -> Matrix:
    def product(vectors: Matrix) -> Matrix:
        return np.einsum("gij,gj->gi", matrices, vectors)

    return largest_eigenvalues(product, *matrices.shape[:2])


def spectrum(values: Matrix, seed: int = 0) -> Matrix:
    """A matrix with these eigenvalues."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    return (basis * values) @ basis.T


def alternating(count: int) -> Matrix:
    """Whose first eigenvector is orthogonal to the one without changes of sign."""
    sign = (-1.0) ** np.arange(count)
    return np.outer(sign, sign) + 1e-3


HARD: dict[str, Callable[[], Matrix]] = {
    "all alike": lambda: np.eye(154),
    "nothing": lambda: np.zeros((20, 20)),
    "one": lambda: np.full((1, 1), 3.0),
    "nearly twice the same": lambda: spectrum(np.append([1.0, 1 - 1e-7], np.linspace(0.9, 0, 152))),
    "close to the first": lambda: spectrum(np.linspace(1.0, 0.5, 154)),
    "alternating": lambda: alternating(154),
    "two blocks": lambda: np.kron(np.diag([1.0, 2.0]), np.ones((40, 40))),
    "large": lambda: 1e60 * spectrum(np.linspace(1.0, 0.0, 30)),
    "small": lambda: 1e-60 * spectrum(np.linspace(1.0, 0.0, 30)),
}


@pytest.mark.parametrize("name", HARD)
def test_the_largest_of_all(name: str) -> None:
    matrix = HARD[name]()
    (found,) = largest(matrix[np.newaxis])
    assert found == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=2e-8, abs=0)


def test_a_group_does_not_depend_on_the_others() -> None:
    matrices = [each() for each in HARD.values() if len(each()) == 154]
    together = largest(np.stack(matrices))
    alone = [largest(matrix[np.newaxis])[0] for matrix in matrices]
    assert together.tolist() == alone


def test_what_is_not_finite_does_not_go_on_for_ever() -> None:
    with pytest.raises(np.linalg.LinAlgError), np.errstate(invalid="ignore"):
        largest(np.full((1, 4, 4), math.nan))


@pytest.mark.parametrize("name", EXAMPLES)
def test_shares_of_displacements(name: str) -> None:
    weights = EXAMPLES[name]()
    trajectory, expected = trajectory_of(weights), reference.first_shares(weights)
    (share,) = relative_share(trajectory.relative_dots)
    (backbone,) = backbone_share(cosines(trajectory.relative_dots))
    close = {"rel": 0, "abs": 1e-9, "nan_ok": True}
    assert share == pytest.approx(expected["relative_share_1"], **close)
    assert backbone == pytest.approx(expected["backbone_share"], **close)


@settings(repeatable, max_examples=60)
@given(small_weights)
def test_shares_of_displacements_of_whole_numbers(weights: Matrix) -> None:
    trajectory, expected = trajectory_of(weights), reference.first_shares(weights)
    found = (
        relative_share(trajectory.relative_dots),
        backbone_share(cosines(trajectory.relative_dots)),
    )
    assert [each[0] for each in found] == pytest.approx([*expected.values()], abs=1e-9, nan_ok=True)


LENGTHS: dict[str, Matrix] = {
    "even": np.ones(153),
    "growing": 1.2 ** np.arange(153),
    "growing fast": 2.0 ** np.arange(60),
    "shrinking": 0.8 ** np.arange(153),
    "pauses": np.tile([0.0, 1.0, 0.0], 50),
    "one": np.append(np.zeros(9), 1.0),
    "two": np.append(np.ones(1), [*np.zeros(100), 10.0]),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_shares_of_random_walks(name: str) -> None:
    walk = reference.orthogonal_walk(np.append(0.0, LENGTHS[name]).cumsum()[:, np.newaxis])
    expected = reference.first_shares(walk)
    gone = np.append(0.0, np.cumsum(LENGTHS[name] ** 2))
    found = [share[0] for share in walk_shares(gone[np.newaxis])]
    assert found == pytest.approx([*expected.values()], rel=0, abs=1e-9)


@pytest.mark.parametrize(("count", "expected"), [(31, 0.703), (1000, 0.692)])
def test_the_backbone_of_a_long_walk(count: int, expected: float) -> None:
    relative, backbone = walk_shares(np.arange(float(count))[np.newaxis])
    assert backbone[0] == pytest.approx(expected, abs=5e-4)
    assert relative[0] == pytest.approx(8 / math.pi**2, abs=0.3 / count)


@settings(repeatable, max_examples=60)
@given(st.lists(st.just(0.0) | st.floats(1e-3, 1e3), min_size=1, max_size=40))
def test_walks_of_any_lengths(lengths: list[float]) -> None:
    gone = np.append(0.0, np.cumsum(np.square(lengths)))
    dense = np.minimum.outer(gone, gone)[np.newaxis]
    expected = relative_share(dense), backbone_share(cosines(dense))
    for found, truth in zip(walk_shares(gone[np.newaxis]), expected, strict=True):
        assert found[0] == pytest.approx(truth[0], abs=1e-7, nan_ok=True)
