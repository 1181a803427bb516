"""Tiles: the unit of scheduling, of resuming and of result files.

A tile is some ranges of elements of aligned tensors, times all checkpoints. The
division is a function of the checkpoints and the request alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.checkpoint.parts import Part
from pipeline.planning.align import AlignedTensor
from pipeline.statistics.parts import PartKey
from pipeline.statistics.pieces import CHUNK

MIN_TILE_BYTES = 64 << 20
"""A tile reads at least this much, so that what a tile costs beside its work (a call, a file: a few
milliseconds) is little against reading it."""

BYTES_PER_RESULT_BYTE = 1000
"""A tile reads at least this many times its result for one part. With 935 checkpoints of 29 GB a
result is 7 MB: tiles of 64 MiB would make 400,000 files of 2.8 TB, this rule 4,000 of 27 GB."""

TILES_AT_LEAST = 16
"""Where the rule above would leave fewer: 935 checkpoints of 1 million float32 weights, 3.7 GB, were one tile,
which one core worked through while others had nothing to do."""

MAX_RESULT_BYTES = 128 << 20
"""Bound on the accumulators of a tile of many small tensors (8 n² bytes each; of a sketch 8 m n)."""


@dataclass(frozen=True, slots=True)
class TensorRange:
    """The elements [first, stop) of one tensor."""

    tensor: int
    first: int
    stop: int
    fold: int = 0
    """Jackknife fold, of a sample."""


@dataclass(frozen=True, slots=True)
class Tile:
    index: int
    ranges: tuple[TensorRange, ...]
    bytes: int
    """What the tile reads, over all checkpoints."""
    name: str
    """Digest of what the tile is; its result file is called so."""


def tile_bytes(num_checkpoints: int, total: int) -> int:
    """Return how much a tile reads at least, unless it is what is left of its tensors.

    Args:
        total: bytes to read in all.
    """
    of_result = BYTES_PER_RESULT_BYTE * 8 * num_checkpoints**2
    return max(MIN_TILE_BYTES, min(of_result, total // TILES_AT_LEAST))


def everything(tensors: Sequence[AlignedTensor]) -> tuple[TensorRange, ...]:
    """Return tensor ranges that hold every element of every tensor once."""
    return tuple(TensorRange(index, 0, tensor.numel) for index, tensor in enumerate(tensors))


def divide(
    ranges: Sequence[TensorRange],
    tensors: Sequence[AlignedTensor],
    least_bytes: int,
    part_bytes: int | None = None,
) -> tuple[Tile, ...]:
    """Return the tiles that cover every tensor range once, in order.

    Large ones are cut at multiples of CHUNK elements; small ones share a tile. Tensors that share
    bytes are cut alike, side by side, so that these are read once.

    Args:
        part_bytes: of the largest array of a part; default: of a Gram matrix.
    """
    if not tensors:
        return ()
    most_results = max(1, MAX_RESULT_BYTES // (part_bytes or 8 * len(tensors[0].dtypes) ** 2))
    tiles: list[tuple[TensorRange, ...]] = []
    current: list[TensorRange] = []
    keys: set[tuple[int, int, int]] = set()
    num_bytes = 0
    for alike in _with_sharers(ranges, tensors):
        first, last = alike[0].first, alike[0].stop
        size = sum(tensors[range_.tensor].num_bytes for range_ in alike)
        numel = tensors[alike[0].tensor].numel
        while first < last:
            wanted = -(-(least_bytes - num_bytes) * numel // size)
            stop = min(last, first + -(-wanted // CHUNK) * CHUNK)
            for range_ in alike:
                current.append(replace(range_, first=first, stop=stop))
                keys.update(results(current[-1], tensors))
                num_bytes += tensors[range_.tensor].share(first, stop)
            first = stop
            if num_bytes >= least_bytes or len(keys) >= most_results:
                tiles.append(tuple(current))
                current, num_bytes, keys = [], 0, set()
    if current:
        tiles.append(tuple(current))
    return tuple(_tile(index, ranges, tensors) for index, ranges in enumerate(tiles))


def cut_alike(
    ranges: Sequence[TensorRange], tensors: Sequence[AlignedTensor]
) -> Iterator[list[TensorRange]]:
    """Yield the ranges of a tile: those that follow each other and share bytes together."""
    alike: list[TensorRange] = []
    for range_ in ranges:
        if alike and not _share(alike[0], range_, tensors):
            yield alike
            alike = []
        alike.append(range_)
    if alike:
        yield alike


def _with_sharers(
    ranges: Sequence[TensorRange], tensors: Sequence[AlignedTensor]
) -> Iterator[list[TensorRange]]:
    """Yield every range once, with those of tensors that share its bytes."""
    partial = {n for n, tensor in enumerate(tensors) if tensor.twin and tensor.twin.filled}
    sharers = [range_ for range_ in ranges if range_.tensor in partial]
    taken: set[TensorRange] = set()
    for range_ in ranges:
        if range_ not in taken and range_.tensor not in partial:
            alike = [each for each in sharers if _share(range_, each, tensors)]
            taken.update(alike)
            yield [range_, *alike]
    yield from ([range_] for range_ in sharers if range_ not in taken)


def _share(first: TensorRange, other: TensorRange, tensors: Sequence[AlignedTensor]) -> bool:
    return (first.first, first.stop, first.fold) == (
        other.first,
        other.stop,
        other.fold,
    ) and tensors[other.tensor].shares_bytes_of(tensors[first.tensor])


def files_of(tile: Tile, tensors: Sequence[AlignedTensor]) -> list[int]:
    """Return the numbers of the files that a tile reads."""
    return sorted({n for range_ in tile.ranges for n in tensors[range_.tensor].all_files()})


def results(range_: TensorRange, tensors: Sequence[AlignedTensor]) -> Iterator[PartKey]:
    """Yield the parts that a tensor range adds to."""
    for number, part in enumerate(tensors[range_.tensor].parts):
        if elements(part, range_.first, range_.stop):
            yield PartKey(range_.tensor, number, range_.fold)


def elements(part: Part, first: int, stop: int) -> int:
    """Return how many of the elements [first, stop) of its tensor belong to the part."""
    if part.stop - part.start == part.period:  # the whole tensor, as most are
        return stop - first
    return part.below(stop) - part.below(first)


def _tile(index: int, ranges: tuple[TensorRange, ...], tensors: Sequence[AlignedTensor]) -> Tile:
    digest = hashlib.sha256(str(index).encode())
    for range_ in ranges:
        tensor = tensors[range_.tensor]
        place = f"{range_.first} {range_.stop} {range_.fold}"
        digest.update(f"\n{tensor.name!r} {place}".encode())
    name = f"{index:06d}-{digest.hexdigest()[:16]}"
    return Tile(index, ranges, range_bytes(ranges, tensors), name)


def range_bytes(ranges: Sequence[TensorRange], tensors: Sequence[AlignedTensor]) -> int:
    """Return the stored size of some tensor ranges, over all checkpoints."""
    return sum(tensors[range_.tensor].share(range_.first, range_.stop) for range_ in ranges)
