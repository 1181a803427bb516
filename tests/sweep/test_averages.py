"""Averages of late checkpoints: the mean of the state dicts, with statistics of batch norm of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs.studies.averages import differences, measured_average
from pipeline.store.query import Store
from pipeline.sweep.data import data_of
from pipeline.sweep.grid import Run
from pipeline.sweep.networks import network_of
from pipeline.sweep.run import Place, carry_out
from pipeline.sweep.settings import Settings, settings_of
from pipeline.sweep.train import metrics_of, renew_statistics


@pytest.fixture(scope="module", params=["mlp", "cnn"])
def carried_out(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Place]:
    folder = tmp_path_factory.mktemp("averages")
    stated = {"network": request.param, "width": 2, "depth": 1, "epochs": 2, "checkpoints": 6}
    run = Run("tiny", "tiny", {}, settings_of(stated))
    place = Place(str(folder / "store"), str(folder / "trained"), "cpu")
    carry_out(run, place)
    return run, place


def mean_of_the_last(settings: Settings, checkpoints: Path, count: int) -> torch.nn.Module:
    by_step = {int(each.name.removeprefix("step-")): each for each in checkpoints.glob("step-*")}
    states = [load_file(by_step[step] / "model.safetensors") for step in sorted(by_step)[-count:]]
    network = network_of(settings)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            weights.copy_(torch.stack([state[name].double() for state in states]).mean(0))
    return network


def test_an_average_is_the_mean_of_the_state_dicts(carried_out: tuple[Run, Place]) -> None:
    run, place = carried_out
    data = data_of(run.settings.network)
    network = mean_of_the_last(run.settings, Path(place.checkpoints, run.name), 4)
    renew_statistics(network, data.train)
    assert measured_average(run, place, "last:4") == pytest.approx(metrics_of(network, data))


def test_the_last_checkpoint_is_what_the_training_ended_with(
    carried_out: tuple[Run, Place],
) -> None:
    run, place = carried_out
    if run.settings.network == "cnn":
        pytest.skip("its statistics of batch norm are taken anew")
    logged = Store(place.store).sql(
        "SELECT split || '_' || metric, arg_max(value, step) FROM training GROUP BY ALL"
    )
    assert measured_average(run, place, "last:1") == pytest.approx(dict(logged.fetchall()))


def test_statistics_are_those_of_the_training_set() -> None:
    network = network_of(settings_of({"network": "cnn", "width": 2, "depth": 1}))
    train = data_of("cnn").train
    renew_statistics(network, train)
    with torch.no_grad():
        seen = network.conv1(train.inputs)  # pyright: ignore
    torch.testing.assert_close(network.bn1.running_mean, seen.mean((0, 2, 3)), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(network.bn1.running_var, seen.var((0, 2, 3)), atol=1e-2, rtol=2e-2)


def test_differences_are_between_the_trainings_of_one_seed() -> None:
    def of(constant: float, mean: float, decayed: float) -> dict[tuple[str, ...], dict[str, float]]:
        return {
            ("mlp", "constant", "last:1"): {"loss": constant},
            ("mlp", "constant", "last:8"): {"loss": mean},
            ("mlp", "wsd", "last:1"): {"loss": decayed},
        }

    above = differences({0: of(2.0, 1.0, 0.5), 1: of(4.0, 3.0, 3.5)})
    mean = above["mlp", "constant", "last:8"]["loss_above_constant_last"]
    assert (mean.mean, mean.stderr) == (-1.0, 0.0)
    assert above["mlp", "wsd", "last:1"]["loss_above_constant_last"].mean == -1.0
    assert above["mlp", "wsd", "last:1"]["loss_above_own_last"].mean == 0.0
