"""Tiles and blocks cover every element once; memory is projected and refused before reading."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.parts import Part
from pipeline.checkpoint.roles import role
from pipeline.errors import NothingMatches, PlanDoesNotFit, RequestError
from pipeline.planning.align import AlignedTensor
from pipeline.planning.blocks import block_layouts
from pipeline.planning.memory import project, show_size
from pipeline.planning.options import parse_size
from pipeline.planning.request import Request, StepRange
from pipeline.planning.select import select
from pipeline.planning.tiles import divide, everything
from pipeline.sources.base import Candidate
from pipeline.statistics.pieces import CHUNK, PIECE, bounds

COUNT = 3
sizes = st.integers(1, 5) | st.integers(1, 4 * CHUNK) | st.sampled_from([PIECE, CHUNK, CHUNK + 1])
formats = st.sampled_from(["F64", "F32", "F16", "BF16"])


@st.composite
def aligned(draw: st.DrawFn) -> list[AlignedTensor]:
    """Tensors that lie one after the other in each checkpoint's file, or in a file of their own."""
    tensors, ends = [], [8] * COUNT
    for index, numel in enumerate(draw(st.lists(sizes, min_size=1, max_size=6))):
        uniform = draw(st.booleans())
        first = draw(formats)
        dtypes = tuple(first if uniform else draw(formats) for _ in range(COUNT))
        starts = list(ends)
        for k, dtype in enumerate(dtypes):
            ends[k] += numel * DTYPES[dtype].itemsize
        whole = (Part("", "other", numel, 0, numel),)
        name = f"t{index}"
        files = tuple(range(COUNT))
        tensors.append(
            AlignedTensor(name, (numel,), numel, role(name), whole, dtypes, files, tuple(starts))
        )
    return tensors


@given(aligned(), st.integers(1, 1 << 24))
def test_tiles_cover_every_element_once(tensors: list[AlignedTensor], least: int) -> None:
    tiles = divide(everything(tensors), tensors, least)
    covered = [(f.tensor, f.first, f.stop) for tile in tiles for f in tile.ranges]
    assert covered == sorted(covered)
    for index, tensor in enumerate(tensors):
        mine = [(first, stop) for number, first, stop in covered if number == index]
        assert mine[0][0] == 0 and mine[-1][1] == tensor.numel
        assert all(a[1] == b[0] for a, b in itertools.pairwise(mine))
        assert all(first % CHUNK == 0 for first, _ in mine)
    assert all(tile.bytes >= least for tile in tiles[:-1])
    assert len({tile.name for tile in tiles}) == len(tiles)
    assert divide(everything(tensors), tensors, least) == tiles


@settings(max_examples=50)
@given(aligned(), st.integers(PIECE * 8, 1 << 23))
def test_blocks_cover_every_byte_once(tensors: list[AlignedTensor], row_bytes: int) -> None:
    for tile in divide(everything(tensors), tensors, 1 << 22):
        parts = list(block_layouts(tile, tensors, row_bytes))
        covered = [(p.range.tensor, p.range.first, p.range.stop) for s in parts for p in s.ranges]
        assert covered == sorted(covered)
        whole = sum(f.stop - f.first for f in tile.ranges)
        assert sum(stop - first for _, first, stop in covered) == whole
        for layout in parts:
            assert layout.row_bytes % 64 == 0
            end = 0
            for placed in layout.ranges:
                length = placed.range.stop - placed.range.first
                assert placed.column >= end and placed.column % placed.width == 0
                end = placed.column + length * placed.width
                ends_tensor = placed.range.stop == tensors[placed.range.tensor].numel
                assert placed.range.stop % PIECE == 0 or ends_tensor
            assert end <= max(row_bytes, layout.row_bytes)


@given(st.integers(0, 5 * PIECE), st.integers(0, 5 * PIECE))
def test_pieces_are_cut_at_the_same_places_wherever_one_starts(first: int, length: int) -> None:
    cuts = bounds(first, first + length, PIECE)
    assert [e for start, stop in cuts for e in (start, stop)][1:-1:2] == [b[1] for b in cuts[:-1]]
    assert all(0 < stop - start <= PIECE for start, stop in cuts)
    assert all(stop % PIECE == 0 for _, stop in cuts[:-1])
    assert sum(stop - start for start, stop in cuts) == length


@given(aligned(), st.integers(1, 4))
def test_the_least_that_is_named_is_enough(tensors: list[AlignedTensor], calls: int) -> None:
    tiles = divide(everything(tensors), tensors, 1 << 22)
    least = project(tensors, tiles, 1 << 50, calls).least
    memory = project(tensors, tiles, least, calls)
    assert memory.projected <= least
    with pytest.raises(PlanDoesNotFit, match="need at least"):
        project(tensors, tiles, least - 1, calls)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GiB", 2 << 30),
        ("500MB", 500_000_000),
        ("1.5g", 1_500_000_000),
        ("64 KiB", 65536),
        ("7", 7),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1XB", "1e9", "0", "nan", "1.2.3MB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


@given(st.integers(1, 1 << 45))
def test_sizes_read_what_they_show(num_bytes: int) -> None:
    assert parse_size(show_size(num_bytes, up=True)) >= num_bytes


@pytest.mark.parametrize("text", ["", "5", "a:b", "5:1", "1:2:0", "1:2:3:4"])
def test_step_ranges_that_are_none(text: str) -> None:
    with pytest.raises(RequestError, match="--steps"):
        StepRange.parse(text)


def test_selection() -> None:
    names = ["step10", "step2", "main", "step1", "step0", "v0-step2"]
    candidates = [Candidate(name, None) for name in names]
    found = select(candidates, Request("s", steps=StepRange.parse("1:10")))
    assert [c.candidate.name for c in found.checkpoints] == ["step1", "step2", "step10"]
    reasons = {entry.name: entry.reason for entry in found.left_out}
    assert reasons["main"] == "outside --steps"
    assert "same step as step2" in reasons["v0-step2"]
    assert reasons["step0"] == "outside --steps"
    found = select(candidates, Request("s", revisions=("step?",)))
    assert [c.candidate.name for c in found.checkpoints] == ["step0", "step1", "step2"]
    with pytest.raises(NothingMatches, match="at least 2"):
        select(candidates, Request("s", revisions=("main",)))


def test_time_goes_on_where_a_stage_starts_again() -> None:
    names = ["stage1-step10", "stage1-step20", "stage2-step5", "stage2-step10"]
    found = select([Candidate(name, None) for name in names], Request("s"))
    assert [c.elapsed for c in found.checkpoints] == [10, 20, 25, 30]
