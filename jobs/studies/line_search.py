"""`python -m jobs.studies.line_search`: what a search along the last updates is worth.

At some checkpoints θ_k of a training the training loss of a few examples is minimized along the last update
Δ_k = θ_k − θ_{k−1} between checkpoints, and in the span of the last m of them. How many steps later has the
training itself come as low? So many are saved, less what the search costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from jobs.console import run as run_command
from jobs.studies.experiment import (
    Mean,
    Means,
    Observations,
    experiment_options,
    mean_of,
    means_over_seeds,
    measured,
    print_table,
    results_folder,
    write_means,
    write_picture,
)
from pipeline.errors import RequestError
from pipeline.store.query import Store
from pipeline.sweep.data import Examples, data_of
from pipeline.sweep.grid import Run
from pipeline.sweep.run import Place
from pipeline.sweep.settings import Settings
from pipeline.sweep.train import (
    last_step_of,
    load_network,
    metrics_of,
    recorded_steps_of,
    renew_statistics,
    reproducible,
)

NAMES = ("network", "schedule", "at", "method")
SCHEDULES = ("constant", "cosine")
SHARES = (0.25, 0.5, 0.75, 0.9)
"""Of the steps, after which is searched."""
GRID = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Multiples of the last update. Negative ones go back: −1/2 is the mean of two checkpoints."""
WIDTHS = (1, 2, 4, 8)
"""Updates that are combined."""
MOST = WIDTHS[-1]
METHODS = ("forward", "line", *(f"span_{m}" for m in WIDTHS), f"random_{MOST}", f"mean_{MOST}")
"""`forward`: only multiples of at least 0. `random`: the span of random directions as long, in each tensor,
as the updates are. `mean`: of the last checkpoints, without any search."""
BEFORE = ("train_loss", "validation_loss", "validation_accuracy", "predictability_1")
JUDGED = ("forward", "line", f"span_{MOST}")
"""Methods whose gain is compared with `predictability_1`."""

_SEARCHED = {"digits": 256, "text": 32}
"""Examples whose loss a search sees: of the training set, but not those that the training is measured by."""
_MOST_EVALUATIONS = 20
"""Of loss and gradient in a search; L-BFGS finishes what line search it has begun."""
_WINDOW = 8
"""Checkpoints up to θ_k, whose `predictability_1` the store has."""

Loss = Callable[[Tensor], Tensor]
"""Of all weights as one vector (p,)."""


@dataclass(frozen=True, slots=True)
class Search:
    """What a search has come to."""

    weights: Tensor
    """(p,)"""
    losses: int = 0
    """How often the loss alone was computed."""
    gradients: int = 0
    """How often the loss and its gradient were."""

    def steps(self, examples: int, batch: int) -> float:
        """Return how many optimizer steps take as long; a backward pass takes two forward passes."""
        return (self.losses / 3 + self.gradients) * examples / batch


def search_line(loss: Loss, start: Tensor, direction: Tensor, grid: Sequence[float]) -> Search:
    """Return the best of some multiples of a direction (p,) from a start (p,) on."""
    with torch.no_grad():
        losses = [loss(start + alpha * direction).item() for alpha in grid]
    finite = [value if math.isfinite(value) else math.inf for value in losses]
    best = grid[finite.index(min(finite))]
    return Search(start + best * direction, losses=len(grid))


def search_span(loss: Loss, start: Tensor, directions: Tensor) -> Search:
    """Return where the loss is least that L-BFGS meets in the span of directions (m, p) from a start (p,) on."""
    basis = torch.linalg.qr(directions.T).Q.T * directions[-1].norm()
    at = torch.zeros(len(basis), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [at], max_iter=_MOST_EVALUATIONS, max_eval=_MOST_EVALUATIONS, line_search_fn="strong_wolfe"
    )
    least, best, gradients = math.inf, at.detach().clone(), 0

    def closure() -> Tensor:
        nonlocal least, best, gradients
        optimizer.zero_grad()
        value = loss(start + at @ basis)
        value.backward()
        gradients += 1
        if value.item() < least:
            least, best = value.item(), at.detach().clone()
        return value

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return Search(start + best @ basis, gradients=gradients)


def loss_of(network: nn.Module, examples: Examples) -> Loss:
    """Return the loss of some examples, whose own statistics batch norm takes."""
    network.train()
    named = dict(network.named_parameters())

    def loss(weights: Tensor) -> Tensor:
        parts = weights.split([each.numel() for each in named.values()])
        shaped = {
            name: part.view_as(each)
            for (name, each), part in zip(named.items(), parts, strict=True)
        }
        classes = functional_call(network, shaped, (examples.inputs,)).flatten(0, -2)
        return functional.cross_entropy(classes, examples.targets.flatten())

    return loss


