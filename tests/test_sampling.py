"""Estimates from a part of the weights: samples, runs that are not finished, figures made again."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline
from jobs.analyze import analyze
from pipeline.checkpoint.parts import Part
from pipeline.checkpoint.roles import role
from pipeline.errors import Interrupted, StoreUnusable
from pipeline.job import snapshots
from pipeline.job.analyze import analyze as run_analysis
from pipeline.job.progress import Silent
from pipeline.job.summary import FIGURES_FORMAT, Summary
from pipeline.numerics.indicators import WITHOUT_ERROR
from pipeline.planning import tiles
from pipeline.planning.align import AlignedTensor
from pipeline.planning.make import make_plan
from pipeline.planning.plan import Plan
from pipeline.planning.request import Request, Resources
from pipeline.planning.sample import (
    JACKKNIFE_FOLDS,
    LEAST_SEGMENTS,
    LEAST_SEGMENTS_OF_A_TABLE,
    draw,
    draw_within,
)
from pipeline.planning.tiles import elements, everything, range_bytes
from pipeline.store.query import Store
from tests.sampling import Sampled, synthetic
from tests.suites import trajectory, write_suite

COUNT = 6
SHAPES = {
    "model.embed_tokens.weight": (600, 500),
    **{f"model.layers.{i}.mlp.{x}_proj.weight": (600, 500) for i in (0, 1) for x in ("up", "down")},
    **{f"model.layers.{i}.self_attn.{x}_proj.weight": (600, 500) for i in (0, 1) for x in "qkvo"},
    "model.norm.weight": (500,),
}
LOCAL = Resources(executor="local")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {
        name: trajectory("smooth", COUNT, math.prod(shape), 0.02, seed).reshape(COUNT, *shape)
        for seed, (name, shape) in enumerate(SHAPES.items())
    }
    return write_suite(tmp_path_factory.mktemp("suite") / "run", values)


@pytest.fixture(scope="module")
def whole(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = str(tmp_path_factory.mktemp("whole") / "store")
    pipeline.analyze(str(suite), store, executor="local")
    return Store(store)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "MIN_TILE_BYTES", 1)
    monkeypatch.setattr(tiles, "BYTES_PER_RESULT_BYTE", 0)


def figures(store: Store, where: str) -> dict[str, tuple[float, float]]:
    query = f"SELECT indicator, value, stderr FROM indicators WHERE {where}"
    return {name: (value, error) for name, value, error in store.sql(query).fetchall()}


def tables(store: Store) -> list[Any]:
    """Every figure of every group, to the bit."""
    return [
        store.sql(f"FROM {view} ORDER BY ALL").fetchall()
        for view in ("similarity", "path", "indicators", "spectrum", "projection", "findings")
    ]


# ---- which weights are drawn


@st.composite
def fused(draw_: st.DrawFn) -> AlignedTensor:
    """A tensor of one part, or of several in blocks that repeat."""
    names = ("h.0.attn.query_key_value.weight", "lm_head.weight", "h.1.mlp.up_proj.weight")
    name = draw_(st.sampled_from(names))
    count, block = draw_(st.integers(1, 4)), draw_(st.integers(1, 3000))
    period, repeats = count * block, draw_(st.integers(1, 3000))
    found = role(name)
    parts = tuple(
        Part("qkvx"[i] if count > 1 else "", found.component, period, i * block, (i + 1) * block)
        for i in range(count)
    )
    shape, places = (repeats, period), ((0, 1), (0, 0))
    return AlignedTensor(name, shape, repeats * period, found, parts, ("F32", "F16"), *places)


@settings(deadline=None)
@given(fused(), st.floats(1e-4, 1.0), st.integers(0, 5))
def test_a_draw(tensor: AlignedTensor, fraction: float, seed: int) -> None:
    """Every part gets its share, in enough runs of groups that are balanced; nothing twice."""
    sample = draw([tensor], fraction, seed)
    assert sample == draw([tensor], fraction, seed)
    reached = 0
    for range_ in sample.ranges:
        assert reached <= range_.first < range_.stop <= tensor.numel
        reached = range_.stop
    for part, drawn in zip(tensor.parts, sample.draws[0], strict=True):
        numel = elements(part, 0, tensor.numel)
        read = sum(elements(part, f.first, f.stop) for f in sample.ranges)
        if drawn.whole:
            assert read == numel
            continue
        table = part.component in ("embed", "unembed")
        assert len(drawn.folds) >= (LEAST_SEGMENTS_OF_A_TABLE if table else LEAST_SEGMENTS)
        assert drawn.fraction >= fraction * (1 - 1e-9)
        # cells differ by a period, of which each holds four or more, or by an element
        assert read == pytest.approx(drawn.fraction * numel, rel=0.3)
        counts = [drawn.counts[group] for group in range(JACKKNIFE_FOLDS)]
        assert max(counts) - min(counts) <= 1
        held = {f.fold for f in sample.ranges if elements(part, f.first, f.stop)}
        assert held == set(drawn.folds)


@settings(deadline=None, max_examples=30)
@given(st.lists(fused(), min_size=1, max_size=3), st.floats(0.0, 1.2))
def test_a_draw_within_a_budget(tensors: list[AlignedTensor], share: float) -> None:
    total = range_bytes(everything(tensors), tensors)
    budget = 1 + int(share * total)
    fraction, sample = draw_within(tensors, budget, 0)
    if sample is not None:
        assert range_bytes(sample.ranges, tensors) <= budget
        more = draw(tensors, min(1.0, fraction * 1.01 + 1e-3), 0)
        assert range_bytes(more.ranges, tensors) > 0.5 * budget
    else:
        assert budget >= total or budget < range_bytes(draw(tensors, 1e-9, 0).ranges, tensors)


def test_every_cell_is_drawn_as_often(suite: Path) -> None:
    """Over many seeds: the draw is uniform, and another seed draws anew."""
    tensors = make_plan(Request(str(suite)))[0].tensors[:1]
    drawn, seeds = draw(tensors, 0.1, 0).draws[0][0], 600
    hits = np.zeros(drawn.segments)
    for seed in range(seeds):
        for range_ in draw(tensors, 0.1, seed).ranges:
            hits[-(-range_.first * drawn.segments // tensors[0].numel)] += 1
    expected = seeds * drawn.fraction
    assert np.abs(hits - expected).max() < 6 * math.sqrt(expected)


# ---- estimates


@pytest.mark.parametrize("kind", ["smooth", "walk"])
def test_intervals_hold_the_truth(kind: str) -> None:
    """A small version of benchmarks/coverage.py, whose table has 400 draws a cell."""
    sampled = Sampled(synthetic(kind, count=12, width=64, layers=2), 0.05)
    for name, found in sampled.coverage(range(80)).items():
        assert 0.8 <= found.coverage <= 1.0, name
        assert abs(found.bias) <= 0.3 + 2.5 / math.sqrt(80), name
        spread = found.estimates.std()
        assert 0.6 * spread < np.sqrt(np.mean(found.errors**2)) < 1.5 * spread, name


def test_a_sample_of_a_suite(suite: Path, whole: Store, tmp_path: Path) -> None:
    """Near the figures of all weights, with errors that say how near; less read."""
    store = str(tmp_path / "store")
    summary = pipeline.analyze(str(suite), store, executor="local", fraction=0.03)
    assert summary.complete and 0.03 <= summary.fraction < 0.06
    assert summary.bytes_read == pytest.approx(summary.fraction * summary.bytes_total)
    found = Store(store)
    for where in ("scope = 'model'", "scope = 'layer' AND layer = 1", "component = 'mlp_up'"):
        exact = figures(whole, where)
        for name, (value, error) in figures(found, where).items():
            if name in WITHOUT_ERROR or exact[name][0] is None:  # turns longer than the path
                assert error is None
                continue
            assert error >= 0 and abs(value - exact[name][0]) <= 5 * error + 1e-9, (where, name)
    query = (
        "SELECT a.cosine - b.cosine, a.cosine_stderr, a.relative_cosine - b.relative_cosine,"
        " a.relative_cosine_stderr FROM similarity a, other b"
        " WHERE a.scope = 'model' AND a.i = b.i AND a.j = b.j AND a.i < a.j AND a.i > 0"
    )
    other = whole.sql("SELECT * FROM similarity WHERE scope = 'model'").to_arrow_table()
    found._connection.register("other", other)
    rows = np.array(found.sql(query).fetchall())
    assert np.all(rows[:, 1] > 0) and np.all(np.abs(rows[:, 0]) <= 5 * rows[:, 1])
    assert np.all(rows[:, 3] > 0) and np.all(np.abs(rows[:, 2]) <= 5 * rows[:, 3])
    read_whole = figures(found, "scope = 'tensor' AND tensor = 'model.norm.weight'")
    assert read_whole == figures(whole, "scope = 'tensor' AND tensor = 'model.norm.weight'")
    assert read_whole["mds"][1] == 0
    fractions = dict(found.sql("SELECT tensor, fraction FROM tensors").fetchall())
    assert fractions["model.norm.weight"] == 1.0
    assert 0.03 <= fractions["model.layers.0.mlp.up_proj.weight"] < 0.04


def test_a_complete_run_is_exact(whole: Store) -> None:
    errors = whole.sql("SELECT DISTINCT stderr FROM indicators WHERE value IS NOT NULL").fetchall()
    assert errors == [(0.0,)]
    assert whole.sql("SELECT max(cosine_stderr) FROM similarity").fetchall() == [(0.0,)]


def test_the_same_sample_has_the_same_bits(suite: Path, tmp_path: Path) -> None:
    request = Request(str(suite), run="r", fraction=0.05, seed=3)
    stores = []
    for name, threads, memory in (("a", 1, 64 << 20), ("b", 2, 200 << 20)):
        resources = Resources(executor="local", threads=threads, memory=memory)
        run_analysis(request, str(tmp_path / name), resources)
        stores.append(tables(Store(str(tmp_path / name))))
    assert stores[0] == stores[1]
    run_analysis(replace(request, seed=4), str(tmp_path / "c"), LOCAL)
    assert tables(Store(str(tmp_path / "c"))) != stores[0]


def test_a_budget(suite: Path, tmp_path: Path) -> None:
    summary = pipeline.analyze(str(suite), str(tmp_path / "store"), executor="local", budget="4MB")
    assert 3_000_000 < summary.bytes_read <= 4_000_000


# ---- runs that are not finished


class Stopping(Silent):
    """Stops a job once so many tiles are done and an estimate has been shown."""

    def __init__(self, after: int) -> None:
        self.after, self.tiles, self.estimates = after, 0, list[Summary]()

    def planned(self, plan: Plan, finished_bytes: int) -> None:
        assert len(plan.tiles) >= 18

    def tile_done(self, num_bytes: int) -> None:
        self.tiles += 1
        while not self.estimates and any(t.name == "snapshot" for t in threading.enumerate()):
            time.sleep(0.01)  # it is made beside the work
        if self.tiles > self.after and self.estimates:
            raise Interrupted("stopped")

    def tile_lost(self, lost: Any) -> None:
        raise AssertionError(lost)

    def estimated(self, summary: Summary) -> None:
        self.estimates.append(summary)


def test_a_run_that_is_not_finished_can_be_asked(
    suite: Path, whole: Store, tmp_path: Path, small_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_AFTER_S", 0.0)
    # the norm would be a tile of its own, maybe the last, and no estimate is shown without it
    request = Request(str(suite), run="r", exclude=("norm",))
    store, progress = str(tmp_path / "store"), Stopping(12)
    resources = Resources(executor="local", threads=1)
    with pytest.raises(Interrupted):
        run_analysis(request, store, resources, progress=progress)
    found = Store(store)
    complete, fraction = found.sql("SELECT complete, fraction FROM runs").fetchall()[0]
    assert not complete and 0.3 < fraction < 1
    exact = figures(whole, "scope = 'model'")
    estimates = figures(found, "scope = 'model'")
    for name in ("mds", "relative_mds", "straightness"):
        value, error = estimates[name]
        assert error > 0 and abs(value - exact[name][0]) <= 6 * error
    assert progress.estimates[-1].mds_stderr > 0
    reached = found.sql("SELECT count(DISTINCT tensor) FROM path WHERE norm > 0").fetchall()[0][0]
    assert 0 < reached <= len(SHAPES)
    assert found.sql("SELECT count(*) FROM findings WHERE severity <> 'info'").fetchall() == [(0,)]
    summary = run_analysis(request, store, LOCAL)
    assert summary.complete and summary.resumed_tiles >= 12 and summary.fraction == 1
    alone = str(tmp_path / "alone")
    run_analysis(request, alone, LOCAL)
    assert tables(Store(store)) == tables(Store(alone))


def test_tensors_that_are_not_reached_are_null(
    suite: Path, tmp_path: Path, small_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a group of one role is estimated from what of it has been read."""
    monkeypatch.setattr(snapshots, "SNAPSHOT_AFTER_S", 0.0)
    monkeypatch.setattr(snapshots.Snapshots, "_enough", lambda self, done: len(done) == 5)
    store, progress = str(tmp_path / "store"), Stopping(6)
    resources = Resources(executor="local", threads=1)
    with pytest.raises(Interrupted):
        run_analysis(Request(str(suite)), store, resources, progress=progress)
    rows = Store(store).sql(
        "SELECT tensor, value FROM indicators WHERE scope = 'tensor' AND indicator = 'mds'"
    )
    values = dict(rows.fetchall())
    assert len(values) == len(SHAPES)
    assert 0 < sum(value is None for value in values.values()) < len(SHAPES)


