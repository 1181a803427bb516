"""Recording a training: checkpoints on a schedule, written in the background, and metrics beside them."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from pipeline.errors import HallmarksError, RequestError, quoted
from pipeline.recorder.folder import Folder, sync, write_synced
from pipeline.recorder.network import bare, config_of, rank
from pipeline.recorder.schedule import Schedule, step_number, steps
from pipeline.recorder.snapshot import Snapshot, tensors_of


class Recorder:
    """Records what a network's weights are while it is trained, as checkpoints that `analyze` reads.

    with Recorder(model, "checkpoints", "linear:100", last_step=2000) as recorder:
        recorder.step(0)  # the initialization
        for step in range(1, 2001):
            loss = train_one_step()
            recorder.step(step, loss=loss)

    A checkpoint is `step-N/model.safetensors`, there as a whole or not at all. It is copied when it is due and
    written in the background; one that is due while another is written waits for it. Metrics are appended to
    `metrics.jsonl`. What goes wrong in the background is raised by the next call, and by `close()`.

    Of a distributed training rank 0 records.
    """

    def __init__(
        self,
        model: Any,
        directory: str | PathLike[str],
        schedule: Schedule,
        *,
        last_step: int | None = None,
        resume: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a training, or continue one.

        Args:
            model: a torch.nn.Module, bare, compiled or in DistributedDataParallel.
            directory: where checkpoints and metrics are written; for a new training it holds none.
            schedule: `linear:N`, `logarithmic:N`, `pythia`, `pythia:N`, or the steps themselves.
            last_step: the training's last step, which is recorded whatever the schedule.
            resume: the step that an interrupted training is continued from; what was recorded after it is set aside.
            config: of the network, like `config.json` of transformers, which is written beside the weights;
                what it states as `training` are settings of the run. Default: `model.config` if it has one.

        Raises:
            RequestError: an argument is wrong, or the directory holds another training.
        """
        self._model = bare(model)
        self._due = steps(
            schedule, None if last_step is None else step_number("last_step", last_step)
        )
        self._config = config_of(self._model, config)
        begin = None if resume is None else step_number("resume", resume)
        self._folder = Folder(Path(directory), begin) if rank() == 0 else None
        self._step = -1 if begin is None else begin
        self._recorded = -1
        if self._folder is not None and begin in self._folder.steps:
            self._recorded = self._step
        self._next = next(self._due, None)
        self._skip(self._recorded + 1 if begin is None or self._recorded == begin else begin)
        self._snapshot = Snapshot()
        self._thread = ThreadPoolExecutor(1, "recorder")
        self._writing: Future[None] | None = None

    def step(self, step: int, /, **metrics: float) -> None:
        """Take note that a step is done: log its metrics, and record a checkpoint if one is due.

        One that became due since the last call, between steps that calls were made for, is recorded now, under
        the number of this step.

        Args:
            step: how many updates the weights have had; 0 is the initialization.
            metrics: numbers, or tensors of one number; a name may begin with its split: `validation_loss`.

        Raises:
            RequestError: the step is before an earlier one, or a metric is no number.
            HallmarksError: a checkpoint, this or the last one, cannot be written.
        """
        self._go_on(step)
        if metrics:
            self.log(step, metrics)
        if self._next is not None and step >= self._next:
            self.record(step)

    def record(self, step: int) -> None:
        """Record a checkpoint, whether it is due or not."""
        self._go_on(step)
        if self._folder is None or step == self._recorded:
            return
        self._finish()
        self._snapshot.take(tensors_of(self._model))
        self._writing = self._thread.submit(self._folder.add, step, self._write)
        self._recorded = step
        self._skip(step + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of a step, as `step` does."""
        values = {name: _number(name, value) for name, value in metrics.items()}
        if self._folder is not None:
            self._folder.log(step_number("step", step), values)

    def close(self) -> None:
        """Wait until all is written, and give the directory up."""
        try:
            self._finish()
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
                error.add_note(f"and the recorder: {failed.message}")

    def _go_on(self, step: int) -> None:
        if step_number("step", step) < self._step:
            raise RequestError(f"step: expected one from {self._step:,} on, found {step:,}")
        self._step = step
        if self._writing is not None and self._writing.done():
            self._finish()

    def _finish(self) -> None:
        """Wait for the checkpoint that is being written; raise what went wrong."""
        if self._writing is not None:
            self._writing.result()

    def _skip(self, first: int) -> None:
        """Let the step that is due next be this one or a later one."""
        while self._next is not None and self._next < first:
            self._next = next(self._due, None)

    def _write(self, folder: Path) -> None:
        if self._config is not None:
            write_synced(folder / "config.json", self._config)
        with (folder / "model.safetensors").open("wb") as file:
            self._snapshot.write(file)
        sync(folder / "model.safetensors")


def _number(name: str, value: Any) -> float:
    try:
        return float(value.item() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise RequestError(
            f"metric {quoted(name)}: expected a number, found {quoted(value)}"
        ) from None
