"""Following: what is new in a source is read once, and the run is written again after it.

Records (records.py) are all that the tables (tables.py) are made from: whoever follows next, after whatever
end, goes on from them, and gets the same tables.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pipeline.errors import (
    FormatError,
    HallmarksError,
    Interrupted,
    LeaseLost,
    PlanDoesNotFit,
    RequestError,
    SourceChanged,
    SourceNotFound,
    StoreFailed,
    StoreUnusable,
)
from pipeline.findings.finding import Finding
from pipeline.follow.alarm import Alarm
from pipeline.follow.look import SETTLE_S, Key, New, Seen, Watch, key_of
from pipeline.follow.records import Records, renew
from pipeline.follow.series import STATISTICS
from pipeline.follow.tables import Tables
from pipeline.job.summary import Summary
from pipeline.planning.make import run_name, selection_text
from pipeline.planning.memory import show_size
from pipeline.planning.options import seconds
from pipeline.planning.request import Request, Resources
from pipeline.planning.select import LeftOut
from pipeline.sources import open_source
from pipeline.sources.base import Source
from pipeline.store.folder import Folder
from pipeline.store.lease import Lease
from pipeline.store.names import refuse_to_follow
from pipeline.store.progress import ProgressFile, remove_record
from pipeline.store.query import Store
from pipeline.store.tiles import discard

THREADS = 1
"""That read and compute, unless more are asked for: the training has the machine, and calls on one checkpoint
are so short that two threads wait for the interpreter's lock (benchmarks/results/follow.md: a gigabyte of
bfloat16 took 11.7 s with one and 14.5 with two, and 12 and 21 s of CPU)."""
POLL_S = 15.0
"""Between two looks at a directory."""
POLL_REMOTE_S = 60.0
"""At a bucket or a repository: one to a few requests, of the 1,000 that the Hub grants in 5 minutes."""
LOOK_SHARE = 0.05
"""Of the time at most goes into looking, and while checkpoints wait to be read into writing tables."""
_HEARTBEAT_S = 5.0


@dataclass(frozen=True, slots=True)
class Followed:
    """What following has come to."""

    run: str
    store: str
    checkpoints: int
    """That were read so far, by whomever."""
    read: int
    """Of these by this one."""
    pending: tuple[LeftOut, ...]
    """Checkpoints that are not whole, or may be being written."""
    summary: Summary | None
    """Of the tables; None before there are two checkpoints."""

    def as_dict(self) -> dict[str, Any]:
        """Return what `follow --json` prints."""
        pending = [{"name": entry.name, "reason": entry.reason} for entry in self.pending]
        of_tables = {"complete": False, "followed": True}
        if self.summary is not None:
            of_tables = self.summary.as_dict()
        about = {"run": self.run, "store": self.store, "checkpoints": self.checkpoints}
        return of_tables | about | {"checkpoints_read": self.read, "pending": pending}


class Listener(Protocol):
    """Told what happens."""

    def note(self, text: str) -> None: ...
    def written(self, followed: Followed, new: list[Finding]) -> None: ...


class Quiet:
    """Tells nobody."""

    def note(self, text: str) -> None: ...
    def written(self, followed: Followed, new: list[Finding]) -> None: ...


def follow(
    request: Request,
    store: str = "hallmarks-store",
    resources: Resources | None = None,
    *,
    once: bool = False,
    settle: float | str = SETTLE_S,
    command: str | None = None,
    replace_run: bool = False,
    listener: Listener | None = None,
) -> Followed:
    """Keep a run up to date with a source that grows.

    Args:
        once: take what is there, and return. Otherwise it goes on until it is interrupted.
        settle: seconds for which the files of a checkpoint must not have changed.
        command: called, by a shell, for each new finding that is an error.
        replace_run: a run of this name may be replaced whatever it is of.

    Raises:
        RequestError: the request is wrong; nothing was written.
        HallmarksError: something else failed; what was read is kept.
    """
    settle = seconds("--settle", settle)
    if request.seeds == "all":
        raise RequestError("--seeds all is a run each, and one is followed", "--seeds NAME")
    if request.fraction is not None or request.budget is not None:
        raise RequestError("what is followed is read whole: no --fraction, no --budget")
    source = open_source(request.source, request.layout, request.reading)
    with following(
        request, source, store, resources, settle, command, replace_run, listener or Quiet()
    ) as each:
        return each.once() if once else each.on()


@contextlib.contextmanager
def following(
    request: Request,
    source: Source,
    store: str,
    resources: Resources | None,
    settle: float,
    command: str | None,
    replace_run: bool,
    listener: Listener,
) -> Iterator[Following]:
    """Hold the right to write the run of a source, and go on from what there is of it."""
    request = replace(request, statistics=STATISTICS)
    resources = replace(
        resources or Resources(),
        executor="local",
        device="cpu",
        threads=(resources.threads if resources else None) or THREADS,
    )
    folder = Folder(store)
    run, selection = run_name(request, source), selection_text(source, request)
    if not replace_run:
        refuse_to_follow(folder, run, selection)
    lease = Lease(folder, run)
    lease.acquire()
    try:
        if not replace_run:
            refuse_to_follow(folder, run, selection)
        yield Following(
            request, run, source, selection, folder, store, resources, lease,
            settle, command, listener,
        )  # fmt: skip
    except LeaseLost:
        raise  # the record is another's, too
    except BaseException:  # an interrupt, too: the record would say that somebody still follows
        with contextlib.suppress(StoreUnusable):
            remove_record(folder, run)
        raise
    else:
        remove_record(folder, run)
    finally:
        lease.release()


class Following:
    """One run, which this process alone writes."""

    def __init__(
        self,
        request: Request,
        run: str,
        source: Source,
        selection: str,
        folder: Folder,
        store: str,
        resources: Resources,
        lease: Lease,
        settle: float,
        command: str | None,
        listener: Listener,
    ) -> None:
        self._run, self._folder, self._store, self._lease = run, folder, store, lease
        self._listener, self._settle = listener, settle
        self._poll_s = POLL_REMOTE_S if source.is_remote else POLL_S
        self._alarm = None if command is None else Alarm(command, listener.note)
        self._watch = Watch(request, run, settle, listener.note)
        self._progress = ProgressFile(folder, run, lease.token)
        self._records = Records(
            request, run, selection, folder, resources, lease, self._progress, listener.note
        )
        self._tables = Tables(
            request, run, source.label, selection, folder, store, resources, lease, self._progress,
            self._records,
        )  # fmt: skip
        self._read = 0
        self._tidied = False
        """True once results that an earlier process left have been removed."""
        self._pending: list[LeftOut] = []
        self._said = ""
        self._failures: dict[Key, HallmarksError] = {}
        """Why checkpoints could not be read that are whole."""

    def once(self) -> Followed:
        """Take what is there; what may still be being written is waited for once."""
        seen = self._look()
        self._take(seen)
        if seen.quiet_in_s is not None:
            self._rest(min(seen.quiet_in_s, self._settle))
            self._take(self._look())
        if self._alarm is not None:
            self._alarm.wait()
        for failure in self._failures.values():
            raise failure
        return self.followed

    def on(self) -> Followed:
        """Follow until an error or a signal ends it."""
        self._take(self._look())  # what is wrong at once is wrong with the request
        while True:
            self._rest(self._pause)
            try:
                self._take(self._look())
            except (Interrupted, LeaseLost):
                raise
            except (HallmarksError, OSError) as error:  # a disk that was unmounted, a silent server
                self._say_once(error.message if isinstance(error, HallmarksError) else str(error))

    def _say_once(self, text: str) -> None:
        """Say what may pass; not again as long as it is what was said last."""
        if text != self._said:
            self._said = text
            self._listener.note(f"{text}; looked at again later")

    def _rest(self, seconds: float) -> None:
        """Wait, and show that this one is alive."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.show_idle()
            time.sleep(min(left, _HEARTBEAT_S))
            self._lease.assure()

    def show_idle(self) -> None:
        """Say in the record that there is nothing to do now."""
        renew(self._progress, "following")

    def _look(self) -> Seen:
        begun = time.monotonic()
        seen = self._watch.look(self._records.by_checkpoint)
        self._pause = max(self._poll_s, (time.monotonic() - begun) / LOOK_SHARE)
        if not seen.listed and not self._records.by_checkpoint:
            self._say_once(
                "no checkpoint whose name states a step (`hallmarks plan SOURCE` shows how names are read)"
            )
        return seen

    def _take(self, seen: Seen) -> None:
        """Read what is new, and write the run again where that changes it."""
        self._pending = seen.pending
        due = time.monotonic()
        for new in seen.new:
            self._take_one(new, seen)
            if time.monotonic() >= due and new is not seen.new[-1]:
                begun = time.monotonic()
                self.write(seen)
                due = time.monotonic() + (time.monotonic() - begun) / LOOK_SHARE
        self.write(seen)
        if not self._tidied:
            discard(self._folder, self._run)  # of a checkpoint whose record came before the end
            self._tidied = True

    def _take_one(self, new: New, seen: Seen) -> None:
        name = new.entry.candidate.name
        try:
            self.read_one(new, seen.source)
        except (LeaseLost, PlanDoesNotFit, Interrupted, StoreFailed, StoreUnusable):
            raise
        except HallmarksError as error:  # removed, changed, or its storage does not answer
            self._pending.append(LeftOut(name, error.message))
            self._say_once(f"{name}: {error.message}")
            if not isinstance(error, FormatError | SourceChanged | SourceNotFound):
                self._failures[key_of(new.entry.candidate)] = error

    def read_one(self, new: New, source: Source) -> None:
        """Read one checkpoint, and keep its record.

        Raises:
            HallmarksError: it could not be read, or not be kept.
        """
        begun = time.monotonic()
        record = self._records.read(new, source)
        self._failures.pop(key_of(record.candidate), None)
        self._read += 1
        size, seconds = show_size(record.bytes), time.monotonic() - begun
        self._listener.note(f"{record.candidate.name}: {size} read in {seconds:.1f} s")

    @property
    def followed(self) -> Followed:
        """What it has come to so far."""
        return Followed(
            self._run,
            self._store,
            len(self._records.by_checkpoint),
            self._read,
            tuple(self._pending),
            self._tables.summary,
        )

    def write(self, seen: Seen) -> None:
        """Write the tables of what was read, unless they are there, and tell of errors."""
        if self._tables.write(seen):
            self._tell()

    def _tell(self) -> None:
        """Tell of errors that nobody was told of yet."""
        told = [tuple(entry) for entry in self._records.kept.told() if isinstance(entry, list)]
        rows = Store(self._store).sql(
            "SELECT f.severity, f.kind, f.k, f.tensor, f.message, c.name, c.step FROM findings f"
            " LEFT JOIN checkpoints c USING (run, k) WHERE f.run = ? AND f.severity = 'error'"
            " ORDER BY f.k, f.kind, f.message",
            [self._run],
        )
        new: list[Finding] = []
        for severity, kind, k, tensor, message, name, step in rows.fetchall():
            if (kind, name, tensor) in told:
                continue
            told.append((kind, name, tensor))
            new.append(Finding(severity, kind, message, k, tensor))
            if self._alarm is not None:
                about = {"kind": kind, "k": k, "step": step, "message": message}
                about |= {"run": self._run, "store": self._store}
                self._alarm.call(
                    {
                        f"HALLMARKS_{key.upper()}": "" if value is None else str(value)
                        for key, value in about.items()
                    }
                )
        if new:
            self._records.kept.tell(told)
        self._listener.written(self.followed, new)
