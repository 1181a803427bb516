"""How far a run is, as anybody who sees the store can read it: one small file that its driver renews."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.errors import StoreUnusable
from pipeline.store.folder import Folder

RENEWED_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Record:
    """What the driver of a run said last."""

    run: str
    state: str
    """`reading`, `reducing`, `interrupted`, `failed`."""
    tiles: int
    tiles_done: int
    tiles_lost: int
    bytes: int
    bytes_done: int
    workers: int
    token: int
    """Of the driver's lease."""
    host: str
    pid: int
    started: float
    renewed: float
    """Seconds since 1970 by the driver's clock, as `started`."""


class ProgressFile:
    """The record of one run."""

    def __init__(self, folder: Folder, run: str, token: int) -> None:
        self._folder, self._run, self._token = folder, run, token
        self._started = time.time()
        self._renewed = 0.0

    @property
    def due(self) -> bool:
        """True if the record is older than `RENEWED_EVERY_S`."""
        return time.time() - self._renewed >= RENEWED_EVERY_S

    def renew(self, **figures: int | str) -> None:
        """Write the record."""
        self._renewed = time.time()
        about: dict[str, Any] = {"run": self._run, "token": self._token}
        about |= {"host": socket.gethostname(), "pid": os.getpid()}
        about |= {"started": self._started, "renewed": self._renewed}
        with contextlib.suppress(StoreUnusable):  # no result stands on it
            self._folder.replace(_path(self._run), json.dumps(about | figures).encode())


def remove_record(folder: Folder, run: str) -> None:
    """Remove the record of a run: its tables say the rest."""
    folder.delete([_path(run)])


def _path(run: str) -> str:
    return f"_tiles/run={run}/progress"


def records(folder: Folder) -> list[Record]:
    """Return the records of all runs that have one; what cannot be read is left out."""
    sound = []
    for path in folder.list("_tiles"):
        if path.endswith("/progress"):
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                record = Record(**json.loads(folder.read(path) or b""))
                if path == f"_tiles/run={record.run}/progress" and _is_sound(record):
                    sound.append(record)
    return sound


def _is_sound(record: Record) -> bool:
    """Say whether the values, which anybody may have written, are of their kinds."""
    kinds = {"str": str, "int": int, "float": (int, float)}
    values = [(getattr(record, each.name), kinds[str(each.type)]) for each in fields(record)]
    return all(
        isinstance(value, kind) and (isinstance(value, str) or 0 <= value < 2**63)
        for value, kind in values
    )


def as_dict(record: Record) -> dict[str, Any]:
    """Return a record for JSON, with its age in seconds by this machine's clock."""
    return asdict(record) | {"age_s": round(max(0.0, time.time() - record.renewed), 1)}
