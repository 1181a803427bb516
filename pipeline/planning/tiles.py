"""Tiles: the unit of scheduling, of resuming and of result files.

A tile is a run of elements of one or several aligned tensors, times all checkpoints. The
division is a function of the checkpoints and the request alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.checkpoint.roles import Part
from pipeline.planning.align import AlignedTensor
from pipeline.statistics.parts import PartKey
from pipeline.statistics.pieces import CHUNK

MIN_TILE_BYTES = 64 << 20
"""A tile reads at least this much, so that what a tile costs beside its work (a call, a file: a few
milliseconds) is little against reading it."""

BYTES_PER_RESULT_BYTE = 1000
"""A tile reads at least this many times its result for one part. With 935 checkpoints of 29 GB a
result is 7 MB: tiles of 64 MiB would make 400,000 files of 2.8 TB, this rule 4,000 of 27 GB."""

MAX_RESULT_BYTES = 128 << 20
"""Bound on the accumulators of a tile of many small tensors (8 n² bytes each)."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """The elements [first, stop) of one tensor."""

    tensor: int
    first: int
    stop: int
    group: int = 0
    """Jackknife group, of a sample."""


@dataclass(frozen=True, slots=True)
class Tile:
    index: int
    fragments: tuple[Fragment, ...]
    bytes: int
    """What the tile reads, over all checkpoints."""
    name: str
    """Digest of what the tile is; its result file is called so."""


def tile_bytes(num_checkpoints: int) -> int:
    """Return how much a tile reads at least, unless it is what is left of its tensors."""
    return max(MIN_TILE_BYTES, BYTES_PER_RESULT_BYTE * 8 * num_checkpoints**2)


def everything(tensors: Sequence[AlignedTensor]) -> tuple[Fragment, ...]:
    """Return fragments that hold every element of every tensor once."""
    return tuple(Fragment(index, 0, tensor.numel) for index, tensor in enumerate(tensors))


def divide(
    fragments: Sequence[Fragment], tensors: Sequence[AlignedTensor], least_bytes: int
) -> tuple[Tile, ...]:
    """Return the tiles that cover every fragment once, in order.

    Large fragments are cut at multiples of CHUNK elements; small ones share a tile.
    """
    if not tensors:
        return ()
    most_results = max(1, MAX_RESULT_BYTES // (8 * len(tensors[0].dtypes) ** 2))
    tiles: list[tuple[Fragment, ...]] = []
    current: list[Fragment] = []
    keys: set[tuple[int, int, int]] = set()
    num_bytes = 0
    for fragment in fragments:
        size, first = tensors[fragment.tensor].bytes_per_element, fragment.first
        while first < fragment.stop:
            wanted = -(-(least_bytes - num_bytes) // size)
            stop = min(fragment.stop, first + -(-wanted // CHUNK) * CHUNK)
            current.append(replace(fragment, first=first, stop=stop))
            keys.update(results(current[-1], tensors))
            num_bytes += (stop - first) * size
            first = stop
            if num_bytes >= least_bytes or len(keys) >= most_results:
                tiles.append(tuple(current))
                current, num_bytes, keys = [], 0, set()
    if current:
        tiles.append(tuple(current))
    return tuple(_tile(index, fragments, tensors) for index, fragments in enumerate(tiles))


def files_of(tile: Tile, tensors: Sequence[AlignedTensor]) -> list[int]:
    """Return the numbers of the files that a tile reads."""
    return sorted({n for fragment in tile.fragments for n in tensors[fragment.tensor].all_files()})


def results(fragment: Fragment, tensors: Sequence[AlignedTensor]) -> Iterator[PartKey]:
    """Yield the parts that a fragment adds to."""
    for number, part in enumerate(tensors[fragment.tensor].parts):
        if elements(part, fragment.first, fragment.stop):
            yield PartKey(fragment.tensor, number, fragment.group)


def elements(part: Part, first: int, stop: int) -> int:
    """Return how many of the elements [first, stop) of its tensor belong to the part."""
    block = part.stop - part.start

    def below(end: int) -> int:
        periods, rest = divmod(end, part.period)
        return periods * block + min(max(rest - part.start, 0), block)

    return below(stop) - below(first)


def _tile(index: int, fragments: tuple[Fragment, ...], tensors: Sequence[AlignedTensor]) -> Tile:
    digest = hashlib.sha256(str(index).encode())
    for fragment in fragments:
        tensor = tensors[fragment.tensor]
        place = f"{fragment.first} {fragment.stop} {fragment.group}"
        digest.update(f"\n{tensor.name!r} {place}".encode())
    name = f"{index:06d}-{digest.hexdigest()[:16]}"
    return Tile(index, fragments, fragment_bytes(fragments, tensors), name)


def fragment_bytes(fragments: Sequence[Fragment], tensors: Sequence[AlignedTensor]) -> int:
    """Return the stored size of some fragments, over all checkpoints."""
    return sum(
        (fragment.stop - fragment.first) * tensors[fragment.tensor].bytes_per_element
        for fragment in fragments
    )
