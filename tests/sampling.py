"""Samples drawn over and over from weights whose figures are known exactly.

The Gram matrix of every cell that a fraction divides the tensors into is made once; a draw is then
a choice of cells, and hundreds of draws take seconds. Drawing, adding up and the figures are the
package's own; only reading is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoint.parts import Part
from pipeline.checkpoint.roles import role
from pipeline.numerics import indicators as numerics
from pipeline.numerics.basis import Basis
from pipeline.numerics.straight_turns import SCALES
from pipeline.planning.align import AlignedTensor
from pipeline.planning.sample import JACKKNIFE_FOLDS, Draw, draw, segment_bounds
from pipeline.reduce.estimate import Estimate, Stratum
from pipeline.reduce.figures import Figures, GroupSums, Times, figures

Weights = Mapping[str, NDArray[np.floating]]
"""Tensor → (K, numel) values."""
INDICATORS = ("mds", "relative_mds", "straightness", "pca_share_1")


@dataclass
class Covered:
    """How estimates of one figure lie about the truth."""

    truth: float
    estimates: NDArray[np.float64]
    errors: NDArray[np.float64]

    @property
    def coverage(self) -> float:
        """Share of the intervals estimate ± 1.96 standard errors that hold the truth."""
        return float(np.mean(np.abs(self.estimates - self.truth) <= 1.96 * self.errors))

    @property
    def bias(self) -> float:
        """Mean error in standard deviations of the estimates."""
        return float((self.estimates.mean() - self.truth) / self.estimates.std())


def tensors_of(weights: Weights) -> list[AlignedTensor]:
    """Return the tensors as planning would give them, one checkpoint's file each."""
    found = []
    for name, rows in weights.items():
        count, numel = rows.shape
        whole = (Part("", role(name).component, numel, 0, numel),)
        places = tuple(range(count)), (0,) * count
        found.append(
            AlignedTensor(name, (numel,), numel, role(name), whole, ("F32",) * count, *places)
        )
    return found


