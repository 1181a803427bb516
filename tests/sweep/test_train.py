"""Trainings of small networks: what they learn from, how weights move, what is recorded."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import hallmarks
from pipeline.errors import Diverged, PackageMissing, RequestError
from pipeline.sweep import data
from pipeline.sweep.data import data_of, order
from pipeline.sweep.networks import network_of
from pipeline.sweep.optimizers import backward, learning_rate, optimizers_of
from pipeline.sweep.settings import Settings, settings_of
from pipeline.sweep.train import (
    Training,
    evaluate,
    load_network,
    recorded_steps_of,
    renew_statistics,
    train,
)

NETWORKS = ("mlp", "cnn", "vit", "lm")


def small(network: str = "mlp", **stated: Any) -> Settings:
    width = 4 if network in ("mlp", "cnn") else 16
    return settings_of(
        {"network": network, "width": width, "depth": 2, "steps": 4, "batch_size": 8}
        | {"checkpoints": 2, **stated}
    )


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in network.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(w, second[n]) for n, w in first.items()
    )


def files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


# What they learn


def test_digits_are_all_there_once_and_split_alike_for_every_seed() -> None:
    from sklearn.datasets import load_digits

    pixels = load_digits().data
    digits = data_of("mlp")
    assert (len(digits.train), len(digits.validation)) == (1438, 359)
    mean, deviation = digits.train.inputs.mean(), digits.train.inputs.std()
    assert abs(mean) < 1e-6 and abs(deviation - 1) < 1e-6
    both = torch.cat([digits.validation.inputs, digits.train.inputs]).flatten(1).double()
    both = (both - both.min()) / (both.max() - both.min())  # as they were: 0 … 16
    assert sorted((both * 16).round().tolist()) == sorted(pixels.tolist())
    assert torch.bincount(digits.validation.targets).min() > 25  # of 36 on average
    assert data_of("cnn") is digits


def test_text_is_predicted_one_byte_ahead_and_its_end_is_held_out() -> None:
    text = data_of("lm")
    first = text.train
    assert torch.equal(first.inputs[:, 1:], first.targets[:, :-1])
    learned = b"".join(bytes([*each.tolist()]) for each in first.inputs[:3])
    assert learned[:40] == data.reference_text()[:40]
    held_out = text.validation
    end = bytes(held_out.targets[-1].tolist())
    assert end in data.reference_text()[-200:]
    assert 0.09 < len(held_out) / (len(held_out) + len(first)) < 0.11


def test_without_scikit_learn_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    data._digits.cache_clear()
    with pytest.raises(PackageMissing, match="scikit-learn") as raised:
        data_of("vit")
    assert "hallmarks[sweep]" in str(raised.value.hint)
    assert data_of("lm").name == "text"


@pytest.mark.parametrize("batch", [3, 7, 20])
def test_every_epoch_has_each_example_once_in_an_order_of_its_own(batch: int) -> None:
    count, epochs = 7, 6
    steps = math.ceil(epochs * count / batch)
    taken = torch.cat([order(count, batch, 0, step) for step in range(steps)])
    orders = [tuple(taken[k * count : (k + 1) * count].tolist()) for k in range(epochs)]
    assert all(sorted(each) == list(range(count)) for each in orders)
    assert len(set(orders)) == epochs
    assert orders[0] != tuple(order(count, count, 1, 0).tolist())


# How weights move


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("step", [0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        ("wsd", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.5]),
        ("cosine", [0.5, 1, *(0.5 + 0.5 * math.cos(math.pi * k / 8) for k in range(8))]),
    ],
)
def test_schedules_of_the_learning_rate(schedule: str, expected: list[float]) -> None:
    settings = settings_of({"schedule": schedule, "warmup": 0.2, "learning_rate": 3.0})
    rates = [learning_rate(settings, step, 10) / 3 for step in range(10)]
    assert rates == pytest.approx(expected)


def _stepped(network: nn.Module, settings: Settings, gradients: list[float]) -> None:
    optimizers = optimizers_of(settings, network)
    for gradient in gradients:
        for each in network.parameters():
            each.grad = torch.full_like(each, gradient)
        for optimizer in optimizers:
            optimizer.step()


def test_momentum_and_weight_decay_of_sgd() -> None:
    settings = settings_of({"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.2})
    network = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(2.0)
    _stepped(network, settings, [1.0, 3.0])
    first = 1.0 + 0.2 * 2.0
    w = 2.0 - 0.1 * first
    w -= 0.1 * (0.5 * first + 3.0 + 0.2 * w)
    assert network.weight.item() == pytest.approx(w)


def test_momentum_is_beta1_of_adamw_whose_weight_decay_is_apart() -> None:
    settings = settings_of(
        {"optimizer": "adamw", "learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.2}
    )
    network = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(2.0)
    _stepped(network, settings, [1.0, 3.0])
    w = 2.0 * (1 - 0.1 * 0.2) - 0.1 * 1.0
    mean = (0.5 * 0.5 * 1.0 + 0.5 * 3.0) / (1 - 0.5**2)
    square = (0.999 * 0.001 * 1.0 + 0.001 * 9.0) / (1 - 0.999**2)
    w = w * (1 - 0.1 * 0.2) - 0.1 * mean / math.sqrt(square)
    assert network.weight.item() == pytest.approx(w)


@pytest.mark.parametrize("name", ["mlp", "vit", "lm"])
def test_muon_makes_matrices_within_orthogonal_and_leaves_the_rest_to_adamw(name: str) -> None:
    settings = small(name, optimizer="muon", learning_rate=0.5, weight_decay=0.0, momentum=0.0)
    network = network_of(settings)
    before = weights(network)
    generator = torch.Generator().manual_seed(0)
    for each in network.parameters():
        each.grad = torch.randn(each.shape, generator=generator)
    muon, adamw = optimizers_of(settings, network)
    muon.step()
    adamw.step()
    by_muon = {id(w) for group in muon.param_groups for w in group["params"]}
    for path, after in network.named_parameters():
        moved = (after - before[path]).detach()
        within = after.dim() == 2 and "layers." in path
        assert (id(after) in by_muon) == within
        if within:  # singular values are near 0.5 · 0.2 √max(shape): five iterations
            values = torch.linalg.svdvals(moved) / (0.1 * math.sqrt(max(moved.shape)))
            assert values.median() > 0.6 and values.max() < 1.3
        else:  # AdamW's first step is the sign of the gradient
            assert torch.allclose(moved.abs(), torch.tensor(0.5), rtol=1e-2)


def test_sharpness_aware_gradients_are_those_uphill() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    images = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    before = weights(network)

    def loss() -> torch.Tensor:
        return (network(images) ** 3).mean()

    statistics = network[1].running_mean
    plain = torch.autograd.grad(loss(), list(network.parameters()))
    norm = math.sqrt(sum(float((g**2).sum()) for g in plain))
    with torch.no_grad():
        for each, gradient in zip(network.parameters(), plain, strict=True):
            each.add_(0.3 * gradient / norm)
    expected = torch.autograd.grad(loss(), list(network.parameters()))
    network.load_state_dict(before, strict=False)
    statistics.zero_()
    loss()
    once = statistics.clone()
    statistics.zero_()
    backward(network, loss, 0.3)
    assert same(weights(network), before)
    assert torch.equal(statistics, once)
    for each, gradient in zip(network.parameters(), expected, strict=True):
        assert each.grad is not None and torch.allclose(each.grad, gradient, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "optimizer"), [("cnn", "sgd"), ("vit", "adamw"), ("lm", "muon")]
)
def test_a_branch_goes_on_as_the_training_would(network: str, optimizer: str) -> None:
    training = Training(small(network, optimizer=optimizer, sam_rho=0.05))
    training.run_to(2)
    branch = training.branch()
    middle = weights(training.network)
    branch.run_to(4)
    assert same(weights(training.network), middle)  # which the branch leaves alone
    training.run_to(4)
    assert same(training.network.state_dict(), branch.network.state_dict())
    assert not same(weights(training.network), middle)


def test_only_what_is_to_be_trained_is_and_nothing_else_decays() -> None:
    training = Training(small("cnn", weight_decay=0.5))
    training.run_to(2)  # so that there is momentum
    before = weights(training.network)
    training.train_only(lambda name: "bn" in name)
    training.run_to(4)
    for name, each in training.network.named_parameters():
        assert torch.equal(each, before[name]) == ("bn" not in name), name


def test_a_training_goes_on_from_weights() -> None:
    settings = small("cnn", momentum=0.0)  # without it SGD remembers nothing
    whole = Training(settings)
    whole.run_to(2)
    other = Training(settings, weights=whole.network.state_dict(), step=2)
    whole.run_to(4)
    other.run_to(4)
    assert same(whole.network.state_dict(), other.network.state_dict())


# What is measured


def test_losses_and_accuracies_are_means_over_all_examples() -> None:
    network = network_of(small("lm"))
    examples = data_of("lm").validation.take(slice(600))  # more than one batch
    with torch.no_grad():
        logits = network(examples.inputs).double().numpy()
    targets = examples.targets.numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    loss = -np.take_along_axis(logs, targets[..., None], -1).mean()
    measured = evaluate(network, examples)
    assert measured.loss == pytest.approx(loss, rel=1e-5)
    assert measured.accuracy == pytest.approx((logits.argmax(-1) == targets).mean())
    assert network.training


def test_statistics_of_batch_norm_are_taken_anew() -> None:
    network = network_of(small("cnn"))
    examples = data_of("cnn").train.take(slice(500))
    with torch.no_grad():
        before = network.conv1(examples.inputs)
    renew_statistics(network, examples)
    assert torch.allclose(network.bn1.running_mean, before.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(network.bn1.running_var, before.var((0, 2, 3)), rtol=1e-4)
    assert network.bn1.momentum == 0.1 and network.training


# What is recorded


@pytest.mark.parametrize(
    ("spacing", "steps", "checkpoints", "expected"),
    [
        ("linear", 10, 5, [0, 2, 4, 6, 8, 10]),
        ("linear", 7, 3, [0, 2, 5, 7]),
        ("linear", 3, 40, [0, 1, 2, 3]),
        ("logarithmic", 1000, 4, [0, 1, 10, 100, 1000]),
        ("logarithmic", 10, 6, [0, 1, 2, 3, 4, 6, 10]),
        ("logarithmic", 1, 2, [0, 1]),
    ],
)
def test_recorded_steps(spacing: str, steps: int, checkpoints: int, expected: list[int]) -> None:
    settings = settings_of({"steps": steps, "checkpoints": checkpoints, "spacing": spacing})
    assert recorded_steps_of(settings, steps) == expected


@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_settings_give_the_same_bits(tmp_path: Path, network: str) -> None:
    settings = small(network, optimizer="adamw")
    metrics = train(settings, tmp_path / "first")
    threads, numbers = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(3)
    torch.manual_seed(99)
    torch.rand(7)
    train(settings, tmp_path / "second")
    assert torch.get_num_threads() == 3  # and nothing global is changed
    assert not torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.set_rng_state(numbers)
    first = files(tmp_path / "first")
    assert first == files(tmp_path / "second")
    assert [n for n in first if n.startswith("step")] == [
        f"step-{k}/{file}" for k in (0, 2, 4) for file in ("config.json", "model.safetensors")
    ]
    again = load_network(settings, tmp_path / "first" / "step-4")
    validation = data_of(network).validation
    part = validation.take(slice(data_of(network).measured))
    assert metrics["validation_loss"] == evaluate(again, part).loss
    other = network_of(small(network, seed=1))
    assert not same(weights(other), weights(network_of(settings)))


def test_an_interrupted_training_leaves_nothing_and_begins_again(tmp_path: Path) -> None:
    settings, directory = small(), tmp_path / "runs" / "a"
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
    left = directory.with_name(f".a.{os.uname().nodename}.{dead}")
    beside = directory.with_name(f".a.{os.uname().nodename}.{os.getppid()}")
    for each in (left, beside):
        (each / "step-0").mkdir(parents=True)

    def interrupt(step: int, last_step: int) -> None:
        assert last_step == 4
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, directory, on_progress=interrupt)
    assert list(directory.parent.iterdir()) == [beside]  # another process's, which lives
    train(settings, directory)
    train(settings, tmp_path / "b")
    assert files(directory) == files(tmp_path / "b")
    with pytest.raises(RequestError, match="exists"):
        train(settings, directory)


@pytest.mark.slow
def test_a_killed_training_begins_again_with_the_same_bits(tmp_path: Path) -> None:
    stated, directory = {"steps": 20_000, "checkpoints": 1000}, tmp_path / "a"
    code = f"""
