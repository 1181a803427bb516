"""One driver writes a run at a time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid

from pipeline.errors import HallmarksError, StoreUnusable
from pipeline.store.folder import Folder

RENEWED_EVERY_S = 10.0
STALE_AFTER_S = 60.0
"""Six renewals missed: longer than any pause of a live driver that still writes anything useful."""


class Lease:
    """The right to write one run, from `acquire` to `release`.

    A file made by a create-if-absent, renewed by a thread. It is taken over when it is stale, and
    at once when its holder was a process of this machine that is gone. Renewal and take-over replace
    the very version that was looked at (`Folder.update`): of several drivers that find a stale lease
    one takes it, and a holder that had been away too long does not take it back.

    Stale is judged by the clock of the machine that looks. One that is ahead of the holder's by more
    than STALE_AFTER_S less a renewal takes a lease whose holder lives, which then stops: two drivers
    for as long as RENEWED_EVERY_S, which does no harm to tiles. One that is behind waits longer.
    """

    def __init__(self, folder: Folder, run: str) -> None:
        self._folder, self._run = folder, run
        self._path = f"_tiles/run={run}/lease"
        self._id = uuid.uuid4().hex
        self._released = threading.Event()
        self._lost = False

    def acquire(self) -> None:
        """Take the lease.

        Raises:
            StoreUnusable: another driver holds it, or the store cannot be written.
        """
        contents = self._contents()
        while not self._folder.create(self._path, contents):
            found = self._folder.look(self._path)
            if found is None:
                continue  # given back meanwhile
            holder = _holder(found[0])
            if holder is not None and not _is_gone(holder):
                raise StoreUnusable(
                    f"run {self._run} is being written by process {holder['pid']} on"
                    f" {holder['host']}",
                    "wait for it, stop it, or write another run with --run NAME",
                )
            if self._folder.update(self._path, contents, found[1]):
                break
        threading.Thread(target=self._renew, daemon=True, name="lease").start()

    def release(self) -> None:
        """Give the lease back, if it is still this driver's."""
        self._released.set()
        with contextlib.suppress(StoreUnusable):  # then it becomes stale
            found = self._folder.look(self._path)
            if found is not None and self._is_mine(found[0]):
                self._folder.delete([self._path])

    def assure(self) -> None:
        """Check that the lease has not been lost, as far as the last renewal knows.

        Raises:
            HallmarksError: another driver has taken it over, or it has been removed.
        """
        if self._lost:
            raise HallmarksError(
                f"run {self._run} is no longer this driver's: its lease was not renewed for"
                f" {STALE_AFTER_S:.0f} s, or removed",
                "finished tiles are kept; do two machines' clocks differ?",
            )

    def _renew(self) -> None:
        while not self._released.wait(RENEWED_EVERY_S):
            try:
                found = self._folder.look(self._path)
                if found is None or not self._is_mine(found[0]):
                    self._lost = True
                    return
                self._folder.update(self._path, self._contents(), found[1])
            except StoreUnusable:
                continue  # it may pass before the lease is stale

    def _is_mine(self, contents: bytes) -> bool:
        holder = _holder(contents)
        return holder is not None and holder["id"] == self._id

    def _contents(self) -> bytes:
        holder = {
            "id": self._id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "renewed": time.time(),
        }
        return json.dumps(holder).encode()


def _holder(contents: bytes) -> dict | None:
    """Return what a lease says, or None if it is damaged."""
    try:
        holder = json.loads(contents)
        return holder if {"id", "host", "pid", "renewed"} <= holder.keys() else None
    except (ValueError, AttributeError):
        return None


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
