"""The command line, called in this process: a process of its own takes seconds to import torch.

For tests of what a command says and returns. What concerns the process itself (signals, streams, its
environment, its memory) needs `subprocess`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import pytest

from jobs import cli
from jobs.console import Invocation, outcome, telling


@dataclass(frozen=True)
class Done:
    """How a command ended, with the names that `subprocess` has for it."""

    returncode: int
    stdout: str
    stderr: str


def hallmarks(*arguments: object) -> Done:
    """Run `hallmarks ARGUMENTS` and return its exit code and what it prints."""
    words = list(map(str, arguments))
    done = _apart(words) if words[0] == "sql" else _here(words)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def _apart(words: list[str]) -> Done:
    """In a process of its own, whose memory the command limits."""
    command = [sys.executable, "-c", "from jobs.cli import main; main()", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return Done(done.returncode, done.stdout, done.stderr)


def _here(words: list[str]) -> Done:
    with (
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["hallmarks", *words])
        with (
            _sent_to(output, 1, "stdout", patch),
            _sent_to(errors, 2, "stderr", patch),
            warnings.catch_warnings(),
            telling(),
        ):
            warnings.simplefilter("default")  # as in a new process, where none is an error
            code = outcome(cli.hallmarks, Invocation())
        return Done(code, _text(output), _text(errors))


@contextlib.contextmanager
def _sent_to(
    file: IO[bytes], descriptor: int, name: str, patch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Send a standard stream, its descriptor too, to a file."""
    before = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    try:
        with os.fdopen(descriptor, "w", closefd=False, errors="backslashreplace") as stream:
            patch.setattr(sys, name, stream)
            yield
    finally:
        os.dup2(before, descriptor)
        os.close(before)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()
