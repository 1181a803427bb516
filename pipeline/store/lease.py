"""One driver writes a run at a time."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid

from pipeline.errors import StoreUnusable
from pipeline.store.folder import Folder

RENEWED_EVERY_S = 10.0
STALE_AFTER_S = 60.0
"""Six renewals missed: longer than any pause of a live driver that still writes anything useful."""


class Lease:
    """The right to write one run, from `acquire` to `release`.

    A file made by a create-if-absent, renewed by a thread. It is taken over when it is stale, and
    at once when its holder was a process of this machine that is gone.
    """

    def __init__(self, folder: Folder, run: str) -> None:
        self._folder, self._run = folder, run
        self._path = f"_tiles/run={run}/lease"
        self._id = uuid.uuid4().hex
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lease.

        Raises:
            StoreUnusable: another driver holds it, or the store cannot be written.
        """
        if not self._folder.create(self._path, self._contents()):
            holder = self._holder()
            if holder is not None and not _is_gone(holder):
                raise StoreUnusable(
                    f"run {self._run} is being written by process {holder['pid']} on"
                    f" {holder['host']}",
                    "wait for it, stop it, or write another run with --run NAME",
                )
            self._folder.replace(self._path, self._contents())
        threading.Thread(target=self._renew, daemon=True, name="lease").start()

    def release(self) -> None:
        """Give the lease back, if it is still this driver's."""
        self._released.set()
        holder = self._holder()
        if holder is not None and holder["id"] == self._id:
            self._folder.delete([self._path])

    def _renew(self) -> None:
        while not self._released.wait(RENEWED_EVERY_S):
            holder = self._holder()
            if holder is None or holder["id"] != self._id:
                return
            self._folder.replace(self._path, self._contents())

    def _holder(self) -> dict | None:
        try:
            holder = json.loads(self._folder.read(self._path) or b"")
            return holder if {"id", "host", "pid", "renewed"} <= holder.keys() else None
        except (ValueError, AttributeError):
            return None

    def _contents(self) -> bytes:
        holder = {
            "id": self._id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "renewed": time.time(),
        }
        return json.dumps(holder).encode()


def _is_gone(holder: dict) -> bool:
    if time.time() - holder["renewed"] > STALE_AFTER_S:
        return True
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
