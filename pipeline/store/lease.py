"""Who may write a run: one driver at a time, and none after it has lost the right.

Leases are numbered. A driver takes `_leases/run=<run>/<number>` with a create-if-absent, one above
the highest number there is, so that of several drivers one gets it. The highest number holds; the
highest file is never deleted, so numbers only rise. Its holder renews the file, and in the end says
in it that it is released.

The number stands in the names of all that its holder writes for readers (store/attempts.py). A
holder that was away for too long can therefore replace nothing of its successor's, on any storage:
the successor takes the name of the row with which the other would have ended its run.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from pipeline.errors import LeaseLost, RunInUse, StoreUnusable, quoted
from pipeline.store.attempts import bar, highest_token
from pipeline.store.folder import Folder

RENEWED_EVERY_S = 10.0
STALE_AFTER_S = 60.0
"""Six renewals missed: longer than any pause of a live driver that still writes anything useful."""


_held: set[str] = set()
"""The leases of this process that are neither released nor given up."""


class Lease:
    """The right to write one run, from `acquire` to `release`.

    It is taken over when it is stale, and at once when its holder was a process of this machine that
    is gone. Stale is judged by the clock of the machine that looks: one that is ahead of the holder's
    by more than STALE_AFTER_S less a renewal takes a lease whose holder lives, which then stops. One
    that is behind waits longer.
    """

    def __init__(self, folder: Folder, run: str) -> None:
        self._folder, self._run = folder, run
        self._prefix = f"_leases/run={run}"
        self._id = uuid.uuid4().hex
        self._released = threading.Event()
        self._lost = False
        self.token = 0
        """The number of the lease that is held; 0 before `acquire`."""

    def acquire(self) -> None:
        """Take the lease.

        Raises:
            RunInUse: another driver holds it.
            StoreUnusable: the store cannot be written.
        """
        _held.add(self._id)
        try:
            while not self._taken():
                pass
        except BaseException:  # an interrupt, too, leaves this process without the lease
            _held.discard(self._id)
            raise
        threading.Thread(target=self._renew, daemon=True, name="lease").start()

    def _taken(self) -> bool:
        """Take the next number; return False if another driver was quicker."""
        numbers = self._numbers()
        if numbers and not _is_over(holder := self._holder(numbers[-1])):
            raise RunInUse(
                f"run {self._run} is being written by process {holder['pid']} on"
                f" {quoted(holder['host'])}",
                "wait for it, stop it, or write another run with --run NAME",
            )
        self.token = max([highest_token(self._folder, self._run), *numbers]) + 1
        if not self._folder.create(self._path(self.token), self._contents()):
            return False
        # numbers below the highest are deleted: one that was free may have been given before
        *lower, highest = self._numbers()
        if highest != self.token:
            self._folder.delete([self._path(self.token)])
            return False
        for number in lower:
            if not _has_ended(self._holder(number)):
                bar(self._folder, self._run, number)
        self._folder.delete([self._path(number) for number in lower])
        return True

    def release(self) -> None:
        """Give the lease back, if it is still this driver's."""
        self._released.set()
        _held.discard(self._id)
        with contextlib.suppress(StoreUnusable):  # then it is over with this process, or stale
            if self._is_held():
                self._folder.replace(self._path(self.token), self._contents(released=True))

    def assure(self) -> None:
        """Check that the lease has not been lost, as far as the last renewal knows.

        Raises:
            LeaseLost: another driver has taken it over, or it has been removed.
        """
        if self._lost:
            raise LeaseLost(
                f"this process lost the lease on run {self._run}: it was not renewed for"
                f" {STALE_AFTER_S:.0f} s and another driver took it, or the store was moved or removed",
                "finished tiles are kept; `hallmarks status` says who writes the run now",
            )

    def check(self) -> None:
        """Check that the lease has not been lost, by looking at the store now.

        Raises:
            LeaseLost: as `assure`.
            StoreUnusable: the store cannot be read.
        """
        self._lost = self._lost or not self._is_held()
        self.assure()

    def _renew(self) -> None:
        while not self._released.wait(RENEWED_EVERY_S):
            try:
                if not self._is_held():
                    self._lost = True
                    return
                self._folder.replace(self._path(self.token), self._contents())
            except StoreUnusable:
                continue  # it may pass before the lease is stale

    def _is_held(self) -> bool:
        numbers = self._numbers()
        if not numbers and not self._folder.exists:
            raise StoreUnusable(f"{self._folder.root} is gone", "was it moved or removed?")
        # the file of that number is another driver's if somebody has removed this one's
        return numbers[-1:] == [self.token] and self._holder(self.token)["id"] == self._id

    def _holder(self, number: int) -> dict[str, Any]:
        return _holder(self._folder.read(self._path(number)))

    def _numbers(self) -> list[int]:
        """Return the numbers of the leases that there are, in order."""
        names = (path.rpartition("/")[2] for path in self._folder.list(self._prefix))
        return sorted(int(name) for name in names if name.isdecimal() and len(name) == _DIGITS)

    def _path(self, number: int) -> str:
        return f"{self._prefix}/{number:0{_DIGITS}d}"

    def _contents(self, *, released: bool = False) -> bytes:
        holder = {
            "id": self._id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "renewed": time.time(),
            "released": released,
            **_process(),
        }
        return json.dumps(holder).encode()


_DIGITS = 10


def _holder(contents: bytes | None) -> dict[str, Any]:
    """Return what a lease says; of one that is damaged, that it was never renewed."""
    try:
        said = json.loads(contents or b"")
        known = {"id": said["id"], "released": said["released"], "host": str(said["host"])}
        return said | known | {"pid": int(said["pid"]), "renewed": float(said["renewed"])}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {"id": None, "released": False, "host": "", "pid": 0, "renewed": 0.0}


def _is_over(holder: dict[str, Any]) -> bool:
    """Return True if the lease may be taken: its holder has ended, or has been silent for too long."""
    return _has_ended(holder) or time.time() - holder["renewed"] > STALE_AFTER_S


def _has_ended(holder: dict[str, Any]) -> bool:
    """Return True if the holder has released its lease, or is known to be gone."""
    return holder["released"] is True or _is_gone(holder)


def _process() -> dict[str, Any]:
    """Return what tells this process from all others, where the system says: empty elsewhere.

    Containers and pods share host names and use the same few numbers of processes, each in a
    namespace of its own; a number is given again when its process is gone.
    """
    try:
        return {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "namespace": os.stat("/proc/self/ns/pid").st_ino,  # noqa: PTH116 - a link to no file
            "began": _began(os.getpid()),
        }
    except OSError:
        return {}


def _is_gone(holder: dict[str, Any]) -> bool:
    """Return True if the holder was a process that this one could see, and it is there no more."""
    this_process, pid = _process(), holder["pid"]
    if not this_process or any(
        holder.get(name) != this_process[name] for name in ("boot", "namespace")
    ):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    began = _began(pid)
    if pid == os.getpid() and began == holder.get("began"):
        return holder["id"] not in _held  # it could not be released
    return began is not None and began != holder.get("began")


def _began(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot: 0 if it has ended, None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None  # where /proc hides what others run
    return 0 if fields[0] in "ZX" else int(fields[19])  # proc(5): state is field 3, starttime 22
