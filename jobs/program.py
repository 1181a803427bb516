"""What holds from a program's first moment to its last: its streams, signals, and its last word.

Nothing is imported here that takes time: the first import of `jobs` comes here (`jobs/__init__.py`, where a
signal is the end, in one line), and what follows, click, rich and torch, takes a second.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from jobs import witness

INTERRUPTED = 130
_ERRORS = "backslashreplace"  # names and tables have characters that ASCII lacks
END_S = 60.0
"""For an interrupted job to end by itself: a last estimate takes seconds, Ray's end three. An exception
raised by a signal may be lost in a library that catches all, or in a call that does not return."""

COLLECTIONS = 100_000, 50, 100
"""Objects beyond those that were let go before cycles among them are looked for, and how often the older ones are:
with Python's 700, 10, 10 a plan of 12,000 tensors, which stays, was looked through for 1 s of 8."""

NICE = 10
"""Beside one busy process on the same core a tenth of it is left (sched(7): a step is worth some 25 %)."""

_running = False
_kept = ""  # what is told of an interrupted command beside the signal's name


def begin() -> None:
    """Make the standard streams usable, and the garbage collector less eager.

    A descriptor that the caller has closed would be given to the next file that is opened, and
    what a library prints there would be written into that file.
    """
    gc.set_threshold(*COLLECTIONS)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper) and not isinstance(sys.stdout, _Output):
        sys.stdout = sys.__stdout__ = _Output.instead_of(sys.stdout)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors=_ERRORS)
    if isinstance(sys.stdin, io.TextIOWrapper):  # as in arguments: what is no text is refused
        sys.stdin.reconfigure(errors="surrogateescape")  # where it is used


class _Output(io.TextIOWrapper):
    """Standard output, whose failures are told from all others.

    Raises:
        HallmarksError: it cannot be written.
        BrokenPipeError: its reader has gone, who is not to be told.
    """

    @classmethod
    def instead_of(cls, stream: io.TextIOWrapper) -> _Output:
        """Return one that writes where a stream did, which can be used no more."""
        encoding = stream.encoding
        line_buffering, write_through = stream.line_buffering, stream.write_through
        binary: Any = stream.detach()
        if isinstance(
            binary, io.RawIOBase
        ):  # PYTHONUNBUFFERED: what one call does not take is lost
            binary = io.BufferedWriter(binary)
        return cls(
            binary,
            encoding,
            _ERRORS,
            line_buffering=line_buffering,
            write_through=write_through,
        )

    def write(self, text: str, /) -> int:
        with told_if_refused():
            count = super().write(text)
            if self.write_through:
                super().flush()
            return count

    def flush(self) -> None:
        with told_if_refused():
            super().flush()


@contextlib.contextmanager
def told_if_refused() -> Iterator[None]:
    """Tell failures to write standard output from all others: see `_Output`."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        from pipeline.errors import HallmarksError

        raise HallmarksError(f"standard output cannot be written: {error.strerror}") from None


def raise_on_signals() -> None:
    """Make SIGINT and SIGTERM end the command: the line at once, then what is needed to end well.

    A second signal ends the process without waiting; so does END_S after the first.
    """
    global _running
    _running = True
    _on_signals(_stop)


def resumable(kept: str = "finished tiles are kept") -> None:
    """Have it told, however the command ends too early, that it can go on, and what is kept."""
    global _kept
    _kept = f"{kept}; rerun the same command to resume"
    if _running:  # else this is somebody else's process
        witness.watch(
            "error: the process was ended from outside: killed, perhaps for lack of memory, or by Ray"
            f" after its node on this machine or its head had died\nhint: {_kept}\n"
        )


def give_way() -> None:
    """Leave the cores to whoever else wants them."""
    if _running:
        with contextlib.suppress(OSError):
            os.nice(NICE)


def _stop(number: int, frame: FrameType | None) -> None:
    from pipeline.errors import Interrupted

    del frame
    _on_signals(_stop_now)
    _tell(number)
    late = threading.Timer(END_S, leave, [INTERRUPTED])
    late.daemon = True
    late.start()
    raise Interrupted(signal.Signals(number).name)


def _stop_now(number: int, frame: FrameType | None) -> None:
    del number, frame
    leave(INTERRUPTED)


def _on_signals(handler: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)  # pyright: ignore[reportArgumentType]


def _tell(number: int) -> None:
    line = f"interrupted ({signal.Signals(number).name}){_kept and ': ' + _kept}\n"
    if os.isatty(2):
        line = "\n" + line  # the terminal has shown ^C, or a bar
    with contextlib.suppress(OSError):  # nobody is there to be told
        os.write(2, line.encode())


def leave(code: int) -> NoReturn:
    """End the process at once. Threads may still wait for a read; nothing of theirs is worth it."""
    witness.dismiss()
    os._exit(code)
