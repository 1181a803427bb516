"""A combination of checkpoints, written as a checkpoint: piece by piece, each sum rounded once.

Blocks are filled as for `analyze`. What a budget of memory holds at once decides no bit.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.averaging.combine import SCRATCH_BYTES, combined
from pipeline.averaging.plan import FORMATS, AveragePlan, make_average_plan
from pipeline.averaging.staging import (
    RECORD,
    Staging,
    cannot_write,
    finished,
    piece_digest,
    refuse_other,
)
from pipeline.checkpoint.dtypes import DTYPES
from pipeline.errors import HallmarksError, RequestError, quoted
from pipeline.execute.work.pull import Block, Puller
from pipeline.execute.work.urls import UrlBroker
from pipeline.files import write_synced
from pipeline.planning.blocks import BlockLayout, block_layouts, piece_bytes
from pipeline.planning.machine import total_memory
from pipeline.planning.memory import (
    PREFERRED_BLOCK_BYTES,
    PREFERRED_ROW_BYTES,
    default_budget,
    plan_bytes,
    show_size,
    too_small,
)
from pipeline.planning.options import one_of, optional, path, size
from pipeline.planning.request import Request
from pipeline.planning.tiles import Tile
from pipeline.sources.base import File, Source
from pipeline.statistics.pieces import PIECE, bounds
from pipeline.transport.reader import Reader
from pipeline.version import VERSION

_REMOTE_ROW_BYTES = 8 << 20
"""Of few checkpoints over a network, where a request waits 50 ms for its first byte."""
_COPY_BYTES = 8 << 20
_NAMES_SHOWN = 3


class AverageProgress(Protocol):
    """Who is told how far it is."""

    def begun(self, what: str, total: int, done: int) -> None:
        """So many bytes are to be read, of which some were read earlier."""
        ...

    def advanced(self, num_bytes: int) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class AverageSummary:
    """What was written."""

    out: str
    source: str
    checkpoints: list[dict[str, Any]]
    """Those with a weight: name, commit, step, weight."""
    tensors: int
    """That were averaged."""
    copied: int
    """That are the last checkpoint's."""
    differing: list[str]
    """Copied tensors that differ between the checkpoints."""
    parameters: int
    dtypes: list[str]
    """Formats of what was averaged."""
    files: list[str]
    bytes_read: int
    bytes_written: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


def average(
    request: Request,
    weights: Any,
    out: Any,
    *,
    dtype: Any = None,
    memory: Any = None,
    replace: bool = False,
    progress: AverageProgress | None = None,
) -> AverageSummary:
    """Write Σ c_k θ_k as a checkpoint of safetensors files, or go on where that was interrupted.

    Tensors that are no weights, or not asked for, are those of the last checkpoint with a weight.

    Raises:
        RequestError: it cannot be done; nothing was written.
        HallmarksError: something else failed; what was written is kept.
    """
    started = time.perf_counter()
    dtype = optional(one_of(*FORMATS))("--dtype", dtype)
    budget = optional(size)("--memory", memory) or default_budget(total_memory(), 1, False)
    target = Path(_local(path("--out", out))).resolve()
    plan, source = make_average_plan(request, weights, dtype)
    asked = plan.request
    row_bytes = _row_bytes(plan, source, budget)
    try:
        if not replace:
            refuse_other(target, asked["digest"])
        if finished(target, asked["digest"]):
            return _summary(
                plan, target, json.loads((target / RECORD).read_text("utf-8")), 0, started
            )
        staging = Staging(target, asked)
        _refuse_full_disk(plan, staging)
        with staging.open():
            writer = _Writer(plan, source, staging, progress)
            writer.write(row_bytes)
            writer.verify()
            record = writer.finish()
            staging.publish()
    except RequestError:
        raise
    except OSError as error:
        if isinstance(error, HallmarksError):
            raise
        raise cannot_write(target, error) from None
    return _summary(plan, target, record, writer.bytes_read, started)


