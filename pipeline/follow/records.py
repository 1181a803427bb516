"""The records of a run that is followed: each is made by reading a checkpoint once, and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

from pipeline.errors import FormatError, SourceChanged, StoreFailed
from pipeline.follow.look import Key, New, key_of
from pipeline.follow.read import read
from pipeline.follow.record import Record, parsed, text_of, version_of
from pipeline.follow.series import FOLLOW_FORMAT, STATISTICS, Series
from pipeline.planning.make import make_plan_of_one
from pipeline.planning.plan import Plan
from pipeline.planning.request import Request, Resources
from pipeline.sources.base import Candidate, Source
from pipeline.statistics.sketch import Sketch
from pipeline.statistics.statistic import specs
from pipeline.statistics.table import chosen
from pipeline.store.folder import Folder
from pipeline.store.lease import Lease
from pipeline.store.progress import ProgressFile
from pipeline.store.records import RecordFolder
from pipeline.store.tiles import TileFolder


class Records:
    """What was read of the checkpoints of one run, by whomever."""

    def __init__(
        self,
        request: Request,
        run: str,
        selection: str,
        folder: Folder,
        resources: Resources,
        lease: Lease,
        progress: ProgressFile,
        note: Callable[[str], None],
    ) -> None:
        """Look at those that there are; what cannot be read of them is removed, and said.

        Args:
            selection: which source and which of its weights are asked for, as JSON.
            progress: says how much of a checkpoint has been read.
        """
        self._request, self._run, self._folder = request, run, folder
        self._resources, self._lease, self._progress, self._note = resources, lease, progress, note
        self.kept = RecordFolder(folder, run, _digest_of_series(selection, request))
        self._number = 0
        self.by_checkpoint = self._stored()

    def read(self, new: New, source: Source) -> Record:
        """Read one checkpoint, and keep its record.

        Raises:
            HallmarksError: it could not be read, or not be kept.
        """
        candidate = new.entry.candidate
        alone = replace(new.entry, elapsed=None)  # which depends on what there is besides
        plan = make_plan_of_one(source, alone, self._request, self._run).sketched()
        tiles = TileFolder(self._folder, self._run, plan.digest, plan.specs)
        tally = _Tally(plan, self._progress, self._lease)
        sums = read(plan, source, self._resources, tiles, tally.done)
        if version_of(plan.files) != new.version or not _as_planned(plan, source, candidate):
            tiles.remove()
            raise SourceChanged("its files have changed while it was read")
        self._lease.check()
        self._number += 1
        text = text_of(plan, candidate, new.listed, sums.keys)
        stored = self.kept.create(self._number, new.version, sums, text)
        record = parsed(stored)
        assert record is not None
        before = self.by_checkpoint.get(key_of(candidate))
        if before is not None:
            self.kept.remove([before.stored.name])
        tiles.remove()
        self.by_checkpoint[key_of(record.candidate)] = record
        return record

    def check(self, series: Series) -> None:
        """Compare those of a series with their checksums, unless that was done.

        Raises:
            StoreFailed: one is damaged.
        """
        for record in series.records:
            columns = record.stored.arrays["sketch.buckets"].shape[2]
            statistics = (*chosen(STATISTICS), Sketch(columns=columns))
            try:
                self.kept.check(record.stored, specs(statistics, 1))
            except FormatError:
                self.kept.remove([record.stored.name])
                del self.by_checkpoint[key_of(record.candidate)]
                raise StoreFailed(
                    f"the record of {record.candidate.name} is damaged, and was removed",
                    "the checkpoint is read again if it is still there",
                ) from None

    def _stored(self) -> dict[Key, Record]:
        stored, unreadable = self.kept.stored()
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
            self._note(
                f"{len(unreadable)} records are damaged: their checkpoints are read again, if they"
                " are still there"
            )
        self.kept.remove([*surplus, *unreadable])
        return records


class _Tally:
    """How much of a checkpoint has been read, for those who look at the store."""

    def __init__(self, plan: Plan, progress: ProgressFile, lease: Lease) -> None:
        self._plan, self._progress, self._lease = plan, progress, lease
        self._tiles = self._bytes = 0
        self._renew()

    def done(self, tile: int) -> None:
        """Take note of a tile that has a result.

        Raises:
            LeaseLost: another driver writes the run.
        """
        self._tiles += 1
        self._bytes += self._plan.tiles[tile].bytes
        if self._progress.due:
            self._renew()
        self._lease.assure()

    def _renew(self) -> None:
        tiles, total = len(self._plan.tiles), self._plan.bytes_to_read
        renew(self._progress, "reading", tiles, self._tiles, total, self._bytes)


def renew(
    progress: ProgressFile,
    state: str,
    tiles: int = 0,
    tiles_done: int = 0,
    total: int = 0,
    done: int = 0,
) -> None:
    """Write what is being done; of a checkpoint how much of it."""
    of_tiles = {"tiles": tiles, "tiles_done": tiles_done, "tiles_lost": 0, "workers": 1}
    progress.renew(state=state, bytes=total, bytes_done=done, **of_tiles)


def _digest_of_series(selection: str, request: Request) -> str:
    """Return the digest of all that decides what a record is of a checkpoint."""
    told = [FOLLOW_FORMAT, selection, request.roles.text if request.roles else ""]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _as_planned(plan: Plan, source: Source, candidate: Candidate) -> bool:
    """Return whether files are still those that were planned."""
    if candidate.commit is not None:
        return True
    now = {file.path: file.identity for file in source.files(candidate)}
    return all(now.get(file.path) == file.identity for file in plan.files)
