"""Calls as Ray tasks: functions of a second or more that return little, on whichever node has room."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from pipeline.errors import HallmarksError
from pipeline.execute.drive.calls import outcome
from pipeline.execute.ray.session import (
    assure_here,
    layout,
    ray_session,
    result,
    wait,
    working_nodes,
)
from pipeline.signals import uninterrupted


class RayCalls:
    """Makes calls by tasks of one CPU, or of one CPU and a GPU or a share of one.

    A task returns an answer of some hundred bytes. Who asked decides what is tried again.
    """

    def __init__(self, device: str, at_once: int | None) -> None:
        """Look at the cluster; nothing starts yet.

        Args:
            device: `cpu`, `cuda`, or `auto` for a GPU if the cluster has one.
            at_once: calls at most; more of them than GPUs share these.

        Raises:
            RequestError: the cluster has no GPU.
        """
        room = layout(device, at_once, "actor", False, threads_per_worker=1)
        self._needs = {"CPU": 1.0, "GPU": room.gpus} if room.gpus else {"CPU": 1.0}
        self._at_once = at_once
        self._pending: dict[Any, int] = {}

    @property
    def free(self) -> int:
        room = sum(self._held_by(node) for node in working_nodes().values())  # some may have joined
        return min(room, self._at_once or room) - len(self._pending)

    def _held_by(self, node: Mapping[str, float]) -> int:
        return min(int(node.get(name, 0) / number) for name, number in self._needs.items())

    def begin(self, number: int, function: Callable[..., Any], *arguments: Any) -> None:
        with uninterrupted():
            task = _call.options(num_cpus=1, num_gpus=self._needs.get("GPU", 0))
            self._pending[task.remote(function, *arguments)] = number

    def ended(self, within_s: float) -> list[tuple[int, Any]]:
        if not self._pending:
            time.sleep(within_s)  # nothing can end before
        returned = wait(list(self._pending), 1, within_s) if self._pending else []
        with uninterrupted():
            assure_here()
            return [(self._pending.pop(call), _outcome(call)) for call in returned]


@contextmanager
def ray_calls(address: str | None, device: str, at_once: int | None) -> Iterator[RayCalls]:
    """Yield who makes calls on a cluster, or on a Ray of this job's own.

    Raises:
        RequestError: no cluster answers there, or it lacks what is asked for.
        HallmarksError: Ray does not start on this machine.
    """
    with ray_session(address, "actor"):
        yield RayCalls(device, at_once)


@ray.remote(max_retries=0)
def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return outcome(function, *arguments)


def _outcome(call: Any) -> Any:
    try:
        return result(call)
    except HallmarksError as error:
        return error
