"""Where displacements begin: a series that does not start at an initialization says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

import pipeline
from pipeline.store.query import Store
from tests.commands import hallmarks
from tests.suites import write_suite

Weights = dict[str, NDArray[np.float64]]
COUNT = 8


def trained(layers: list[nn.Module], zero: str = "") -> Weights:
    """Return (COUNT, *shape) values of every tensor, from the initialization on."""
    torch.manual_seed(0)
    network = nn.Sequential(*layers)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(parameter * (not zero or zero not in name))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    saved: dict[str, list[torch.Tensor]] = {name: [] for name, _ in network.named_parameters()}
    for _ in range(COUNT):
        for name, parameter in network.named_parameters():
            saved[name].append(parameter.detach().clone())
        optimizer.zero_grad()
        (network(torch.randn(16, 8)) - 1).square().mean().backward()
        optimizer.step()
    return {
        name.replace("1.", "layers.0.norm."): torch.stack(values).double().numpy()
        for name, values in saved.items()
    }


def with_norm(zero: str = "") -> Weights:
    return trained([nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)], zero)


def without_norm(bias: bool, zero: str = "") -> Weights:
    return trained([nn.Linear(8, 8, bias), nn.Identity(), nn.Linear(8, 4, bias)], zero)


def late(values: Weights, first: int = 1) -> Weights:
    return {name: rows[first:] for name, rows in values.items()}


def starts(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [row for row in found if row[1] == "starts_late"]


def findings_of(values: Weights, where: Path, steps: list[int], **options: Any) -> list[tuple]:
    count = len(next(iter(values.values())))
    write_suite(where / "run", values, steps=steps[:count])
    return analyzed(where / "run", where / "store", **options)


def analyzed(source: Path, store: Path, **options: Any) -> list[tuple]:
    summary = pipeline.analyze(str(source), str(store), executor="local", **options)
    query = f"SELECT severity, kind, k, message FROM findings WHERE run = '{summary.run}'"
    return Store(str(store)).sql(query).fetchall()


STEPS = [16 * (k + 1) for k in range(COUNT)]


@pytest.mark.parametrize(
    "values",
    [with_norm(), with_norm("1.weight"), without_norm(True, "bias"), without_norm(False, "2.")],
    ids=["norms of 1", "norms of 0", "biases of 0", "a factor of 0"],
)
def test_what_looks_initialized_starts_there(values: Weights, tmp_path: Path) -> None:
    """Whatever its number is; and one update later it does not."""
    assert starts(findings_of(values, tmp_path / "a", STEPS)) == []
    found = starts(findings_of(late(values), tmp_path / "b", STEPS))
    assert [row[:3] for row in found] == [("info", "starts_late", 0)]
    assert "measured from step 16, not from initialization" in found[0][3]


def test_frozen_norms_say_nothing(tmp_path: Path) -> None:
    values = with_norm()
    for name in values:
        if "norm" in name:
            values[name][:] = values[name][0]
    values = {name: rows for name, rows in values.items() if not name.endswith("bias")}
    assert starts(findings_of(values, tmp_path, STEPS))


def test_step_0_and_no_step_are_no_late_start(tmp_path: Path) -> None:
    values = late(with_norm())
    assert starts(findings_of(values, tmp_path / "a", [0, *STEPS])) == []
    plain = write_suite(tmp_path / "b", values)
    rows = [{"uri": str(folder), "name": f"part {n}", "tokens": n} for n, folder in
            enumerate(sorted(plain.iterdir()))]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert starts(analyzed(tmp_path / "t.jsonl", tmp_path / "store")) == []


def test_a_later_stage_is_a_late_start(tmp_path: Path) -> None:
    values = late(with_norm())
    for k in range(COUNT - 1):
        folder = tmp_path / "run" / f"stage2-step{10 * k}"
        folder.mkdir(parents=True)
        rows = {name: torch.from_numpy(each[k]).float() for name, each in values.items()}
        save_file(rows, folder / "model.safetensors")
    (found,) = starts(analyzed(tmp_path / "run", tmp_path / "store"))
    assert "from step 0 of stage 2" in found[3]


def test_the_users_own_selection_is_one(tmp_path: Path) -> None:
    """From a sample, too; and the command line says where it starts."""
    values = with_norm()
    write_suite(tmp_path / "run", values)
    assert starts(analyzed(tmp_path / "run", tmp_path / "all")) == []
    assert starts(analyzed(tmp_path / "run", tmp_path / "sample", fraction=0.5)) == []
    assert starts(analyzed(tmp_path / "run", tmp_path / "some", steps="2:"))

    def told(*command: str) -> str:
        done = hallmarks(*command, "--steps", "2:")
        assert done.returncode == 0, done.stderr
        return done.stdout

    source, store = str(tmp_path / "run"), str(tmp_path / "told")
    assert "displacements are measured from step 2\n" in told("plan", source)
    analyze = ("analyze", source, "--store", store, "--executor", "local")
    out = told(*analyze)
    assert "starts_late" in out and f"{COUNT - 2} checkpoints, " in out
    assert "displacements are from step 2, not from initialization\n" in out
    assert json.loads(told(*analyze, "--json"))["first_step"] == 2
    assert json.loads(told("plan", source, "--json"))["first_step"] == 2
