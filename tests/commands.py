"""The command line, called in this process: a process of its own takes seconds to import torch.

For tests of what a command says and returns. What concerns the process itself (signals, streams, its
environment, its memory) needs `subprocess`.
"""

from __future__ import annotations

import contextlib
import os
import resource
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
    with (
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["hallmarks", *map(str, arguments)])
        with (
            _sent_to(output, 1, "stdout", patch),
            _sent_to(errors, 2, "stderr", patch),
            _memory_as_before(),
            warnings.catch_warnings(),
            telling(),
        ):
            warnings.simplefilter("default")  # as in a new process, where none is an error
            code = outcome(cli.hallmarks, Invocation())
        done = Done(code, _text(output), _text(errors))
    assert "Traceback" not in done.stderr, done.stderr
    return done


@contextlib.contextmanager
def _memory_as_before() -> Iterator[None]:
    """Lift the bound that `sql` puts on the memory of its process."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


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
