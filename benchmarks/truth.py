"""A store of a virtual suite against the truth: errors of cosines, and what intervals hold.

K = checkpoints; `gram` is always (K, K), dot products of the stored weights in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.virtual import Blocks, Network, tensors
from tests import reference

Matrix = NDArray[np.float64]
_WIDTH = 1.96


def compared(store: Path, network: Network, blocks: Blocks, steps: list[int]) -> dict[str, Any]:
    """Return the worst errors over all pairs, of the model, its layers and its tensors.

    Relative cosines are also given over the fold, by which the accuracy that is owed grows
    (docs/method.md, §4). Of a sample: the share of pairs and of indicators whose truth lies within 1.96
    standard errors.
    """
    from pipeline import open_store

    opened = open_store(str(store))
    worst: dict[str, dict[str, float]] = {}
    held: dict[str, list[bool]] = {}
    for scope, where, gram in _groups(network, blocks):
        rows = opened.sql(
            "SELECT cosine, relative_cosine, cosine_stderr, relative_cosine_stderr FROM similarity"
            f" WHERE scope = '{scope}' {where} ORDER BY i, j"
        ).fetchnumpy()
        upper = np.triu_indices(len(gram))
        truth = _cosines(gram)[upper], _relative_cosines(gram)[upper]
        assert len(rows["cosine"]) == len(truth[0]), (scope, where)
        for name, true, allowed in (
            ("cosine", truth[0], None),
            ("relative_cosine", truth[1], _folds(gram)[upper]),
        ):
            errors = np.abs(np.ma.filled(rows[name], np.nan) - true)
            assert np.array_equal(np.isnan(errors), np.isnan(true)), (scope, where, name)
            of = {f"{name}_error": errors}
            if allowed is not None:
                of[f"{name}_error_over_fold"] = errors / allowed
            for what, each in of.items():
                by_scope = worst.setdefault(what, {})
                by_scope[scope] = max(by_scope.get(scope, 0.0), float(np.nanmax(each)))
            stderr = np.ma.filled(rows[f"{name}_stderr"].astype(float), np.nan)
            known = stderr > 0
            held.setdefault(f"{name}, {scope}", []).extend(
                (errors[known] <= _WIDTH * stderr[known]).tolist()
            )
        if scope != "tensor" and any(held[f"cosine, {scope}"]):
            held.setdefault(f"indicators, {scope}", []).extend(
                _indicators_held(opened, scope, where, gram, steps)
            )
    coverage = {name: round(float(np.mean(each)), 3) for name, each in held.items() if each}
    return worst | ({"coverage": coverage} if coverage else {})


def _groups(network: Network, blocks: Blocks) -> Iterator[tuple[str, str, Matrix]]:
    """Yield the groups: scope, what else selects it, and its true products."""
    count = len(blocks.rows)
    model, layers = np.zeros((count, count)), np.zeros((network.layers, count, count))
    for tensor in tensors(network):
        for name, intervals in tensor.parts(network).items():
            gram = blocks.gram(tensor.first, intervals)
            model += gram
            if tensor.layer is not None:
                layers[tensor.layer] += gram
            yield "tensor", f"AND tensor = '{name}'", gram
    for number, gram in enumerate(layers):
        yield "layer", f"AND layer = {number}", gram
    yield "model", "", model


def _cosines(gram: Matrix) -> Matrix:
    norms = np.sqrt(np.diagonal(gram))
    with np.errstate(divide="ignore", invalid="ignore"):  # of a checkpoint that has no displacement
        return gram / np.outer(norms, norms)


def _displacements(gram: Matrix) -> Matrix:
    return gram - gram[:1] - gram[:, :1] + gram[0, 0]


def _relative_cosines(gram: Matrix) -> Matrix:
    return _cosines(_displacements(gram))


def _folds(gram: Matrix) -> Matrix:
    """Return by how much the path to either of two displacements folds back, whichever is more."""
    squares = np.diagonal(gram)
    moved = np.concatenate(([0.0], squares[1:] + squares[:-1] - 2 * np.diagonal(gram, 1)))
    lengths = np.diagonal(_displacements(gram))
    folds = np.ones(len(gram))
    np.divide(np.cumsum(moved), lengths, out=folds, where=lengths > 0)
    return np.maximum.outer(*(2 * [np.maximum(1, folds)]))


def _indicators_held(
    opened: Any, scope: str, where: str, gram: Matrix, steps: list[int]
) -> list[bool]:
    """Return of each indicator that has a standard error whether its interval holds the truth."""
    values, vectors = np.linalg.eigh(gram)
    weights = vectors * np.sqrt(np.maximum(values, 0))  # explicit ones, of these products
    times, numbers = np.array(steps, float), np.arange(len(steps), dtype=float)
    truth = reference.indicators(weights, times, times, numbers)
    rows = opened.sql(
        "SELECT indicator, value, stderr FROM indicators"
        f" WHERE scope = '{scope}' {where} AND stderr > 0"
    ).fetchall()
    return [
        abs(value - truth[name]) <= _WIDTH * stderr for name, value, stderr in rows if name in truth
    ]
