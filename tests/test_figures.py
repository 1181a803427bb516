"""Figures of many groups at once are, to the bit, those of each alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.numerics.basis import Basis
from pipeline.numerics.straight_turns import SCALES
from pipeline.reduce.batches import FigureBatch, figure_batches
from pipeline.reduce.figures import STACK_BYTES, Figures, GroupSums, Times, figures
from pipeline.reduce.groups import Key
from tests import reference
from tests.numerics.examples import oscillating, spiral, standing, walk, with_copies

COUNT = 12
TIMES = Times(np.arange(COUNT) * 10.0, np.round(np.arange(COUNT) ** 1.7))


def sums_of(
    weights: NDArray[np.float64], absent: Iterable[int] = (), folds: int = 0, seed: int = 0
) -> GroupSums:
    """The sums over weights with an absence or two, estimated from a sample if there are folds."""
    rng = np.random.default_rng(seed)
    basis = np.diff(weights, axis=0, prepend=np.zeros_like(weights[:1]))
    changes = {}
    for fold in range(folds):
        part = 0.1 * basis * rng.normal(size=basis.shape[1])
        changes[fold] = part @ part.T
    digests = np.stack([reference.labels(weights)] * 2, axis=1).astype(np.uint64)
    return GroupSums(
        increments=basis @ basis.T,
        digests=digests,
        absent=np.isin(np.arange(COUNT), list(absent)),
        straight=np.sort(rng.uniform(size=(2, len(SCALES), COUNT)), axis=0),
        changes=changes,
        errors_known=seed != 7,
        folds=folds,
    )


GROUPS: dict[str, GroupSums | None] = {
    "walk": sums_of(walk(COUNT, 0.1)),
    "spiral": sums_of(spiral(COUNT, 0.1)),
    "absent": sums_of(walk(COUNT, 0.2), absent=(0, 4, 5)),
    "copies": sums_of(with_copies(walk(COUNT, 0.1), {4: 3, 7: 2, 9: 0, 11: 10})),
    "lost": None,
    "sampled": sums_of(spiral(COUNT, 0.2), folds=5),
    "standing": sums_of(standing(COUNT)),
    "zeros": sums_of(0.0 * standing(COUNT)),
    "all absent": sums_of(walk(COUNT, 0.1), absent=range(COUNT)),
    "folding": sums_of(oscillating(COUNT, 0.1), absent=(0, 4, 5)),
    "sampled, absent": sums_of(walk(COUNT, 0.3), absent=(2,), folds=5),
    "sampled, too little": sums_of(walk(COUNT, 0.3), folds=5, seed=7),
    "of fewer folds": sums_of(walk(COUNT, 0.3), folds=3),
    "few dimensions": sums_of(walk(COUNT, 0.1)[:, :4]),
}
BASES = [Basis((0,), COUNT), Basis((0, 5), COUNT), Basis((0, 3, 8), COUNT)]


def arrays(found: Figures) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every array of figures, those of the paths included."""
    for name in Figures.__slots__:
        value = getattr(found, name)
        if name == "paths":
            for number, path in enumerate(value):
                yield from ((f"{number}.{inner}", array) for inner, array in arrays(path))
        elif isinstance(value, dict):
            yield from ((f"{name}.{inner}", array) for inner, array in value.items())
        else:
            yield name, value


@pytest.mark.parametrize("basis", BASES, ids=lambda basis: f"{len(basis.paths)} paths")
def test_a_stack_of_groups_is_each_alone(basis: Basis) -> None:
    together = dict(arrays(figures(list(GROUPS.values()), TIMES, basis)))
    for number, (group, sums) in enumerate(GROUPS.items()):
        for name, alone in arrays(figures([sums], TIMES, basis)):
            np.testing.assert_array_equal(together[name][number], alone[0], f"{group}: {name}")


def test_order_and_neighbours_do_not_matter() -> None:
    numbers = np.random.default_rng(0).permutation(np.repeat(np.arange(len(GROUPS)), 3))
    sums = list(GROUPS.values())
    alone = dict(arrays(figures(sums, TIMES, BASES[0])))
    for name, found in arrays(figures([sums[n] for n in numbers], TIMES, BASES[0])):
        np.testing.assert_array_equal(found, alone[name][numbers], name)


@pytest.mark.parametrize("basis", BASES, ids=lambda basis: f"{len(basis.paths)} paths")
def test_what_is_not_known_is_undefined(basis: Basis) -> None:
    """Of a group that lost a tile, and of one with no finite checkpoint."""
    found = figures([GROUPS["lost"], GROUPS["all absent"]], TIMES, basis)
    assert found.known.tolist() == [False, True]
    for name, values in arrays(found):
        if values.dtype == np.float64:
            assert np.isnan(values).all(), name
    assert found.absent.all()


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_keep_the_order(threads: int) -> None:
    """Groups of the same weights come together, and each with its own figures."""
    rng = np.random.default_rng(1)
    chosen = [list(GROUPS)[n] for n in rng.integers(len(GROUPS), size=3000)]
    assert len(chosen) * 8 * COUNT**2 > STACK_BYTES
    keys = [[Key("tensor", tensor=f"{n}.{m}") for m in range(n % 3)] for n in range(len(chosen))]
    every = [key for own in keys for key in own]
    stops = np.cumsum([len(own) for own in keys]).tolist()
    numbers = [range(stop - len(own), stop) for own, stop in zip(keys, stops, strict=True)]
    sums = ((own, GROUPS[name]) for own, name in zip(numbers, chosen, strict=True))
    alone = figures(list(GROUPS.values()), TIMES, BASES[0])
    seen: list[int] = []
    batches = list(figure_batches(sums, every, TIMES, BASES[0], threads))
    assert len(batches) > 1
    for batch in batches:
        assert isinstance(batch, FigureBatch)
        for key, row in zip(batch.keys, batch.rows, strict=True):
            number = list(GROUPS).index(chosen[int(str(key.tensor).split(".")[0])])
            found = batch.figures.indicators[row]
            np.testing.assert_array_equal(found, alone.indicators[number])
        assert batch.keys == [every[number] for number in batch.numbers]
        seen += batch.numbers.tolist()
    assert seen == list(range(len(every)))
