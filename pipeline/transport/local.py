"""Ranges of a local file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import AccessExpired, ReadError, SourceChanged, TransientReadError
from pipeline.transport.access import FileState, LocalPath


def read(access: LocalPath, ranges: Sequence[tuple[int, memoryview]]) -> None:
    """Fill each buffer from a byte of the file on; the file is opened once for all of them.

    Its state is compared when all has been read, so that no change before or meanwhile goes unseen.

    Raises:
        SourceChanged: the file is not as it was when planned.
        AccessExpired: it is a cached one and does not exist on this machine.
        TransientReadError: it could not be read.
    """
    start, buffer = ranges[0]
    try:
        descriptor = os.open(access.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start, buffer in ranges:
                _fill(descriptor, access, start, buffer)
            _compare(descriptor, access)
        finally:
            os.close(descriptor)
    except ReadError:
        raise  # an OSError, too
    except OSError as error:
        if access.cached and not Path(access.path).exists():
            raise AccessExpired(f"{access.where}: not cached on this machine") from None
        raise TransientReadError(
            f"{access.path}[{start}:{start + len(buffer)}]: {error.strerror}"
        ) from None


def _fill(descriptor: int, access: LocalPath, start: int, buffer: memoryview) -> None:
    done = os.preadv(descriptor, [buffer], start)
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], start + done)
        if count == 0:
            _compare(descriptor, access)
            raise SourceChanged(
                f"{access.path} ends at {start + done:,}, before {start + len(buffer):,}"
            )
        done += count


def _compare(descriptor: int, access: LocalPath) -> None:
    state, planned = FileState.of(os.fstat(descriptor)), access.state
    if state != planned:
        raise SourceChanged(
            f"{access.path} changed since it was planned: expected {planned.size:,} bytes, found"
            f" {state.size:,}, or another time of change",
            "start again with --fresh",
        )
