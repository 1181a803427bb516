"""Recording a training: checkpoints on a schedule, written in the background, and metrics beside them."""

from __future__ import annotations

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
from pipeline.recorder.folder import Folder, cannot_write, finished, unfinished
from pipeline.recorder.network import bare, config_of, is_sharded, rank, tensors_of
from pipeline.recorder.schedule import Due, Schedule, step_number
from pipeline.recorder.snapshot import Snapshot

if TYPE_CHECKING:
    from pipeline.recorder.sharded import ShardedSnapshot

_SHOWN = 6
_RESERVED = ("step", "metric")
"""With them a line of the log would be a row of another form (training/rows.py)."""


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
        self._model, self._directory = bare(model), Path(directory)
        self._config = config_of(self._model, config)
        self._due = Due(
            schedule, None if last_step is None else step_number("last_step", last_step)
        )
        begin = None if resume is None else step_number("resume", resume)
        self._snapshot = _snapshot_of(self._model)
        self._folder: Folder | None = None
        recorded = self._snapshot.agree(lambda: self._open(begin)) if self._snapshot else []
        self._last = -1 if begin is None else begin
        self._resumed = begin if begin in recorded else None
        self._recorded = -1
        if begin is not None:
            self._say(begin, self._due.resume(begin, recorded))
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
        if step == self._resumed or self._due.at(step):
            self.record(step)

    def record(self, step: int) -> None:
        """Record a checkpoint, due or not; of one step once.

        Raises:
            RequestError: the training is continued from this step, with other weights than were recorded.
            HallmarksError: this or an earlier checkpoint cannot be written.
        """
        step = self._check(step)
        if step == self._recorded or self._snapshot is None:
            return
        self._wait()
        self._snapshot.take(tensors_of(self._model))
        if step != self._resumed:
            self._writing = self._thread.submit(self._write, step, self._snapshot)
        elif not self._snapshot.is_in(finished(self._directory, step)):
            raise RequestError(
                f"{quoted(finished(self._directory, step))} holds other weights than the network has now",
                f"load the weights of step {step:,} before, or resume from a step before it",
            )
        self._recorded = step
        self._due.skip(step + 1)

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

    def _open(self, begin: int | None) -> list[int]:
        """Take the directory; return which steps are recorded there."""
        self._folder = Folder(self._directory, begin)
        return self._folder.steps

    def _say(self, begin: int, lacking: Sequence[int]) -> None:
        """Say what is not as the interrupted training left it, or should have."""
        if self._folder is None:
            return
        shown = ", ".join(f"{step:,}" for step in lacking[:_SHOWN])
        more = f" and {len(lacking) - _SHOWN:,} more" if len(lacking) > _SHOWN else ""
        what = f"these steps were due before and are not recorded: {shown}{more}" if lacking else ""
        for note in filter(None, (self._folder.set_aside, what)):
            warnings.warn(f"{self._directory}: continued from step {begin:,}: {note}", stacklevel=3)

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

    def _write(self, step: int, snapshot: Snapshot | ShardedSnapshot) -> None:
        """In the background."""
        folder = self._folder  # on rank 0
        try:
            snapshot.agree(lambda: folder and folder.begin(step, self._config))
            snapshot.write(unfinished(self._directory, step))
            snapshot.agree(lambda: folder and folder.publish(step))
        except (HallmarksError, OSError) as error:
            if folder is not None:
                folder.discard(step)
            if isinstance(error, OSError):
                what = f"checkpoint of step {step:,}"
                raise cannot_write(what, self._directory, error) from error
            raise


def _snapshot_of(model: nn.Module) -> Snapshot | ShardedSnapshot | None:
    """Return what takes the tensors; None on ranks that leave it to rank 0."""
    if is_sharded(model):
        from pipeline.recorder.sharded import ShardedSnapshot  # takes half a second to import

        return ShardedSnapshot()
    return Snapshot() if rank() == 0 else None


def _number(name: str, value: Any) -> float:
    if name not in _RESERVED:
        with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
            return float(value.item() if isinstance(value, Tensor) else value)
    raise RequestError(f"metrics: expected numbers by name, found {quoted(name)}: {quoted(value)}")
