"""Searches along the last updates: against closed forms, and of a training that is carried out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from jobs.studies.experiment import mean_of, means_over_seeds
from jobs.studies.line_search import (
    METHODS,
    SHARES,
    loss_of,
    measure,
    rank_correlation,
    search_line,
    search_span,
    steps_saved,
)
from pipeline.store.query import Store
from pipeline.sweep.data import data_of
from pipeline.sweep.grid import Run
from pipeline.sweep.networks import network_of
from pipeline.sweep.run import Place, carry_out
from pipeline.sweep.settings import settings_of

TINY = {"network": "cnn", "width": 2, "depth": 1, "epochs": 2, "schedule": "constant"}


@pytest.fixture(scope="module")
def carried_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Place]:
    folder = tmp_path_factory.mktemp("line_search")
    run = Run("tiny", "tiny", {}, settings_of(TINY))
    place = Place(str(folder / "store"), str(folder / "trained"), "cpu")
    carry_out(run, place)
    return run, place


def test_a_search_in_a_span_has_the_least_of_a_quadratic_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=generator)
    curvature, middle = root @ root.T + torch.eye(12), torch.randn(12, generator=generator)
    start = torch.randn(12, generator=generator)
    directions = torch.randn(3, 12, generator=generator)
    directions[1] = directions[0] + 0.1 * directions[1]  # nearly parallel, as updates may be

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return 0.5 * (weights - middle) @ curvature @ (weights - middle)

    search = search_span(loss, start, directions)
    left = directions @ curvature @ directions.T
    right = directions @ curvature @ (middle - start)
    least = start + torch.linalg.solve(left, right) @ directions
    torch.testing.assert_close(search.weights, least, atol=1e-3, rtol=1e-3)
    assert search.losses == 0 and 3 < search.gradients < 60
    assert search.steps(examples=128, batch=64) == 2 * search.gradients


def test_a_search_stays_where_it_is_if_everything_around_is_worse() -> None:
    start = torch.ones(3)
    search = search_span(lambda weights: (weights - 1).pow(2).sum(), start, torch.eye(3)[:2])
    torch.testing.assert_close(search.weights, start)


def test_a_line_search_takes_the_best_of_the_grid_whatever_diverges() -> None:
    def loss(weights: torch.Tensor) -> torch.Tensor:
        return torch.tensor(math.nan) if weights[0] > 3 else (weights[0] - 1.8) ** 2

    search = search_line(loss, torch.zeros(1), torch.ones(1), [-1.0, 0.0, 1.0, 2.0, 4.0])
    assert search.weights.item() == 2.0
    assert search.steps(examples=96, batch=32) == pytest.approx(5)


@pytest.mark.parametrize(
    ("k", "reached", "saved"),
    [
        (1, 3.0, (10.0, True)),  # reached at step 20
        (1, 2.5, (15.0, True)),  # between 20 and 30
        (1, 5.0, (0.0, True)),
        (1, 0.5, (30.0, False)),  # never: all that is left
        (2, 4.0, (-5.0, True)),  # between 10 and 20
        (2, 9.0, (-20.0, False)),
        (4, 2.5, (-15.0, True)),  # worse than at the end, as it was between 20 and 30
    ],
)
def test_steps_saved_are_those_that_the_training_takes(
    k: int, reached: float, saved: tuple[float, bool]
) -> None:
    steps, losses = [0, 10, 20, 30, 40], [8.0, 5.0, 3.0, 2.0, 1.0]
    assert steps_saved(steps, losses, k, reached) == pytest.approx(saved)


def test_of_a_loss_that_goes_up_and_down_the_first_time_counts() -> None:
    assert steps_saved([0, 10, 20, 30], [4.0, 3.0, 1.0, 2.0], 1, 2.0) == (5.0, True)
    assert steps_saved([0, 10, 20, 30], [4.0, 3.0, 5.0, 1.0], 1, 2.0)[0] == pytest.approx(17.5)


def test_rank_correlations_are_those_of_scipy() -> None:
    from scipy.stats import spearmanr

    x, y = [1.0, 2.0, 2.0, 5.0, 0.0, 3.0], [0.5, 0.1, 3.0, 3.0, 0.1, 3.0]
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert math.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_the_loss_of_a_vector_is_that_of_the_network(network: str) -> None:
    made = network_of(settings_of({"network": network, "width": 4, "depth": 1}))
    examples = data_of(network).train.take(slice(32))
    moved = parameters_to_vector(made.parameters()).detach() * 1.1
    loss = loss_of(made, examples)(moved)
    vector_to_parameters(moved, made.parameters())
    expected = functional.cross_entropy(made.train()(examples.inputs), examples.targets)
    torch.testing.assert_close(loss, expected)


def test_every_method_is_measured_at_every_point(carried_out: tuple[Run, Place]) -> None:
    run, place = carried_out
    observations = measure(run, place)
    points = [("cnn", "constant", f"{share:.0%}") for share in SHARES]
    assert set(observations) == {(*p, m) for p in points for m in ("training", *METHODS)}
    ((half,),) = (
        Store(place.store)
        .sql(
            "SELECT value FROM windows WHERE scope = 'model' AND indicator = 'predictability_1'"
            " AND w = 8 AND k_last = 20"
        )
        .fetchall()
    )
    assert observations[*points[1], "training"]["predictability_1"] == half
    for point in points:
        before = observations[*point, "training"]["train_loss"]
        line, ahead = observations[*point, "line"], observations[*point, "forward"]
        assert line["train_loss"] == pytest.approx(before * (1 + line["train_loss_change"]))
        assert ahead["ahead"] >= 0
        assert observations[*point, "mean_8"]["cost_steps"] == 0


def test_means_have_the_errors_of_their_seeds() -> None:
    means = means_over_seeds(
        {0: {("mlp",): {"loss": 1.0}}, 1: {("mlp",): {"loss": 3.0}, ("cnn",): {"loss": 5.0}}}
    )
    assert means["mlp",]["loss"] == mean_of([1.0, 3.0])
    assert (means["mlp",]["loss"].mean, means["mlp",]["loss"].stderr) == (2.0, 1.0)
    assert (means["cnn",]["loss"].seeds, means["cnn",]["loss"].stderr) == (1, None)
