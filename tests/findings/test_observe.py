"""What is seen of many tensors at once, against a loop over each."""

import numpy as np

from pipeline.findings.judge import _recur
from pipeline.findings.observe import AROUND, misfit


def slow_strain(squared_distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    found = np.full(len(labels), np.inf)
    for k in range(len(labels)):
        others = np.flatnonzero((labels != labels[k]) & ~np.isnan(squared_distances[k]))
        near = [*others[others < k][-AROUND:], *others[others > k][:AROUND]]
        if near:
            found[k] = np.mean([np.sqrt(squared_distances[k, j]) / abs(j - k) for j in near])
    return found


def test_strain_of_many_tensors() -> None:
    """With copies, absent checkpoints, and values that never change."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, size=(40, 13))
    labels[3] = 2
    points = rng.normal(size=(40, 13, 5))
    distances = ((points[:, :, np.newaxis] - points[:, np.newaxis]) ** 2).sum(axis=-1)
    absent = rng.uniform(size=(40, 13)) < 0.2
    distances[absent] = np.nan
    distances.swapaxes(1, 2)[absent] = np.nan
    found = misfit(distances, labels)
    for values, distance, label in zip(found, distances, labels, strict=True):
        np.testing.assert_allclose(values, slow_strain(distance, label), rtol=1e-12)
    assert np.isinf(found[3]).all()


def test_values_that_recur() -> None:
    rows = {(0, 1, 2): False, (0, 0, 2): False, (0, 1, 0): True, (5, 5, 5): False, (1, 2, 1): True}
    assert _recur(np.array(list(rows))).tolist() == list(rows.values())