from pathlib import Path
from pipeline.sweep.settings import settings_of
from pipeline.sweep.train import train
train(settings_of({stated}), Path({str(directory)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".a.*/step-100")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.")
    first = load_file(left / "step-100" / "model.safetensors")
    short = Training(settings_of(stated))
    short.run_to(100)
    assert same(first, dict(short.network.state_dict()))
    train(settings_of({"steps": 4}), directory)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_training_that_diverges_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    settings = small("vit", learning_rate=100, warmup=0, momentum=0.99, steps=60)
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at step \d+ of 60") as raised:
        train(settings, tmp_path / "a")
    assert "learning_rate" in str(raised.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_an_analysis_finds_settings_metrics_and_what_is_no_weight(tmp_path: Path) -> None:
    settings = small("cnn", momentum=0.5)
    metrics = train(settings, tmp_path / "cnn")
    store = tmp_path / "store"
    hallmarks.analyze(tmp_path / "cnn", store=store, executor="local")
    opened = hallmarks.open_store(store)
    ((stated,),) = opened.sql("SELECT settings FROM runs").fetchall()
    stated = json.loads(stated)
    assert stated["momentum"] == 0.5 and stated["steps"] == 4 and stated["data"] == "digits"
    assert "epochs" not in stated and stated["data_digest"] == data_of("cnn").digest
    logged = opened.sql(
        "SELECT split || '_' || metric, value FROM training WHERE step = 4 ORDER BY ALL"
    ).fetchall()
    assert dict(logged) == pytest.approx(metrics)
    left_out = opened.sql("SELECT tensor FROM tensors WHERE NOT included").fetchall()
    names = {name.rpartition(".")[2] for (name,) in left_out}
    assert names == {"running_mean", "running_var", "num_batches_tracked"}
