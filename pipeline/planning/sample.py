"""A random sample of the weights: which runs of elements stand for a tensor.

Every tensor (every part of a fused one) is a stratum: it is divided into cells, runs of nearly equal
length, of which some are drawn at random, without replacement. The same cells are read in all
checkpoints. Each is dealt to one of JACKKNIFE_GROUPS groups, by which standard errors are made
(docs/method.md, "Sampling"). The draw is a function of the tensors, the fraction and the seed alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.checkpoint.roles import Part
from pipeline.planning.align import AlignedTensor
from pipeline.planning.tiles import Fragment, everything, fragment_bytes

JACKKNIFE_GROUPS = 32
"""16 to 64 gave the coverage owed, 8 did not (docs/method.md, "Sampling")."""

LEAST_RUNS = 8
"""In every other tensor. With 4, intervals held the truth in 87.0-95.0 % of the cases on networks whose
rows move very differently, at 1, 5 and 20 % of the weights; with 8 in 89.0-96.3 %
(benchmarks/results/coverage.md)."""
LEAST_RUNS_OF_A_TABLE = 40
"""In embeddings and output heads, whose rows (tokens) move very differently: with 16 to 20 runs the
interval of relative_mds held the truth in 86-89 % of the cases (docs/method.md, "Sampling")."""
_TABLES = frozenset({"embed", "position", "unembed"})

LEAST_ELEMENTS = 256
"""Of a run: half a kilobyte or more, about what the headers of a request take."""
MOST_ELEMENTS = 1 << 18
"""Of a run, before more are drawn: half a megabyte or more, where a request costs little beside its
bytes; more runs are more precise."""
PERIODS_IN_A_RUN = 4
"""Runs that hold so many periods of a fused tensor hold all of its parts in nearly equal shares."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How one part of one tensor was sampled."""

    cells: int
    """How many runs it was divided into."""
    groups: tuple[int, ...]
    """The jackknife group of each run drawn; none if the part is read whole."""

    @property
    def whole(self) -> bool:
        """True where every element is read."""
        return not self.groups

    @property
    def fraction(self) -> float:
        """Share of the elements that is read."""
        return 1.0 if self.whole else len(self.groups) / self.cells

    @property
    def counts(self) -> Counter[int]:
        """How many runs each jackknife group holds."""
        return Counter(self.groups)


WHOLE = Draw(1, ())


@dataclass(frozen=True, slots=True)
class Sample:
    """What is read of each tensor, for all checkpoints."""

    draws: tuple[tuple[Draw, ...], ...]
    """By number of the tensor and of its part."""
    fragments: tuple[Fragment, ...]


def draw(tensors: Sequence[AlignedTensor], fraction: float, seed: int) -> Sample:
    """Return a sample of at least this fraction of every tensor."""
    draws: list[tuple[Draw, ...]] = []
    fragments: list[Fragment] = []
    for index, tensor in enumerate(tensors):
        rng = random.Random(f"{seed} {tensor.name}")
        found, runs = _draw_tensor(tensor, fraction, rng)
        draws.append(found)
        fragments += (Fragment(index, *run) for run in sorted(runs))
    return Sample(tuple(draws), tuple(fragments))


def draw_within(
    tensors: Sequence[AlignedTensor], budget: int, seed: int
) -> tuple[float, Sample | None]:
    """Return the largest fraction whose sample reads at most `budget` bytes, and that sample.

    The sample is None where the least one reads more, the fraction 1 where all fits.
    """
    total = fragment_bytes(everything(tensors), tensors)
    if budget >= total:
        return 1.0, None
    least, most, best = 0.0, budget / total, None
    for _ in range(12):  # to a 4,096th of the fraction
        fraction = (least + most) / 2
        sample = draw(tensors, fraction, seed)
        if fragment_bytes(sample.fragments, tensors) <= budget:
            least, best = fraction, sample
        else:  # a sample may exceed its fraction on small tensors
            most = fraction
    return least, best


def cell_bounds(numel: int, cells: int, number: int) -> tuple[int, int]:
    """Return the elements of one of the cells that `numel` elements are divided into."""
    return number * numel // cells, (number + 1) * numel // cells


