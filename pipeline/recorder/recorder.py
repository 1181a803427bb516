"""Recording a training: checkpoints on a schedule, written in the background, and metrics beside them."""

from __future__ import annotations

import bisect
import contextlib
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from pipeline.errors import HallmarksError, RequestError, quoted
from pipeline.recorder.folder import Folder, finished, unfinished, write_synced
from pipeline.recorder.network import bare, config_of, is_sharded, rank, tensors_of
from pipeline.recorder.schedule import Schedule, step_number, steps
from pipeline.recorder.snapshot import Snapshot

if TYPE_CHECKING:
    from pipeline.recorder.sharded import ShardedSnapshot

_SHOWN = 6


class Recorder:
    """Records what the weights of a network are while it is trained, as checkpoints that `analyze` reads.

    with Recorder(model, "checkpoints", "linear:100", last_step=2000) as recorder:
        recorder.step(0)  # the initialization
        for step in range(1, 2001):
            loss = train_one_step()
            recorder.step(step, loss=loss)

    A checkpoint is the folder `step-N`, there as a whole or not at all: the network's state dict, and its
    configuration. It is copied to the host when it is due and written in the background from there; one that is
    due while another is written waits for it. Metrics are lines of `metrics.jsonl`. What goes wrong in the
    background is raised by the next call, and by `close()`.

    Of a distributed training all ranks make the same calls. Rank 0 records, or all ranks together if each has a
    part of the tensors (`fully_shard`), by torch.distributed.checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        directory: str | PathLike[str],
        schedule: Schedule,
        *,
        last_step: int | None = None,
        resume: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin to record a training, or go on.

        Args:
            model: bare, compiled, in DistributedDataParallel, or after `fully_shard`.
            directory: of the checkpoints and metrics of this training alone; all ranks see the same one.
            schedule: `linear:N`, `logarithmic:N`, `pythia`, `pythia:N`, or the steps.
            last_step: of the training, which is recorded whatever the schedule.
            resume: the step from which an interrupted training is continued, whose weights the network has. What
                was recorded after it is set aside.
            config: of the network, written as `config.json`; what it holds as `training` are settings of the run.
                Default: `model.config` as transformers would save it, if there is one.

        Raises:
            RequestError: an argument is wrong, or the directory holds a training and none is continued.
        """
        if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RequestError(f"model: expected a torch.nn.Module, found {quoted(model)}")
        self._model = bare(model)
        self._config = config_of(self._model, config)
        last = None if last_step is None else step_number("last_step", last_step)
        self._steps = steps(schedule, last)
        self._due = next(self._steps, None)
        begin = None if resume is None else step_number("resume", resume)
        self._folder: Folder | None = None
        self._directory = Path(directory)
        self._snapshot, recorded = self._prepared(begin)
        self._last = -1 if begin is None else begin
        self._resumed = begin if begin in recorded else None
        self._recorded = -1
        if begin is not None:
            lacking = self._go_on(begin, recorded)
            if self._folder is not None:
                for note in filter(None, (self._folder.set_aside, lacking)):
                    warnings.warn(
                        f"{directory}: continued from step {begin:,}: {note}", stacklevel=2
                    )
        self._told = False
        self._closed = False
        self._thread = ThreadPoolExecutor(1, "recorder")
        self._writing: Future[None] | None = None

    def step(self, step: int, /, **metrics: float | Tensor) -> None:
        """Take note of a step: log its metrics, and record a checkpoint if one is due.

        What became due since the call before is recorded now, under the number of this step.

        Args:
            step: how many updates the weights have had; 0: none, the initialization.
            metrics: numbers, or tensors of one; a name may begin with its split: `validation_loss`.

        Raises:
            RequestError: the step is before that of an earlier call, or a metric is no number.
            HallmarksError: this or an earlier checkpoint cannot be written.
        """
        step = self._check(step)
        if metrics:
            self.log(step, metrics)
        if step == self._resumed or (self._due is not None and step >= self._due):
            self.record(step)

    def record(self, step: int) -> None:
        """Record a checkpoint, due or not; of one step once.

        Raises:
            RequestError: the training is continued from this step, with other weights than were recorded.
            HallmarksError: this or an earlier checkpoint cannot be written.
        """
        step = self._check(step)
        is_whole = isinstance(self._snapshot, Snapshot)
        if step == self._recorded or (is_whole and self._folder is None):
            return
        self._wait()
        self._snapshot.take(self._tensors(is_whole))
        if step != self._resumed:
            self._writing = self._thread.submit(self._write, step)
        elif isinstance(self._snapshot, Snapshot) and not self._snapshot.is_in(self._at(step)):
            raise RequestError(
                f"{quoted(self._at(step))} holds other weights than the network has now",
                f"load the weights of step {step:,} before, or resume from a step before it",
            )
        self._recorded = step
        self._skip(step + 1)

    def log(self, step: int, metrics: Mapping[str, float | Tensor]) -> None:
        """Log metrics, as `step` does, of any step.

        Raises:
            RequestError: a metric is no number.
            HallmarksError: they cannot be written.
        """
        if self._folder is not None:
            numbers = {name: _number(name, value) for name, value in metrics.items()}
            self._folder.log(step_number("step", step), numbers)

    def close(self) -> None:
        """Wait until all is written, and give the directory up.

        Raises:
            HallmarksError: a checkpoint cannot be written.
        """
        self._closed = True
        try:
            self._wait()
        finally:
            self._thread.shutdown()
            if self._folder is not None:
                self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except HallmarksError as failed:
            if error is None:
                raise
            if error is not failed:
                error.add_note(f"besides, in the recorder: {failed.message}")

    def _prepared(self, begin: int | None) -> tuple[Snapshot | ShardedSnapshot, list[int]]:
        """Return what takes the tensors, and the steps that are recorded already."""
        if is_sharded(self._model):
            from pipeline.recorder.sharded import ShardedSnapshot  # takes time to import

            sharded = ShardedSnapshot()
            return sharded, sharded.agree(lambda: self._open(begin))
        return Snapshot(), self._open(begin) if rank() == 0 else []

    def _open(self, begin: int | None) -> list[int]:
        """Take the directory; return which steps are recorded there."""
        self._folder = Folder(self._directory, begin)
        return self._folder.steps

    def _go_on(self, begin: int, recorded: Sequence[int]) -> str:
        """Pass what was due before the loop begins; return which of it was not recorded then."""
        passed = self._skip(begin)
        ends = [*passed[1:], begin if self._due is None else self._due]
        lacking: list[int] = []
        for due, end in zip(passed, ends, strict=True):
            at = bisect.bisect_left(recorded, due)
            if at == len(recorded) or recorded[at] >= max(end, due + 1):
                lacking.append(due)
        if begin in recorded:
            self._skip(begin + 1)
        shown = ", ".join(f"{step:,}" for step in lacking[:_SHOWN])
        more = f" and {len(lacking) - _SHOWN:,} more" if len(lacking) > _SHOWN else ""
        return f"these steps were due before and are not recorded: {shown}{more}" if lacking else ""

    def _check(self, step: int) -> int:
        """Return a step that a call is made for; raise what went wrong in the background."""
        step = step_number("step", step)
        if self._closed:
            raise RequestError(f"step {step:,}: the recorder is closed")
        if step < self._last:
            raise RequestError(f"step: expected {self._last:,} or a later one, found {step:,}")
        self._last = step
        if self._writing is not None and self._writing.done():
            self._wait()
        return step

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _skip(self, first: int) -> list[int]:
        """Pass what is due before a step, and return that."""
        passed: list[int] = []
        while self._due is not None and self._due < first:
            passed.append(self._due)
            self._due = next(self._steps, None)
        return passed

    def _tensors(self, whole: bool) -> dict[str, Tensor]:
        tensors, others = tensors_of(self._model, whole)
        if others and not self._told:
            self._told = True
            shown = ", ".join(quoted(name) for name in others[:_SHOWN])
            warnings.warn(f"not recorded, since it is no tensor: {shown}", stacklevel=3)
        return tensors

    def _write(self, step: int) -> None:
        """In the background."""
        if self._folder is not None:
            self._folder.add(step, self._fill)
        else:
            self._snapshot.write(unfinished(self._directory, step))

    def _at(self, step: int) -> Path:
        return finished(self._directory, step)

    def _fill(self, folder: Path) -> None:
        if self._config is not None:
            write_synced(folder / "config.json", self._config)
        self._snapshot.write(folder)


def _number(name: str, value: Any) -> float:
    if name not in (
        "step",
        "metric",
    ):  # which would make it a row of another form (training/rows.py)
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            return float(value.item() if isinstance(value, Tensor) else value)
    raise RequestError(f"metrics: expected numbers by name, found {quoted(name)}: {quoted(value)}")
