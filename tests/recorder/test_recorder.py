"""A recorded training: its checkpoints to the bit, its metrics, and whatever may go wrong meanwhile."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

import pipeline
from pipeline.errors import HallmarksError, RequestError
from pipeline.recorder.recorder import Recorder
from tests.commands import hallmarks

State = dict[str, Tensor]


class Network(nn.Module):
    """Everything that a state dict may hold: tied and strided weights, buffers, several formats, none."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 24)
        self.body = nn.Sequential(nn.Linear(24, 32), nn.BatchNorm1d(32), nn.Linear(32, 24))
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.strided = nn.Parameter(torch.randn(12, 7).t())
        self.brief = nn.Parameter(torch.randn(5).bfloat16())
        self.long_one = nn.Parameter(torch.randn((), dtype=torch.float64))
        self.odd = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("mask", torch.arange(6).reshape(2, 3).t() > 2)
        self.head = nn.Linear(24, 40, bias=False)
        self.head.weight = self.embed.weight


def copied(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def move(model: nn.Module) -> None:
    """Change every floating-point weight in place, and at once."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter += 0.01 * torch.randn_like(parameter)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(read: State, expected: State) -> None:
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        found = read[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
        assert bits(found) == bits(tensor), name


def recorded(directory: Path) -> list[int]:
    """Return the steps of the checkpoints, if there is nothing else but metrics and hidden folders."""
    names = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    return sorted(int(name.removeprefix("step-")) for name in names - {"metrics.jsonl"})


def plain(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))


def checkpoint(directory: Path, step: int) -> State:
    return load_file(directory / f"step-{step}" / "model.safetensors")


def test_every_tensor_is_recorded_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made, states = Network(), []
    with Recorder(made, tmp_path, "linear:1") as recorder:
        for step in range(4):
            recorder.step(step)
            states.append(copied(made))
            move(made)
    assert recorded(tmp_path) == [0, 1, 2, 3]
    for step, state in enumerate(states):
        tied = state.pop("head.weight")
        assert_same(checkpoint(tmp_path, step), state)
        into = Network()
        load_model(into, tmp_path / f"step-{step}" / "model.safetensors")
        assert_same(copied(into), state | {"head.weight": tied})


def test_what_is_due_while_another_is_written_waits(tmp_path: Path) -> None:
    """Of a network that takes longer to write than to change, each step is as it was."""
    made, states = plain(500), []
    with Recorder(made, tmp_path, "linear:1") as recorder:
        for step in range(6):
            recorder.step(step)
            states.append(copied(made))
            move(made)
    assert recorded(tmp_path) == list(range(6))
    for step, state in enumerate(states):
        assert_same(checkpoint(tmp_path, step), state)


def test_a_network_whose_layout_changes(tmp_path: Path) -> None:
    made = plain()
    with Recorder(made, tmp_path, [0, 1, 2]) as recorder:
        recorder.step(0)
        made.add_module("2", nn.Linear(8, 3))
        recorder.step(1)
        grown = copied(made)
        made.half()
        recorder.step(2)
    assert_same(checkpoint(tmp_path, 1), grown)
    assert_same(checkpoint(tmp_path, 2), copied(made))


def test_names_are_those_of_the_network_itself(tmp_path: Path) -> None:
    """Compiled as a whole, in a part, in DataParallel."""
    made = plain()
    expected = copied(made)
    made[1] = torch.compile(made[1], backend="eager")
    whole = torch.compile(made, backend="eager")
    for n, wrapped in enumerate((made, whole, DataParallel(whole))):
        with Recorder(wrapped, tmp_path / str(n), [0]) as recorder:  # type: ignore[arg-type]
            recorder.step(0)
        assert_same(checkpoint(tmp_path / str(n), 0), expected)


def test_recorded_trainings_are_analyzed(tmp_path: Path) -> None:
    """Weights, configuration, settings and metrics, without an option."""
    made = plain()
    config = {"model_type": "mine", "training": {"lr": 0.5, "optimizer": {"name": "sgd"}}}
    folder = tmp_path / "checkpoints"  # beside which Lightning would have its logs
    with pipeline.Recorder(made, folder, "linear:2", last_step=7, config=config) as recorder:
        for step in range(8):
            loss = torch.tensor(float(step), requires_grad=True) / 4
            recorder.step(step, loss=loss, validation_accuracy=step / 8, bad=float("nan"))
            move(made)
    done = hallmarks("analyze", folder, "--store", tmp_path / "store", "--executor", "local")
    assert done.returncode == 0, done.stderr
    store = pipeline.open_store(tmp_path / "store")
    assert store.sql("SELECT step FROM checkpoints ORDER BY k").fetchall() == [
        (0,),
        (2,),
        (4,),
        (6,),
        (7,),
    ]
    settings = json.loads(store.sql("SELECT settings FROM runs").fetchall()[0][0])
    assert settings == {"lr": 0.5, "optimizer.name": "sgd"}
    curves = store.sql(
        "SELECT split, metric, list((step, k, value) ORDER BY step) FROM training GROUP BY ALL ORDER BY metric"
    ).fetchall()
    k = {0: 0, 2: 1, 4: 2, 6: 3, 7: 4}
    assert curves == [
        ("validation", "accuracy", [(s, k.get(s), s / 8) for s in range(8)]),
        (None, "bad", [(s, k.get(s), None) for s in range(8)]),
        (None, "loss", [(s, k.get(s), s / 4) for s in range(8)]),
    ]


def test_steps_between_calls_are_recorded_late(tmp_path: Path) -> None:
    """An epoch at a time; each checkpoint has the number of the step that it is of."""
    with Recorder(plain(), tmp_path, "linear:10", last_step=95) as recorder:
        for step in (0, 8, 16, 24, 48, 49, 95):
            recorder.step(step)
        recorder.step(95, loss=1.0)  # known later
        recorder.record(97)
        recorder.record(97)
    assert recorded(tmp_path) == [0, 16, 24, 48, 95, 97]


def test_what_cannot_be_written_is_raised_by_the_next_call_and_at_the_end(tmp_path: Path) -> None:
    """A step that a file is in the way of; those before it are whole."""
    recorder = Recorder(plain(), tmp_path, "linear:1")
    recorder.step(0)
    (tmp_path / "step-1.partial").touch()
    recorder.step(1)
    for call in (lambda: recorder.record(2), lambda: recorder.record(3), recorder.close):
        with pytest.raises(
            HallmarksError, match=r"checkpoint of step 1: .* cannot be written: File exists"
        ):
            call()
    with pytest.raises(RequestError, match="step 2: the recorder is closed"):
        recorder.step(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0", "step-1.partial"]


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """As on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    """The error of the background reaches the loop that failed otherwise, too."""
    with (
        pytest.raises(ZeroDivisionError) as raised,
        Recorder(plain(100), tmp_path, [0, 1]) as recorder,
    ):
        recorder.step(0)
        recorder.record(0)
        recorder._wait()
        with no_file_above(50_000):
            recorder.step(1)
            with contextlib.suppress(HallmarksError):
                recorder._wait()
        1 / 0  # noqa: B018
    assert "besides, in the recorder: checkpoint of step 1" in raised.value.__notes__[0]
    assert "File too large" in raised.value.__notes__[0]
    assert recorded(tmp_path) == [0]


def test_no_line_of_metrics_follows_a_part_of_one(tmp_path: Path) -> None:
    with Recorder(plain(), tmp_path, [0]) as recorder:
        recorder.step(1, loss=1.0)
        with no_file_above(40), pytest.raises(HallmarksError, match="metrics of step 2: .* cannot"):
            recorder.step(2, loss=2.0)
        recorder.step(3, loss=3.0)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 3]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"model": {"w": torch.ones(3)}}, "model: expected a torch.nn.Module"),
        ({"schedule": "often"}, "schedule: expected a schedule, found 'often'"),
        ({"schedule": [5], "last_step": 4}, "step 5 is after the last step, 4"),
        ({"last_step": -1}, "last_step: expected a step from 0 on, found '-1'"),
        ({"last_step": 1.5}, "last_step: expected a step"),
        ({"resume": "last"}, "resume: expected a step"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], why: str, tmp_path: Path) -> None:
    given = {"model": plain(), "directory": tmp_path / "new", "schedule": "linear:1"} | arguments
    with pytest.raises(RequestError, match=why):
        Recorder(**given)
    assert not (tmp_path / "new").exists()