_Runs = list[tuple[int, int, int]]  # first, stop, group


def _draw_tensor(
    tensor: AlignedTensor, fraction: float, rng: random.Random
) -> tuple[tuple[Draw, ...], _Runs]:
    if len(tensor.parts) > 1:
        period = max(part.period for part in tensor.parts)
        least = max(_least_runs(part) for part in tensor.parts)
        cells, count = _division(tensor.numel // period, fraction, least, LEAST_ELEMENTS / period)
        if count and tensor.numel // period // cells >= PERIODS_IN_A_RUN:
            found = _draw_cells(cells, count, rng)
            runs = list(
                _ranges(found, lambda number: _whole_periods(tensor, period, cells, number))
            )
            return (_as_draw(cells, found),) * len(tensor.parts), runs
    draws, all_runs = [], []
    for part in tensor.parts:
        block = part.stop - part.start
        numel = tensor.numel // part.period * block
        cells, count = _division(numel, fraction, _least_runs(part), LEAST_ELEMENTS)
        if not count:
            draws.append(WHOLE)
            all_runs += ((first, stop, 0) for first, stop in _located(part, 0, numel))
            continue
        found = _draw_cells(cells, count, rng)
        draws.append(_as_draw(cells, found))

        def ranges(number: int, part: Part = part, numel: int = numel, cells: int = cells):
            return _located(part, *cell_bounds(numel, cells, number))

        all_runs += _ranges(found, ranges)
    if all(found.whole for found in draws):
        return tuple(draws), [(0, tensor.numel, 0)]
    return tuple(draws), all_runs


def _least_runs(part: Part) -> int:
    return LEAST_RUNS_OF_A_TABLE if part.component in _TABLES else LEAST_RUNS


def _division(units: int, fraction: float, least: int, least_units: float) -> tuple[int, int]:
    """Return into how many cells to divide, and how many to draw: none if all is to be read.

    Args:
        units: elements or periods.
        least: runs to draw at least.
        least_units: units of a run at least.
    """
    most_units = least_units * (MOST_ELEMENTS / LEAST_ELEMENTS)
    count = max(least, -int(-fraction * units // most_units))
    cells = int(min(count / fraction, units / least_units, units))
    if cells <= count or 2 * count * least_units >= units:
        return 1, 0
    return cells, count


def _draw_cells(cells: int, count: int, rng: random.Random) -> dict[int, int]:
    """Return the cells drawn, and the jackknife group of each.

    Only `random()` is used: Python keeps its sequence from version to version.
    """
    drawn: dict[int, None] = {}
    for last in range(cells - count, cells):  # R. Floyd's sampling without replacement
        number = int(rng.random() * (last + 1))
        drawn[last if number in drawn else number] = None
    shuffled = sorted(drawn, key=lambda _: rng.random())
    first = int(rng.random() * JACKKNIFE_GROUPS)
    return {cell: (first + deal) % JACKKNIFE_GROUPS for deal, cell in enumerate(shuffled)}


def _as_draw(cells: int, found: dict[int, int]) -> Draw:
    return Draw(cells, tuple(found[cell] for cell in sorted(found)))


def _ranges(
    found: dict[int, int], ranges: Callable[[int], Iterator[tuple[int, int]]]
) -> Iterator[tuple[int, int, int]]:
    for cell, group in found.items():
        for first, stop in ranges(cell):
            yield first, stop, group


def _whole_periods(
    tensor: AlignedTensor, period: int, cells: int, number: int
) -> Iterator[tuple[int, int]]:
    first, stop = cell_bounds(tensor.numel // period, cells, number)
    yield first * period, stop * period


def _located(part: Part, first: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield where the elements [first, stop) of a part lie in its tensor."""
    block = part.stop - part.start
    if block == part.period:
        yield first, stop
        return
    while first < stop:
        number, inside = divmod(first, block)
        length = min(stop - first, block - inside)
        start = number * part.period + part.start + inside
        yield start, start + length
        first += length
