"""A random sample of the weights: which segments stand for a tensor.

Every tensor (every part of a fused one) is a stratum: it is divided into segments of nearly
equal length, of which some are drawn at random, without replacement. The same segments are read in all
checkpoints. Each is dealt to one of JACKKNIFE_FOLDS folds, by which standard errors are made
(docs/method.md, "Sampling"). The draw is a function of the tensors, the fraction and the seed alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.checkpoint.parts import Part
from pipeline.planning.align import AlignedTensor
from pipeline.planning.tiles import TensorRange, everything, range_bytes

JACKKNIFE_FOLDS = 32
"""16 to 64 gave the coverage owed, 8 did not (docs/method.md, "Sampling")."""

LEAST_SEGMENTS = 8
"""In every other tensor. With 4, intervals held the truth in 87.0-95.0 % of the cases on networks whose
rows move very differently, at 1, 5 and 20 % of the weights; with 8 in 89.0-96.3 %
(benchmarks/results/coverage.md)."""
LEAST_SEGMENTS_OF_A_TABLE = 40
"""In embeddings and output heads, whose rows (tokens) move very differently: with 16 to 20 segments the
interval of relative_mds held the truth in 86-89 % of the cases (docs/method.md, "Sampling")."""
_TABLES = frozenset({"embed", "position", "unembed"})

LEAST_ELEMENTS = 256
"""Of a segment: half a kilobyte or more, about what the headers of a request take."""
MOST_ELEMENTS = 1 << 18
"""Of a segment, before more are drawn: half a megabyte or more, where a request costs little beside its
bytes; more segments are more precise."""
PERIODS_IN_A_SEGMENT = 4
"""Segments that hold so many periods of a fused tensor hold all of its parts in nearly equal shares."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How one part of one tensor was sampled."""

    segments: int
    """How many it was divided into."""
    folds: tuple[int, ...]
    """The jackknife fold of each segment drawn; none if the part is read whole."""

    @property
    def whole(self) -> bool:
        """True where every element is read."""
        return not self.folds

    @property
    def fraction(self) -> float:
        """Share of the elements that is read."""
        return 1.0 if self.whole else len(self.folds) / self.segments

    @property
    def counts(self) -> Counter[int]:
        """How many segments each jackknife fold holds."""
        return Counter(self.folds)


WHOLE = Draw(1, ())


@dataclass(frozen=True, slots=True)
class Sample:
    """What is read of each tensor, for all checkpoints."""

    draws: tuple[tuple[Draw, ...], ...]
    """By number of the tensor and of its part."""
    ranges: tuple[TensorRange, ...]


def draw(tensors: Sequence[AlignedTensor], fraction: float, seed: int) -> Sample:
    """Return a sample of at least this fraction of every tensor."""
    draws: list[tuple[Draw, ...]] = []
    ranges: list[TensorRange] = []
    for index, tensor in enumerate(tensors):
        twin = tensor.twin.name if tensor.twin and tensor.twin.is_drawn_alike else None
        rng = random.Random(f"{seed} {twin or tensor.name}")
        of_parts, drawn = _draw_tensor(tensor, fraction, rng)
        draws.append(of_parts)
        ranges += (TensorRange(index, *each) for each in sorted(drawn))
    return Sample(tuple(draws), tuple(ranges))


def draw_within(
    tensors: Sequence[AlignedTensor], budget: int, seed: int
) -> tuple[float, Sample | None]:
    """Return the largest fraction whose sample reads at most `budget` bytes, and that sample.

    The sample is None where the least one reads more, the fraction 1 where all fits.
    """
    total = range_bytes(everything(tensors), tensors)
    if budget >= total:
        return 1.0, None
    least, most, best = 0.0, budget / total, None
    for _ in range(12):  # to a 4,096th of the fraction
        fraction = (least + most) / 2
        sample = draw(tensors, fraction, seed)
        if range_bytes(sample.ranges, tensors) <= budget:
            least, best = fraction, sample
        else:  # a sample may exceed its fraction on small tensors
            most = fraction
    return least, best


