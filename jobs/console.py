"""What a user sees of a command: results, errors, progress, and how it ends.

Results go to standard output, everything else to standard error. Errors are one line and a hint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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

from jobs import program
from jobs.internal_error import told, traceback_of
from pipeline.errors import DamagedRun, HallmarksError, Interrupted, printable
from pipeline.planning.memory import show_size

if TYPE_CHECKING:  # commands that compute nothing do without torch
    from pipeline.execute.drive.schedule import Lost
    from pipeline.job.results import Summary
    from pipeline.planning.plan import Plan

EXIT_INCOMPLETE = 3
LINE_EVERY_S = 15.0  # between progress lines where there is no terminal


@dataclass
class Invocation:
    """What an error's report needs to know of the command that it ended."""

    store: str | None = None


def run(command: click.Command) -> NoReturn:
    """Run a command to its exit code (docs/contract.md, §1)."""
    program.begin()
    program.raise_on_signals()
    invocation = Invocation()
    threading.excepthook = lambda thread: _internal(thread.exc_value, invocation)
    with telling():
        code = outcome(command, invocation)
    program.leave(code)


def outcome(command: click.Command, invocation: Invocation) -> int:
    """Run a command and return its exit code; an error is told. The process is left as it was."""
    try:
        code = command.main(standalone_mode=False, obj=invocation)
        sys.stdout.flush()
        return code or 0
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 1
    except click.ClickException as error:
        return _report(error.format_message(), _usage_hint(error), 2)
    except click.Abort as error:
        # what click makes of an unexpected end of a file, too
        unexpected = isinstance(error.__cause__, EOFError)
        return _internal(error.__cause__, invocation) if unexpected else program.INTERRUPTED
    except Interrupted:
        return program.INTERRUPTED
    except HallmarksError as error:
        if _debug():
            click.echo(traceback_of(error), err=True)
        return _report(error.message, error.hint, error.exit_code)
    except BrokenPipeError:
        return 1  # the reader of a pipe has gone: nobody is there to be told
    except MemoryError:
        return _report("out of memory", "use a smaller --memory", 1)
    except Exception as error:
        return _internal(error, invocation)


def _internal(error: BaseException | None, invocation: Invocation) -> int:
    error = error or RuntimeError("no exception")  # a thread that could not even keep one
    if _debug():
        click.echo(traceback_of(error), err=True)
    return _report(*told(error, invocation.store), 1)


def _debug() -> bool:
    return "--debug" in sys.argv


@contextmanager
def telling() -> Iterator[None]:
    """Show notes and warnings of the job as they come, a line each."""
    logger, handler, shown = logging.getLogger("pipeline"), _Notes(), warnings.showwarning
    logger.addHandler(handler)
    logger.propagate = False  # a library may have given the root a handler that shows them again
    warnings.showwarning = _show_warning
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
        warnings.showwarning = shown


class _Notes(logging.Handler):
    """Shows what the job logs, such as why it waits, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            _tell("note", record.getMessage())


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
    with contextlib.suppress(OSError):  # nobody is there to be told
        _tell("error", message)
        if hint:
            _tell("hint", hint)
    return code


def _tell(what: str, text: str) -> None:
    print(f"{what}: {printable(text)}", file=sys.stderr)


def _usage_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context is not None else ""


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
        with program.told_if_refused():
            os.write(self._descriptor, line.encode())


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

    def note(self, text: str) -> None:
        """Say what the job does beside its work, and why."""
        self._say(text)

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, text: str) -> None:
        say(self._console, text)
