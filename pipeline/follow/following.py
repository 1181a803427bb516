"""Following: what is new in a source is read once, and the run is written again after it.

Records (store/records.py) are all that the tables are made from: whoever follows next, after whatever
end, goes on from them, and gets the same tables.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

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
from pipeline.follow.estimates import followed_sums
from pipeline.follow.look import SETTLE_S, Key, New, Seen, Watch, key_of
from pipeline.follow.read import read
from pipeline.follow.record import Record, parsed, text_of, version_of
from pipeline.follow.series import FOLLOW_FORMAT, STATISTICS, Series
from pipeline.job.memory import assure_room_for_figures, give_back, reduction_buffers
from pipeline.job.outcome import Outcome
from pipeline.job.runs import Runs
from pipeline.job.summary import Execution, Summary, stored_summary
from pipeline.job.write import write_runs
from pipeline.planning.contents import read_contents
from pipeline.planning.make import make_plan_of_one, run_name, selection_text
from pipeline.planning.memory import show_size
from pipeline.planning.options import seconds
from pipeline.planning.plan import Plan
from pipeline.planning.plan_cache import PlanCache
from pipeline.planning.request import Request, Resources
from pipeline.planning.select import LeftOut
from pipeline.planning.training import known
from pipeline.reduce.groups import grouping
from pipeline.reduce.ties import settled
from pipeline.sources import open_source
from pipeline.sources.base import Candidate, Source
from pipeline.statistics.parts import Sums
from pipeline.statistics.sketch import Sketch
from pipeline.statistics.statistic import specs
from pipeline.statistics.table import chosen
from pipeline.store.attempts import estimate, remove_superseded
from pipeline.store.folder import Folder
from pipeline.store.lease import Lease
from pipeline.store.names import refuse_to_follow
from pipeline.store.progress import ProgressFile, remove_record
from pipeline.store.query import Store
from pipeline.store.records import RecordFolder
from pipeline.store.tiles import TileFolder, discard
from pipeline.store.training import keeping, stored_training
from pipeline.training.metrics import Training
from pipeline.training.settings import Settings

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
    except BaseException:  # an interrupt, too: nobody follows any more, and the record would say so
        with contextlib.suppress(StoreUnusable):
            remove_record(folder, run)
        raise
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
        self._request, self._run, self._selection = request, run, selection
        self._label = source.label
        self._poll_s = POLL_REMOTE_S if source.is_remote else POLL_S
        self._folder, self._store, self._resources, self._lease = folder, store, resources, lease
        self._listener, self._settle = listener, settle
        self._alarm = None if command is None else Alarm(command, listener.note)
        self._watch = Watch(request, run, settle, listener.note)
        self._kept = RecordFolder(folder, run, _series(selection, request))
        self._record = ProgressFile(folder, run, lease.token)
        self._attempts = self._read = self._number = 0
        self._tidied = False
        """True once results that an earlier process left have been removed."""
        self._started = time.monotonic()
        self._summary: Summary | None = None
        self._written: str | None = None
        """Digest of what the tables are made from; None: they have not been looked at."""
        self._pending: list[LeftOut] = []
        self._said = ""
        self._failures: dict[Key, HallmarksError] = {}
        """Why checkpoints could not be read that are whole."""
        self._records = self._stored()

    # ---- the two ways

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
        remove_record(self._folder, self._run)
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
            _renew(self._record, "following")
            time.sleep(min(left, _HEARTBEAT_S))
            self._lease.assure()

    def _look(self) -> Seen:
        begun = time.monotonic()
        seen = self._watch.look({key_of(r.candidate): r for r in self._records.values()})
        self._pause = max(self._poll_s, (time.monotonic() - begun) / LOOK_SHARE)
        if not seen.listed and not self._records:
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

    # ---- one checkpoint

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
        record = self._recorded(new, source)
        self._records[key_of(record.candidate)] = record
        self._failures.pop(key_of(record.candidate), None)
        self._read += 1
        size, seconds = show_size(record.bytes), time.monotonic() - begun
        self._listener.note(f"{record.candidate.name}: {size} read in {seconds:.1f} s")

    def _recorded(self, new: New, source: Source) -> Record:
        candidate = new.entry.candidate
        alone = replace(new.entry, elapsed=None)  # which depends on what there is besides
        plan = make_plan_of_one(source, alone, self._request, self._run).sketched()
        tiles = TileFolder(self._folder, self._run, plan.digest, plan.specs)
        tally = _Tally(plan, self._record, self._lease)
        sums = read(plan, source, self._resources, tiles, tally.done)
        if version_of(plan.files) != new.version or not _as_planned(plan, source, candidate):
            tiles.remove()
            raise SourceChanged("its files have changed while it was read")
        self._lease.check()
        self._number += 1
        text = text_of(plan, candidate, new.listed, sums.keys)
        stored = self._kept.create(self._number, new.version, sums, text)
        record = parsed(stored)
        assert record is not None
        before = self._records.get(key_of(candidate))
        if before is not None:
            self._kept.remove([before.stored.name])
        tiles.remove()
        return record

    def _stored(self) -> dict[Key, Record]:
        """Return the records that there are; what cannot be read of them is removed, and said."""
        stored, unreadable = self._kept.stored()
        records: dict[Key, Record] = {}
        surplus: list[str] = []
        for each in stored:
            self._number = max(self._number, each.number)
            record = parsed(each)
            if record is None:
                unreadable.append(each.name)
                continue
            key = key_of(record.candidate)
            if key in records:
                surplus.append(records[key].stored.name)  # it has been written again
            records[key] = record
        if unreadable:
            self._listener.note(
                f"{len(unreadable)} records are damaged: their checkpoints are read again, if they"
                " are still there"
            )
        self._kept.remove([*surplus, *unreadable])
        return records

    # ---- the tables

    @property
    def followed(self) -> Followed:
        """What it has come to so far."""
        return Followed(
            self._run,
            self._store,
            len(self._records),
            self._read,
            tuple(self._pending),
            self._summary,
        )

    def write(self, seen: Seen) -> None:
        """Write the tables of what was read, unless they are there."""
        series = Series(
            self._run, self._label, self._selection, self._request, list(self._records.values())
        )
        if len(series.records) < 2:
            return
        content = series.content(seen.lacking)
        if content == self._written:
            return
        plan = series.plan(seen.lacking)
        if self._written is None and self._is_written(plan):
            self._written = content
            self._tell()  # whoever wrote them may have ended before that
            return
        self._check(series)
        _renew(self._record, "reducing")
        try:
            assure_room_for_figures(plan, self._resources)
            self._summary = self._tables(series, plan, seen)
        finally:
            give_back()
        self._written = content
        self._tell()

    def _is_written(self, plan: Plan) -> bool:
        """Return whether the store has the tables of a plan, and take note of them."""
        as_stored = plan.knowing([stored_training(self._folder, self._run)])
        nothing = Execution(
            self._store, "local", 1, self._started, reduction_buffers(plan, self._resources)
        )
        summary = stored_summary(self._folder, as_stored, nothing)
        self._summary = summary
        return summary is not None

    def _check(self, series: Series) -> None:
        """Compare records with their checksums, those that were not yet.

        Raises:
            StoreFailed: one is damaged.
        """
        for record in series.records:
            columns = record.stored.arrays["sketch.buckets"].shape[2]
            statistics = (*chosen(STATISTICS), Sketch(columns=columns))
            try:
                self._kept.check(record.stored, specs(statistics, 1))
            except FormatError:
                self._kept.remove([record.stored.name])
                del self._records[key_of(record.candidate)]
                raise StoreFailed(
                    f"the record of {record.candidate.name} is damaged, and was removed",
                    "the checkpoint is read again if it is still there",
                ) from None

    def _tables(self, series: Series, plan: Plan, seen: Seen) -> Summary:
        plan = keeping(self._folder, plan.knowing([self._known(series, seen)]))
        plan = settled(plan, lambda parts: _digests(series.kept(self._kept, plan, parts)))
        grouped = grouping(plan)
        divided = reduction_buffers(plan, self._resources)
        self._attempts += 1
        written = write_runs(
            Runs.of(plan),
            [estimate(self._lease.token, self._attempts)],
            grouped,
            followed_sums(
                plan, grouped, lambda parts: series.kept(self._kept, plan, parts), divided.held
            ),
            self._folder,
            Execution(self._store, "local", 1, self._started, divided),
            Outcome(
                devices=frozenset(record.stored.device for record in series.records),
                bytes_read=plan.bytes_total,
                complete=False,
            ),
            final=False,
            check=self._lease.assure,
            ready=self._lease.check,
        )
        written.commit()
        remove_superseded(self._folder, self._run)
        self._kept.remove_others()
        return written.summaries[0]

    def _known(self, series: Series, seen: Seen) -> tuple[Settings, Training]:
        """Return what is known of the training: by the newest checkpoint that is still there."""
        for entry in reversed(series.selected):
            if key_of(entry.candidate) not in seen.listed:
                continue
            listed = replace(entry, candidate=seen.listed[key_of(entry.candidate)])
            try:
                with PlanCache() as cache:
                    contents = read_contents(seen.source, listed, cache, self._request.reading)
                logs = seen.source.logs()
                return known(seen.source, series.selected, [contents], logs, self._request)
            except (FormatError, SourceNotFound):
                continue
        return self._request.settings or {}, self._request.training or Training()

    # ---- who is told

    def _tell(self) -> None:
        """Tell of errors that nobody was told of yet."""
        told = [tuple(entry) for entry in self._kept.told() if isinstance(entry, list)]
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
            self._kept.tell(told)
        self._listener.written(self.followed, new)


class _Tally:
    """How much of a checkpoint has been read, for those who look at the store."""

    def __init__(self, plan: Plan, record: ProgressFile, lease: Lease) -> None:
        self._plan, self._record, self._lease = plan, record, lease
        self._tiles = self._bytes = 0
        self._renew()

    def done(self, tile: int) -> None:
        """Take note of a tile that has a result.

        Raises:
            LeaseLost: another driver writes the run.
        """
        self._tiles += 1
        self._bytes += self._plan.tiles[tile].bytes
        if self._record.due:
            self._renew()
        self._lease.assure()

    def _renew(self) -> None:
        tiles, total = len(self._plan.tiles), self._plan.bytes_to_read
        _renew(self._record, "reading", tiles, self._tiles, total, self._bytes)


def _renew(
    record: ProgressFile,
    state: str,
    tiles: int = 0,
    tiles_done: int = 0,
    total: int = 0,
    done: int = 0,
) -> None:
    """Write what is being done; of a checkpoint how much of it."""
    of_tiles = {"tiles": tiles, "tiles_done": tiles_done, "tiles_lost": 0, "workers": 1}
    record.renew(state=state, bytes=total, bytes_done=done, **of_tiles)


def _series(selection: str, request: Request) -> str:
    """Return the digest of all that decides what a record is of a checkpoint."""
    told = [FOLLOW_FORMAT, selection, request.roles.text if request.roles else ""]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _as_planned(plan: Plan, source: Source, candidate: Candidate) -> bool:
    """Return whether files are still those that were planned."""
    if candidate.commit is not None:
        return True
    now = {file.path: file.identity for file in source.files(candidate)}
    return all(now.get(file.path) == file.identity for file in plan.files)


def _digests(kept: list[Sums]) -> Sums:
    """Return the digests of parts over all checkpoints."""
    words = np.concatenate([sums.arrays["digest.words"] for sums in kept], axis=1)
    return Sums(kept[0].keys, {"digest.words": words}, "")
