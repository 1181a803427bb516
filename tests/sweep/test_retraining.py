"""Experiments that train a run once more with something changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from jobs.studies import freeze_layers, low_rank, norms_only
from jobs.studies.variants import FULL, compared
from pipeline.store.query import Store
from pipeline.sweep.grid import Run
from pipeline.sweep.run import Place, carry_out
from pipeline.sweep.settings import Settings, settings_of
from pipeline.sweep.train import Training


def tiny(network: str = "mlp", steps: int = 12) -> Settings:
    stated = {"network": network, "width": 4, "depth": 2, "batch_size": 8, "checkpoints": 6}
    return settings_of({**stated, "steps": steps})


@pytest.fixture(scope="module")
def carried_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Place]:
    folder = tmp_path_factory.mktemp("retraining")
    run = Run("tiny", "tiny", {}, tiny("cnn"))
    place = Place(str(folder / "store"), str(folder / "trained"), "cpu")
    carry_out(run, place)
    return run, place


def test_differences_are_from_the_full_training() -> None:
    full = {"validation_loss": 1.0, "validation_accuracy": 0.5, "train_loss": 2.0, "x": 1.0}
    other = {"validation_loss": 1.5, "validation_accuracy": 0.25, "train_loss": 1.0, "x": 7.0}
    observations = compared("mlp", full, {("frozen", "10%"): other})
    assert observations["mlp", FULL, ""] == full
    changes = {
        "validation_loss_change": 0.5,
        "validation_accuracy_change": -0.25,
        "train_loss_change": -1.0,
    }
    assert observations["mlp", "frozen", "10%"] == other | changes


def test_operations_of_a_backward_pass() -> None:
    """Of layers 64 → 4 → 4 → 10: gradients of weights, and of what each layer but the first is given."""
    training = Training(tiny())
    of_weights = [2 * 64 * 4, 2 * 4 * 4, 2 * 4 * 10]
    passed_on = [0, 2 * 4 * 4, 2 * 4 * 10]
    assert freeze_layers._backward_operations(training) == sum(of_weights) + sum(passed_on)
    training.train_only(lambda name: not name.startswith("layers.0"))
    assert freeze_layers._backward_operations(training) == sum(of_weights[1:]) + passed_on[2]
    training.train_only(lambda name: not name.startswith("layers.1"))
    assert freeze_layers._backward_operations(training) == (
        of_weights[0] + of_weights[2] + sum(passed_on)
    )


def test_each_layer_stays_as_it_is_when_it_is_frozen() -> None:
    training = Training(tiny())
    whole = freeze_layers._backward_operations(training)
    unit_of = {name: name[:8] for name, _ in training.network.named_parameters()}
    steps = {"layers.0": 3, "layers.1": 12, "head.wei": 9, "head.bia": 12}
    other = training.branch()
    saved = freeze_layers._train_while_freezing(training, unit_of, steps)
    spent = whole * 3
    after = {}
    for step, unit in ((3, "layers.0"), (9, "head.wei")):
        other.run_to(step)
        after[unit] = parameters_to_vector(
            [w for name, w in other.network.named_parameters() if unit_of[name] == unit]
        )
        frozen = {name for name, when in steps.items() if when <= step}
        other.train_only(lambda name, frozen=frozen: unit_of[name] not in frozen)
        until = {3: 9, 9: 12}[step]
        spent += freeze_layers._backward_operations(other) * (until - step)
    for unit, expected in after.items():
        weights = [w for name, w in training.network.named_parameters() if unit_of[name] == unit]
        assert torch.equal(parameters_to_vector(weights), expected)
    assert training.step == 12 and saved == pytest.approx(1 - spent / (12 * whole))


def test_layers_are_frozen_at_the_steps_that_the_store_states(
    carried_out: tuple[Run, Place],
) -> None:
    run, place = carried_out
    store = Store(place.store)
    steps = freeze_layers._steps(run.name, store, "settled_step")
    names = {name for name, _ in Training(run.settings).network.named_parameters()}
    units = freeze_layers._units(run.name, store)
    assert units.keys() == names and {*units.values()} == steps.keys()
    assert {"layer 0", "layer 1", "conv1.weight", "fc.bias"} <= steps.keys()
    assert all(0 <= step <= 12 and step % 2 == 0 for step in steps.values())
    observations = freeze_layers.measure(run, place)
    assert len(observations) == 1 + 4
    for (_, variant, _), figures in observations.items():
        assert variant == FULL or 0 <= figures["backward_saved"] < 1


def test_only_norms_are_trained_or_as_many_weights_that_are_drawn(
    carried_out: tuple[Run, Place],
) -> None:
    run, place = carried_out
    observations = norms_only.measure(run, place)
    full = observations["cnn", FULL, ""]
    assert 0 < full["saturation_share"] <= 1
    training = Training(run.settings)
    sizes = {name: w.numel() for name, w in training.network.named_parameters()}
    norms = sum(size for name, size in sizes.items() if "bn" in name or "downsample.1" in name)
    share = norms / sum(sizes.values())
    assert observations["cnn", "norms alone", "25%"]["trained_share"] == pytest.approx(share)
    stopped = observations["cnn", "stopped", "0%"]["validation_loss"]
    assert observations["cnn", "norms alone", "0%"]["validation_loss"] != stopped

    before = parameters_to_vector(training.network.parameters()).detach().clone()
    training.run_to(3, norms_only._all_but(training, 0.25, 0))
    moved = parameters_to_vector(training.network.parameters()) != before
    assert 0.15 < moved.double().mean() < 0.3


def test_steps_stay_in_the_span_and_in_all_of_space_they_are_the_training() -> None:
    training, whole = Training(tiny()), Training(tiny())
    training.run_to(2)
    origin = low_rank._weights(training)
    branch = training.branch()
    span = torch.linalg.qr(torch.randn(len(origin), 3)).Q.T
    branch.run_to(12, low_rank._kept_in(branch, span))
    moved = low_rank._weights(branch) - origin
    assert moved.norm() > 1e-3
    assert (moved - span.T @ (span @ moved)).norm() < 1e-4 * moved.norm() + 1e-6
    training.run_to(12, low_rank._kept_in(training, torch.eye(len(origin))))
    whole.run_to(12)
    assert torch.allclose(low_rank._weights(training), low_rank._weights(whole), atol=1e-5)


def test_components_are_those_of_the_first_part(
    carried_out: tuple[Run, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, place = carried_out
    monkeypatch.setattr(low_rank, "SHARES", (0.5,))
    monkeypatch.setattr(low_rank, "COMPONENTS", (1, 3))
    observations = low_rank.measure(run, place)
    assert [(variant, at) for _, variant, at in observations] == [
        (FULL, ""),
        ("components of the first 50%", "0"),
        ("components of the first 50%", "1"),
        ("drawn directions after the first 50%", "1"),
        ("components of the first 50%", "3"),
        ("drawn directions after the first 50%", "3"),
    ]
    assert Path(place.store).exists() and observations["cnn", FULL, ""]["rank_95"] >= 1
