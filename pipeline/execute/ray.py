"""Tiles on Ray actors: this machine by default, a cluster if one is named.

The unit of work is many megabytes in, kilobytes out, so nothing goes through Ray's object store:
an actor reads for itself, puts the result itself, and returns a receipt. Restarts and retries are
the driver's (`max_restarts=0`): it knows which tile an actor held.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline.errors import HallmarksError, RequestError, TileLost
from pipeline.execute.addresses import FrontDesk, Paused, Question, Remote
from pipeline.execute.queue import Lost, TileQueue
from pipeline.execute.worker import Receipt, Sink, Worker
from pipeline.planning.memory import Memory
from pipeline.planning.plan import Plan

MAX_DEATHS_IN_A_ROW = 5  # workers that died with no tile finished in between: something is wrong
_POLL_S = 60.0  # a worker without questions: the call is renewed after this
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the work is laid out on the cluster."""

    workers: int
    threads: int
    """Tiles computed side by side in one worker; as many CPUs are reserved for it."""
    device: str


class _Actor:
    """The worker as Ray sees it. No argument of the constructor is a secret.

    Addresses come as arguments of `answer`, each below the size from which Ray would put it into
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
    ) -> None:
        self._addresses = Remote(plan)
        self._worker = Worker(plan, sink, self._addresses, device, threads, memory, verified)

    def run(self, index: int) -> Receipt:
        return self._worker.run(index)

    def verify(self) -> None:
        self._worker.verify()

    def questions(self) -> list[tuple[int, Question]]:
        return self._addresses.questions(_POLL_S)

    def answer(self, number: int, found: Any) -> None:
        self._addresses.answer(number, found)

    def pause(self, host: str, seconds: float) -> None:
        self._worker.pause(host, seconds)


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start a Ray of this job's own, and shut it down.

    `address="local"` always starts a new one: the cluster file that a crashed Ray leaves behind
    would make a plain start fail.

    Raises:
        RequestError: an address of another kind, or nothing answers there.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(("http://", "https://", "ray://")):
        raise RequestError(
            f"--address {address}: this program does not run over a client connection",
            f"submit a job: ray job submit --address {address} -- python -m jobs.analyze …",
        )
    options: dict[str, Any] = {"address": address, "log_to_driver": False}
    if address == "local":
        # Nothing but receipts passes through the object store: 80 MB is Ray's least.
        options |= {"include_dashboard": False, "object_store_memory": 100_000_000}
    try:
        with _without_secrets():
            ray.init(logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"no Ray cluster at {address}: {str(error).splitlines()[0]}",
            "check --address and RAY_ADDRESS, or leave both out",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _without_secrets() -> Iterator[None]:
    """Every process of a local Ray inherits this one's environment."""
    hidden = {name: os.environ.pop(name) for name in _SECRETS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def layout(device: str, max_workers: int | None, threads_per_worker: int = 4) -> Layout:
    """Return how many workers of how many threads the cluster has room for.

    One worker per GPU; without GPUs one per four cores, since each costs 0.3 GB and four threads
    keep the interpreter's lock free (a product of 16,384 columns takes a millisecond or more).
    """
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    if device == "cuda" or (device == "auto" and gpus):
        if not gpus:
            raise RequestError("--device cuda: the cluster has no GPU", "use --device cpu")
        workers = min(gpus, max_workers or gpus)
        return Layout(workers, max(1, min(threads_per_worker, cpus // workers)), "cuda")
    workers = min(max(1, cpus // threads_per_worker), max_workers or cpus)
    return Layout(workers, max(1, min(threads_per_worker, cpus // workers)), "cpu")


class RayPool:
    """A pool of actors and the loop that feeds them."""

    def __init__(
        self,
        plan: Plan,
        sink: Sink,
        shape: Layout,
        calls: int,
        memory: Memory,
        verified: Sequence[int] = (),
    ) -> None:
        """Prepare; nothing starts yet.

        Args:
            calls: tiles that an actor has in hand at once, computing or pulling.
            verified: files whose hashes are checked; each actor takes its share of them.
        """
        self._calls = calls
        remote: Any = ray.remote(_Actor).options(
            num_cpus=shape.threads,
            num_gpus=1 if shape.device == "cuda" else 0,
            max_concurrency=self._calls + 2,  # and one call for questions, one for answers
            max_restarts=0,
            max_task_retries=0,
        )
        shared = ray.put(plan)
        self._start = lambda share: remote.remote(
            shared, sink, shape.device, shape.threads, memory, verified[share :: shape.workers]
        )
        self._verified = verified
        self._size = shape.workers
        self._deaths = 0
        self._actors: list[Any] = []
        self._tiles: dict[Any, tuple[Any, int]] = {}  # call → (actor, tile)
        self._polls: dict[Any, Any] = {}  # call for questions → actor

    def run(self, tiles: list[int], desk: FrontDesk) -> Iterator[Receipt | Lost]:
        """Yield each tile's outcome as it comes; workers' questions are answered meanwhile."""
        queue = TileQueue(tiles)
        try:
            for share in range(self._size if self._verified else min(self._size, len(tiles))):
                self._add_actor(share)
            while True:
                self._feed(queue)
                if not self._tiles:
                    break
                (call,), _ = ray.wait([*self._polls, *self._tiles], num_returns=1)
                if call in self._polls:
                    self._attend(call, desk)
                elif call in self._tiles:
                    yield from self._outcomes(call, queue)
            self._verify(desk)
        finally:
            desk.close()

    def _verify(self, desk: FrontDesk) -> None:
        """Have every actor compare the hashes of its share of the files."""
        pending = {actor.verify.remote() for actor in self._actors if self._verified}
        while pending:
            (call,), _ = ray.wait([*self._polls, *pending], num_returns=1)
            if call in self._polls:
                self._attend(call, desk)
                continue
            pending.remove(call)
            outcome = self._outcome(call)
            if isinstance(outcome, HallmarksError):
                raise outcome

    def _add_actor(self, share: int) -> None:
        actor: Any = self._start(share)
        self._actors.insert(share, actor)
        self._polls[actor.questions.remote()] = actor

    def _feed(self, queue: TileQueue) -> None:
        """Give every actor the tiles it has room for, one each in turn."""
        for _ in range(self._calls):
            for actor in self._actors:
                load = sum(1 for held, _ in self._tiles.values() if held is actor)
                if load < self._calls and (tile := queue.take()) is not None:
                    self._tiles[actor.run.remote(tile)] = (actor, tile)

    def _attend(self, call: Any, desk: FrontDesk) -> None:
        """See to what a worker asked."""
        actor = self._polls.pop(call)
        try:
            questions = ray.get(call)
        except RayError:
            return  # it died: its tiles tell
        self._polls[actor.questions.remote()] = actor
        for number, question in questions:
            if not isinstance(question, Paused):
                desk.answer(question, partial(actor.answer.remote, number))
                continue
            for other in self._actors:
                if other is not actor:
                    other.pause.remote(question.host, question.seconds)

    def _outcomes(self, call: Any, queue: TileQueue) -> Iterator[Receipt | Lost]:
        """Yield what a call that ended means: one tile, or all that a dead worker held."""
        actor, tile = self._tiles.pop(call)
        outcome = self._outcome(call)
        if isinstance(outcome, Receipt):
            self._deaths = 0
            yield outcome
            return
        assert outcome is not None  # only `verify` returns nothing
        held = [tile]
        if isinstance(outcome, TileLost):
            held += self._drop(actor)
            self._replace(actor)
        for index in held:
            if (lost := queue.put_back(index, outcome)) is not None:
                yield lost

    def _outcome(self, call: Any) -> Receipt | HallmarksError | None:
        try:
            return ray.get(call)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, HallmarksError):
                return cause
            raise
        except (RayActorError, RayError) as error:
            return TileLost(f"a worker died: {type(error).__name__}")

    def _drop(self, actor: Any) -> list[int]:
        """Forget an actor's calls; return the tiles that it held."""
        self._polls = {call: held for call, held in self._polls.items() if held is not actor}
        calls = [call for call, (held, _) in self._tiles.items() if held is actor]
        return [self._tiles.pop(call)[1] for call in calls]

    def _replace(self, actor: Any) -> None:
        self._deaths += 1
        if self._deaths > MAX_DEATHS_IN_A_ROW:
            raise HallmarksError(
                f"{self._deaths} workers died in a row with no tile finished",
                "is --memory more than the machine has? finished tiles are kept",
            )
        ray.kill(actor)
        share = self._actors.index(actor)
        self._actors.remove(actor)
        self._add_actor(share)