def steps_saved(
    steps: Sequence[int], losses: Sequence[float], k: int, reached: float
) -> tuple[float, bool]:
    """Return how many steps after checkpoint k a training first has a loss that was reached at k, linear
    between checkpoints: they are saved. Negative: how long before k it last had one as high.

    Args:
        steps, losses: (T + 1,) of the training.

    Returns:
        Also whether it has such a loss at all: if not, the steps are all that are left, or were before.
    """
    earlier = reached > losses[k]
    if reached == losses[k]:
        return 0.0, True
    for j in range(k, 0, -1) if earlier else range(k + 1, len(steps)):
        before, after = losses[j - 1], losses[j]
        if before >= reached >= after:
            share = (before - reached) / (before - after)
            return steps[j - 1] + share * (steps[j] - steps[j - 1]) - steps[k], True
    return float(steps[0 if earlier else -1] - steps[k]), False


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Return Spearman's correlation, with mean ranks of equal values; NaN where all are equal."""
    ranks = [_ranks(np.asarray(each, float)) for each in (x, y)]
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


class _Path:
    """The checkpoints of a training, and how it went on from each."""

    def __init__(self, settings: Settings, checkpoints: Path) -> None:
        self.settings = settings
        self.data = data_of(settings.network)
        self.steps = recorded_steps_of(settings, last_step_of(settings, self.data))
        self.network = load_network(settings, checkpoints / f"step-{self.steps[-1]}")
        self.weights = torch.stack(
            [_vector(load_network(settings, checkpoints / f"step-{step}")) for step in self.steps]
        )
        """(T + 1, p)"""
        self.metrics = [self.measure(weights) for weights in self.weights]
        """With statistics of batch norm as those of the results of searches are."""

    def measure(self, weights: Tensor) -> Mapping[str, float]:
        """Return losses and accuracies of weights (p,), with statistics of batch norm over the training set."""
        vector_to_parameters(weights.clone(), self.network.parameters())
        renew_statistics(self.network, self.data.train)
        return metrics_of(self.network, self.data)

    def results(self, k: int) -> Iterator[tuple[str, Search]]:
        """Yield what each method makes of checkpoint k."""
        settings, data = self.settings, self.data
        examples = data.train.take(slice(data.measured, data.measured + _SEARCHED[data.name]))
        loss, start = loss_of(self.network, examples), self.weights[k]
        updates = self.weights[k - MOST + 1 : k + 1] - self.weights[k - MOST : k]
        ahead = [alpha for alpha in GRID if alpha >= 0]
        with reproducible():
            yield "forward", search_line(loss, start, updates[-1], ahead)
            yield "line", search_line(loss, start, updates[-1], GRID)
            for m in WIDTHS:
                yield f"span_{m}", search_span(loss, start, updates[-m:])
            random = self._random_like(updates, seed=settings.seed + k)
            yield f"random_{MOST}", search_span(loss, start, random)
            yield f"mean_{MOST}", Search(self.weights[k - MOST + 1 : k + 1].mean(0))

    def _random_like(self, updates: Tensor, seed: int) -> Tensor:
        """Return random directions (m, p), in each tensor as long as the updates are."""
        generator = torch.Generator().manual_seed(seed)
        sizes = [each.numel() for each in self.network.parameters()]
        parts = updates.split(sizes, dim=1)
        random = [torch.randn(each.shape, generator=generator) for each in parts]
        return torch.cat(
            [
                each * (part.norm(dim=1) / each.norm(dim=1))[:, None]
                for each, part in zip(random, parts, strict=True)
            ],
            dim=1,
        )


def _vector(network: nn.Module) -> Tensor:
    return parameters_to_vector(network.parameters()).detach()


def measure(run: Run, place: Place) -> Observations:
    """Return what each search has reached at each checkpoint that is searched from."""
    settings = run.settings
    path = _Path(settings, Path(place.checkpoints, run.name))
    examples = _SEARCHED[path.data.name]
    predictability = _predictability(run.name, place.store)
    observations: dict[tuple[str, ...], Mapping[str, float]] = {}
    for share in SHARES:
        k = min(range(len(path.steps)), key=lambda k: abs(path.steps[k] - share * path.steps[-1]))
        if k < MOST:
            raise RequestError(
                f"{run.name}: expected at least {MOST} checkpoints in the first {share:.0%} of the"
                f" steps, found {k}",
                "record more: checkpoints = 40, spacing = linear",
            )
        before = path.metrics[k]
        key = (settings.network, settings.schedule, f"{share:.0%}")
        observations[*key, "training"] = {
            **before,
            "predictability_1": predictability[path.steps[k]],
        }
        for method, search in path.results(k):
            after = path.measure(search.weights)
            cost = search.steps(examples, settings.batch_size)
            figures = {"cost_steps": cost}
            for split in ("train", "validation"):
                name = f"{split}_loss"
                curve = [each[name] for each in path.metrics]
                saved, is_reached = steps_saved(path.steps, curve, k, after[name])
                figures |= {
                    name: after[name],
                    f"{name}_change": after[name] / before[name] - 1,
                    f"{split}_steps_saved": saved,
                    f"{split}_beyond": float(not is_reached),
                }
            name = "validation_accuracy"
            figures |= {name: after[name], f"{name}_change": after[name] - before[name]}
            figures["ahead"] = _ahead(search.weights - path.weights[k], path.weights, k, method)
            observations[*key, method] = figures
    return observations


