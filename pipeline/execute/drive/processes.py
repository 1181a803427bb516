"""Calls in processes of this machine, which stay for further calls.

Each is started by itself, not forked: a fork would copy what threads of this process hold. It has a
session of its own, so that a terminal's ^C reaches the driver alone, and ends with the driver, however that
ends: what it has in hand is ended as by an exception, and after some seconds by force.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from queue import SimpleQueue
from types import FrameType
from typing import Any

from pipeline.errors import TileLost
from pipeline.execute.drive.calls import outcome
from pipeline.signals import uninterrupted

_END_S = 5.0
"""For a process to leave what it has in hand; a call of torch's takes less than a second."""
_SCRIPT = "import sys\nsys.path[:] = {path!r}\nfrom {module} import serve\nserve({descriptor})"


@dataclass(slots=True)
class _Process:
    """One of them, and the call that it has in hand."""

    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]
    number: int | None = None


class Processes:
    """Makes as many calls at once as it is told; for each of them there is a process."""

    def __init__(self, at_once: int) -> None:
        """Prepare; nothing starts yet."""
        self._at_once = at_once
        self._processes: list[_Process] = []

    @property
    def free(self) -> int:
        return self._at_once - sum(each.number is not None for each in self._processes)

    def begin(self, number: int, function: Callable[..., Any], *arguments: Any) -> None:
        with uninterrupted():
            idle = next((each for each in self._processes if each.number is None), None)
            if idle is None:
                self._processes.append(idle := _started())
            idle.number = number
            with contextlib.suppress(BrokenPipeError):  # it has died: the end of the call says so
                idle.connection.send((function, arguments))

    def ended(self, within_s: float) -> list[tuple[int, Any]]:
        busy = {each.connection: each for each in self._processes if each.number is not None}
        ready = wait(list(busy), within_s)
        return [self._end_of(busy[connection]) for connection in ready]  # pyright: ignore[reportArgumentType]

    def _end_of(self, each: _Process) -> tuple[int, Any]:
        with uninterrupted():
            number, each.number = each.number, None
            assert number is not None
            try:
                return number, each.connection.recv()
            except (EOFError, OSError):
                self._processes.remove(each)
                each.connection.close()
                each.process.kill()
                return number, TileLost(f"the process died ({_end(each.process.wait())})")

    def close(self) -> None:
        """End all of them, whatever they have in hand."""
        with uninterrupted():
            for each in self._processes:
                each.process.terminate()
            deadline = time.monotonic() + _END_S
            for each in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    each.process.wait(max(0.0, deadline - time.monotonic()))
                each.process.kill()
                each.process.wait()
                each.connection.close()
            self._processes.clear()


@contextmanager
def processes(at_once: int) -> Iterator[Processes]:
    """Yield who makes calls on this machine; all of it ends with the block."""
    calls = Processes(at_once)
    try:
        yield calls
    finally:
        calls.close()


def _started() -> _Process:
    ours, theirs = Pipe()
    with theirs:
        script = _SCRIPT.format(path=sys.path, module=__name__, descriptor=theirs.fileno())
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", script],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # this process's standard output is for results
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # they share the cores among them
        )
    return _Process(process, ours)


def _end(code: int) -> str:
    """Return how a process ended, in words."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def serve(descriptor: int) -> None:
    """Make the calls that a driver asks for, until it is gone."""
    signal.signal(signal.SIGTERM, _leave)
    connection: Connection[Any, Any] = Connection(descriptor)
    asked: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
    listening = threading.Thread(target=_listen, args=[connection, asked], daemon=True)
    listening.start()
    try:
        while True:
            function, arguments = asked.get()
            connection.send_bytes(_pickled(outcome(function, *arguments)))
    finally:
        os._exit(1)  # whatever threads are left of a call


def _listen(connection: Connection[Any, Any], asked: SimpleQueue[Any]) -> None:
    """Hand on what is asked; end the process with the driver."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            asked.put(connection.recv())
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_END_S)
    os._exit(1)


def _leave(number: int, frame: FrameType | None) -> None:
    del number, frame
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit


def _pickled(made: Any) -> bytes:
    try:
        return pickle.dumps(made)
    except Exception as error:  # told in words
        return pickle.dumps(RuntimeError(f"{made!r:.300} cannot be sent: {error}"))
