"""Train one network, and record its checkpoints and what it has learned.

The same settings on the same machine give the same weights to the bit: batches are a function of seed and
step, one thread computes, by algorithms whose order of summation is fixed.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import Diverged, RequestError, quoted
from pipeline.recorder.recorder import Recorder
from pipeline.sweep.data import Data, Examples, data_of, order
from pipeline.sweep.networks import network_of
from pipeline.sweep.optimizers import backward, learning_rate, optimizers_of
from pipeline.sweep.settings import Settings

_EVALUATED_AT_ONCE = 512
"""Examples; a few MiB of activations."""


@dataclass(frozen=True, slots=True)
class Measured:
    """How well a network does on some examples."""

    loss: float
    """Mean cross entropy in nats, without label smoothing."""
    accuracy: float
    """Share of examples (tokens, of sequences) whose most probable class is right."""


def last_step_of(settings: Settings, data: Data) -> int:
    """Return how many steps a training has."""
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None
    return max(1, round(settings.epochs * len(data.train) / settings.batch_size))


def recorded_steps_of(settings: Settings, last_step: int) -> list[int]:
    """Return the steps at which a checkpoint is recorded: 0, and `checkpoints` more; fewer where two
    would be the same step."""
    count = min(settings.checkpoints, last_step)
    if settings.spacing == "linear":
        return sorted({round(k * last_step / count) for k in range(count + 1)})
    exponents = (k / max(1, count - 1) for k in range(count))
    return sorted({0, *(round(last_step**exponent) for exponent in exponents)})


@contextmanager
def reproducible() -> Iterator[None]:
    """Compute on one thread, in a fixed order."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


class Training:
    """A training under way, which may branch: its network, its optimizers' state, how far it is."""

    def __init__(
        self,
        settings: Settings,
        *,
        device: str = "cpu",
        weights: Mapping[str, Tensor] | None = None,
        step: int = 0,
    ) -> None:
        """Begin a training, or go on with one from the weights that it had at a step.

        The optimizers of one that goes on know nothing of earlier gradients; a branch does.
        """
        self.settings = settings
        self.data = data_of(settings.network).to(device)
        self.last_step = last_step_of(settings, self.data)
        self.step = step
        """How many are done."""
        self.network = network_of(settings).to(device)
        if weights is not None:
            self.network.load_state_dict(dict(weights))
        self._optimizers = optimizers_of(settings, self.network)

    @property
    def stated(self) -> dict[str, Any]:
        """The settings, and what else decides the weights."""
        return self.settings.as_dict() | {
            "steps": self.last_step,
            "weights": sum(each.numel() for each in self.network.parameters()),
            "data": self.data.name,
            "data_digest": self.data.digest,
            "torch": torch.__version__,
        }

    def branch(self) -> Training:
        """Return the same training once more, to go on in another way."""
        other = copy.copy(self)
        other.network, other._optimizers = copy.deepcopy((self.network, self._optimizers))
        return other

    def train_only(self, is_trained: Callable[[str], bool]) -> None:
        """Leave the weights of all other names as they are from now on, weight decay included.

        Statistics of batch norm go on.
        """
        for name, weights in self.network.named_parameters():
            weights.requires_grad_(is_trained(name))

    def run_to(self, step: int, after_step: Callable[[float], None] | None = None) -> None:
        """Take steps until so many are done.

        Args:
            after_step: told the loss of the batch at each step; may change the weights.

        Raises:
            Diverged: the loss is no finite number.
        """
        with reproducible():
            self.network.train()
            while self.step < step:
                loss = self._take_step()
                if after_step is not None:
                    after_step(loss)

    def _take_step(self) -> float:
        settings, train = self.settings, self.data.train
        which = order(len(train), settings.batch_size, settings.seed, self.step)
        batch = train.take(which.to(train.inputs.device))

        def loss() -> Tensor:
            return _loss(self.network, batch, settings.label_smoothing)

        rate = learning_rate(settings, self.step, self.last_step)
        self.network.zero_grad()
        value = backward(self.network, loss, settings.sam_rho)
        if not math.isfinite(value):
            raise Diverged(
                f"the loss is {value} at step {self.step:,} of {self.last_step:,}",
                "lower learning_rate, or raise warmup",
            )
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.step += 1
        return value

    def metrics(self) -> dict[str, float]:
        """Return losses and accuracies now, by split and metric as `validation_loss`."""
        return metrics_of(self.network, self.data)


