"""Figures of many groups at once are, to the bit, those of each alone; so are those of parts of paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.numerics.basis import Basis
from pipeline.numerics.indicators import INDICATORS
from pipeline.numerics.straight_turns import SCALES
from pipeline.numerics.windows import offered
from pipeline.reduce.batches import FigureBatch, figure_batches
from pipeline.reduce.figures import STACK_BYTES, Figures, GroupSums, Times, figures
from pipeline.reduce.groups import Key
from pipeline.reduce.sub_paths import Parts, PathParts, SubPaths
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
        elif name != "parts":
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


STAGES = (0, 0, 1, 1, 1, 1, 1, 1, 1, None, None, 2)
PARTS = Parts((5, 8), STAGES)


def said(parts: PathParts) -> dict[str, SubPaths]:
    """What is said of the parts of a path, by their kind."""
    kinds = {f"{width}": windows for width, windows in parts.windows.items()}
    kinds |= {"stages": parts.stages, "phases": parts.phases}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def assert_same(found: PathParts, expected: PathParts, after: int = 0) -> None:
    """The same of the same kinds, but for where the path begins."""
    assert said(found).keys() == said(expected).keys()
    for kind, parts in said(found).items():
        moved = said(expected)[kind].after(after)
        for name in SubPaths.__slots__:
            np.testing.assert_array_equal(getattr(parts, name), getattr(moved, name), kind)


@pytest.mark.parametrize("basis", BASES, ids=lambda basis: f"{len(basis.paths)} paths")
def test_parts_of_paths_in_a_stack_are_each_alone(basis: Basis) -> None:
    """And of a group that is not looked at there are none."""
    looked_at = [number % 4 != 3 for number in range(len(GROUPS))]
    order = np.random.default_rng(2).permutation(len(GROUPS))
    sums = list(GROUPS.values())
    shuffled = [sums[n] for n in order]
    together = figures(shuffled, TIMES, basis, PARTS, [looked_at[n] for n in order])
    for number, found in zip(order, together.parts, strict=True):
        alone = figures([sums[number]], TIMES, basis, PARTS, [True]).parts[0]
        assert_same(found, alone if looked_at[number] else PathParts())


@pytest.mark.parametrize("basis", BASES[1:], ids=lambda basis: f"{len(basis.paths)} paths")
def test_parts_of_several_paths_lie_within_each(basis: Basis) -> None:
    found = figures(list(GROUPS.values()), TIMES, basis, PARTS, [True] * len(GROUPS))
    for number in range(len(GROUPS)):
        for path, alone in zip(basis.paths, found.paths, strict=True):
            for kind, parts in said(found.parts[number]).items():
                within = (parts.first >= path.start) & (parts.last < path.stop)
                of_path = said(alone.parts[number]).get(kind)
                assert within.sum() == (0 if of_path is None else len(of_path.first))
                if of_path is not None:
                    np.testing.assert_array_equal(parts.values[within], of_path.values)
                    np.testing.assert_array_equal(parts.first[within], of_path.first + path.start)


def test_which_parts_there_are_of_a_path() -> None:
    """Windows are of checkpoints that are present; stages are where they are in the run."""
    names = list(GROUPS)
    parts = figures(list(GROUPS.values()), TIMES, BASES[0], PARTS, [True] * len(names)).parts
    whole, absent, lost, nothing = (
        said(parts[names.index(name)]) for name in ("walk", "absent", "lost", "all absent")
    )
    assert whole["8"].first.tolist() == [0, 1, 2, 3, 4] == lost["8"].first.tolist()
    assert absent["8"].first.tolist() == [1, 2] and absent["8"].last.tolist() == [10, 11]
    assert "8" not in nothing
    assert np.isnan(lost["5"].values).all() and np.isnan(lost["5"].null_values).all()
    for each in (whole, absent, lost, nothing):
        assert each["stages"].first.tolist() == [0, 2, 11]
        assert each["stages"].last.tolist() == [1, 8, 11]
        assert np.isnan(each["stages"].values[[0, 2]]).all()  # of 2 checkpoints, and of 1
    assert not np.isnan(whole["stages"].values[1, INDICATORS.index("mds")])
    for each in (absent, lost, nothing):  # five are present, or none
        assert np.isnan(each["stages"].values).all()


@pytest.mark.parametrize("name", ["walk", "copies", "absent", "sampled", "sampled, too little"])
def test_a_part_that_is_all_of_a_path_has_its_figures(name: str) -> None:
    """Less their bias in a sample, as far as it is known."""
    present = np.flatnonzero(~GROUPS[name].absent) if GROUPS[name] else np.arange(0)
    parts = Parts((present.size,), (7,) * COUNT)
    found = figures([GROUPS[name]], TIMES, BASES[0], parts, [True])
    (window,), (stage,) = found.parts[0].windows.values(), [found.parts[0].stages]
    assert stage is not None and (window.first[0], window.last[0]) == (present[0], present[-1])
    np.testing.assert_allclose(stage.values, found.indicators, rtol=1e-12)
    np.testing.assert_allclose(stage.null_values, found.null_values, rtol=1e-12)
    chosen = [INDICATORS.index(name) for name in offered(present.size)]
    np.testing.assert_allclose(window.values, found.indicators[:, chosen], rtol=1e-9)


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
