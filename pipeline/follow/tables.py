"""The tables of a run that is followed: written from its records, whenever these change."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from pipeline.errors import FormatError, SourceNotFound
from pipeline.follow.estimates import followed_sums
from pipeline.follow.look import Seen, key_of
from pipeline.follow.records import Records, renew
from pipeline.follow.series import Series
from pipeline.job.memory import assure_room_for_figures, give_back, reduction_buffers
from pipeline.job.outcome import Outcome
from pipeline.job.runs import Runs
from pipeline.job.summary import Execution, Summary, stored_summary
from pipeline.job.write import write_runs
from pipeline.planning.contents import read_contents
from pipeline.planning.plan import Plan
from pipeline.planning.plan_cache import PlanCache
from pipeline.planning.request import Request, Resources
from pipeline.planning.training import known
from pipeline.reduce.groups import grouping
from pipeline.reduce.ties import settled
from pipeline.statistics.parts import Sums
from pipeline.store.attempts import estimate, remove_superseded
from pipeline.store.folder import Folder
from pipeline.store.lease import Lease
from pipeline.store.progress import ProgressFile
from pipeline.store.training import keeping, stored_training
from pipeline.training.metrics import Training
from pipeline.training.settings import Settings


class Tables:
    """Those of one run, which this process alone writes."""

    def __init__(
        self,
        request: Request,
        run: str,
        label: str,
        selection: str,
        folder: Folder,
        store: str,
        resources: Resources,
        lease: Lease,
        progress: ProgressFile,
        records: Records,
    ) -> None:
        """Prepare; nothing is looked at yet. `label`: what the source is called for people."""
        self._request, self._run, self._label, self._selection = request, run, label, selection
        self._folder, self._store, self._resources = folder, store, resources
        self._lease, self._progress, self._records = lease, progress, records
        self._started = time.monotonic()
        self._attempts = 0
        self._content: str | None = None
        """Digest of what the tables are made from; None: they have not been looked at."""
        self.summary: Summary | None = None
        """Of the tables; None before there are two checkpoints."""

    def write(self, seen: Seen) -> bool:
        """Write the tables of what was read, unless they are there.

        Returns:
            Whether this is the first that this process knows of them: whoever wrote them may have ended
            before anybody was told.
        """
        records = list(self._records.by_checkpoint.values())
        series = Series(self._run, self._label, self._selection, self._request, records)
        if len(series.records) < 2:
            return False
        content = series.content(seen.lacking)
        if content == self._content:
            return False
        plan = series.plan(seen.lacking)
        if self._content is not None or not self._is_written(plan):
            self._records.check(series)
            renew(self._progress, "reducing")
            try:
                assure_room_for_figures(plan, self._resources)
                self.summary = self._written(series, plan, seen)
            finally:
                give_back()
        self._content = content
        return True

    def _is_written(self, plan: Plan) -> bool:
        """Return whether the store has the tables of a plan, and take note of them."""
        as_stored = plan.knowing([stored_training(self._folder, self._run)])
        nothing = Execution(
            self._store, "local", 1, self._started, reduction_buffers(plan, self._resources)
        )
        summary = stored_summary(self._folder, as_stored, nothing)
        self.summary = summary
        return summary is not None

    def _written(self, series: Series, plan: Plan, seen: Seen) -> Summary:
        plan = keeping(self._folder, plan.knowing([self._known(series, seen)]))
        plan = settled(plan, lambda parts: _digests(series.kept(self._records.kept, plan, parts)))
        grouped = grouping(plan)
        divided = reduction_buffers(plan, self._resources)
        self._attempts += 1
        written = write_runs(
            Runs.of(plan),
            [estimate(self._lease.token, self._attempts)],
            grouped,
            followed_sums(
                plan,
                grouped,
                lambda parts: series.kept(self._records.kept, plan, parts),
                divided.held,
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
        self._records.kept.remove_others()
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


def _digests(kept: list[Sums]) -> Sums:
    """Return the digests of parts over all checkpoints."""
    words = np.concatenate([sums.arrays["digest.words"] for sums in kept], axis=1)
    return Sums(kept[0].keys, {"digest.words": words}, "")