def train(
    settings: Settings,
    directory: Path,
    *,
    device: str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Train, and record checkpoints as `directory/step-N/model.safetensors` and metrics beside them.

    The directory appears whole, or not at all: an interrupted training begins again.

    Args:
        on_progress: told the steps that are done, and of how many, after each.

    Returns:
        The metrics of the last checkpoint, by split and metric as `validation_loss`.

    Raises:
        RequestError: the directory exists.
        Diverged: the loss is no finite number.
    """
    if directory.exists():
        raise RequestError(f"{quoted(directory)} exists", "remove it, or name another directory")
    training = Training(settings, device=device)
    due = recorded_steps_of(settings, training.last_step)
    config = {"training": training.stated}  # where an analysis finds settings by itself
    metrics: dict[str, float] = {}
    with (
        _made_whole(directory) as growing,
        Recorder(training.network, growing, due, config=config) as recorder,
    ):
        for step in due:
            training.run_to(step, _teller(training, on_progress))
            metrics = training.metrics()
            recorder.step(step, **metrics)
    return metrics


def _teller(
    training: Training, on_progress: Callable[[int, int], None] | None
) -> Callable[[float], None] | None:
    if on_progress is None:
        return None
    return lambda _: on_progress(training.step, training.last_step)


def load_network(settings: Settings, checkpoint: Path) -> nn.Module:
    """Return the network as it was at a checkpoint, `…/step-N`, statistics of batch norm included."""
    network = network_of(settings)
    network.load_state_dict(load_file(checkpoint / "model.safetensors"))
    return network


def evaluate(network: nn.Module, examples: Examples) -> Measured:
    """Return how well a network does, in the mode in which it is used."""
    was_training = network.training
    network.eval()
    loss = right = 0.0
    with torch.no_grad(), reproducible():
        for start in range(0, len(examples), _EVALUATED_AT_ONCE):
            part = examples.take(slice(start, start + _EVALUATED_AT_ONCE))
            classes = network(part.inputs).flatten(0, -2)
            targets = part.targets.flatten()
            loss += functional.cross_entropy(classes, targets, reduction="sum").item()
            right += (classes.argmax(-1) == targets).sum().item()
    network.train(was_training)
    count = examples.targets.numel()
    return Measured(loss / count, right / count)


def metrics_of(network: nn.Module, data: Data) -> dict[str, float]:
    """Return losses and accuracies of a network, by split and metric as `validation_loss`."""
    values: dict[str, float] = {}
    for split, examples in (("train", data.train), ("validation", data.validation)):
        measured = evaluate(network, examples.take(slice(data.measured)))
        values[f"{split}_loss"] = measured.loss
        values[f"{split}_accuracy"] = measured.accuracy
    return values


def renew_statistics(network: nn.Module, examples: Examples) -> None:
    """Take the statistics of batch norm from examples, as those of an average of checkpoints are of none
    of its networks (Izmailov 2018)."""
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    if not norms:
        return
    before = [each.momentum for each in norms]
    was_training = network.training
    network.train()
    for each in norms:
        each.reset_running_stats()
        each.momentum = None  # mean over all batches
    with torch.no_grad(), reproducible():
        for start in range(0, len(examples), _EVALUATED_AT_ONCE):
            network(examples.inputs[start : start + _EVALUATED_AT_ONCE])
    for each, momentum in zip(norms, before, strict=True):
        each.momentum = momentum
    network.train(was_training)


def _loss(network: nn.Module, batch: Examples, label_smoothing: float) -> Tensor:
    classes = network(batch.inputs).flatten(0, -2)
    return functional.cross_entropy(
        classes, batch.targets.flatten(), label_smoothing=label_smoothing
    )


@contextmanager
def _made_whole(directory: Path) -> Iterator[Path]:
    """Give a directory to write into, which then takes its name.

    What a process that died on this machine had begun is removed.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    begun = f".{directory.name}.{socket.gethostname()}."
    for other in directory.parent.glob(f"{begun}*"):
        if not _runs(other.name.removeprefix(begun)):
            shutil.rmtree(other, ignore_errors=True)
    growing = directory.with_name(f"{begun}{os.getpid()}")
    growing.mkdir()
    try:
        yield growing
        growing.rename(directory)
    except BaseException:
        shutil.rmtree(growing, ignore_errors=True)
        raise


def _runs(process: str) -> bool:
    with suppress(ProcessLookupError, ValueError):
        os.kill(int(process), 0)
        return True
    return False
