"""Local files that are there as a whole, or down to the disk."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Have what a file or folder holds reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file, down to the disk; it may be there in part meanwhile."""
    path.write_bytes(data)
    sync(path)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that whoever opens it finds all of it, or what it was before."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