def increments(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """(K, K) Gram matrix in the increment basis."""
    rows = rows.astype(np.float64)
    basis = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    return basis @ basis.T


def model_figures(sums: Iterable[GroupSums], count: int) -> Figures:
    """Return the figures, a stack of one, of several tensors together."""
    first, *others = sums
    total, changes = first.increments.copy(), dict(first.changes)
    for other in others:
        total += other.increments
        for group, change in other.changes.items():
            changes[group] = changes.get(group, 0) + change
    folds = max(entry.folds for entry in (first, *others))
    return figures([_group_sums(total, changes, folds)], _times(count), Basis((0,), count))


def _times(count: int) -> Times:
    return Times(np.arange(count, dtype=float), np.arange(count, dtype=float))


def _group_sums(total: NDArray, changes: dict[int, NDArray], folds: int) -> GroupSums:
    count = len(total)
    digests = np.arange(count, dtype=np.uint64)[:, np.newaxis]
    straight = np.zeros((2, len(SCALES), count))
    return GroupSums(total, digests, np.zeros(count, bool), straight, changes, True, folds)


class Sampled:
    """Weights from which samples of one fraction are drawn."""

    def __init__(self, weights: Weights, fraction: float) -> None:
        self._weights, self._fraction = weights, fraction
        self._tensors = tensors_of(weights)
        self._count = len(next(iter(weights.values())))
        self._whole = cache(lambda name: increments(weights[name]))
        self._cells: dict[tuple[str, int], NDArray[np.float64]] = {}

    def exact(self) -> Figures:
        """Return the figures of all weights."""
        sums = (_group_sums(self._whole(name), {}, 0) for name in self._weights)
        return model_figures(sums, self._count)

    def estimate(self, seed: int) -> Figures:
        """Return the figures of one sample."""
        sample = draw(self._tensors, self._fraction, seed)
        sums = []
        for index, tensor in enumerate(self._tensors):
            (drawn,) = sample.draws[index]
            if drawn.whole:
                sums.append(_group_sums(self._whole(tensor.name), {}, 0))
                continue
            grams = self._grams(tensor, drawn)
            stratum = Stratum(drawn.segments, drawn.counts, len(drawn.folds))
            estimate = Estimate({0: stratum}, JACKKNIFE_FOLDS, self._count)
            runs = [range_ for range_ in sample.ranges if range_.tensor == index]
            for range_ in runs:
                cell = -(-range_.first * drawn.segments // tensor.numel)
                assert segment_bounds(tensor.numel, drawn.segments, cell) == (
                    range_.first,
                    range_.stop,
                )
                estimate.add(0, range_.fold, grams[cell])
            sums.append(_group_sums(*estimate.result(), JACKKNIFE_FOLDS))
        return model_figures(sums, self._count)

    def fraction_read(self) -> float:
        """Return the share of the weights that a sample holds."""
        sample = draw(self._tensors, self._fraction, 0)
        read = sum(range_.stop - range_.first for range_ in sample.ranges)
        return read / sum(tensor.numel for tensor in self._tensors)

    def coverage(self, seeds: Iterable[int]) -> dict[str, Covered]:
        """Return how the estimates of many samples lie about the exact figures."""
        truth = self._chosen(self.exact())[0]
        found = [self._chosen(self.estimate(seed)) for seed in seeds]
        values, errors = (np.array(column) for column in zip(*found, strict=True))
        return {
            name: Covered(truth[i], values[:, i], errors[:, i])
            for i, name in enumerate((*INDICATORS, "cosine(0, T)"))
        }

    def _chosen(self, found: Figures) -> tuple[list[float], list[float]]:
        (dots,) = found.dots
        norms = np.sqrt(np.diagonal(dots))
        places = [numerics.INDICATORS.index(name) for name in INDICATORS]
        values, errors = found.indicators[0, places], found.indicator_errors[0, places]
        cosine = float(dots[0, -1] / (norms[0] * norms[-1]))
        return [*values, cosine], [*errors, float(found.cosine_errors[0, 0, -1])]

    def _grams(self, tensor: AlignedTensor, drawn: Draw) -> NDArray[np.float64]:
        key = tensor.name, drawn.segments
        if key not in self._cells:
            rows = self._weights[tensor.name].astype(np.float64)
            basis = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
            bounds = [
                segment_bounds(tensor.numel, drawn.segments, i) for i in range(drawn.segments)
            ]
            self._cells[key] = np.stack([basis[:, a:b] @ basis[:, a:b].T for a, b in bounds])
        return self._cells[key]


def synthetic(kind: str, count: int = 24, width: int = 128, layers: int = 4) -> Weights:
    """Return a made-up network's weights on a smooth path, or on a random walk.

    Rows move by amounts of their own (those of the embeddings like the counts of words, in which a
    few tokens are most of a text), layers by others, and all less and less.
    """
    rng = np.random.default_rng(7)
    shapes = {
        "model.embed_tokens.weight": (16 * width, width),
        "lm_head.weight": (16 * width, width),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{x}_proj.weight": (width, width) for x in "qkvo"}
        shapes |= {f"{prefix}mlp.up_proj.weight": (4 * width, width)}
        shapes |= {f"{prefix}mlp.down_proj.weight": (width, 4 * width)}
        shapes |= {f"{prefix}input_layernorm.weight": (width, 1)}
    weights = {}
    for name, (rows, columns) in shapes.items():
        size = np.exp(0.5 * rng.standard_normal((rows, 1)))
        if "embed" in name or "head" in name:
            size = (1 + rng.permutation(rows))[:, np.newaxis] ** -0.5
        size *= np.exp(0.5 * rng.standard_normal())
        theta = rng.standard_normal((rows, columns))
        ahead, aside = rng.standard_normal((2, rows, columns))
        path = [theta]
        for k in range(1, count):
            turn = np.cos(k / count) * ahead + np.sin(k / count) * aside
            noise = rng.standard_normal((rows, columns))
            move = noise if kind == "walk" else turn + 0.3 * noise
            path.append(path[-1] + size * move / (1 + k) ** 0.5)
        weights[name] = np.stack(path).reshape(count, -1).astype(np.float32)
    return weights