def _ahead(move: Tensor, weights: Tensor, k: int, method: str) -> float:
    """Return how far a move goes along the displacement of the last m updates, as a multiple of that."""
    m = int(method.partition("_")[2] or 1)
    displacement = weights[k] - weights[k - m]
    return (move @ displacement / (displacement @ displacement)).item()


def _predictability(run: str, store: str) -> Mapping[int, float]:
    """Return `predictability_1` of the last checkpoints up to each, by step."""
    query = """SELECT step_last, value FROM windows
        WHERE run = ? AND scope = 'model' AND w = ? AND indicator = 'predictability_1'"""
    return dict(Store(store).sql(query, [run, _WINDOW]).fetchall())


def correlations(by_seed: Mapping[int, Observations]) -> Means:
    """Return Spearman's correlation of `predictability_1` with what searches gain, over the points of a
    network in one seed, and of all networks; means over seeds."""
    values: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for observations in by_seed.values():
        points = [key[:3] for key in observations if key[3] == "training"]
        networks = dict.fromkeys(network for network, *_ in points)
        for name in (*networks, "all"):
            chosen = [point for point in points if name in (point[0], "all")]
            known = [observations[*point, "training"]["predictability_1"] for point in chosen]
            for method in JUDGED:
                of_method = [observations[*point, method] for point in chosen]
                for figure in ("train_loss_change", "train_steps_saved"):
                    sign = -1 if figure.endswith("_change") else 1
                    gains = [sign * each[figure] for each in of_method]
                    value = rank_correlation(known, gains)
                    if not math.isnan(value):
                        key = (name, "all", "all", method)
                        figures = values.setdefault(key, {})
                        figures.setdefault(f"spearman_{figure}", []).append(value)
    return {
        key: {name: mean_of(each) for name, each in figures.items()}
        for key, figures in values.items()
    }


@click.command()
@experiment_options("late-training")
def line_search(config: str, store: str, max_workers: int | None, **_: object) -> int:
    """Search along the last updates of trainings, and compare with how the trainings went on."""
    by_seed = measured(
        config, store, measure, max_workers, lambda run: run.settings.schedule in SCHEDULES
    )
    means, related = means_over_seeds(by_seed), correlations(by_seed)
    folder = results_folder(store)
    write_means(folder / "line_search.csv", NAMES, {**means, **related})
    for title, figure in (
        ("steps saved, by training loss, without what the search costs", "train_steps_saved"),
        (
            "steps saved, by validation loss, without what the search costs",
            "validation_steps_saved",
        ),
        ("validation loss, change in shares of what it was", "validation_loss_change"),
        ("how far ahead along the last m updates, of their displacement", "ahead"),
        ("steps that the search takes as long as", "cost_steps"),
    ):
        print_table(title, ["", *METHODS], _rows(means, figure))
    points = [key for key in means if key[3] == "training"]
    print_table(
        f"before the search; predictability_1 of the last {_WINDOW} checkpoints",
        ["", *BEFORE],
        [[" ".join(key[:3]), *(means[key][name] for name in BEFORE)] for key in points],
    )
    print_table(
        "Spearman's correlation of predictability_1 with the fall of the training loss",
        ["", *JUDGED],
        [
            [name, *(_correlation(related, name, method) for method in JUDGED)]
            for name in dict.fromkeys(key[0] for key in related)
        ],
    )
    write_picture(folder / "line_search", _panels(means))
    return 0


def _correlation(related: Means, network: str, method: str) -> Mean | str:
    figures = related.get((network, "all", "all", method), {})
    return figures.get("spearman_train_loss_change", "undefined")


def _rows(means: Means, figure: str) -> list[list[object]]:
    points = dict.fromkeys(key[:3] for key in means)
    return [[" ".join(p), *(means[*p, method][figure] for method in METHODS)] for p in points]


def _panels(means: Means) -> dict[str, dict[str, dict[str, Mean]]]:
    """Return steps saved, of each training, of each method, at each point."""
    panels: dict[str, dict[str, dict[str, Mean]]] = {}
    for (network, schedule, at, method), figures in means.items():
        if method in (*JUDGED, f"random_{MOST}", f"mean_{MOST}"):
            lines = panels.setdefault(f"{network}, {schedule}: steps saved", {})
            lines.setdefault(method, {})[at] = figures["train_steps_saved"]
    return panels


if __name__ == "__main__":
    from jobs.studies.line_search import line_search as command  # its functions go to processes

    run_command(command)
