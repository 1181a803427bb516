"""Eigenvalues of trajectories' Gram matrices, what they sum up to, and the principal components.

Shapes: G = groups in the stack, K = checkpoints that are present, R = ranks of one basis. The bases
of the view `spectrum` have as many ranks as their Gram matrix has rows:

    trajectory  K      of the theta_k
    relative    K - 1  of the displacements theta_k - theta_0, k >= 1
    centered    K      of H G H, H = I - 11'/K (the last is always 0)
    increments  K - 1  of the increments, k >= 1

Source: docs/method.md, section "Indicators".
"""

from dataclasses import dataclass

import numpy as np

from pipeline.numerics.stack import FloatArray, patterns
from pipeline.numerics.trajectory import Trajectory

BASES = ("trajectory", "relative", "centered", "increments")
NUM_COMPONENTS = 3


@dataclass(frozen=True, eq=False, slots=True)
class Spectrum:
    """All eigenvalues of trajectories and their projections, from one decomposition each."""

    eigenvalues: dict[str, FloatArray]
    """Basis to (G, R), descending, none negative; in the order trajectory, ..., increments."""
    projection: FloatArray
    """(G, K, 3) coordinates on the principal components of the centered trajectory."""


def spectrum(trajectory: Trajectory) -> Spectrum:
    """The four spectra and the projection."""
    values, vectors = np.linalg.eigh(centered_gram(trajectory))
    centered = _cleaned(values)
    return Spectrum(
        eigenvalues={
            "trajectory": eigenvalues(trajectory.dots),
            "relative": eigenvalues(trajectory.relative_dots[:, 1:, 1:]),
            "centered": centered,
            "increments": eigenvalues(trajectory.increments[:, 1:, 1:]),
        },
        projection=_projection(centered, vectors[:, :, ::-1]),
    )


def spectrum_between(
    dots: FloatArray, relative_dots: FloatArray, squared_distances: FloatArray
) -> Spectrum:
    """The spectra of checkpoints of several paths that no path is needed for, and the projection.

    Args:
        dots: (G, K, K), of all present checkpoints.
        relative_dots: (G, K, K), of displacements, each from the start of its own path.
        squared_distances: (G, K, K); H G H = -H D H / 2, with nothing common left to cancel.
    """
    values, vectors = np.linalg.eigh(centered(squared_distances / -2.0))
    cleaned = _cleaned(values)
    return Spectrum(
        eigenvalues={
            "trajectory": eigenvalues(dots),
            "relative": eigenvalues(relative_dots),
            "centered": cleaned,
        },
        projection=_projection(cleaned, vectors[:, :, ::-1]),
    )


def centered_gram(trajectory: Trajectory) -> FloatArray:
    """(G, K, K) H G H, from the displacements: theta_0 is common to all rows and would cancel."""
    return centered(trajectory.relative_dots)


def centered(grams: FloatArray) -> FloatArray:
    """(G, K, K) H G H of any symmetric G."""
    mean = grams.mean(axis=1)
    # The sum of two broadcasts of one vector keeps the matrix symmetric to the last bit.
    common = mean[:, np.newaxis] + mean[:, :, np.newaxis]
    np.subtract(grams, common, out=common)
    common += mean.mean(axis=1)[:, np.newaxis, np.newaxis]
    return common


def eigenvalues(grams: FloatArray) -> FloatArray:
    """(G, R) eigenvalues of Gram matrices, descending; those that are rounding noise are 0."""
    return _cleaned(np.linalg.eigvalsh(grams).astype(np.float64, copy=False))


def shares(values: FloatArray) -> FloatArray:
    """(G, R) each eigenvalue's share of their sum; NaN if all are 0."""
    total = values.sum(axis=1, keepdims=True)
    return np.divide(values, total, out=np.full_like(values, np.nan), where=total > 0)


def leading_shares(values: FloatArray) -> FloatArray:
    """(G, 3) the first three shares, 0 for ranks that do not exist; NaN if nothing moves."""
    first = shares(values)[:, :NUM_COMPONENTS]
    leading = np.zeros((len(values), NUM_COMPONENTS))
    leading[:, : first.shape[1]] = first
    leading[~values.any(axis=1)] = np.nan
    return leading


def effective_rank(values: FloatArray) -> FloatArray:
    """(G,) exp of the entropy of the shares; NaN if all eigenvalues are 0."""
    ranks = np.full(len(values), np.nan)
    for groups, positive in patterns(values > 0):
        share = shares(values[groups][:, positive])
        if share.shape[1]:
            ranks[groups] = np.exp(-np.sum(share * np.log(share), axis=1))
    return ranks


def participation_ratio(values: FloatArray) -> FloatArray:
    """(G,) (sum of eigenvalues)^2 / sum of their squares; NaN if all eigenvalues are 0."""
    return 1.0 / np.sum(shares(values) ** 2, axis=1)


def stable_rank(values: FloatArray) -> FloatArray:
    """(G,) sum of eigenvalues / the largest; NaN if all eigenvalues are 0."""
    largest, undefined = values[:, 0], np.full(len(values), np.nan)
    return np.divide(values.sum(axis=1), largest, out=undefined, where=largest > 0)


def rank_holding(values: FloatArray, share: float) -> FloatArray:
    """(G,) how many of the largest eigenvalues hold `share` < 1 of the sum; NaN if all are 0."""
    short = np.count_nonzero(np.cumsum(shares(values), axis=1) < share, axis=1)
    return np.where(values.any(axis=1), short + 1.0, np.nan)


def _cleaned(ascending: FloatArray) -> FloatArray:
    """(G, R) descending, with everything up to R eps lambda_1 set to 0.

    That is the size of the errors LAPACK and the summed matrix itself leave (negative ones
    included), so nothing that could be known is lost, ranks that do not exist hold exactly nothing,
    and no later square root or logarithm meets noise.
    """
    descending = ascending[:, ::-1]
    noise = descending.shape[1] * np.finfo(np.float64).eps * descending[:, :1]
    return np.where(descending > np.maximum(noise, 0.0), descending, 0.0)


def _projection(values: FloatArray, vectors: FloatArray) -> FloatArray:
    """(G, K, 3) sqrt(lambda) u, signed so that the last row is not negative; 0 beyond the rank."""
    coordinates = np.zeros((*values.shape, NUM_COMPONENTS))
    leading = np.sqrt(values[:, np.newaxis, :NUM_COMPONENTS])
    scaled = leading * vectors[:, :, :NUM_COMPONENTS]
    coordinates[:, :, : scaled.shape[2]] = np.where(scaled[:, -1:] < 0, -scaled, scaled)
    return coordinates + 0.0  # turns -0.0 into 0.0
