"""The run that records make: one plan over all of them, and the sums of its parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.follow.record import Record
from pipeline.planning.account import Account
from pipeline.planning.align import AlignedTensor, LeftOutTensor
from pipeline.planning.plan import Plan, PlannedCheckpoint
from pipeline.planning.request import Request
from pipeline.planning.select import LeftOut, Selected, Selection, select
from pipeline.sources.base import File
from pipeline.statistics.parts import PartKey, Sums
from pipeline.statistics.statistic import specs
from pipeline.statistics.table import chosen
from pipeline.store.records import RecordFolder

FOLLOW_FORMAT = 1
"""Raised when what a record holds changes: checkpoints that are still there are read again."""
STATISTICS = ("values",)
"""What is kept of each checkpoint besides what figures are made of: those that compare with other
checkpoints, as sparsity does, would need them."""
_COMPARED = ("values.sign_changes", "values.sign_changes_since_first")
"""Arrays that compare a checkpoint with others: of one that was read alone they say nothing."""
_REQUESTS = 16


class Series:
    """All records of a run, in the order of the training."""

    def __init__(
        self, run: str, source: str, selection: str, request: Request, records: Sequence[Record]
    ) -> None:
        """Align the records.

        Args:
            source: what it is called for people.
            selection: which source and which of its weights are asked for, as JSON.
        """
        by_candidate = {record.candidate: record for record in records}
        chosen_ = select(list(by_candidate), request, least=0)
        self.selected = [entry for entry in chosen_.checkpoints if entry.is_placed]
        self.records = [by_candidate[entry.candidate] for entry in self.selected]
        self._run, self._source, self._selection = run, source, selection
        self._ordering = chosen_

    def plan(self, lacking: Sequence[LeftOut] = ()) -> Plan:
        """Return the plan of all records: nothing of it is left to read.

        Args:
            lacking: checkpoints that cannot be read.
        """
        tensors, left_out = _aligned(self.records)
        numbers = [sum(len(r.files) for r in self.records[:k]) for k in range(len(self.records))]
        of_series = Plan(
            run=self._run,
            source=self._source,
            checkpoints=tuple(map(self._planned, self.selected, self.records)),
            left_out_checkpoints=(),
            gaps=self._ordering.gaps,
            files=tuple(file for record in self.records for file in record.files),
            tensors=tuple(_over(each, numbers) for each in tensors),
            left_out_tensors=tuple(left_out),
            tiles=(),
            account=Account(self._ordering.ordering, tuple(lacking)),
            unread=({},) * len(self.records),
            content=self._content(lacking),
            selection=self._selection,
            statistics_asked=STATISTICS,
        )
        return replace(of_series.sketched(), tiles=()) if tensors else of_series

    def kept(self, folder: RecordFolder, plan: Plan, parts: Sequence[tuple[int, int]]) -> list[Sums]:
        """Return the sums of some parts of a plan of these records, of each checkpoint.

        Raises:
            FormatError: a record is damaged.
            StoreUnusable: a record is gone.
        """
        keys = tuple(PartKey(tensor, part) for tensor, part in parts)
        names = [(plan.tensors[tensor].name, part) for tensor, part in parts]

        def of_record(record: Record) -> Sums:
            arrays = folder.rows(record.stored, [record.rows[name] for name in names])
            arrays["sketch.buckets"] = _as_wide(arrays["sketch.buckets"], plan.sketch.columns)
            for name in _COMPARED:
                arrays[name] = np.full(arrays[name].shape, np.nan)
            return Sums(keys, arrays, record.stored.device)

        with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="records") as pool:
            return list(pool.map(of_record, self.records))
