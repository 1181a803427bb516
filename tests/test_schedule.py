"""Whose tile is which: nothing is lost, nothing counted twice, and only what kills is given up."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ReadError, SourceChanged, TransientReadError
from pipeline.execute.drive.schedule import MAX_DEATHS, MAX_FAILURES, Schedule


@given(
    tiles=st.integers(0, 40),
    per_worker=st.integers(1, 4),
    poison=st.sets(st.integers(0, 39), max_size=3),
    events=st.randoms(use_true_random=False),
)
@settings(max_examples=300, deadline=None)
def test_every_tile_has_one_end(
    tiles: int, per_worker: int, poison: set[int], events: object
) -> None:
    """Workers join, die, fail and finish in any order; a poisonous tile kills whoever begins it."""
    schedule = Schedule(range(tiles), per_worker)
    ended: Counter[int] = Counter()
    holding: dict[int, set[int]] = {}
    failures: Counter[int] = Counter()
    born, now, chaos = 0, 0.0, 60
    while not schedule.over:
        now += 1
        if not holding or (chaos and events.random() < 0.1):  # type: ignore[attr-defined]
            schedule.join(born)
            holding[born] = set()
            born += 1
        while (handed := schedule.next(now)) is not None:
            worker, tile = handed
            assert isinstance(worker, int) and tile not in holding[worker]
            holding[worker].add(tile)
            assert len(holding[worker]) <= per_worker
            assert set(schedule.tiles_of(worker)) == holding[worker]
        busy = [worker for worker, held in holding.items() if held]
        if not busy:
            continue
        worker = events.choice(busy)  # type: ignore[attr-defined]
        tile = events.choice(sorted(holding[worker]))  # type: ignore[attr-defined]
        schedule.begun(worker, tile)
        chance = events.random() if chaos else 1.0  # type: ignore[attr-defined]
        if tile in poison or chance < 0.1:
            chaos -= chance < 0.1 and chaos > 0
            del holding[worker]
            for lost in schedule.leave(worker, "died"):
                ended[lost.tile] += 1
                assert str(2 * MAX_DEATHS) in lost.error.message
            continue
        holding[worker].discard(tile)
        if chance < 0.2 and failures[tile] < MAX_FAILURES - 1:
            chaos -= 1
            failures[tile] += 1
            assert schedule.failed(worker, tile, TransientReadError("passing")) is None
        elif schedule.done(worker, tile, now):
            ended[tile] += 1
    assert ended == Counter(range(tiles))


def test_a_tile_that_kills_runs_alone_and_takes_no_other_with_it() -> None:
    schedule = Schedule(range(6), per_worker=3)
    worker, deaths, lost, done = 0, 0, [], []
    while not schedule.over:
        worker += 1
        schedule.join(worker)
        held = []
        while (handed := schedule.next(0.0)) is not None:
            held.append(handed[1])
        for tile in held:
            schedule.begun(worker, tile)
        if 4 in held:
            assert held == [4] or deaths < MAX_DEATHS
            lost += schedule.leave(worker, "died")
            deaths += 1
            continue
        done += [tile for tile in held if schedule.done(worker, tile, 0.0)]
        schedule.leave(worker, "goes home")
    assert sorted(done) == [0, 1, 2, 3, 5]
    assert [entry.tile for entry in lost] == [4]
    assert "4 times, 2 of them alone" in lost[0].error.message


def test_workers_that_die_before_they_begin_count_for_nothing() -> None:
    schedule = Schedule([7], per_worker=1)
    for worker in range(20):
        schedule.join(worker)
        assert schedule.next(0.0) == (worker, 7)
        assert schedule.leave(worker, "died") == []
    schedule.join("last")
    assert schedule.next(0.0) == ("last", 7)


def test_errors_count_and_permanent_ones_end_it() -> None:
    schedule = Schedule([0, 1], per_worker=2)
    schedule.join("w")
    for attempt in range(MAX_FAILURES):
        while schedule.next(0.0) is not None:
            pass
        lost = schedule.failed("w", 0, TransientReadError("again"))
        assert (lost is not None) == (attempt == MAX_FAILURES - 1)
    assert schedule.failed("w", 1, ReadError("never")) is not None
    assert schedule.over


def test_a_changed_file_stops_everything() -> None:
    schedule = Schedule([0, 1], per_worker=2)
    schedule.join("w")
    schedule.next(0.0)
    with pytest.raises(SourceChanged):
        schedule.failed("w", 0, SourceChanged("another file"))


def test_idle_workers_repeat_what_takes_long_and_the_first_result_counts() -> None:
    schedule = Schedule([0, 1, 2], per_worker=1)
    for worker in "ab":
        schedule.join(worker)
    assert [schedule.next(0.0), schedule.next(0.0)] == [("a", 0), ("b", 1)]
    assert schedule.done("b", 1, 1.0)
    assert schedule.next(1.0) == ("b", 2)
    assert schedule.done("b", 2, 2.0)
    assert schedule.next(2.0) is None, "a tile took a second so far: two are not long yet"
    assert schedule.next(2.5) == ("b", 0)
    schedule.join("c")
    assert schedule.next(9.0) is None, "one copy is enough"
    assert schedule.done("b", 0, 9.5)
    assert schedule.over
    assert not schedule.done("a", 0, 10.0)
    assert schedule.leave("a", "died") == []
