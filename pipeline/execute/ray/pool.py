"""The engine of the loop on Ray: results of Ray's calls become events, commands become Ray's calls.

The unit of work is many megabytes in, kilobytes out, so nothing goes through Ray's object store: an
actor reads for itself, puts the result itself, and returns a receipt. Restarts and retries are the
loop's (`max_restarts=0`): it knows which tile an actor held.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import ray

from pipeline.errors import HallmarksError, RequestError, TileLost
from pipeline.execute.drive import events
from pipeline.execute.drive.events import Event
from pipeline.execute.drive.loop import Loop
from pipeline.execute.drive.schedule import Lost
from pipeline.execute.ray.actor import FOR_TASKS, OTHER_CALLS, Probe, WorkerActor
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
from pipeline.execute.work.receipt import Receipt
from pipeline.execute.work.urls import (
    BlockReleased,
    BlockRequest,
    HostPaused,
    LongWait,
    Notice,
    Request,
    TileBegun,
    UrlBroker,
)
from pipeline.planning.memory import Memory
from pipeline.planning.plan import Plan
from pipeline.signals import uninterrupted
from pipeline.transport.waiting import announce

if TYPE_CHECKING:
    from pipeline.execute.work.worker import Sink

_log = logging.getLogger("pipeline")
_TICK_S = 1.0  # at least so often the loop looks at joining nodes and silent workers


class _Call(NamedTuple):
    """A call of an actor that has not ended yet."""

    worker: int
    method: str
    tile: int = -1


class RayPool:
    """A pool of actors, fed by the loop."""

    def __init__(
        self,
        plan: Plan,
        sink: Sink,
        shape: Callable[[Collection[str]], Layout],
        calls: int,
        memory: Memory,
        probe: Probe,
        verified: Sequence[int] = (),
    ) -> None:
        """Prepare; nothing starts yet.

        Args:
            shape: how many workers the cluster has room for now, without some nodes; asked again as
                nodes may join.
            calls: tiles that an actor has in hand at once, computing or pulling.
            probe: what every worker must find on its node.
            verified: files whose hashes are checked; each actor takes its share of them.
        """
        self._calls, self._probe, self._shape = calls, probe, shape
        first = shape(())
        self._shares = first.workers if verified else 0
        self._store_bytes = first.store_bytes
        self._needs = {"CPU": first.threads, "GPU": first.gpus}
        with_groups: Any = ray.remote  # its types do not know of them
        actor = with_groups(concurrency_groups={"tasks": FOR_TASKS})(WorkerActor)
        options = {
            "num_cpus": first.threads,
            "num_gpus": first.gpus,
            "max_concurrency": calls + OTHER_CALLS,
            "scheduling_strategy": "SPREAD" if first.pull == "tasks" else None,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        shared = ray.put(plan)
        for_tasks = [shared] if first.pull == "tasks" else []
        self._start = lambda share: actor.options(**options, **outside(self._left_out)).remote(
            shared, sink, first.device, first.threads, memory,
            verified[share :: self._shares or 1], for_tasks, first.sharers,
        )  # fmt: skip
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, _Call] = {}
        self._answered: SimpleQueue[events.Answered] = SimpleQueue()
        self._left_out: list[str] = []  # nodes
        self._looked = 0.0

    def run(self, tiles: list[int], broker: UrlBroker) -> Iterator[Receipt | Lost]:
        """Yield each tile's outcome as it comes; workers' requests are answered meanwhile.

        A signal is waited for in `wait` alone: in others of its calls, Ray catches what a handler
        raises, and takes it for an error of the worker's.

        Raises:
            StoreUnusable: no node sees the store and local checkpoints.
            SourceChanged: a file is not what was planned, or not what was published.
        """
        loop = Loop(tiles, self._calls, self._shares)
        returned: list[Any] = []
        try:
            while True:
                with uninterrupted():
                    new = [*self._look_now_and_then(), *self._new_events(returned, broker)]
                    commands = loop.step(new, time.monotonic())
                    for command in commands:
                        self._do(command)
                for command in commands:
                    if isinstance(command, Receipt | Lost):
                        yield command
                    elif isinstance(command, events.Finish):
                        if command.error is not None:
                            raise command.error
                        return
                returned = self._returned()
        finally:
            broker.close()
            for actor in self._actors.values():
                ray.kill(actor)

    # ---- what happens

    def _look_now_and_then(self) -> Iterator[Event]:
        if time.monotonic() - self._looked >= _TICK_S:
            assure_here()
            yield self._look()

    def _look(self) -> events.Cluster:
        self._looked = time.monotonic()
        try:
            shape = self._shape(self._left_out)
        except RequestError:
            workers = None  # what the first workers needed has left the cluster; it may come back
        else:
            workers, self._store_bytes = shape.workers, shape.store_bytes
        nodes = frozenset(working_nodes())
        room = has_room(self._needs, self._left_out)
        return events.Cluster(nodes, workers, self._store_bytes, room)

    def _returned(self) -> list[Any]:
        """Return the calls that have ended, as soon as there is one, or none after a tick."""
        calls = list(self._pending)
        if not calls:
            time.sleep(_TICK_S)  # nothing can happen before the next look at the cluster
            return []
        ended = wait(calls, 1, _TICK_S)
        # one look at all of them costs as much as at one
        return wait(calls, len(calls), 0) if ended else []

    def _new_events(self, returned: Iterable[Any], broker: UrlBroker) -> Iterator[Event]:
        """Yield what calls that have ended mean, and which requests have been answered."""
        for call in returned:
            yield from self._events_of(call, self._pending.pop(call), broker)
        try:
            while True:
                yield self._answered.get_nowait()
        except Empty:
            return

    def _events_of(self, ended: Any, call: _Call, broker: UrlBroker) -> Iterator[Event]:
        worker, method, tile = call
        outcome = _outcome(ended)
        if isinstance(outcome, NotStarted) and (node := node_of(self._actors[worker])):
            yield self._look()  # whether there are others is to be known as of now
            yield events.ProbeFailed(worker, node, outcome)
        elif isinstance(outcome, TileLost):
            yield events.Died(worker, outcome.message)
        elif method == "run":
            yield events.Ended(worker, tile, outcome)
        elif isinstance(outcome, HallmarksError):
            yield events.Failed(worker, outcome)
        elif method == "probe":
            node, wrong = outcome
            if wrong is None:
                yield events.ProbePassed(worker)
                self._call(worker, "messages")
            else:
                yield self._look()
                yield events.ProbeFailed(worker, node, wrong)
        elif method == "messages":
            work, messages = outcome
            yield events.Reported(worker, work, bool(messages))
            for request, message in messages:
                yield from self._events_of_message(worker, request, message, broker)
            self._call(worker, "messages")
        elif method == "verify":
            yield events.Verified(worker)

    def _events_of_message(
        self, worker: int, request: int, message: Request | Notice, broker: UrlBroker
    ) -> Iterator[Event]:
        """Yield what a worker's message means; the broker answers what the loop does not."""
        match message:
            case TileBegun(tile):
                yield events.Began(worker, tile)
            case HostPaused(host, seconds):
                yield events.Limited(worker, host, seconds)
            case LongWait(host, why):
                announce(host, why)
            case BlockReleased(num_bytes):
                yield events.BlockGone(worker, num_bytes)
            case BlockRequest(num_bytes):
                yield events.BlockWanted(worker, request, num_bytes)
            case _:
                yield events.Asked(worker, request)
                reply = partial(self._reply, worker, self._actors[worker], request)
                broker.answer(message, reply)

    def _reply(self, worker: int, actor: Any, request: int, answer: Any) -> None:
        """Send an answer, from a thread of the broker."""
        actor.answer.remote(request, answer)
        self._answered.put(events.Answered(worker, request))

    # ---- what is to be done

    def _do(self, command: events.Command) -> None:
        match command:
            case events.Start(worker, share):
                self._actors[worker] = self._start(share)
                self._call(worker, "probe", self._probe)
            case events.Run(worker, tile, position):
                self._call(worker, "run", tile, position, tile=tile)
            case events.Verify(worker):
                self._call(worker, "verify")
            case events.Drop(worker):
                ray.kill(self._actors.pop(worker))
                self._pending = {c: of for c, of in self._pending.items() if of.worker != worker}
            case events.Admit(worker, request):
                self._actors[worker].answer.remote(request, True)
            case events.BackOff(worker, host, seconds):
                self._actors[worker].pause.remote(host, seconds)
            case events.LeaveOut(node, error):
                self._left_out.append(node)
                _log.warning("%s: it is left out (%s)", error.message, error.hint)
            case events.AnnounceNoRoom(at_work):
                needs = " and ".join(f"{n:g} {name}" for name, n in self._needs.items() if n)
                _log.warning("%d workers at work, others wait: no node has %s free", at_work, needs)
            case Receipt() | Lost() | events.Finish():
                pass  # for whoever ordered the work

    def _call(self, worker: int, method: str, *arguments: Any, tile: int = -1) -> None:
        call = getattr(self._actors[worker], method).remote(*arguments)
        self._pending[call] = _Call(worker, method, tile)


def _outcome(call: Any) -> Any:
    """Return what a call returned, or the error that it ended in."""
    try:
        return result(call)
    except HallmarksError as error:
        return error