def test_a_finished_run_is_not_replaced_by_an_estimate(
    suite: Path, tmp_path: Path, small_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_AFTER_S", 0.0)
    store, progress = str(tmp_path / "store"), Stopping(1000)
    run_analysis(Request(str(suite), run="r", fraction=0.05), store, LOCAL)
    before = tables(Store(store))
    summary = run_analysis(Request(str(suite), run="r"), store, LOCAL, progress=progress)
    assert summary.complete and not progress.estimates
    assert tables(Store(store)) != before


# ---- figures made again


def test_figures_are_made_again_without_reading_weights(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = str(tmp_path / "store")
    for fraction in (None, 0.05):
        request = Request(str(suite), run="r", fraction=fraction)
        run_analysis(request, store, LOCAL, replace=True)
        before = tables(Store(store))
        again = run_analysis(request, store, LOCAL)
        assert again.already_complete and not again.recomputed and again.bytes_read == 0
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.job.summary.FIGURES_FORMAT", FIGURES_FORMAT + 1)
            patch.setattr("pipeline.execute.work.worker.Worker.run", None)  # whoever reads fails
            again = run_analysis(request, store, LOCAL)
        assert again.recomputed and again.bytes_read == 0 and again.complete
        assert tables(Store(store)) == before
        assert again.device.startswith("cpu ")
    kept = {path.parent for path in (tmp_path / "store" / "_sums").rglob("*") if path.is_file()}
    assert len(kept) == 1, "sums of another plan are removed"


def test_damaged_sums_are_named(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    request = Request(str(suite), run="r", fraction=0.05)
    run_analysis(request, str(store), LOCAL)
    (file,) = (store / "_sums").rglob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    monkeypatch.setattr("pipeline.job.summary.FIGURES_FORMAT", FIGURES_FORMAT + 1)
    with pytest.raises(StoreUnusable, match="damaged or gone"):
        run_analysis(request, str(store), LOCAL)
    assert run_analysis(request, str(store), LOCAL, fresh=True).complete


# ---- what is printed


def test_the_summary_says_what_a_figure_is_worth(
    suite: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: object) -> str:
        words = [*map(str, arguments), "--store", str(tmp_path / "store"), "--executor", "local"]
        done = CliRunner().invoke(analyze, words, standalone_mode=False)
        assert done.exception is None, done.exception
        return done.output

    sampled = told(suite, "--fraction", "0.05")
    assert "std. error" in sampled and "of the weights" in sampled
    assert "findings: nothing found" in sampled
    walk = {"w.weight": trajectory("walk", 12, 40_000, 0.01).reshape(12, 200, 200)}
    output = told(write_suite(tmp_path / "walk", walk))
    assert "as a random walk" in output and "std. error" not in output
    still = {"w.weight": trajectory("smooth", 12, 40_000, 1e-4).reshape(12, 200, 200)}
    output = told(write_suite(tmp_path / "still", still, "BF16"))
    assert "10 of 10 update angles say nothing: rounding alone makes a straight path turn" in output
    assert "says nothing: below the noise floor" in output and "below_noise_floor" in output
    straight = 0.02 * np.random.default_rng(0).standard_normal((2, 200, 200))
    rows = straight[0] + 3e-3 * np.arange(12)[:, None, None] * straight[1]
    output = told(write_suite(tmp_path / "straight", {"w.weight": rows}, "BF16"))
    assert "10 of 10 update angles do not differ from those of a straight path, rounded" in output
    assert "as a straight path, rounded" in output and "below_noise_floor" not in output
    told(suite, "--fraction", "0.05", "--json")
    assert json.loads(capfd.readouterr().out)["already_complete"]
