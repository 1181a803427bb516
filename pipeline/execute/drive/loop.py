"""The loop that feeds workers, and what it does when they fail: a state machine without an engine.

Pure: no clock, no threads, no network, no Ray. An engine tells it what has happened and when, and does
what it answers. Restarts and retries are decided here: a worker counts from the moment that its probe
passes, and more are started as nodes join.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.errors import HallmarksError
from pipeline.execute.drive.admission import Admission
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
from pipeline.execute.drive.schedule import Schedule

MAX_DEATHS_IN_A_ROW = 5
"""Workers that died with no tile finished in between: something is wrong."""
NO_PROGRESS_S = 120.0
"""Without a byte read, a block computed or a sign of life: the slowest range that is worth waiting for,
of 1 MiB over a link of 1 MB/s that 32 readers share, takes 32 s."""
ROOM_S = 15.0
"""For a worker to start: with torch from a cold file system it takes most of that. Then it is told why."""
ANNOUNCE_EVERY_S = 60.0


@dataclass(slots=True)
class _Worker:
    """What is known of one worker."""

    share: int
    progressed: float
    """When it was last seen to make progress; later, while a host wants to be left in peace."""
    ready: bool = False
    verifying: bool = False
    work: int = -1
    handed: int = 0
    """Tiles that it got so far."""
    unanswered: set[int] = field(default_factory=set[int])
    """Requests that the driver is busy with: while it is, a worker may wait."""


class Loop:
    """Works through tiles with whatever workers there are."""

    def __init__(self, tiles: Iterable[int], per_worker: int, shares: int = 0) -> None:
        """Prepare; workers start after the first look at the cluster.

        Args:
            tiles: in the order in which they are handed over.
            per_worker: tiles that a worker has in hand at once.
            shares: into how many shares the files to verify are divided, each a worker's; 0 if
                none are verified.
        """
        self._schedule = Schedule(tiles, per_worker)
        self._admission = Admission()
        self._workers: dict[int, _Worker] = {}
        self._last = -1  # number of the youngest worker
        self._verifies, self._unverified = bool(shares), set(range(shares))
        self._cluster = Cluster(frozenset(), None)
        self._left_out: set[str] = set()
        self._passed = False  # a worker, its probe
        self._deaths = 0  # in a row
        self._began: float | None = None
        self._announced = -ANNOUNCE_EVERY_S
        self._finished = False
        self._commands: list[Command] = []

    def step(self, events: Iterable[Event], now: float) -> list[Command]:
        """Take in what has happened by now; return what is to be done, in order.

        The last command of the last step is `Finish`. Without events it is time that has passed.
        """
        self._began = now if self._began is None else self._began
        if self._finished:
            return []
        try:
            if not self._over:
                for event in events:
                    self._take(event, now)
                self._end_the_silent(now)
                self._hand_over(now)
                self._admit()
            finish = Finish() if self._over else None
        except HallmarksError as error:
            finish = Finish(error)
        if finish is not None:
            self._finished = True
            self._commands.append(finish)
        commands, self._commands = self._commands, []
        return commands

    @property
    def _over(self) -> bool:
        return self._schedule.over and not self._unverified

    def _take(self, event: Event, now: float) -> None:
        if isinstance(event, Cluster):
            self._look(event, now)
        elif (worker := self._workers.get(event.worker)) is not None:  # else it was dropped
            self._take_from(worker, event, now)

    def _take_from(self, worker: _Worker, event: Event, now: float) -> None:
        match event:
            case ProbePassed(number):
                self._passed = worker.ready = True
                self._schedule.join(number)
            case ProbeFailed(number, node, error):
                self._leave_out(number, node, error)
            case Died(number, why):
                self._worker_died(number, why)
            case Reported(_, work, spoke):
                if work != worker.work or spoke or worker.unanswered:
                    worker.work, worker.progressed = work, max(worker.progressed, now)
            case Began(number, tile):
                self._schedule.begun(number, tile)
            case Ended():
                self._ended(event, now)
            case Verified(number):
                self._deaths = 0
                self._unverified.discard(worker.share)
                self._drop(number, "done")  # another may need its room
            case Failed(_, error):
                raise error
            case Limited():
                self._back_off(event, now)
            case Asked(_, request):
                worker.unanswered.add(request)
            case Answered(_, request):
                worker.unanswered.discard(request)
            case BlockWanted(number, request, num_bytes):
                worker.unanswered.add(request)
                self._admission.ask(number, request, num_bytes)
            case BlockGone(number, num_bytes):
                self._admission.left(number, num_bytes)
            case Cluster():
                pass

    def _look(self, cluster: Cluster, now: float) -> None:
        """Start the workers that the cluster has room for by now."""
        self._cluster = cluster
        wanted = sorted(self._unverified) if self._verifies else range(cluster.workers or 0)
        at_work = {worker.share for worker in self._workers.values()}
        lacking = [share for share in wanted if share not in at_work]
        for share in lacking[: max(0, len(wanted) - len(self._workers))]:
            self._last += 1
            self._workers[self._last] = _Worker(share, now)
            self._commands.append(Start(self._last, share))
        self._announce(now)

    def _announce(self, now: float) -> None:
        """Have it said that workers wait for room, if they do."""
        assert self._began is not None
        waiting = [w.progressed for w in self._workers.values() if not w.ready]
        at_work = len(self._workers) - len(waiting)
        if (
            self._cluster.has_room
            or (at_work and not waiting)
            or now - min(waiting, default=self._began) < ROOM_S
            or now < self._announced + ANNOUNCE_EVERY_S
        ):
            return
        self._announced = now
        self._commands.append(AnnounceNoRoom(at_work))

    def _ended(self, ended: Ended, now: float) -> None:
        if not isinstance(ended.outcome, HallmarksError):
            self._deaths = 0
        outcome = self._schedule.ended(ended.worker, ended.tile, ended.outcome, now)
        if outcome is not None:
            self._commands.append(outcome)

    def _back_off(self, limited: Limited, now: float) -> None:
        """Have all workers leave a host in peace; to wait for it is no lack of progress."""
        until = now + limited.seconds
        for number, worker in self._workers.items():
            worker.progressed = max(worker.progressed, until)
            if worker.ready and number != limited.worker:
                self._commands.append(BackOff(number, limited.host, limited.seconds))

    def _end_the_silent(self, now: float) -> None:
        """Drop workers that have something to do and make no progress, as one that was stopped."""
        for number, worker in list(self._workers.items()):
            silent = worker.ready and now - worker.progressed > NO_PROGRESS_S
            if silent and (worker.verifying or self._schedule.tiles_of(number)):
                self._worker_died(number, f"no progress for {NO_PROGRESS_S:.0f} s")

    def _hand_over(self, now: float) -> None:
        """Give tiles to workers that have room for them; when none are left, files to verify."""
        while (handed := self._schedule.next(now)) is not None:
            number, tile = handed
            worker = self._workers[number]
            if len(self._schedule.tiles_of(number)) == 1:  # it was idle until now
                worker.progressed = max(worker.progressed, now)
            self._commands.append(Run(number, tile, worker.handed))
            worker.handed += 1
        if not self._schedule.over:
            return
        for number, worker in self._workers.items():
            if worker.ready and not worker.verifying and worker.share in self._unverified:
                worker.verifying, worker.progressed = True, max(worker.progressed, now)
                self._commands.append(Verify(number))

    def _admit(self) -> None:
        for number, request in self._admission.admitted(self._cluster.store_bytes):
            self._workers[number].unanswered.discard(request)
            self._commands.append(Admit(number, request))

    def _worker_died(self, number: int, why: str) -> None:
        """Do without a worker; the next look at the cluster starts another in its place.

        Raises:
            HallmarksError: too many have died.
        """
        self._drop(number, why)
        self._deaths += 1
        if self._deaths > MAX_DEATHS_IN_A_ROW:
            raise HallmarksError(
                f"{self._deaths} workers died in a row without finishing a tile: {why}",
                "is --memory more than the machine has? finished tiles are kept",
            )

    def _leave_out(self, number: int, node: str, error: HallmarksError) -> None:
        """Do without a node that lacks what a worker needs.

        Raises:
            HallmarksError: what it lacks, if there is no other node.
        """
        self._forget(number)
        if node in self._left_out:
            return
        self._left_out.add(node)
        if not self._passed and not self._cluster.nodes - self._left_out:
            raise error
        self._commands.append(LeaveOut(node, error))

    def _drop(self, number: int, why: str) -> None:
        """End a worker that has tiles, or may have."""
        if self._workers[number].ready:
            self._commands += self._schedule.leave(number, why)
        self._forget(number)

    def _forget(self, number: int) -> None:
        del self._workers[number]
        self._admission.forget(number)
        self._commands.append(Drop(number))
