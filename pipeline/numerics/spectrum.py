"""Eigenvalues of a trajectory's Gram matrices, what they sum up to, and its principal components.

Shapes: K = checkpoints that are present, R = ranks of one basis. The bases of the view
`spectrum` have as many ranks as their Gram matrix has rows:

    trajectory  K      of the theta_k
    relative    K - 1  of the displacements theta_k - theta_0, k >= 1
    centered    K      of H G H, H = I - 11'/K (the last is always 0)
    increments  K - 1  of the increments, k >= 1

Source: docs/method.md, section "Indicators".
"""

from dataclasses import dataclass

import numpy as np

from pipeline.numerics.trajectory import FloatArray, Trajectory

NUM_COMPONENTS = 3


@dataclass(frozen=True, eq=False, slots=True)
class Spectrum:
    """All eigenvalues of one trajectory and its projection, from one decomposition each."""

    eigenvalues: dict[str, FloatArray]
    """Basis to (R,), descending, none negative; in the order trajectory, ..., increments."""
    projection: FloatArray
    """(K, 3) coordinates on the principal components of the centered trajectory."""


def spectrum(trajectory: Trajectory) -> Spectrum:
    """The four spectra and the projection."""
    values, vectors = np.linalg.eigh(centered_gram(trajectory))
    centered = _cleaned(values)
    return Spectrum(
        eigenvalues={
            "trajectory": eigenvalues(trajectory.dots),
            "relative": eigenvalues(trajectory.relative_dots[1:, 1:]),
            "centered": centered,
            "increments": eigenvalues(trajectory.increments[1:, 1:]),
        },
        projection=_projection(centered, vectors[:, ::-1]),
    )


def spectrum_between(
    dots: FloatArray, relative_dots: FloatArray, squared_distances: FloatArray
) -> Spectrum:
    """The spectra of checkpoints of several paths that no path is needed for, and the projection.

    Args:
        dots: (K, K), of all present checkpoints.
        relative_dots: (K, K), of displacements, each from the start of its own path.
        squared_distances: (K, K); H G H = -H D H / 2, with nothing common left to cancel.
    """
    values, vectors = np.linalg.eigh(centered(squared_distances / -2.0))
    cleaned = _cleaned(values)
    return Spectrum(
        eigenvalues={
            "trajectory": eigenvalues(dots),
            "relative": eigenvalues(relative_dots),
            "centered": cleaned,
        },
        projection=_projection(cleaned, vectors[:, ::-1]),
    )


def centered_gram(trajectory: Trajectory) -> FloatArray:
    """(K, K) H G H, from the displacements: theta_0 is common to all rows and would cancel."""
    return centered(trajectory.relative_dots)


def centered(gram: FloatArray) -> FloatArray:
    """(K, K) H G H of any symmetric G."""
    if not gram.size:
        return gram.copy()
    mean = gram.mean(axis=0)
    # The sum of two broadcasts of one vector keeps the matrix symmetric to the last bit.
    return gram - (mean + mean[:, np.newaxis]) + mean.mean()


def eigenvalues(gram: FloatArray) -> FloatArray:
    """(R,) eigenvalues of a Gram matrix, descending; those that are rounding noise are 0."""
    return _cleaned(np.linalg.eigvalsh(gram).astype(np.float64))


def shares(values: FloatArray) -> FloatArray:
    """(R,) each eigenvalue's share of their sum; NaN if all are 0."""
    total = values.sum()
    return values / total if total > 0 else np.full_like(values, np.nan)


def leading_shares(values: FloatArray) -> tuple[float, float, float]:
    """The first three shares, 0 for ranks that do not exist; NaN if nothing moves."""
    if not values.any():
        return np.nan, np.nan, np.nan
    first, second, third = np.append(shares(values), np.zeros(NUM_COMPONENTS))[:NUM_COMPONENTS]
    return float(first), float(second), float(third)


def effective_rank(values: FloatArray) -> float:
    """exp of the entropy of the shares; NaN if all eigenvalues are 0."""
    positive = values[values > 0]
    if not positive.size:
        return np.nan
    share = shares(positive)
    return float(np.exp(-np.sum(share * np.log(share))))


def participation_ratio(values: FloatArray) -> float:
    """(sum of eigenvalues)^2 / sum of their squares; NaN if all eigenvalues are 0."""
    return float(1.0 / np.sum(shares(values) ** 2)) if values.any() else np.nan


def stable_rank(values: FloatArray) -> float:
    """Sum of eigenvalues / the largest; NaN if all eigenvalues are 0."""
    return float(values.sum() / values[0]) if values.any() else np.nan


def rank_holding(values: FloatArray, share: float) -> float:
    """How many of the largest eigenvalues hold `share` < 1 of the sum; NaN if all are 0."""
    if not values.any():
        return np.nan
    return float(np.searchsorted(np.cumsum(shares(values)), share) + 1)


def _cleaned(ascending: FloatArray) -> FloatArray:
    """(R,) descending, with everything up to R eps lambda_1 set to 0.

    That is the size of the errors LAPACK and the summed matrix itself leave (negative ones
    included), so nothing that could be known is lost, ranks that do not exist hold exactly nothing,
    and no later square root or logarithm meets noise.
    """
    descending = ascending[::-1]
    noise = descending.size * np.finfo(np.float64).eps * descending[:1]
    return np.where(descending > np.maximum(noise, 0.0), descending, 0.0)


def _projection(values: FloatArray, vectors: FloatArray) -> FloatArray:
    """(K, 3) sqrt(lambda) u, signed so that the last row is not negative; 0 beyond the rank."""
    coordinates = np.zeros((len(values), NUM_COMPONENTS))
    scaled = np.sqrt(values[:NUM_COMPONENTS]) * vectors[:, :NUM_COMPONENTS]
    coordinates[:, : scaled.shape[1]] = np.where(scaled[-1:] < 0, -scaled, scaled)
    return coordinates + 0.0  # turns -0.0 into 0.0
