"""What storing makes of steps of equal size: against bisection, and against steps that are really rounded."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.numerics.equal_steps import changes, turned_products
from tests import straight

FORMATS = ("BF16", "F16", "F32", "F64", "F8_E4M3")


def drawn(kind: str, count: int = 3000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return {
        "normal": 0.02 * rng.standard_normal(count),
        "equal": np.full(count, 0.7),
        "wide": 2.0 ** rng.uniform(-39, 15, count),
        "outlier": np.append(1e-3 * rng.standard_normal(count), 900.0),
        "sparse": np.where(rng.random(count) < 0.9, 0.0, rng.standard_normal(count)),
    }[kind]


def histogram(weights: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    ulps, numbers = np.unique(straight.spacing(weights, dtype), return_counts=True)
    return numbers[None].astype(float), ulps


@pytest.mark.parametrize("kind", ["normal", "equal", "wide", "outlier", "sparse"])
@pytest.mark.parametrize("dtype", FORMATS)
def test_against_bisection(dtype: str, kind: str) -> None:
    """Angles within a thousandth of a degree, chances of a change within a millionth."""
    weights = drawn(kind)
    counts, ulps = histogram(weights, dtype)
    lengths = (np.linalg.norm(weights) * 10.0 ** np.linspace(-9, 1.5, 43)) ** 2
    which = np.zeros(len(lengths), int)
    products = turned_products(counts, ulps, which, lengths)
    chances, squared = changes(counts, ulps, which, lengths)
    expected = [straight.equal_steps(straight.spacing(weights, dtype), each) for each in lengths]

    def angles(of: np.ndarray) -> np.ndarray:
        return np.degrees(np.arccos(np.clip(of / lengths - 2e-7, 0, 1)))

    truth = np.array([each.product for each in expected])
    np.testing.assert_allclose(angles(products), angles(truth), rtol=0, atol=1e-3)
    np.testing.assert_allclose(chances, [each.chance for each in expected], rtol=1e-6)
    np.testing.assert_allclose(squared, [each.squared_chance for each in expected], rtol=1e-6)


@pytest.mark.parametrize("size", [0.02, 0.3, 0.8, 2.5, 40.0])
def test_against_steps_that_are_rounded(size: float) -> None:
    """Weights anywhere between two stored values, moved twice by the same normal step, in units of an ulp."""
    rng = np.random.default_rng(0)
    start, step = rng.uniform(0, 1, 400_000), size * rng.standard_normal(400_000)
    stored = [np.floor(start + k * step) for k in range(3)]
    a, b = stored[1] - stored[0], stored[2] - stored[1]
    squared = float(a @ a + b @ b) / 2
    one = np.array([[400_000.0]]), np.ones(1), np.zeros(1, int), np.array([squared])
    (product,) = turned_products(*one)
    ((chance,), _) = changes(*one)
    truth = math.degrees(math.acos(float(a @ b) / squared))
    assert abs(math.degrees(math.acos(product / squared)) - truth) < 0.5
    assert chance == pytest.approx(np.count_nonzero(a), rel=0.02)


def test_no_step_depends_on_others() -> None:
    """To the bit: not on those worked on with it, nor on how many these are, nor on what ulps they have."""
    weights = [drawn(kind) for kind in ("normal", "sparse", "wide")]
    ulps = np.unique(straight.spacing(np.concatenate(weights), "BF16"))
    counts = np.array(
        [(straight.spacing(each, "BF16")[:, None] == ulps).sum(0) for each in weights]
    )
    rng = np.random.default_rng(0)
    counts = counts * rng.uniform(1, 2, (3, 1))  # weights that each sampled one stands for
    which = rng.integers(3, size=1000)
    lengths = 10.0 ** rng.uniform(-12, 3, 1000)
    lengths[::7] = 0.0
    together = turned_products(counts, ulps, which, lengths)
    chances = np.array(changes(counts, ulps, which, lengths))
    assert not together[::7].any() and np.all(together[lengths > 0] >= 0)
    for n in range(0, 1000, 11):
        own = np.flatnonzero(counts[which[n]])
        one = counts[which[n]][None, own], ulps[own], np.zeros(1, int), lengths[n : n + 1]
        assert turned_products(*one)[0] == together[n]
        assert np.array_equal(np.array(changes(*one))[:, 0], chances[:, n])


def test_steps_without_length_or_beyond_all_numbers_have_no_product() -> None:
    counts, ulps = histogram(drawn("normal"), "F16")
    which, lengths = np.zeros(4, int), np.array([0.0, math.inf, math.nan, 1e-320])
    products = turned_products(counts, ulps, which, lengths)
    assert products[:3].tolist() == [0, 0, 0] and 0 <= products[3] <= 1e-320
    assert changes(counts, ulps, which, lengths)[0][:3].tolist() == [0, 0, 0]
