"""The loop that feeds workers, with events and times given: no Ray, no clock, no threads."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import (
    Corrupted,
    ReadError,
    SourceChanged,
    StoreUnusable,
    TransientReadError,
)
from pipeline.execute.drive.events import (
    Admit,
    AnnounceNoRoom,
    Answered,
    Asked,
    BackOff,
    Began,
    BlockGone,
    BlockWanted,
    Cluster,
    Command,
    Died,
    Drop,
    Ended,
    Event,
    Failed,
    Finish,
    LeaveOut,
    Limited,
    ProbeFailed,
    ProbePassed,
    Reported,
    Run,
    Start,
    Verified,
    Verify,
)
from pipeline.execute.drive.loop import (
    ANNOUNCE_EVERY_S,
    MAX_DEATHS_IN_A_ROW,
    NO_PROGRESS_S,
    ROOM_S,
    Loop,
)
from pipeline.execute.drive.schedule import MAX_DEATHS, MAX_FAILURES, Lost
from pipeline.execute.work.receipt import Receipt

PASSING = TransientReadError("a connection was reset")
NODES = frozenset("ab")


def cluster(workers: int | None, **about: Any) -> Cluster:
    return Cluster(NODES, workers, **about)


def receipt(tile: int) -> Receipt:
    return Receipt(tile, 1, 0.0, 0.0, "cpu")


def done(worker: int, tile: int) -> Ended:
    return Ended(worker, tile, receipt(tile))


def with_workers(loop: Loop, count: int, now: float = 0.0) -> list[Command]:
    """Start workers whose probes pass at once; return what they are to do."""
    started = loop.step([cluster(count)], now)
    workers = [command.worker for command in started if isinstance(command, Start)]
    return loop.step([ProbePassed(worker) for worker in workers], now)


def test_workers_start_are_probed_and_get_tiles_in_turn() -> None:
    loop = Loop([7, 8, 9], per_worker=2)
    assert loop.step([], 0.0) == []
    assert loop.step([cluster(2)], 1.0) == [Start(0, 0), Start(1, 1)]
    assert loop.step([cluster(2)], 2.0) == [], "as many as there is room for"
    assert loop.step([ProbePassed(1)], 3.0) == [Run(1, 7, 0), Run(1, 8, 1)]
    assert loop.step([ProbePassed(0)], 3.0) == [Run(0, 9, 0)]
    assert loop.step([done(1, 8)], 4.0) == [receipt(8)]
    assert loop.step([done(0, 9), done(1, 7)], 5.0) == [receipt(9), receipt(7), Finish()]
    assert loop.step([cluster(2)], 6.0) == [], "it is over"


def test_without_tiles_nothing_starts() -> None:
    assert Loop([], 2).step([cluster(3)], 0.0) == [Finish()]


def test_workers_join_as_the_cluster_grows_and_stay_as_it_shrinks() -> None:
    loop = Loop(range(9), per_worker=1)
    assert with_workers(loop, 1) == [Run(0, 0, 0)]
    assert loop.step([cluster(3)], 1.0) == [Start(1, 1), Start(2, 2)]
    assert loop.step([cluster(None)], 2.0) == [], "nobody can say how many fit"
    assert loop.step([cluster(1)], 3.0) == []
    assert loop.step([ProbePassed(2)], 4.0) == [Run(2, 1, 0)]


# ---- tiles that fail


def test_errors_that_may_pass_are_tried_again_and_count() -> None:
    loop = Loop([0, 1], per_worker=2)
    commands = with_workers(loop, 1)
    assert commands == [Run(0, 0, 0), Run(0, 1, 1)]
    for attempt in range(MAX_FAILURES - 1):
        assert loop.step([Ended(0, 0, PASSING)], 1.0) == [Run(0, 0, 2 + attempt)]
    assert loop.step([Ended(0, 0, PASSING)], 2.0) == [Lost(0, PASSING)]
    never = ReadError("no such file")
    assert loop.step([Ended(0, 1, never)], 3.0) == [Lost(1, never), Finish()]


def test_a_changed_file_ends_it_and_what_was_finished_before_counts() -> None:
    loop = Loop([0, 1], per_worker=2)
    with_workers(loop, 1)
    changed = SourceChanged("another file")
    assert loop.step([done(0, 0), Ended(0, 1, changed)], 1.0) == [receipt(0), Finish(changed)]
    assert loop.step([done(0, 1)], 2.0) == []


def test_what_takes_long_is_repeated_and_the_first_result_counts() -> None:
    loop = Loop([0, 1, 2], per_worker=1)
    assert with_workers(loop, 2) == [Run(0, 0, 0), Run(1, 1, 0)]
    assert loop.step([done(1, 1)], 1.0) == [receipt(1), Run(1, 2, 1)]
    assert loop.step([done(1, 2)], 2.0) == [receipt(2)]
    assert loop.step([], 2.0) == [], "two seconds are not long yet where others took one"
    assert loop.step([], 2.1) == [Run(1, 0, 2)]
    assert loop.step([], 60.0) == [], "one copy is enough"
    assert loop.step([done(0, 0)], 61.0) == [receipt(0), Finish()]


def test_a_tile_that_somebody_else_has_in_hand_is_not_given_up() -> None:
    loop = Loop([0, 1], per_worker=1)
    with_workers(loop, 2)
    assert loop.step([done(1, 1)], 1.0) == [receipt(1)]
    assert loop.step([], 9.0) == [Run(1, 0, 1)]
    assert loop.step([Ended(1, 0, ReadError("a disk that fails"))], 10.0) == [Run(1, 0, 2)]
    assert loop.step([Died(1, "killed")], 11.0) == [Drop(1)]
    assert loop.step([done(0, 0)], 12.0) == [receipt(0), Finish()]


# ---- workers that die


def test_a_dead_worker_is_replaced_and_its_tiles_are_done_by_others() -> None:
    loop = Loop([0, 1, 2], per_worker=2)
    assert with_workers(loop, 2) == [Run(0, 0, 0), Run(1, 1, 0), Run(0, 2, 1)]
    assert loop.step([Died(0, "killed")], 1.0) == [Drop(0), Run(1, 2, 1)]
    assert loop.step([cluster(2)], 2.0) == [Start(2, 0)]
    assert loop.step([done(0, 2), Reported(0, 5, True), Died(0, "again")], 3.0) == []
    assert loop.step([ProbePassed(2)], 3.0) == [Run(2, 0, 0)]
    assert loop.step([done(2, 0), done(1, 1), done(1, 2)], 4.0)[-1] == Finish()


def test_a_tile_that_kills_runs_alone_after_two_deaths_and_then_is_lost() -> None:
    loop = Loop([0, 1, 2, 3], per_worker=3)
    ends: list[Any] = []
    beside: list[list[int]] = []
    events: list[Event] = [cluster(1)]
    for now in range(100):
        in_hand: list[int] = []
        commands = loop.step(events, float(now))
        ends += [command for command in commands if isinstance(command, Receipt | Lost)]
        if Finish() in commands:
            break
        events = [cluster(1)]
        for command in commands:
            if isinstance(command, Start):
                events += [ProbePassed(command.worker)]
            elif isinstance(command, Run):
                in_hand.append(command.tile)
                worker = command.worker
        if 2 in in_hand:  # it dies of it, whatever else it had begun
            beside.append([tile for tile in in_hand if tile != 2])
            events = [*(Began(worker, tile) for tile in in_hand), Died(worker, "died"), *events]
        else:
            events = [*(done(worker, tile) for tile in in_hand), *events]
    assert len(beside) == 2 * MAX_DEATHS
    assert beside[MAX_DEATHS:] == [[]] * MAX_DEATHS, "alone"
    assert sorted(end.tile for end in ends) == [0, 1, 2, 3]
    (lost,) = (end for end in ends if isinstance(end, Lost))
    assert lost.tile == 2 and lost.error.message == "tile 2: died, 4 times, 2 of them alone"


def test_too_many_deaths_in_a_row_end_it() -> None:
    loop = Loop([0], per_worker=1)
    commands: list[Command] = []
    for death in range(MAX_DEATHS_IN_A_ROW + 1):
        (start,) = loop.step([cluster(1)], float(death))
        commands = loop.step([Died(start.worker, "killed")], float(death))
    assert isinstance(commands[-1], Finish)
    assert "6 workers died in a row without finishing a tile: killed" in str(commands[-1].error)


def test_a_finished_tile_makes_deaths_start_from_none() -> None:
    loop = Loop(range(50), per_worker=1)
    for tile in range(4 * MAX_DEATHS_IN_A_ROW):
        (start,) = loop.step([cluster(1)], float(tile))
        run = loop.step([ProbePassed(start.worker)], float(tile))[-1]
        assert isinstance(run, Run)
        ends: list[Event] = (
            [done(start.worker, run.tile)] if tile % MAX_DEATHS_IN_A_ROW == 0 else []
        )
        assert not any(
            isinstance(command, Finish)
            for command in loop.step([*ends, Died(start.worker, "killed")], float(tile))
        )


def test_silence_is_a_death() -> None:
    loop = Loop([0, 1], per_worker=1)
    with_workers(loop, 1)
    assert loop.step([Reported(0, 5)], 100.0) == []
    assert loop.step([Reported(0, 5)], 200.0) == [], "it says that it is there: that is no progress"
    assert loop.step([], 100.0 + NO_PROGRESS_S) == []
    assert loop.step([], 101.0 + NO_PROGRESS_S) == [Drop(0)]
    (start,) = loop.step([cluster(1)], 300.0)
    assert loop.step([ProbePassed(start.worker)], 300.0) == [Run(1, 0, 0)], "it waits again"


def test_only_who_has_something_to_do_can_be_silent() -> None:
    loop = Loop([0, 1, 2], per_worker=1)
    loop.step([cluster(2)], 0.0)
    assert loop.step([ProbePassed(0)], 0.0) == [Run(0, 0, 0)]
    assert loop.step([Reported(0, 1)], 999.0) == []
    assert loop.step([ProbePassed(1)], 1000.0) == [Run(1, 1, 0)], "it took long to start"
    assert loop.step([Reported(0, 2)], 1001.0) == []
    assert loop.step([Reported(0, 3)], 1000.0 + NO_PROGRESS_S) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([Reported(0, 1, spoke=True)], []),
        ([Asked(0, 9)], [Reported(0, -1)]),
        ([BlockWanted(0, 9, 10**9)], [Reported(0, -1)]),
    ],
)
def test_who_speaks_or_waits_for_the_driver_is_alive(
    before: list[Event], after: list[Event]
) -> None:
    loop = Loop([0], per_worker=1)
    loop.step([cluster(1, store_bytes=10**10)], 0.0)
    loop.step([ProbePassed(0)], 0.0)
    if isinstance(before[0], BlockWanted):  # another holds the room
        loop.step([BlockWanted(0, 1, 2 * 10**9)], 0.0)
    loop.step(before, 100.0)
    assert loop.step(after, 110.0) == []
    assert loop.step([], 110.0 + NO_PROGRESS_S - 20) == []


def test_once_answered_silence_counts_again() -> None:
    loop = Loop([0], per_worker=1)
    with_workers(loop, 1)
    loop.step([Asked(0, 9)], 0.0)
    assert loop.step([Reported(0, -1)], 200.0) == []
    assert loop.step([Answered(0, 9), Reported(0, -1)], 300.0) == []
    assert loop.step([], 201.0 + NO_PROGRESS_S) == [Drop(0)]


def test_to_wait_for_a_host_is_no_silence_whatever_else_comes_in() -> None:
    loop = Loop([0, 1], per_worker=1)
    with_workers(loop, 2)
    assert loop.step([Limited(0, "hub", 600.0)], 10.0) == [BackOff(1, "hub", 600.0)]
    assert loop.step([Reported(0, 7), Reported(1, 7)], 11.0) == [], "what was under way came in"
    assert loop.step([], 610.0 + NO_PROGRESS_S) == []
    assert loop.step([], 611.0 + NO_PROGRESS_S) == [Drop(0), Drop(1)]


# ---- nodes


def test_a_node_is_left_out_once_and_the_others_go_on() -> None:
    loop = Loop([0, 1], per_worker=1)
    loop.step([cluster(3)], 0.0)
    lacks = StoreUnusable("node a: --store is not the driver's")
    assert loop.step([ProbeFailed(0, "a", lacks)], 1.0) == [Drop(0), LeaveOut("a", lacks)]
    assert loop.step([ProbeFailed(1, "a", lacks)], 1.0) == [Drop(1)]
    assert loop.step([ProbePassed(2)], 2.0) == [Run(2, 0, 0)]


def test_if_no_other_node_is_left_that_is_the_end() -> None:
    loop = Loop([0, 1], per_worker=1)
    loop.step([cluster(2)], 0.0)
    lacks = StoreUnusable("node: --store is not the driver's")
    assert loop.step([ProbeFailed(0, "a", lacks)], 1.0) == [Drop(0), LeaveOut("a", lacks)]
    assert loop.step([ProbeFailed(1, "b", lacks)], 2.0) == [Drop(1), Finish(lacks)]


def test_a_node_that_fails_when_another_has_passed_is_no_end() -> None:
    loop = Loop([0, 1], per_worker=1)
    loop.step([Cluster(frozenset("a"), 2)], 0.0)
    loop.step([ProbePassed(0)], 0.0)
    lacks = StoreUnusable("node b: no such directory")
    loop.step([Died(0, "its node was lost")], 1.0)
    assert loop.step([ProbeFailed(1, "a", lacks)], 2.0) == [Drop(1), LeaveOut("a", lacks)]


def test_workers_without_room_are_announced_now_and_then() -> None:
    loop = Loop([0, 1], per_worker=1)
    full = cluster(2, has_room=False)
    assert loop.step([full], 0.0) == [Start(0, 0), Start(1, 1)]
    assert loop.step([full], ROOM_S - 1) == [], "they may be starting"
    assert loop.step([cluster(2)], ROOM_S) == [], "there is room: they are starting"
    assert loop.step([full], ROOM_S + 1) == [AnnounceNoRoom(0)]
    assert loop.step([full], ROOM_S + 2) == []
    loop.step([ProbePassed(0)], ROOM_S + 3)
    assert loop.step([full], ROOM_S + 1 + ANNOUNCE_EVERY_S) == [AnnounceNoRoom(1)]
    loop.step([ProbePassed(1), Reported(0, 1)], 100.0)
    assert loop.step([full], 200.0) == [], "all are at work"


# ---- blocks, and files to verify


def test_blocks_are_admitted_while_they_fit_in_the_order_of_requests() -> None:
    loop = Loop([0, 1], per_worker=1)
    loop.step([cluster(2, store_bytes=400)], 0.0)  # 100 bytes may be under way
    loop.step([ProbePassed(0), ProbePassed(1)], 0.0)
    wants: list[Event] = [BlockWanted(0, 1, 60), BlockWanted(1, 1, 60), BlockWanted(0, 2, 10)]
    assert loop.step(wants, 1.0) == [Admit(0, 1)]
    assert loop.step([BlockGone(0, 60)], 2.0) == [Admit(1, 1), Admit(0, 2)]
    assert loop.step([BlockWanted(0, 3, 90)], 3.0) == []
    assert loop.step([BlockGone(0, 10), Died(1, "killed")], 4.0) == [Drop(1), Admit(0, 3)]
    too_small = loop.step([cluster(1, store_bytes=100), BlockWanted(0, 4, 60)], 5.0)[-1]
    assert isinstance(too_small, Finish) and "a smaller node has joined" in str(
        too_small.error.hint
    )


def test_files_are_verified_in_shares_after_the_tiles() -> None:
    loop = Loop([0], per_worker=1, shares=3)
    assert loop.step([cluster(1)], 0.0) == [Start(0, 0), Start(1, 1), Start(2, 2)]
    assert loop.step([ProbePassed(0), ProbePassed(1)], 1.0) == [Run(0, 0, 0)]
    assert loop.step([done(0, 0)], 2.0) == [receipt(0), Verify(0), Verify(1)]
    assert loop.step([Verified(0)], 3.0) == [Drop(0)], "its room may be another's"
    assert loop.step([Died(1, "killed"), cluster(1)], 4.0) == [Drop(1), Start(3, 1)]
    assert loop.step([ProbePassed(2), ProbePassed(3)], 5.0) == [Verify(2), Verify(3)]
    assert loop.step([Verified(2)], 6.0) == [Drop(2)]
    assert loop.step([Verified(3)], 7.0) == [Drop(3), Finish()]


def test_who_is_silent_while_it_verifies_is_dead_too() -> None:
    loop = Loop([], per_worker=1, shares=1)
    assert with_workers(loop, 1) == [Verify(0)]
    assert loop.step([Reported(0, 4)], 50.0) == []
    assert loop.step([], 51.0 + NO_PROGRESS_S) == [Drop(0)]
    assert loop.step([cluster(1)], 200.0) == [Start(1, 0)]


def test_a_file_that_was_not_published_so_ends_it() -> None:
    loop = Loop([], per_worker=1, shares=1)
    with_workers(loop, 1)
    wrong = Corrupted("model.safetensors: another hash")
    assert loop.step([Failed(0, wrong)], 1.0) == [Finish(wrong)]


# ---- whatever happens


class Chaos:
    """An engine to which everything happens that can; after so many troubles only what is poisonous."""

    def __init__(self, loop: Loop, per_worker: int, poison: set[int], rng: random.Random) -> None:
        self.loop, self.per_worker, self.poison, self.rng = loop, per_worker, poison, rng
        self.starting: set[int] = set()
        self.in_hand: dict[int, set[int]] = {}
        self.verifying: set[int] = set()
        self.ends: Counter[int] = Counter()
        self.troubles = 30
        self.finish: Finish | None = None

    def run(self) -> None:
        """Work until the loop says that it is over."""
        now = 0.0
        for _ in range(5000):
            now += self.rng.choice([0.1, 1.0, 1.0, 130.0]) if self.troubles else 1.0
            for command in self.loop.step([cluster(3), *self.happens()], now):
                assert self.finish is None, "nothing follows the end"
                self.do(command)
            if self.finish is not None:
                assert self.loop.step([cluster(3)], now) == []
                return
        raise AssertionError("it does not end")

    def happens(self) -> list[Event]:
        events: list[Event] = []
        for worker in sorted(self.starting):
            if (trouble := self.trouble()) == "death":
                events.append(Died(worker, "killed"))
            elif trouble == "error":
                events.append(ProbeFailed(worker, "a", StoreUnusable("not here")))
            elif trouble != "silence":
                events.append(ProbePassed(worker))
                self.starting.remove(worker)
                self.in_hand[worker] = set()
        for worker in sorted(self.in_hand):
            events += self.of_one_at_work(worker)
        return events

    def of_one_at_work(self, worker: int) -> list[Event]:
        held = self.in_hand[worker]
        trouble = self.trouble()
        if trouble == "silence":
            return []
        if not held:
            return [Verified(worker)] if worker in self.verifying else []
        tile = self.rng.choice(sorted(held))
        if tile in self.poison or trouble == "death":
            return [Began(worker, tile), Died(worker, "killed"), Died(worker, "and told twice")]
        held.remove(tile)
        return [Ended(worker, tile, PASSING) if trouble == "error" else done(worker, tile)]

    def trouble(self) -> str:
        if not self.troubles or self.rng.random() < 0.6:
            return "none"
        self.troubles -= 1
        return self.rng.choice(["death", "error", "silence"])

    def do(self, command: Command) -> None:
        match command:
            case Start(worker, _):
                assert worker not in self.in_hand
                self.starting.add(worker)
                assert len(self.starting) + len(self.in_hand) <= 3
            case Run(worker, tile, _):
                assert tile not in self.in_hand[worker]
                self.in_hand[worker].add(tile)
                assert len(self.in_hand[worker]) <= self.per_worker
                assert sum(tile in held for held in self.in_hand.values()) <= 2
            case Verify(worker):
                self.verifying.add(worker)
            case Drop(worker):
                assert worker in self.starting or worker in self.in_hand
                self.starting.discard(worker)
                self.in_hand.pop(worker, None)
            case Receipt() | Lost():
                self.ends[command.tile] += 1
            case Finish():
                self.finish = command
            case _:
                pass


@given(
    tiles=st.integers(0, 25),
    per_worker=st.integers(1, 4),
    shares=st.sampled_from([0, 0, 3]),
    poison=st.sets(st.integers(0, 24), max_size=2),
    rng=st.randoms(use_true_random=False),
)
@settings(max_examples=300, deadline=None)
def test_every_tile_is_done_or_lost_once_whatever_happens(
    tiles: int, per_worker: int, shares: int, poison: set[int], rng: random.Random
) -> None:
    chaos = Chaos(Loop(range(tiles), per_worker, shares), per_worker, poison, rng)
    chaos.run()
    assert chaos.finish is not None
    assert max(chaos.ends.values(), default=1) == 1
    if chaos.finish.error is None:
        assert chaos.ends == Counter(range(tiles))
    else:
        assert "died in a row" in str(chaos.finish.error)
