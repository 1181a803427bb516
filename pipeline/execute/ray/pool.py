"""Tiles on Ray actors: the loop that feeds them, and what it does when they fail.

The unit of work is many megabytes in, kilobytes out, so nothing goes through Ray's object store: an
actor reads for itself, puts the result itself, and returns a receipt. Restarts and retries are the
driver's (`max_restarts=0`): it knows which tile an actor held. A worker counts from the moment that
it answers and proves that it sees what it needs; more are started as nodes join.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from pipeline.errors import HallmarksError, RequestError, StoreUnusable, TileLost
from pipeline.execute.drive.admission import Admission
from pipeline.execute.drive.schedule import Lost, Schedule
from pipeline.execute.ray.metrics import Metrics
from pipeline.execute.ray.session import (
    Layout,
    NotStarted,
    assure_here,
    has_room,
    node_of,
    outside,
    result,
    wait,
    working_nodes,
)
from pipeline.execute.ray.tasks import TaskBlocks
from pipeline.execute.work.receipt import Receipt
from pipeline.execute.work.urls import (
    BlockReleased,
    BlockRequest,
    DriverUrls,
    HostPaused,
    LongWait,
    Notice,
    Request,
    TileBegun,
    UrlBroker,
)
from pipeline.execute.work.worker import Sink, Worker
from pipeline.planning.memory import Memory
from pipeline.planning.plan import Plan
from pipeline.signals import uninterrupted
from pipeline.transport.access import Access
from pipeline.transport.waiting import announce

MAX_DEATHS_IN_A_ROW = 5  # workers that died with no tile finished in between: something is wrong
NO_PROGRESS_S = 120.0
"""Without a byte read, a slice computed or a sign of life: the slowest range that is worth waiting for, of
1 MiB over a link of 1 MB/s that 32 readers share, takes 32 s."""
ROOM_S = 15.0
"""For a worker to start: with torch from a cold file system it takes most of that. Then it is told why."""
_ANNOUNCE_EVERY_S = 60.0
_FOR_TASKS = 8  # threads of a worker that answer those who pull for it
_POLL_S = 5.0  # a worker without questions says so after this
_log = logging.getLogger("pipeline")
_TICK_S = 1.0  # at least so often the loop looks at joining nodes and silent workers


@dataclass(frozen=True, slots=True)
class Proof:
    """What a worker must find on its node before it gets a tile. Holds no secret."""

    sink: Sink
    files: Mapping[int, Access]
    """Some of the files of a local source."""


class _Actor:
    """The worker as Ray sees it. No argument of the constructor is a secret.

    URLs come as arguments of `answer`, each below the size from which Ray would put it into
    its object store, whose pages are spilled to disk in clear text.
    """

    def __init__(
        self,
        plan: Plan,
        sink: Sink,
        device: str,
        threads: int,
        memory: Memory,
        verified: Sequence[int],
        for_tasks: Sequence[Any],
        sharers: int,
    ) -> None:
        """`for_tasks`: a reference to the plan, if tasks pull."""
        self._urls = DriverUrls()
        self._blocks = None
        if for_tasks:
            self._blocks = TaskBlocks(plan, for_tasks[0], self._urls, memory.row_bytes)
        self._worker = Worker(
            plan, sink, self._urls, device, threads, memory, verified, self._blocks, sharers
        )
        self._metrics = Metrics(plan.run)

    def prove(self, proof: Proof) -> tuple[str, StoreUnusable | None]:
        """Return which node this is, and what is wrong with it."""
        context, node = ray.get_runtime_context(), ray.util.get_node_ip_address()
        try:
            self._worker.probe(proof.files)
            proof.sink.prove(node)
        except HallmarksError as error:
            hint = error.hint or "store and local checkpoints must be on every node"
            return context.get_node_id(), StoreUnusable(f"node {node}: {error.message}", hint)
        return context.get_node_id(), None

    def run(self, index: int, turn: int) -> Receipt:
        self._urls.tell(TileBegun(index))
        try:
            return self._worker.run(index, turn)
        finally:
            self._metrics.export(self._worker.counters)

    def verify(self) -> None:
        self._worker.verify()

    def questions(self) -> tuple[int, list[tuple[int, Request | Notice]]]:
        """Return a number that rises with the work, and what was asked since the last call."""
        asked = self._urls.requests(_POLL_S)
        counters = self._worker.counters
        self._metrics.export(counters)
        return counters.bytes_pulled + counters.slices, asked

    def answer(self, number: int, found: Any) -> None:
        self._urls.answer(number, found)

    def pause(self, host: str, seconds: float) -> None:
        self._worker.pause(host, seconds)
        if self._blocks:
            self._blocks.pause(host, seconds)

    # What tasks ask that pull for this worker, in threads of their own (`_FOR_TASKS`).

    @ray.method(concurrency_group="tasks")
    def accesses(self, files: Sequence[int], after: int) -> dict[int, Access]:
        return self._worker.reader.handed_out(files, after)

    @ray.method(concurrency_group="tasks")
    def read(self, file: int, start: int, stop: int) -> bytes:
        return self._urls.read(file, start, stop)

    @ray.method(concurrency_group="tasks")
    def paused(self, host: str, seconds: float) -> None:
        self.pause(host, seconds)
        self._urls.paused(host, seconds)

    @ray.method(concurrency_group="tasks")
    def waiting(self, host: str, why: str) -> None:
        self._urls.waiting(host, why)

    @ray.method(concurrency_group="tasks")
    def count(self, more: dict[str, float]) -> None:
        self._worker.count(**more)


class _Handle:
    """What the driver knows of one actor."""

    def __init__(self, actor: Any, share: int, now: float) -> None:
        """`share`: its number among those that divide the files to verify."""
        self.actor, self.share = actor, share
        self.ready = self.verifying = False
        self.turns = itertools.count()
        self.progress = -1
        self.progressed = now
        self.unanswered: set[int] = set()
        """Questions that the driver is still busy with: while it is, a worker may wait."""


class RayPool:
    """A pool of actors and the loop that feeds them."""

    def __init__(
        self,
        plan: Plan,
        sink: Sink,
        shape: Callable[[Collection[str]], Layout],
        calls: int,
        memory: Memory,
        proof: Proof,
        verified: Sequence[int] = (),
    ) -> None:
        """Prepare; nothing starts yet.

        Args:
            shape: how many workers the cluster has room for now, without some nodes; asked again as
                nodes may join.
            calls: tiles that an actor has in hand at once, computing or pulling.
            proof: what every worker must find on its node.
            verified: files whose hashes are checked; each actor takes its share of them.
        """
        self._calls, self._proof, self._shape = calls, proof, shape
        first = shape(())
        self._shares = first.workers if verified else 0
        """Of the files to verify: then the number of workers stays."""
        self._unverified = set(range(self._shares))
        self._needs = {"CPU": first.threads, "GPU": first.gpus}
        with_groups: Any = ray.remote  # its types do not know of them
        actor = with_groups(concurrency_groups={"tasks": _FOR_TASKS})(_Actor)
        options = {
            "num_cpus": first.threads,
            "num_gpus": first.gpus,
            "max_concurrency": calls + 2,  # and one call for questions, one for answers
            "scheduling_strategy": "SPREAD" if first.pull == "tasks" else None,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        shared = ray.put(plan)
        for_tasks = [shared] if first.pull == "tasks" else []
        self._admission, self._store_bytes = Admission(), first.store_bytes
        self._start = lambda share: actor.options(**options, **outside(self._left_out)).remote(
            shared, sink, first.device, first.threads, memory,
            verified[share :: self._shares or 1], for_tasks, first.sharers,
        )  # fmt: skip
        self._deaths = 0
        self._handles: list[_Handle] = []
        self._pending: dict[Any, tuple[_Handle, str, int]] = {}  # call → whose, what, which tile
        self._looked = 0.0
        self._passed = False  # a node, its check
        self._left_out: list[str] = []  # nodes that did not
        self._begun, self._announced = time.monotonic(), -_ANNOUNCE_EVERY_S

    def run(self, tiles: list[int], desk: UrlBroker) -> Iterator[Receipt | Lost]:
        """Yield each tile's outcome as it comes; workers' questions are answered meanwhile.

        Raises:
            StoreUnusable: no node sees the store and local checkpoints.
            SourceChanged: a file is not what was planned, or not what was published.
        """
        schedule = Schedule(tiles, self._calls)
        try:
            while not schedule.over:
                yield from self._step(schedule, desk)
            while self._unverified:
                for handle in self._handles:
                    if handle.ready and not handle.verifying and handle.share in self._unverified:
                        handle.verifying = True
                        self._pending[handle.actor.verify.remote()] = handle, "verify", -1
                yield from self._step(schedule, desk)
        finally:
            desk.close()
            for handle in self._handles:
                ray.kill(handle.actor)

    def _step(self, schedule: Schedule, desk: UrlBroker) -> Iterator[Receipt | Lost]:
        """Hand tiles over, and see to whatever has happened by then.

        A signal is waited for in `wait` alone: in others of its calls, Ray catches what a handler
        raises, and takes it for an error of the worker's.
        """
        with uninterrupted():
            self._grow()
            while (handed := schedule.next(time.monotonic())) is not None:
                handle, tile = handed
                assert isinstance(handle, _Handle)
                if len(schedule.tiles_of(handle)) == 1:
                    handle.progressed = time.monotonic()  # it was idle until now
                self._pending[handle.actor.run.remote(tile, next(handle.turns))] = (
                    handle,
                    "run",
                    tile,
                )
        returned = self._returned()
        with uninterrupted():
            outcomes = [out for call in returned for out in self._take(call, schedule, desk)]
            outcomes += self._end_the_silent(schedule)
            for worker, number in self._admission.admitted(self._store_bytes):
                assert isinstance(worker, _Handle)
                self._reply(worker, number, True)
        yield from outcomes

    def _grow(self) -> None:
        """Start the workers that the cluster has room for by now."""
        now = time.monotonic()
        if now - self._looked < _TICK_S:
            return
        self._looked = now
        assure_here()
        wanted: Collection[int] = sorted(self._unverified)
        try:
            shape = self._shape(self._left_out)
        except RequestError:
            pass  # what the first workers needed has left the cluster; it may come back
        else:
            self._store_bytes = shape.store_bytes
            wanted = wanted if self._shares else range(shape.workers)
        shares = {handle.share for handle in self._handles}
        lacking = [share for share in wanted if share not in shares]
        for share in lacking[: max(0, len(wanted) - len(self._handles))]:
            handle = _Handle(self._start(share), share, now)
            self._handles.append(handle)
            self._pending[handle.actor.prove.remote(self._proof)] = handle, "prove", -1
        self._announce(now)

    def _announce(self, now: float) -> None:
        """Say that workers wait for room, if they do."""
        waiting = [handle for handle in self._handles if not handle.ready]
        ready = len(self._handles) - len(waiting)
        patient = now - min((handle.progressed for handle in waiting), default=self._begun) < ROOM_S
        if patient or (ready and not waiting) or now < self._announced + _ANNOUNCE_EVERY_S:
            return
        if not has_room(self._needs, self._left_out):
            self._announced = now
            needs = " and ".join(f"{n:g} {name}" for name, n in self._needs.items() if n)
            _log.warning("%d workers at work, others wait: no node has %s free", ready, needs)

    def _returned(self) -> list[Any]:
        """Return the calls that have ended, as soon as there is one, or none after a tick."""
        calls = list(self._pending)
        ended = wait(calls, 1, _TICK_S)
        # one look at all of them costs as much as at one
        return wait(calls, len(calls), 0) if ended else []

    def _take(self, call: Any, schedule: Schedule, desk: UrlBroker) -> Iterator[Receipt | Lost]:
        """Yield what a call that ended means."""
        if call not in self._pending:
            return  # of an actor that was dropped meanwhile
        handle, what, tile = self._pending.pop(call)
        outcome = self._outcome(call)
        if isinstance(outcome, NotStarted) and (node := node_of(handle.actor)):
            self._leave_out(handle, node, outcome)
        elif isinstance(outcome, TileLost):
            yield from self._bury(handle, schedule, outcome.message)
        elif what == "prove":
            node, wrong = outcome
            if wrong is not None:
                self._leave_out(handle, node, wrong)
                return
            self._passed = handle.ready = True
            schedule.join(handle)
            self._pending[handle.actor.questions.remote()] = handle, "questions", -1
        elif what == "questions":
            self._attend(handle, outcome, schedule, desk)
        elif what == "verify":
            if isinstance(outcome, HallmarksError):
                raise outcome
            self._unverified.discard(handle.share)
            yield from self._drop(handle, schedule, "done")  # another may need its room
        elif isinstance(outcome, HallmarksError):
            if (lost := schedule.failed(handle, tile, outcome)) is not None:
                yield lost
        else:
            self._deaths = 0
            if schedule.done(handle, tile, time.monotonic()):
                yield outcome

    def _attend(
        self,
        handle: _Handle,
        told: tuple[int, list[tuple[int, Request | Notice]]],
        schedule: Schedule,
        desk: UrlBroker,
    ) -> None:
        """See to what a worker says and asks."""
        self._pending[handle.actor.questions.remote()] = handle, "questions", -1
        progress, questions = told
        now = time.monotonic()
        if progress != handle.progress or questions or handle.unanswered:
            handle.progress, handle.progressed = progress, now
        for number, question in questions:
            match question:
                case TileBegun(tile):
                    schedule.begun(handle, tile)
                case HostPaused(host, seconds):
                    self._pause(handle, host, seconds)
                case LongWait(host, why):
                    announce(host, why)
                case BlockReleased(num_bytes):
                    self._admission.left(handle, num_bytes)
                case BlockRequest(num_bytes):
                    handle.unanswered.add(number)
                    self._admission.ask(handle, number, num_bytes)
                case _:
                    handle.unanswered.add(number)
                    desk.answer(question, partial(self._reply, handle, number))

    def _pause(self, told_by: _Handle, host: str, seconds: float) -> None:
        """Have all workers leave a host alone; to wait for it is no lack of progress."""
        until = time.monotonic() + seconds
        for handle in self._handles:
            handle.progressed = max(handle.progressed, until)
            if handle is not told_by and handle.ready:
                handle.actor.pause.remote(host, seconds)

    @staticmethod
    def _reply(handle: _Handle, number: int, found: Any) -> None:
        handle.unanswered.discard(number)
        handle.actor.answer.remote(number, found)

    def _end_the_silent(self, schedule: Schedule) -> Iterator[Lost]:
        """Kill workers that hold tiles and make no progress, as one that was stopped."""
        now = time.monotonic()
        for handle in list(self._handles):
            silent = now - handle.progressed > NO_PROGRESS_S
            if handle.ready and silent and schedule.tiles_of(handle):
                yield from self._bury(handle, schedule, f"no progress for {NO_PROGRESS_S:.0f} s")

    def _bury(self, handle: _Handle, schedule: Schedule, why: str) -> Iterator[Lost]:
        """Forget a dead worker; the next look at the cluster starts another in its place."""
        self._deaths += 1
        if self._deaths > MAX_DEATHS_IN_A_ROW:
            raise HallmarksError(
                f"{self._deaths} workers died in a row with no tile finished: {why}",
                "is --memory more than the machine has? finished tiles are kept",
            )
        yield from self._drop(handle, schedule, why)

    def _leave_out(self, handle: _Handle, node: str, wrong: HallmarksError) -> None:
        """Do without a node that lacks what a worker needs, unless there is no other."""
        if node not in self._left_out:
            self._left_out.append(node)
            others = self._passed or working_nodes(self._left_out)
            if not others:
                raise wrong
            _log.warning("%s: it is left out (%s)", wrong.message, wrong.hint)
        self._forget(handle)

    def _drop(self, handle: _Handle, schedule: Schedule, why: str) -> Iterator[Lost]:
        """End a worker that had tiles, or may have."""
        self._forget(handle)
        if handle.ready:
            yield from schedule.leave(handle, why)

    def _forget(self, handle: _Handle) -> None:
        ray.kill(handle.actor)
        self._handles.remove(handle)
        self._admission.forget(handle)
        self._pending = {c: held for c, held in self._pending.items() if held[0] is not handle}

    @staticmethod
    def _outcome(call: Any) -> Any:
        """Return what a call returned, or the error that it ended in."""
        try:
            return result(call)
        except HallmarksError as error:
            return error