def segment_bounds(numel: int, segments: int, number: int) -> tuple[int, int]:
    """Return the elements of one of the segments that `numel` elements are divided into."""
    return number * numel // segments, (number + 1) * numel // segments


_Ranges = list[tuple[int, int, int]]  # first, stop, fold


def _draw_tensor(
    tensor: AlignedTensor, fraction: float, rng: random.Random
) -> tuple[tuple[Draw, ...], _Ranges]:
    if len(tensor.parts) > 1:
        period = max(part.period for part in tensor.parts)
        least = max(_least_segments(part) for part in tensor.parts)
        segments, count = _division(
            tensor.numel // period, fraction, least, LEAST_ELEMENTS / period
        )
        if count and tensor.numel // period // segments >= PERIODS_IN_A_SEGMENT:
            drawn = _draw_segments(segments, count, rng)
            ranges = list(
                _ranges(drawn, lambda number: _whole_periods(tensor, period, segments, number))
            )
            return (_as_draw(segments, drawn),) * len(tensor.parts), ranges
    draws, all_ranges = [], []
    for part in tensor.parts:
        block = part.stop - part.start
        numel = tensor.numel // part.period * block
        segments, count = _division(numel, fraction, _least_segments(part), LEAST_ELEMENTS)
        if not count:
            draws.append(WHOLE)
            all_ranges += ((first, stop, 0) for first, stop in _located(part, 0, numel))
            continue
        drawn = _draw_segments(segments, count, rng)
        draws.append(_as_draw(segments, drawn))

        def located(number: int, part: Part = part, numel: int = numel, segments: int = segments):
            return _located(part, *segment_bounds(numel, segments, number))

        all_ranges += _ranges(drawn, located)
    if all(drawn.whole for drawn in draws):
        return tuple(draws), [(0, tensor.numel, 0)]
    return tuple(draws), all_ranges


def _least_segments(part: Part) -> int:
    return LEAST_SEGMENTS_OF_A_TABLE if part.component in _TABLES else LEAST_SEGMENTS


def _division(units: int, fraction: float, least: int, least_units: float) -> tuple[int, int]:
    """Return into how many segments to divide, and how many to draw: none if all is to be read.

    Args:
        units: elements or periods.
        least: segments to draw at least.
        least_units: units of a segment at least.
    """
    most_units = least_units * (MOST_ELEMENTS / LEAST_ELEMENTS)
    count = max(least, -int(-fraction * units // most_units))
    segments = int(min(count / fraction, units / least_units, units))
    if segments <= count or 2 * count * least_units >= units:
        return 1, 0
    return segments, count


def _draw_segments(segments: int, count: int, rng: random.Random) -> dict[int, int]:
    """Return the segments drawn, and the jackknife fold of each.

    Only `random()` is used: Python keeps its sequence from version to version.
    """
    drawn: dict[int, None] = {}
    for last in range(segments - count, segments):  # R. Floyd's sampling without replacement
        number = int(rng.random() * (last + 1))
        drawn[last if number in drawn else number] = None
    shuffled = sorted(drawn, key=lambda _: rng.random())
    first = int(rng.random() * JACKKNIFE_FOLDS)
    return {number: (first + deal) % JACKKNIFE_FOLDS for deal, number in enumerate(shuffled)}


def _as_draw(segments: int, folds: dict[int, int]) -> Draw:
    return Draw(segments, tuple(folds[number] for number in sorted(folds)))


def _ranges(
    folds: dict[int, int], ranges: Callable[[int], Iterator[tuple[int, int]]]
) -> Iterator[tuple[int, int, int]]:
    for number, fold in folds.items():
        for first, stop in ranges(number):
            yield first, stop, fold


def _whole_periods(
    tensor: AlignedTensor, period: int, segments: int, number: int
) -> Iterator[tuple[int, int]]:
    first, stop = segment_bounds(tensor.numel // period, segments, number)
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