class _Writer:
    def __init__(
        self,
        plan: AveragePlan,
        source: Source,
        staging: Staging,
        progress: AverageProgress | None,
    ) -> None:
        self._plan, self._source, self._staging = plan, source, staging
        self._progress = progress
        self.bytes_read = 0
        self._paths = [staging.path(name) for name in plan.paths]

    def write(self, row_bytes: int) -> None:
        """Write the pieces that are not written yet.

        Raises:
            RequestError: their values do not allow it; nothing stays of what was written.
        """
        plan, done = self._plan, self._staging.done()
        ranges = plan.ranges(done)
        tile = Tile(0, ranges, 0, "")
        left = sum(plan.tensors[r.tensor].share(r.first, r.stop) for r in ranges)
        if self._progress is not None:
            self._progress.begun(
                str(self._staging.target), plan.bytes_to_read, plan.bytes_to_read - left
            )
        for name, head, num_bytes in zip(self._paths, plan.heads, plan.sizes, strict=True):
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(descriptor, num_bytes)
            os.pwrite(descriptor, head, 0)
            os.close(descriptor)
        if not ranges:
            return
        try:
            with self._blocks() as puller, _opened(self._paths) as descriptors:
                self._puller = puller
                table = np.empty(len(plan.checkpoints) * row_bytes, np.uint8)
                for layout in block_layouts(tile, plan.tensors, row_bytes):
                    block = table[: len(plan.checkpoints) * layout.row_bytes]
                    self._add(layout, block.reshape(-1, layout.row_bytes), descriptors)
        except RequestError:
            self._staging.discard()
            raise

    def verify(self) -> None:
        """Read back what was written, and compare it with the digests of what was computed.

        Raises:
            HallmarksError: it differs: from there on it is written again by the next call.
        """
        digests = self._staging.digests()
        with _opened(self._paths) as descriptors:
            for path, head, descriptor in zip(
                self._paths, self._plan.heads, descriptors, strict=True
            ):
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk
                if os.pread(descriptor, len(head), 0) != head:
                    raise self._differs(path, 0)
            for number, (tensor, first, stop) in enumerate(self._plan.pieces()):
                written = self._plan.written[tensor]
                start, end = (written.start + n * written.itemsize for n in (first, stop))
                data = os.pread(descriptors[written.file], end - start, start)
                if piece_digest(data) != next(digests, None):
                    raise self._differs(self._paths[written.file], number)

    def finish(self) -> dict[str, Any]:
        """Write what lies beside the weights, and the record."""
        plan, staging = self._plan, self._staging
        sizes = dict(zip(plan.paths, plan.sizes, strict=True))
        if plan.index:
            folder = plan.index.rpartition("/")[0]
            index = {
                "metadata": {"total_size": sum(each.num_bytes for each in plan.written)},
                "weight_map": {
                    each.name: os.path.relpath(plan.paths[each.file], folder or ".")
                    for each in plan.written
                },
            }
            write_synced(staging.path(plan.index), json.dumps(index, indent=2).encode())
        for file in plan.beside:
            self._copy(file)
        for name in (plan.index, *(file.path for file in plan.beside)):
            if name:
                sizes[name] = staging.path(name).stat().st_size
        differing = sorted({*plan.unlike, *staging.all_differing()})
        record = {**plan.request, "version": VERSION, "files": sizes, "differing": differing}
        write_synced(staging.path(RECORD), json.dumps(record, indent=2).encode())
        if differing and self._progress is not None:
            shown = ", ".join(quoted(name, 60) for name in differing[:_NAMES_SHOWN])
            more = (
                f" and {len(differing) - _NAMES_SHOWN} more"
                if len(differing) > _NAMES_SHOWN
                else ""
            )
            self._progress.note(
                f"{len(differing)} tensors that are not averaged differ between the checkpoints, and are"
                f" those of {plan.checkpoints[-1].candidate.name}: {shown}{more}"
            )
        return record

    @contextmanager
    def _blocks(self) -> Iterator[Puller]:
        broker = UrlBroker(self._plan, self._source)
        puller = Puller(self._plan, Reader(broker, self._count))
        try:
            yield puller
        finally:
            puller.close()
            broker.close()

    def _count(self, **more: float) -> None:
        self.bytes_read += int(more.get("bytes_pulled", 0))

    def _add(self, layout: BlockLayout, block: Block, descriptors: list[int]) -> None:
        """Read a block, write what it becomes, and take note of it."""
        self._puller.fill(block, layout)
        digests: list[int] = []
        for place in layout.ranges:
            written = self._plan.written[place.range.tensor]
            for first, data, differs in combined(block, place, written, self._plan):
                _write_at(descriptors[written.file], data, written.start + first * written.itemsize)
                pieces = bounds(first, first + len(data) // written.itemsize, PIECE)
                digests += [
                    piece_digest(
                        data[(a - first) * written.itemsize : (b - first) * written.itemsize]
                    )
                    for a, b in pieces
                ]
                if differs:
                    self._staging.differing(written.name)
            if self._progress is not None:
                tensor = self._plan.tensors[place.range.tensor]
                self._progress.advanced(tensor.share(place.range.first, place.range.stop))
        self._staging.add(digests)

    def _differs(self, path: Path, piece: int) -> HallmarksError:
        self._staging.forget(piece)
        return HallmarksError(
            f"{quoted(str(path))}: what was read back is not what was written",
            "the disk may be failing; rerun the same command to write it again",
        )

    def _copy(self, file: File) -> None:
        target = self._staging.path(file.path)
        stated = self._plan.dtype
        if stated is not None and file.path.rpartition("/")[2] == "config.json":
            data = self._source.read(file, 0, file.size)
            write_synced(target, _with_dtype(data, DTYPES[stated].torch))
            return
        with target.open("wb") as copy:
            for start, stop in bounds(0, file.size, _COPY_BYTES):
                copy.write(self._source.read(file, start, stop))
            copy.flush()
            os.fsync(copy.fileno())


def _write_at(descriptor: int, data: Any, start: int) -> None:
    """Write all of some bytes at an offset."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, start)
        view, start = view[count:], start + count


def _with_dtype(data: bytes, dtype: str) -> bytes:
    """Return a configuration whose format, if it states one, is this: transformers loads weights in it."""
    try:
        config = json.loads(data)
    except ValueError:
        return data
    if not isinstance(config, dict):
        return data
    stated = {name: dtype for name in ("torch_dtype", "dtype") if name in config}
    return (
        json.dumps({**config, **stated}, indent=2, ensure_ascii=False).encode() if stated else data
    )


def _local(out: str) -> str:
    if not out or "://" in out:
        raise RequestError(f"--out: expected a directory, found {quoted(out)}")
    return out


def _row_bytes(plan: AveragePlan, source: Source, budget: int) -> int:
    """Return one checkpoint's share of a block.

    Raises:
        PlanDoesNotFit: the budget holds no piece of each.
    """
    count, tensors = len(plan.checkpoints), [t for t in plan.tensors if t.numel]
    if not tensors:
        return PREFERRED_ROW_BYTES
    fixed = plan_bytes(plan.tensors) + SCRATCH_BYTES
    least_row = piece_bytes(tensors) + 64
    least = fixed + count * least_row
    if budget < least:
        raise too_small(budget, count, "a piece of each", least)
    wanted = _REMOTE_ROW_BYTES if source.is_remote else PREFERRED_ROW_BYTES
    wanted = min(wanted, PREFERRED_BLOCK_BYTES // count, (budget - fixed) // count)
    return max(least_row, wanted) // 64 * 64


def _refuse_full_disk(plan: AveragePlan, staging: Staging) -> None:
    parent = next(p for p in staging.folder.parents if p.exists())
    held = sum(p.stat().st_blocks * 512 for p in staging.folder.rglob("*") if p.is_file())
    needed, free = sum(plan.sizes), shutil.disk_usage(parent).free
    if needed > free + held:
        raise RequestError(
            f"{quoted(str(staging.target))}: {show_size(needed, up=True)} are to be written, and"
            f" {show_size(free)} are free",
            "choose another --out, or --dtype BF16",
        )


@contextmanager
def _opened(paths: list[Path]) -> Iterator[list[int]]:
    descriptors: list[int] = []
    try:
        for path in paths:
            descriptors.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _summary(
    plan: AveragePlan, target: Path, record: dict[str, Any], bytes_read: int, started: float
) -> AverageSummary:
    averaged = [each for each in plan.written if not each.is_copied]
    return AverageSummary(
        out=str(target),
        source=plan.source,
        checkpoints=plan.request["checkpoints"],
        tensors=len(averaged),
        copied=len(plan.written) - len(averaged),
        differing=list(record.get("differing", [])),
        parameters=sum(each.read.numel for each in averaged),
        dtypes=sorted({each.dtype for each in averaged}),
        files=sorted(record["files"]),
        bytes_read=bytes_read,
        bytes_written=sum(plan.sizes),
        seconds=time.perf_counter() - started,
    )
