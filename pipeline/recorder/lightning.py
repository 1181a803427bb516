"""Recording what the Trainer of Lightning trains."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

from pipeline.errors import PackageMissing
from pipeline.recorder.recorder import Recorder
from pipeline.recorder.schedule import Schedule

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
"""Under both names there are classes of their own; the ones that are in use are taken."""


def _lightning() -> Any:
    for name in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise PackageMissing(
        "Lightning's callback needs a package that is not installed", "pip install lightning"
    )


if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
    from pytorch_lightning.loggers import Logger
else:
    _package = _lightning()
    Callback, Logger = _package.Callback, _package.loggers.Logger


class RecorderCallback(Callback):
    """Records the network at every step of Lightning's Trainer that is due, the initialization and the end included.

    Trainer(…, callbacks=[RecorderCallback("recorded", "linear:100")])

    A step is one of `trainer.global_step`. What Lightning gives its loggers while it trains, at the steps that it
    gives, is logged beside the checkpoints. A training that it continues (`ckpt_path`) is continued.
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        schedule: Schedule,
        *,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Take what `Recorder` takes; nothing is written before the training begins."""
        self._directory, self._schedule, self._config = directory, schedule, config
        self._recorder: Recorder | None = None
        self._logger: _Log | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = trainer.estimated_stepping_batches
        self._recorder = Recorder(
            pl_module,
            self._directory,
            self._schedule,
            last_step=None if math.isinf(last) else int(last),
            resume=trainer.global_step or None,
            config=self._config,
        )
        self._logger = _Log(self._recorder)
        trainer.loggers = [*trainer.loggers, self._logger]
        self._recorder.step(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, outputs, batch, batch_idx
        if self._recorder is not None:
            self._recorder.step(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if self._recorder is not None:
            self._recorder.record(trainer.global_step)
        self._close(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        del pl_module, stage
        self._close(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        del pl_module
        self._close(trainer, exception)

    def _close(self, trainer: Trainer, error: BaseException | None = None) -> None:
        trainer.loggers = [each for each in trainer.loggers if each is not self._logger]
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.__exit__(type(error) if error else None, error, None)


class _Log(Logger):
    """What Lightning's loggers are given."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    @property
    def name(self) -> None:
        return None

    @property
    def version(self) -> None:
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._recorder.log(step or 0, metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
