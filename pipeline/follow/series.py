"""The run that records make: one plan over all of them, and the sums of its parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import NothingMatches
from pipeline.follow.record import Record
from pipeline.planning.account import Account
from pipeline.planning.align import AlignedTensor, LeftOutTensor
from pipeline.planning.plan import Plan, PlannedCheckpoint
from pipeline.planning.request import Request
from pipeline.planning.select import LeftOut, Selected, select
from pipeline.statistics.parts import PartKey, Sums
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
        """Put the records in order.

        Args:
            source: what it is called for people.
            selection: which source and which of its weights are asked for, as JSON.
        """
        self._run, self._source, self._selection = run, source, selection
        self._windows = request.windows
        of_candidate = {record.candidate: record for record in records}
        self._chosen = select(list(of_candidate), request, least=0)
        self.selected = [entry for entry in self._chosen.checkpoints if entry.is_placed]
        self.records = [of_candidate[entry.candidate] for entry in self.selected]

    def plan(self, lacking: Sequence[LeftOut] = ()) -> Plan:
        """Return the plan of all records, of which nothing is left to read.

        Args:
            lacking: checkpoints that cannot be read.

        Raises:
            NothingMatches: no tensor is the same in all of them.
        """
        tensors, left_out = _aligned(self.records)
        if not tensors:
            shown = "; ".join(f"{each.name}: {each.reason}" for each in left_out[:3])
            raise NothingMatches(
                f"{self._source}: no tensor is the same in all checkpoints: {shown}"
            )
        series = Plan(
            run=self._run,
            source=self._source,
            checkpoints=tuple(map(self._planned, self.selected, self.records)),
            left_out_checkpoints=(),
            gaps=self._chosen.gaps,
            files=tuple(file for record in self.records for file in record.files),
            tensors=tuple(tensors),
            left_out_tensors=tuple(left_out),
            tiles=(),
            account=Account(self._chosen.ordering, tuple(lacking)),
            unread=({},) * len(self.records),
            network=self.records[0].network,
            content=self.content(lacking),
            selection=self._selection,
            statistics_asked=STATISTICS,
            windows_asked=self._windows,
        )
        return replace(series.sketched(), tiles=())

    def kept(
        self, folder: RecordFolder, plan: Plan, parts: Sequence[tuple[int, int]]
    ) -> list[Sums]:
        """Return the sums of some parts of a plan of these records, of each checkpoint.

        Raises:
            StoreUnusable: a record is gone.
        """
        assert plan.sketch is not None
        columns = plan.sketch.columns
        keys = tuple(PartKey(tensor, part) for tensor, part in parts)
        names = [(plan.tensors[tensor].name, part) for tensor, part in parts]

        def of_record(record: Record) -> Sums:
            arrays = folder.rows(record.stored, [record.rows[name] for name in names])
            arrays["sketch.buckets"] = _as_wide(arrays["sketch.buckets"], columns)
            for name in _COMPARED:
                arrays[name] = np.full(arrays[name].shape, np.nan)
            return Sums(keys, arrays, record.stored.device)

        with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="records") as pool:
            return list(pool.map(of_record, self.records))

    def _planned(self, entry: Selected, record: Record) -> PlannedCheckpoint:
        where = entry.position
        return PlannedCheckpoint(
            self._source,
            entry.candidate.name,
            entry.candidate.commit,
            where.step,
            entry.elapsed,
            where.tokens,
            where.stage,
            record.bytes,
            record.dtype,
        )

    def content(self, lacking: Sequence[LeftOut]) -> str:
        """Return the digest of all that the tables of these records are made from."""
        told = [
            FOLLOW_FORMAT,
            [(record.candidate.name, record.stored.version) for record in self.records],
            [(entry.name, entry.reason) for entry in lacking],
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def _aligned(records: Sequence[Record]) -> tuple[list[AlignedTensor], list[LeftOutTensor]]:
    """Return the tensors that all records hold alike, over all of them, and the others with the reason."""
    firsts = [sum(len(record.files) for record in records[:k]) for k in range(len(records))]
    tensors: list[AlignedTensor] = []
    left_out: dict[str, LeftOutTensor] = {}
    for k, record in enumerate(records):
        for name, tensor in record.left_out.items():
            left_out.setdefault(name, replace(tensor, k=None if tensor.k is None else k))
    for name in dict.fromkeys(name for record in records for name in record.tensors):
        if name in left_out:
            continue
        each = [record.tensors.get(name) for record in records]
        present = [tensor for tensor in each if tensor is not None]
        why = _why_not(each, [record.candidate.name for record in records])
        if why is not None:
            first = present[0]
            left_out[name] = LeftOutTensor(name, first.shape, first.dtypes[0], first.role, *why)
        else:
            tensors.append(_over(present, firsts))
    return tensors, list(left_out.values())


def _why_not(
    each: Sequence[AlignedTensor | None], names: Sequence[str]
) -> tuple[str, str, int] | None:
    """Return why a tensor cannot be compared over all checkpoints, the kind of finding, and where."""
    absent = [k for k, tensor in enumerate(each) if tensor is None]
    if absent:
        text = f"absent from {len(absent)} checkpoints, first {names[absent[0]]}"
        return text, "missing_tensor", absent[0]
    first, *others = (tensor for tensor in each if tensor is not None)
    for k, tensor in enumerate(others, 1):
        if tensor.shape != first.shape:
            shapes = f"from {list(first.shape)} to {list(tensor.shape)}"
            return f"shape changed {shapes} at {names[k]}", "shape_changed", k
        if tensor.parts != first.parts:
            return f"divided into other parts at {names[k]}", "excluded_tensor", k
    return None


def _over(each: Sequence[AlignedTensor], firsts: Sequence[int]) -> AlignedTensor:
    """Return a tensor over all checkpoints; `firsts`: the number of each one's first file."""
    twins = {tensor.twin for tensor in each}
    return replace(
        each[0],
        dtypes=tuple(tensor.dtypes[0] for tensor in each),
        files=tuple(f + tensor.files[0] for f, tensor in zip(firsts, each, strict=True)),
        starts=tuple(tensor.starts[0] for tensor in each),
        twin=twins.pop() if len(twins) == 1 else None,
    )


def _as_wide(buckets: NDArray[Any], columns: int) -> NDArray[Any]:
    """Return sketches with so many columns: what parts do not need is zero."""
    if buckets.shape[2] >= columns:
        return buckets[:, :, :columns]
    return np.pad(buckets, ((0, 0), (0, 0), (0, columns - buckets.shape[2])))