def test_wrong_steps_and_metrics(tmp_path: Path) -> None:
    with Recorder(plain(), tmp_path, "linear:10") as recorder:
        recorder.step(3)
        for step, metrics, why in (
            (2, {}, "step: expected 3 or a later one, found 2"),
            (-1, {}, "expected a step from 0 on, found '-1'"),
            (True, {}, "found 'True'"),
            (4, {"loss": "low"}, "expected numbers by name, found 'loss': 'low'"),
            (4, {"loss": torch.ones(2)}, "expected numbers by name, found 'loss'"),
            (4, {"loss": None}, "expected numbers by name"),
            (4, {"loss": 10**400}, "expected numbers by name, found 'loss'"),
            (4, {"step": 5}, "expected numbers by name, found 'step': '5'"),
            (4, {"metric": 5}, "found 'metric'"),
        ):
            with pytest.raises(RequestError, match=why):
                recorder.step(step, **metrics)  # type: ignore[arg-type]
        recorder.step(4, **{"eval/loss": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 4, "eval/loss": 1.0}\n'


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> object:
        return {"calls": 3}

    def set_extra_state(self, state: object) -> None:
        pass


def test_what_is_no_tensor_is_said(tmp_path: Path) -> None:
    said = pytest.warns(UserWarning, match="not recorded, since it is no tensor: '_extra_state'")
    with Recorder(WithExtraState(2, 2), tmp_path, "linear:1") as recorder, said:
        recorder.step(0)
    assert checkpoint(tmp_path, 0).keys() == {"weight", "bias"}


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*arguments: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with Recorder(plain(), tmp_path, [0]) as recorder:
        recorder.step(0)
    assert recorded(tmp_path) == [0]


def odd(value: Tensor) -> nn.Module:
    made = nn.Module()
    made.register_buffer("odd", value)
    return made


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (nn.Linear(2, 2, device="meta"), "'weight': on the meta device"),
        (odd(torch.eye(3).to_sparse()), "'odd': float32, torch.sparse_coo"),
        (odd(torch.zeros(2, dtype=torch.complex128)), "'odd': complex128"),
    ],
)
def test_tensors_without_values_are_refused(made: nn.Module, why: str, tmp_path: Path) -> None:
    with Recorder(made, tmp_path, [0]) as recorder, pytest.raises(RequestError, match=why):
        recorder.step(0)
    assert recorded(tmp_path) == []


def test_a_directory_is_of_one_training(tmp_path: Path) -> None:
    with Recorder(plain(), tmp_path, [0]) as recorder:
        recorder.step(0)
        with pytest.raises(RequestError, match="another process records in") as refused:
            Recorder(plain(), tmp_path, [0], resume=0)
        assert "initialize torch.distributed before" in refused.value.hint
    with pytest.raises(
        RequestError, match="holds checkpoints up to step 0 of an earlier"
    ) as refused:
        Recorder(plain(), tmp_path, [0])
    assert "resume=STEP" in refused.value.hint
    shutil.rmtree(tmp_path / "step-0")
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n')
    with pytest.raises(RequestError, match="holds metrics of an earlier training"):
        Recorder(plain(), tmp_path, [0])
    assert list(tmp_path.iterdir()) == [tmp_path / "metrics.jsonl"]


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="'.*file' cannot be written: File exists"):
        Recorder(plain(), tmp_path / "file", [0])
    with pytest.raises(RequestError, match="'.*below' cannot be written: Not a directory"):
        Recorder(plain(), tmp_path / "file" / "below", [0])
