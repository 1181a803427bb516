"""What a sweep will cost, by a few steps of each kind of training.

Counted operations would be wrong by a factor: a step of a small network is mostly calls, and what a
checkpoint is measured on has more examples than a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from pipeline.sweep.grid import Run
from pipeline.sweep.settings import Settings

_WARM = 3
"""Steps before the clock starts, in which memory is allocated."""
_STEPS = 20
"""Whose time is taken: a step of a small network takes 1 to 50 ms, within a tenth of the next."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one training, on this machine."""

    steps: int
    checkpoints: int
    """With the initialization."""
    disk_bytes: int
    """Of all checkpoints."""
    seconds: float
    """Of one thread with a core of its own, without the analysis."""


@dataclass(frozen=True, slots=True)
class _Rates:
    """Of trainings that differ in nothing that takes time."""

    step_seconds: float
    metrics_seconds: float
    """At a checkpoint."""
    checkpoint_bytes: int


def costs(runs: Sequence[Run]) -> list[Cost]:
    """Return what each training will cost; nothing is written.

    Raises:
        PackageMissing: the data are of a package that is not installed.
    """
    from pipeline.sweep.data import data_of  # torch takes two seconds
    from pipeline.sweep.train import last_step_of, recorded_steps_of

    measured: dict[Hashable, _Rates] = {}
    result: list[Cost] = []
    for settings in (run.settings for run in runs):
        kind = _kind(settings)
        rates = measured[kind] = measured.get(kind) or _measured(settings)
        steps = last_step_of(settings, data_of(settings.network))
        checkpoints = len(recorded_steps_of(settings, steps))
        seconds = steps * rates.step_seconds + checkpoints * rates.metrics_seconds
        result.append(Cost(steps, checkpoints, checkpoints * rates.checkpoint_bytes, seconds))
    return result


def _kind(settings: Settings) -> Hashable:
    """Return what decides how long a step takes."""
    shape = settings.network, settings.width, settings.depth
    return (*shape, settings.optimizer, settings.batch_size, settings.sam_rho > 0)


def _measured(settings: Settings) -> _Rates:
    from pipeline.sweep.train import Training

    # what diverges with its own settings is to be measured, too
    training = Training(replace(settings, learning_rate=1e-9, weight_decay=0.0))
    training.run_to(_WARM)
    steps = _seconds(lambda: training.run_to(_WARM + _STEPS))
    metrics = _seconds(training.metrics)
    weights = training.network.state_dict().values()
    size = sum(each.numel() * each.element_size() for each in weights)
    return _Rates(steps / _STEPS, metrics, size)


def _seconds(work: Callable[[], object]) -> float:
    """Return what some work takes of a processor, whoever else uses it meanwhile."""
    begun = time.process_time()
    work()
    return time.process_time() - begun
