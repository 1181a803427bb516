"""What a user sees of a command: results, errors, progress, and how it ends.

Results go to standard output, everything else to standard error. Errors are one line and a hint.
"""

from __future__ import annotations

import io
import json
import math
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from pipeline.errors import DamagedRun, HallmarksError, Interrupted, printable
from pipeline.planning.memory import show_size

if TYPE_CHECKING:  # commands that compute nothing do without torch
    from pipeline.execute.schedule import Lost
    from pipeline.planning.plan import Plan
    from pipeline.results import Summary

EXIT_INCOMPLETE = 3
LINE_EVERY_S = 15.0  # between progress lines where there is no terminal


def run(command: click.Command) -> NoReturn:
    """Run a command to its exit code (docs/contract.md, §1)."""
    debug = "--debug" in sys.argv
    _prepare_streams()
    warnings.showwarning = _show_warning
    try:
        code = command.main(standalone_mode=False)
        sys.stdout.flush()  # what cannot be written is an error of this command's
    except click.exceptions.Exit as done:
        code = done.exit_code
    except click.ClickException as error:
        code = _report(error.format_message(), _usage_hint(error), 2)
    except (Interrupted, KeyboardInterrupt, click.exceptions.Abort):
        # Threads may still wait for a read; nothing of theirs is worth waiting for.
        _leave(Interrupted.exit_code)
    except HallmarksError as error:
        if debug:
            traceback.print_exc()
        code = _report(error.message, error.hint, error.exit_code)
    except BrokenPipeError:
        _leave(1)  # the reader of a pipe has gone: nobody is there to be told
    except Exception as error:
        if debug:
            traceback.print_exc()
        text = " ".join(str(error).split())[:300]
        code = _report(f"{type(error).__name__}: {text}", "--debug shows where", 1)
    sys.exit(code or 0)


def _prepare_streams() -> None:
    """Make what is closed read as empty and swallow all, and show what an encoding lacks as escapes.

    A closed descriptor would be that of the next file opened, which then gets what is printed.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  # as long as the process lives
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream, errors in (
        (
            sys.stdin,
            "surrogateescape",
        ),  # as in arguments: what is no text is refused where it is used
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    if issubclass(category, DamagedRun):  # others are for developers
        _tell("warning", str(message))


def console(*, stderr: bool = False) -> Console:
    """Return what lines are printed on: as they are, without markup, and folded nowhere."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)


def say(screen: Console, text: str, style: str | None = None, end: str = "\n") -> None:
    """Print one line, or the beginning of one; whatever text there is in it stays in it."""
    screen.print(printable(text), style=style, end=end)


def _report(message: str, hint: str, code: int) -> int:
    _tell("error", message)
    if hint:
        _tell("hint", hint)
    return code


def _tell(what: str, text: str) -> None:
    print(f"{what}: {printable(text)}", file=sys.stderr)


def _usage_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context is not None else ""


def _leave(code: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(code)


class Result:
    """Standard output, kept for the result alone while `claimed`."""

    def __init__(self) -> None:
        self._descriptor = 1

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Send whatever a library prints on standard output to standard error meanwhile."""
        sys.stdout.flush()
        self._descriptor = os.dup(1)
        os.dup2(2, 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(self._descriptor, 1)
            os.close(self._descriptor)
            self._descriptor = 1

    def print_json(self, value: Mapping[str, Any]) -> None:
        """Print one line."""
        line = json.dumps(value, allow_nan=False) + "\n"
        os.write(self._descriptor, line.encode())


def stop_on_signals() -> None:
    """Make SIGINT and SIGTERM end the job: the message at once, then what is needed to end well.

    Called again once Ray has started, since Ray installs handlers of its own. A second signal
    ends the process without waiting.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(signal.SIGINT, _stop_now)
    signal.signal(signal.SIGTERM, _stop_now)
    name = signal.Signals(number).name
    os.write(
        2, f"\ninterrupted ({name}): finished tiles are kept; the same command goes on\n".encode()
    )
    raise Interrupted(name)


def _stop_now(number: int, frame: FrameType | None) -> None:
    del number, frame
    os._exit(Interrupted.exit_code)


def one_object(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what `--json` prints: the entry of one source, or `{"runs": […]}` of several."""
    return entries[0] if len(entries) == 1 else {"runs": entries}


def with_error(value: float, error: float | None) -> str:
    """Return a figure and its standard error, to two digits of that."""
    if error is None:
        return f"{value:.4g} ± ?"
    digits = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 6
    return f"{value:.{digits}f} ± {error:.{digits}f}" if digits < 15 else f"{value:.6g}"


class JobProgress:
    """A live bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._done = self._total = self._resumed = 0
        self._started = self._last_line = time.monotonic()
        self._estimate = ""

    def planned(self, plan: Plan, finished_bytes: int) -> None:
        stop_on_signals()
        self._done = self._resumed = finished_bytes
        self._total, self._started = plan.bytes_to_read, time.monotonic()
        resumed = f", {show_size(finished_bytes)} done earlier" if finished_bytes else ""
        self._say(
            f"{plan.run}: {len(plan.checkpoints)} checkpoints, {len(plan.tensors)} tensors,"
            f" {show_size(plan.bytes_to_read)} in {len(plan.tiles)} tiles{resumed}"
        )
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("reading{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, completed=finished_bytes)

    def tile_done(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif time.monotonic() - self._last_line > LINE_EVERY_S:
            self._last_line = time.monotonic()
            rate = (self._done - self._resumed) / max(1e-9, time.monotonic() - self._started)
            left = (self._total - self._done) / max(1.0, rate)
            self._say(
                f"{show_size(self._done)} of {show_size(self._total)},"
                f" {show_size(int(rate))}/s, {left:.0f} s left{self._estimate}"
            )

    def tile_lost(self, lost: Lost) -> None:
        self._say(f"tile {lost.tile} failed for good: {lost.error.message}")

    def estimated(self, summary: Summary) -> None:
        """Show the model's figures so far from now on."""
        figures = (
            ("mds", summary.mds, summary.mds_stderr),
            ("relative mds", summary.relative_mds, summary.relative_mds_stderr),
        )
        self._estimate = "".join(
            f"; {name} {with_error(value, error)}"
            for name, value, error in figures
            if value is not None
        )
        if self._bar is not None:
            self._bar.update(self._task, description=self._estimate)

    def verified(self, num_files: int) -> None:
        """Say that whole files are what was published; of some sources no hash is."""
        self._say(f"verified: {num_files:,} files have the hashes that their repository publishes")

    def reducing(self) -> None:
        self.close()
        self._say("reducing and writing")

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, text: str) -> None:
        say(self._console, text)
