"""What a user sees of a command: results, errors, and how it ends.

Results go to standard output, everything else to standard error. Errors are one line and a hint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import click
from rich.console import Console

from jobs import program
from jobs.internal_error import told, traceback_of
from pipeline.errors import DamagedRun, HallmarksError, Interrupted, printable

EXIT_INCOMPLETE = 3


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


def hint(text: str) -> None:
    """Say what may help, though nothing is wrong."""
    with contextlib.suppress(OSError):  # nobody is there to be told
        _tell("hint", text)


def refuse(error: HallmarksError) -> None:
    """Tell an error that does not end the command."""
    _report(error.message, error.hint, error.exit_code)


def _report(message: str, cure: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody is there to be told
        _tell("error", message)
        if cure:
            _tell("hint", cure)
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
