"""Recording what the Trainer of transformers trains."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import PackageMissing, RequestError, quoted
from pipeline.recorder.recorder import Recorder
from pipeline.recorder.schedule import Schedule

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError:
    raise PackageMissing(
        "the Trainer's callback needs a package that is not installed", "pip install transformers"
    ) from None


class RecorderCallback(TrainerCallback):
    """Records the network at every step of the Trainer that is due, the initialization and the end included.

    Trainer(…, callbacks=[RecorderCallback("recorded", "linear:100")])

    What the Trainer logs while it trains is logged beside the checkpoints, with the splits that it has in
    `trainer_state.json`. A training that the Trainer continues (`resume_from_checkpoint`) is continued.
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        schedule: Schedule,
        *,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Take what `Recorder` takes; nothing is written before the training begins.

        Args:
            directory: another than the Trainer's `output_dir`, where its own checkpoints are.
        """
        self._directory, self._schedule, self._config = Path(directory), schedule, config
        self._recorder: Recorder | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        del control
        self._close()  # of a training that failed
        if self._directory.resolve() == Path(str(args.output_dir)).resolve():
            raise RequestError(
                f"directory: expected another than the Trainer's output_dir, found {quoted(self._directory)}",
                "record in a folder in it",
            )
        self._recorder = Recorder(
            kwargs["model"],
            self._directory,
            self._schedule,
            last_step=state.max_steps,
            resume=state.global_step or None,
            config=self._config,
        )
        self._recorder.step(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        del args, control, kwargs
        if self._recorder is not None:
            self._recorder.step(state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        del args, control
        if self._recorder is not None:
            logs: dict[str, Any] = kwargs["logs"]
            numbers = {
                name if name.startswith(("eval_", "test_")) else f"train_{name}": value
                for name, value in logs.items()
                if isinstance(value, int | float | Tensor)
            }
            self._recorder.log(state.global_step, numbers)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        del args, control, kwargs
        if self._recorder is not None:
            self._recorder.record(state.global_step)
        self._close()

    def _close(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close()
