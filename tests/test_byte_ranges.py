"""Which byte ranges fill a block: every byte of every row once, from where it lies, in few ranges."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.parts import Part
from pipeline.checkpoint.roles import role
from pipeline.checkpoint.stored import Extent
from pipeline.execute.work.byte_ranges import ByteRange, byte_ranges
from pipeline.planning.align import AlignedTensor
from pipeline.planning.blocks import BlockLayout, block_layouts
from pipeline.planning.tiles import divide, everything
from pipeline.statistics.pieces import PIECE

ROWS = 3


@st.composite
def suites(draw: st.DrawFn) -> list[AlignedTensor]:
    """Tensors in any order, format and file at each checkpoint, some of them in several extents."""
    tensors: list[AlignedTensor] = []
    ends = [[8, 8] for _ in range(ROWS)]
    for index in range(draw(st.integers(1, 6))):
        numel = draw(st.integers(1, 40) | st.integers(PIECE - 1, 3 * PIECE))
        dtypes = tuple(draw(st.sampled_from(["F32", "F16", "BF16"])) for _ in range(ROWS))
        files, starts, scattered = [], [], {}
        for row, dtype in enumerate(dtypes):
            shard, gap = draw(st.integers(0, 1)), draw(st.sampled_from([0, 0, 0, 16]))
            files.append(2 * row + shard)
            starts.append(ends[row][shard] + gap)
            ends[row][shard] = starts[-1] + numel * DTYPES[dtype].itemsize
            if numel > 1 and draw(st.sampled_from([False, False, True])):
                cut = draw(st.integers(1, numel - 1))
                scattered[row] = (Extent(0, files[-1], starts[-1]), Extent(cut, 6, 1000 * index))
        whole = (Part("", "other", numel, 0, numel),)
        name = f"t{index}"
        tensors.append(
            AlignedTensor(
                name,
                (numel,),
                numel,
                role(name),
                whole,
                dtypes,
                tuple(files),
                tuple(starts),
                scattered=scattered,
            )
        )
    return draw(st.permutations(tensors))


@settings(max_examples=50, deadline=None)
@given(suites(), st.integers(8 * PIECE, 1 << 19), st.sampled_from([1, 1 << 16]))
def test_every_byte_of_a_row_comes_from_where_it_lies(
    tensors: list[AlignedTensor], row_bytes: int, at_once: int
) -> None:
    for tile in divide(everything(tensors), tensors, 1 << 20):
        for layout in block_layouts(tile, tensors, row_bytes):
            with patch("pipeline.execute.work.byte_ranges._AT_ONCE", at_once):
                ranges = byte_ranges(layout, tensors)
            assert [each.row for each in ranges] == sorted(each.row for each in ranges)
            for row in range(ROWS):
                of_row = [each for each in ranges if each.row == row]
                assert np.array_equal(_filled(layout, of_row), _expected(layout, tensors, row))
                for one, other in itertools.pairwise(of_row):
                    end = (one.file, one.stop, one.column + one.stop - one.start)
                    assert (other.file, other.start, other.column) != end, "these two are one"


def _filled(layout: BlockLayout, ranges: list[ByteRange]) -> NDArray[np.int64]:
    """Return file and offset of what comes to lie in each column, -1 where nothing does."""
    found = np.full((layout.row_bytes, 2), -1)
    for file, start, stop, _, column in ranges:
        place = found[column : column + stop - start]
        assert (place == -1).all(), "read twice"
        place[:, 0], place[:, 1] = file, np.arange(start, stop)
    return found


def _expected(layout: BlockLayout, tensors: list[AlignedTensor], row: int) -> NDArray[np.int64]:
    found = np.full((layout.row_bytes, 2), -1)
    for placed in layout.ranges:
        tensor, range_ = tensors[placed.range.tensor], placed.range
        size = DTYPES[tensor.dtypes[row]].itemsize
        whole = (Extent(0, tensor.files[row], tensor.starts[row]),)
        extents = tensor.scattered.get(row, whole)
        elements = np.arange(range_.first, range_.stop)
        number = np.searchsorted([extent.first for extent in extents], elements, "right") - 1
        file, first, start = (
            np.array([getattr(extent, name) for extent in extents])[number]
            for name in ("file", "first", "start")
        )
        bytes_of = (start + (elements - first) * size)[:, None] + np.arange(size)
        place = found[placed.column : placed.column + bytes_of.size]
        place[:, 0], place[:, 1] = np.repeat(file, size), bytes_of.ravel()
    return found
