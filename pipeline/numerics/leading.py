"""How much of the displacements lies along one direction: `relative_share_1` and `backbone_share`.

Both are shares of a largest eigenvalue. All eigenvalues of a matrix of 154 rows take 0.6 ms, the
largest alone less than 0.1: by the Lanczos process, whose largest Ritz value is that eigenvalue long
before others are known. Its vectors are not made orthogonal again: what comes of that are copies of
eigenvalues that are known.

Shapes: G = groups in the stack, K = checkpoints that are present.

Source: docs/method-2.md, §5.1; C. C. Paige, "Accuracy and effectiveness of the Lanczos algorithm for
the symmetric eigenproblem", Linear Algebra and its Applications 34 (1980).
"""

from collections.abc import Callable

import numpy as np

from pipeline.numerics.stack import FloatArray, diagonal, ratio

CONVERGED = 1e-8
"""Of the eigenvalue: a Ritz value with no longer residual is off by less, mostly by its square."""

_VECTORS_AT_ONCE = 8
"""Between two looks at the Ritz values. Random walks take 8 or 16, matrices of a hundred eigenvalues
near the largest 72."""


def relative_share(relative_dots: FloatArray) -> FloatArray:
    """(G,) share of the first eigenvalue of the displacements' Gram matrices; NaN if nothing moves.

    Args:
        relative_dots: (G, K, K).
    """
    total = np.ascontiguousarray(diagonal(relative_dots)).sum(axis=1)
    return ratio(_largest(relative_dots), total)


def backbone_share(relative_cosine: FloatArray) -> FloatArray:
    """(G,) the same of displacements scaled to length 1, whose dot products are cosines.

    Args:
        relative_cosine: (G, K, K), NaN of displacements that are zero.
    """
    defined = np.count_nonzero(~np.isnan(diagonal(relative_cosine)), axis=1)
    directions = np.where(np.isnan(relative_cosine), 0.0, relative_cosine)
    return ratio(_largest(directions), defined.astype(float))


def walk_shares(gone: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Both, (G,) each, of a random walk.

    Args:
        gone: (G, K), the squared displacements s_k; their dot products are min(s_i, s_j), of which
            products with vectors are cumulative sums.
    """
    lengths = np.sqrt(gone)
    inverse = np.divide(1.0, lengths, out=np.zeros_like(gone), where=gone > 0)

    def along_lengths(vectors: FloatArray) -> FloatArray:
        return _before(vectors * gone) + gone * _after(vectors)

    def along_directions(vectors: FloatArray) -> FloatArray:
        return inverse * _before(vectors * lengths) + lengths * _after(vectors * inverse)

    defined = np.count_nonzero(gone, axis=1).astype(float)
    return (
        ratio(largest_eigenvalues(along_lengths, *gone.shape), gone.sum(axis=1)),
        ratio(largest_eigenvalues(along_directions, *gone.shape), defined),
    )


def largest_eigenvalues(
    product: Callable[[FloatArray], FloatArray], groups: int, count: int
) -> FloatArray:
    """(G,) the largest eigenvalue of each of G positive semidefinite matrices.

    That of a group does not depend on the others: it is taken where its own residual is short.

    Args:
        product: gives the products of the matrices and a vector each, (G, K).
        groups: G.
        count: K.
    """
    # of one sign, like the first eigenvectors of most paths, and orthogonal to none
    start = 1.0 + np.sin(np.arange(count) ** 2)
    vector = np.tile(start / np.sqrt(np.sum(start**2)), (groups, 1))
    before, beta = np.zeros_like(vector), np.zeros(groups)
    largest, known = np.zeros(groups), np.zeros(groups, bool)
    tridiagonal = np.zeros((groups, 0, 0))
    done, most = 0, 4 * count + _VECTORS_AT_ONCE  # a bound for what rounding keeps from converging
    while not known.all() and done < most:
        tridiagonal = np.pad(tridiagonal, ((0, 0), (0, _VECTORS_AT_ONCE), (0, _VECTORS_AT_ONCE)))
        for m in range(done, done + _VECTORS_AT_ONCE):
            if m:
                tridiagonal[:, m, m - 1] = tridiagonal[:, m - 1, m] = beta
            following = product(vector) - beta[:, np.newaxis] * before
            alpha = np.sum(following * vector, axis=1)
            following -= alpha[:, np.newaxis] * vector
            tridiagonal[:, m, m] = alpha
            beta = np.sqrt(np.sum(following * following, axis=1))
            scale = np.divide(1.0, beta, out=np.zeros(groups), where=beta > 0)
            before, vector = vector, following * scale[:, np.newaxis]
        done += _VECTORS_AT_ONCE
        values, vectors = np.linalg.eigh(tridiagonal)
        np.copyto(largest, values[:, -1], where=~known)
        known |= np.abs(vectors[:, -1, -1]) * beta <= CONVERGED * values[:, -1]
    return largest


def _largest(grams: FloatArray) -> FloatArray:
    def product(vectors: FloatArray) -> FloatArray:
        return (grams @ vectors[:, :, np.newaxis])[:, :, 0]

    return largest_eigenvalues(product, *grams.shape[:2])


def _before(values: FloatArray) -> FloatArray:
    """(G, K) sums of the rows up to each entry."""
    return np.cumsum(values, axis=1)


def _after(values: FloatArray) -> FloatArray:
    """(G, K) sums of the rows beyond each entry."""
    sums = np.zeros_like(values)
    np.cumsum(values[:, :0:-1], axis=1, out=sums[:, -2::-1])
    return sums
