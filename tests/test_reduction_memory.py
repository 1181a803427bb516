"""How the reduction's memory is divided: it decides no bit, and what is held at once is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import open_store
from pipeline.errors import PlanDoesNotFit
from pipeline.findings.observe import Observations, Seen
from pipeline.job import memory
from pipeline.job.analyze import analyze
from pipeline.job.memory import reduction_buffers, worker_memory
from pipeline.numerics.basis import Basis
from pipeline.numerics.straight_turns import SCALES
from pipeline.planning.make import make_plan
from pipeline.planning.options import parse_size
from pipeline.planning.request import Request, Resources
from pipeline.reduce.batches import FigureBatch
from pipeline.reduce.estimate import Estimate
from pipeline.reduce.figures import GroupSums, Times, figures
from pipeline.reduce.groups import Key, grouping
from pipeline.reduce.memory import (
    Buffers,
    buffers,
    encoded_tables,
    kept_increments,
    largest_estimate,
    least,
    projected,
    projected_estimate,
)
from pipeline.reduce.reduce import _strata, estimate_bytes
from tests.commands import hallmarks
from tests.suites import trajectory, write_suite

VIEWS = ("similarity", "path", "indicators", "spectrum", "projection")
LEAST = Buffers(threads=1, batch=1, stack=1, held=1, file=1, ahead=1)


def suite(folder: Path) -> Path:
    """Two layers and what lies outside them, some of it alike."""
    rows = trajectory("walk", 12, 640, 0.1).astype(np.float32)
    weights = {
        f"model.layers.{layer}.{name}.weight": rows[:, : 100 * (layer + 1) + len(name)]
        for layer in range(2)
        for name in ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj", "input_layernorm")
    }
    weights |= {"model.embed_tokens.weight": rows, "model.norm.weight": rows[:, 7:77]}
    return write_suite(folder / "suite", weights)


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_memory_decides_no_bit(
    fraction: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(str(suite(tmp_path)), fraction=fraction)
    found = []
    for name in ("most", "least"):
        analyze(request, str(tmp_path / name), Resources(executor="local"))
        store = open_store(str(tmp_path / name))
        found.append([store.sql(f"FROM {view} ORDER BY ALL").fetchall() for view in VIEWS])
        files = list((tmp_path / name / "similarity").rglob("*.parquet"))
        assert len(files) == 1
        monkeypatch.setattr(memory, "buffers", lambda *_: LEAST)
    assert all(found[0])
    assert found[0] == found[1]


def test_groups_that_are_open_at_one_time(tmp_path: Path) -> None:
    plan, _ = make_plan(Request(str(suite(tmp_path))))
    grouped = grouping(plan)
    most, seen = 0, [0] * len(grouped.sizes)
    for member in grouped.members:
        for group in member.groups:
            seen[group] += 1
        # one that is complete with this part is given away after it
        begun = [
            now - (group in member.groups) < size
            for group, (now, size) in enumerate(zip(seen, grouped.sizes, strict=True))
        ]
        most = max(
            most,
            sum(
                b and now > 0 and size > 1
                for b, now, size in zip(begun, seen, grouped.sizes, strict=True)
            ),
        )
    assert grouped.most_open == most > 1


def test_tables_are_no_larger_than_a_plan_says(tmp_path: Path) -> None:
    source, store = suite(tmp_path), tmp_path / "store"
    analyze(Request(str(source)), str(store), Resources(executor="local"))
    plan, _ = make_plan(Request(str(source)))
    grouped, count = grouping(plan), len(plan.checkpoints)
    (file,) = (store / "similarity").rglob("*.parquet")
    group = pq.read_metadata(file).row_group(0)
    taken = {
        (column := group.column(number)).path_in_schema: column.total_compressed_size
        for number in range(group.num_columns)
    }
    similarities, *_ = encoded_tables(grouped, plan)
    kept = kept_increments(grouped, count)
    assert similarities / 2 < sum(taken.values()) <= similarities
    assert kept / 2 < taken["increment_dot"] <= kept * 1.1
    described = json.loads(hallmarks("plan", source, "--json").stdout)
    assert described["tables"]["bytes"] > similarities
    assert described["tables"]["increments"] == kept


def test_a_smaller_budget_makes_the_reduction_smaller_until_it_is_refused(tmp_path: Path) -> None:
    plan, _ = make_plan(Request(str(suite(tmp_path))))
    grouped = grouping(plan)
    smallest = least(plan, grouped)
    for budget in (1 << 34, 400 << 20, 200 << 20, smallest):
        assert projected(plan, grouped, buffers(plan, grouped, budget, 8)) <= budget
    most, small = (buffers(plan, grouped, budget, 8) for budget in (1 << 34, smallest))
    assert most.threads == 8
    for field in Buffers.__slots__:
        assert getattr(small, field) < getattr(most, field)
    assert projected(plan, grouped, small) == smallest


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_no_budget_is_exceeded_and_the_least_that_works_is_named(
    executor: str, tmp_path: Path
) -> None:
    """Tiles need 21 MiB here, figures and tables more: the hint says what suffices for both."""
    request = Request(str(suite(tmp_path)))
    plan, _ = make_plan(request)
    with pytest.raises(PlanDoesNotFit, match="their figures and tables need at least") as refused:
        worker_memory(plan, Resources(executor=executor, memory=40 << 20), 2)
    named = parse_size(refused.value.hint.split()[2].rstrip(","))
    enough = Resources(executor=executor, memory=named)
    assert worker_memory(plan, enough, 2).projected <= named
    projection = projected(plan, grouping(plan), reduction_buffers(plan, enough))
    assert projection <= named < 1.01 * least(plan, grouping(plan))
    store = tmp_path / "store"
    small = Resources(executor="local", memory=40 << 20)
    with pytest.raises(PlanDoesNotFit):
        analyze(request, str(store), small)
    assert not store.exists()
    analyze(request, str(store), Resources(executor="local"))
    shutil.rmtree(store / "similarity")
    with pytest.raises(PlanDoesNotFit, match="figures and tables"):  # made again from stored sums
        analyze(request, str(store), small)
    assert not (store / "similarity").exists()


def test_what_an_estimate_keeps_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any number of tiles, read in any order, and never more than the plan's bound."""
    monkeypatch.setattr("pipeline.planning.tiles.CHUNK", 50)
    monkeypatch.setattr("pipeline.planning.tiles.MIN_TILE_BYTES", 12 * 4 * 100)
    monkeypatch.setattr("pipeline.planning.tiles.BYTES_PER_RESULT_BYTE", 0)
    plan, _ = make_plan(Request(str(suite(tmp_path))))
    grouped, count = grouping(plan), len(plan.checkpoints)
    divided = buffers(plan, grouped, 1 << 34, 2)
    most, order = largest_estimate(plan, grouped, divided), plan.order()
    assert len(order) > 10
    counts = []
    for read in range(1, len(order) + 1):
        done = {tile: place for place, tile in enumerate(order[:read])}
        estimates = [
            Estimate(strata, read, count)
            for strata in _strata(plan, grouped, done).values()
            if all(stratum.read for stratum in strata.values())
        ]
        matrices = sum(1 + len(each._totals) + len(each._changes) for each in estimates)
        folds = max((len(each._changes) for each in estimates), default=0)
        needed = estimate_bytes(plan, grouped, divided, done)
        assert needed == projected_estimate(plan, grouped, divided, matrices, folds) <= most
        counts.append(matrices)
    assert max(counts) > counts[-1] > 2 * len(grouped.keys), "changes of folds are among them"


def test_findings_keep_no_matrix_of_a_tensor(tmp_path: Path) -> None:
    plan, _ = make_plan(Request(str(suite(tmp_path))))
    count = len(plan.checkpoints)
    name = plan.tensors[0].name
    sums = GroupSums(
        np.eye(count),
        np.arange(count, dtype=np.uint64)[:, None],
        np.zeros(count, bool),
        np.zeros((2, len(SCALES), count)),
    )
    made = figures(
        [sums], Times(np.arange(count, dtype=float), np.full(count, np.nan)), Basis((0,), count)
    )
    observed = Observations(plan)
    key = Key("tensor", tensor=name)
    observed.add(FigureBatch(np.zeros(1, np.int32), [key], np.zeros(1, np.int64), made))
    (seen,) = observed._seen
    held = [getattr(seen, field) for field in Seen.__slots__ if field != "names"]
    assert all((array if array.base is None else array.base).size < count**2 for array in held)
