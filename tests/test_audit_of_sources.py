"""`hallmarks audit SOURCE`: known defects of public suites, from listings alone, on small copies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import torch
from obstore.store import from_url
from safetensors.torch import save, save_file

from tests import buckets
from tests.commands import hallmarks
from tests.hub import Hub, Repository
from tests.suites import write_suite

Judged = tuple[str, str, tuple[str, ...]]
"""Severity, kind, and the checkpoints that are named."""


def values(step: int, number: int = 0) -> bytes:
    return save({f"layers.{number}.weight": torch.full((8, 8), float(step + 1000 * number))})


def whole(repository: Repository, steps: list[int], of: Callable[[int], int], name: str) -> None:
    for step in steps:
        repository.commit({"model.safetensors": values(of(step))}, name.format(step))


def sharded(
    repository: Repository, steps: list[int], of: Callable[[int, int], int], name: str
) -> None:
    """Commit two shards; `of` gives the step that the values of a shard are of."""
    index = {f"layers.{n}.weight": f"model-{n + 1:05d}-of-00002.safetensors" for n in (0, 1)}
    for step in steps:
        files: dict[str, Any] = {
            file: values(of(step, n), n) for n, file in enumerate(index.values())
        }
        files["model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()
        repository.commit(files, name.format(step))


GRID = [0, 1, 2, 4, 8, 16, 32, 64]
THOUSANDS = [n * 1000 for n in range(1, 9)]

DEFECTS: dict[str, tuple[Callable[[Repository], None], list[Judged]]] = {
    # suite, defect: how it is published, what is found
    "clean": (lambda r: whole(r, THOUSANDS, lambda s: s, "step{}"), []),
    "clean, sharded": (lambda r: sharded(r, THOUSANDS, lambda s, n: s, "step{}"), []),
    "a frozen shard": (lambda r: sharded(r, THOUSANDS, lambda s, n: s * n, "step{}"), []),
    "Pythia: step1 is step0": (
        lambda r: whole(r, GRID, lambda s: s if s > 1 else 0, "step{}"),
        [("info", "identical_checkpoints", ("step0", "step1"))],
    ),
    "pythia-2.8b: the early grid serves the end": (
        lambda r: whole(r, THOUSANDS, lambda s: 8000 if s < 5000 else s, "step{}"),
        [("error", "identical_checkpoints",
          ("step1000", "step2000", "step3000", "step4000", "step8000"))],
    ),
    "pythia-12b: the last one's first shard": (
        lambda r: sharded(
            r, THOUSANDS, lambda s, n: 8000 if n == 0 and s in (3000, 5000) else s, "step{}"
        ),
        [("error", "foreign_tensors", ("step3000", "step5000", "step8000"))],
    ),
    "OLMo-2: three that are one": (
        lambda r: whole(
            r, THOUSANDS, lambda s: 3000 if s in (3000, 5000, 7000) else s, "stage1-step{}-tokens1B"
        ),
        [("error", "identical_checkpoints",
          tuple(f"stage1-step{s}-tokens1B" for s in (3000, 5000, 7000)))],
    ),
    "bloom-7b1: 100000 is 200000": (
        lambda r: whole(r, THOUSANDS, lambda s: 2000 if s == 1000 else s, "global_step{}"),
        [("error", "identical_checkpoints", ("global_step1000", "global_step2000"))],
    ),
    "a step that is missing": (
        lambda r: whole(r, [s for s in THOUSANDS if s != 4000], lambda s: s, "step{}"),
        [("warning", "missing_steps", ())],
    ),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_known_defects_of_suites(defect: str, served_hub: Hub) -> None:
    publish, expected = DEFECTS[defect]
    publish(served_hub.repository("org/suite"))
    done = hallmarks("audit", "org/suite", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["findings"]
    judged = [
        (f["severity"], f["kind"], tuple(c["name"] for c in f["evidence"].get("checkpoints", [])))
        for f in found
    ]
    assert judged == expected
    errors = [row for row in expected if row[0] == "error"]
    assert hallmarks("audit", "org/suite", "--strict").returncode == (3 if errors else 0)
    assert served_hub.count("cdn") == 0, "no byte of a file is read"
    shown = hallmarks("plan", "org/suite").stdout
    assert ("error: " in shown) == bool(errors)


def test_revisions_of_one_commit(served_hub: Hub) -> None:
    repository = served_hub.repository("org/suite")
    for step in THOUSANDS:
        repository.tag(
            f"step{step}", repository.commit({"model.safetensors": values(step)}, "main")
        )
    repository.tag("step9000", repository.commit({"model.safetensors": values(9000)}, "main"))
    repository.tag("step2500", repository.tags["step7000"])
    found = json.loads(hallmarks("audit", "org/suite", "--json").stdout)["findings"]
    (identical,) = [f for f in found if f["kind"] == "identical_checkpoints"]
    assert identical["severity"] == "error" and identical["evidence"]["same_commit"]
    assert {c["name"] for c in identical["evidence"]["checkpoints"]} == {"step2500", "step7000"}


def test_a_directory_has_sizes_and_names(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((7, 64, 64))
    suite = write_suite(
        tmp_path / "run", {"w": rows}, ["F32"] * 5 + ["BF16"] * 2, [1, 2, 3, 5, 6, 7, 8]
    )
    save_file({"w": torch.zeros(100, 64)}, suite / "step2" / "model.safetensors")
    (suite / "step9").mkdir()
    (suite / "step8" / "model.safetensors").rename(
        suite / "step8" / "model-00001-of-00002.safetensors"
    )
    found = json.loads(hallmarks("audit", suite, "--json").stdout)["findings"]
    assert [(f["severity"], f["kind"], f["k"]) for f in found] == [
        ("warning", "missing_steps", 3), ("warning", "incomplete_checkpoint", None),
        ("warning", "incomplete_checkpoint", 6), ("warning", "size_changed", 1),
        ("warning", "size_changed", 2), ("info", "dtype_changed", 5),
    ]  # fmt: skip


def test_a_bucket_has_etags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with buckets.served() as endpoint:
        url = f"{buckets.named('audited', endpoint, monkeypatch)}/run"
        for step in THOUSANDS:
            contents = values(2000 if step == 6000 else step)
            obstore.put(from_url(url), f"step{step}/model.safetensors", contents)
        found = json.loads(hallmarks("audit", url, "--json").stdout)["findings"]
    assert [(f["kind"], [c["step"] for c in f["evidence"]["checkpoints"]]) for f in found] == [
        ("identical_checkpoints", [2000, 6000])
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("audit", "{run}", "--store", "s"), "needs no store"),
        (("audit", "--revisions", "x"), "audit SOURCE"),
    ],
)
def test_options_of_the_other_kind(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = hallmarks(*(each.format(run=tmp_path) for each in arguments))
    assert done.returncode == 2 and said in done.stderr
