"""Looking at a source that grows: which of its checkpoints are new, whole, and quiet.

A checkpoint is whole if its index and headers say so of the files that there are. It is quiet if none of
these has changed for a while, by the clock of their storage or by what was seen here before, whichever is
longer. What never becomes whole is left out in the end, and taken all the same if it does later.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.errors import FormatError, SourceNotFound
from pipeline.follow.record import Record, version_of
from pipeline.planning.contents import files_of
from pipeline.planning.make import make_plan_of_one, why_unreadable
from pipeline.planning.parallel import run_names
from pipeline.planning.plan_cache import PlanCache
from pipeline.planning.request import Request
from pipeline.planning.select import LeftOut, Selected, select
from pipeline.sources import open_source
from pipeline.sources.base import Candidate, File, Source

SETTLE_S = 60.0
"""As long as a client of NFS may show a file as it was (nfs(5): acregmax and acdirmax are 60 s)."""
GIVEN_UP_AFTER = 10
"""Times that, after which what cannot be read is left out: uploads pause, disks fill up and are emptied."""

Key = tuple[str, str]
"""Name and place of a checkpoint in its source."""


@dataclass(frozen=True, slots=True)
class New:
    """A checkpoint that is to be read."""

    entry: Selected
    listed: tuple[str, ...]
    """Paths of its files."""
    version: str


@dataclass(slots=True)
class Seen:
    """What one look has shown."""

    source: Source
    listed: dict[Key, Candidate] = field(default_factory=dict)
    """The checkpoints of the run that are there."""
    new: list[New] = field(default_factory=list)
    quiet_in_s: float | None = None
    """When all that are whole may be quiet; None: there are no others."""
    pending: list[LeftOut] = field(default_factory=list)
    """Checkpoints that are not whole, or not quiet."""
    lacking: list[LeftOut] = field(default_factory=list)
    """Those that were not whole for so long that they are left out."""


@dataclass(slots=True)
class _Watched:
    """A checkpoint that is not read yet, as it was seen last."""

    files: str
    since: float
    """By the monotonic clock: from when on its files were these."""
    said: str = ""


def key_of(candidate: Candidate) -> Key:
    """Return what one checkpoint is known by from look to look."""
    return candidate.name, candidate.path


class Watch:
    """Looks at one source, again and again."""

    def __init__(
        self, request: Request, run: str, settle: float, note: Callable[[str], None]
    ) -> None:
        """Nothing is looked at yet.

        Args:
            settle: seconds for which the files of a checkpoint must not have changed.
            note: told what is not read yet and why, once.
        """
        self._request, self._run, self._settle, self._note = request, run, settle, note
        self._watched: dict[Key, _Watched] = {}

    def look(self, records: Mapping[Key, Record]) -> Seen:
        """Return what is there beside what was read.

        Raises:
            SourceNotFound: there is no such source, or it cannot be seen now.
            NothingMatches: its checkpoints are of several runs.
        """
        request = self._request
        source = open_source(request.source, request.layout, request.reading)
        seen = Seen(source)
        candidates = source.candidates()
        selection = select(candidates, self._of_one(candidates, records), source.beside(), least=0)
        with PlanCache() as cache:
            for entry in (entry for entry in selection.checkpoints if entry.is_placed):
                key = key_of(entry.candidate)
                seen.listed[key] = entry.candidate
                self._judge(entry, records.get(key), cache, seen)
        self._watched = {key: each for key, each in self._watched.items() if key in seen.listed}
        read = {record.candidate.position.order for record in records.values()}
        read |= {new.entry.candidate.position.order for new in seen.new}
        for (
            each
        ) in selection.lacking:  # a folder without weights may be about to be filled, or removed
            where = request.reading.position(each.name).order
            if read and where < max(read) and where not in read:
                seen.lacking.append(each)
        return seen

    def _of_one(self, candidates: Sequence[Candidate], records: Mapping[Key, Record]) -> Request:
        """Return the request, of the run that is followed: another may come further meanwhile."""
        seeds = {record.candidate.position.seed or "none" for record in records.values()}
        pinned = self._request.seeds == "first" and len(seeds) == 1
        if pinned and not seeds.isdisjoint(run_names(candidates)):
            return replace(self._request, seeds=seeds.pop())
        return self._request

    def _judge(self, entry: Selected, record: Record | None, cache: PlanCache, seen: Seen) -> None:
        candidate = entry.candidate
        in_revision = candidate.commit is not None and not candidate.path
        if record is not None and in_revision and record.candidate.commit == candidate.commit:
            return
        try:
            files = files_of(seen.source, candidate, cache, self._request.reading)
        except SourceNotFound:
            return  # removed meanwhile
        if record is not None and record.is_of(files):
            return
        try:
            plan = make_plan_of_one(seen.source, entry, self._request, self._run)
        except SourceNotFound:
            return
        except FormatError as error:
            if record is None:  # else it is being removed, or written again
                why = why_unreadable(error, candidate.name)
                self._is_not_whole(candidate, files, why, seen)
            return
        version = version_of(plan.files)
        if record is not None and record.stored.version == version:
            return
        quiet = self._quiet_for(candidate, plan.files)
        if quiet >= self._settle:
            listed = tuple(file.path for file in files)
            seen.new.append(New(entry, listed, version))
            return
        left = self._settle - quiet
        seen.quiet_in_s = max(left, seen.quiet_in_s or 0.0)
        reason = f"may be being written: read when its files are unchanged for {self._settle:g} s"
        self._pending(candidate, reason, seen)

    def _is_not_whole(
        self, candidate: Candidate, files: Sequence[File], why: str, seen: Seen
    ) -> None:
        quiet = self._quiet_for(candidate, files)
        if quiet >= GIVEN_UP_AFTER * self._settle:
            self._say(candidate, f"{why}; left out")
            seen.lacking.append(LeftOut(candidate.name, why))
        else:
            self._pending(candidate, f"not whole yet: {why}", seen)

    def _pending(self, candidate: Candidate, reason: str, seen: Seen) -> None:
        self._say(candidate, reason)
        seen.pending.append(LeftOut(candidate.name, reason))

    def _say(self, candidate: Candidate, text: str) -> None:
        watched = self._watched[key_of(candidate)]
        if watched.said != text:
            watched.said = text
            self._note(f"{candidate.name}: {text}")

    def _quiet_for(self, candidate: Candidate, files: Sequence[File]) -> float:
        """Return for how many seconds files have not changed."""
        key, now, version = key_of(candidate), time.monotonic(), version_of(files)
        watched = self._watched.get(key)
        if watched is None or watched.files != version:
            said = "" if watched is None else watched.said
            watched = self._watched[key] = _Watched(version, now, said)
        changes = [file.changed_at for file in files if file.changed_at is not None]
        if files and not changes:
            return math.inf  # files of a commit, which are there all at once
        by_storage = time.time() - max(changes) if changes else 0.0
        return max(by_storage, now - watched.since)
