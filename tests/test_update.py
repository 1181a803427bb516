"""`hallmarks update`: figures made again from what the store keeps, with the source gone."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.errors import FormatError, Interrupted, StoreUnusable
from pipeline.follow import follow_once
from pipeline.job.summary import FIGURES_FORMAT
from pipeline.job.update import update
from pipeline.planning.make import make_joint_plan
from pipeline.planning.plan import Plan
from pipeline.planning.request import Request
from pipeline.store.folder import Folder
from pipeline.store.plans import decode_plan, encode_plan, kept_plans
from pipeline.training.metrics import Training
from tests.commands import hallmarks
from tests.suites import trajectory, write_suite

VIEWS = ("similarity", "path", "indicators", "spectrum", "projection", "findings", "groups")
ROLES = """[[role]]
name = 'mixer'
component = "attn_qkv"
fused = {q = 2, k = 1, v = 1}
"""


def suite(directory: Path, seed: int = 0, names: tuple[str, ...] = ("mlp.up_proj",)) -> Path:
    weights = {
        f"model.layers.{layer}.{name}.weight": trajectory("walk", 6, 4096, 0.1, seed + layer)
        for layer in (0, 1)
        for name in names
    }
    return write_suite(directory, weights, "F16")


def analysed(source: Path, store: Path, *more: object) -> None:
    done = hallmarks("analyze", source, "--store", store, "--executor", "local", *more)
    assert done.returncode == 0, done.stderr


def contents(store: Path, run: str) -> dict[str, list[Any]]:
    opened = pipeline.open_store(store)
    return {
        view: opened.sql(f"SELECT * EXCLUDE {'attempt' if view == 'groups' else '(run)'} FROM {view}"
                         f" WHERE run = '{run}' ORDER BY ALL").fetchall()
        for view in VIEWS
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two runs whose source is gone."""
    root = tmp_path_factory.mktemp("made")
    analysed(suite(root / "a"), root / "store", "--set", "lr=0.5")
    analysed(suite(root / "b", 7), root / "store", "--statistics", "sparsity")
    shutil.rmtree(root / "a")
    shutil.rmtree(root / "b")
    return root / "store"


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "store")


def as_of(patch: pytest.MonkeyPatch, later: int = 1) -> None:
    """Be a later version, whose figures are others."""
    for module in ("summary", "update"):
        patch.setattr(f"pipeline.job.{module}.FIGURES_FORMAT", FIGURES_FORMAT + later)


@pytest.fixture
def later(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a version after that of the store."""
    del store
    as_of(monkeypatch)


def states(store: Path, run: str | None = None) -> dict[str, str]:
    return {each.run: each.state for each in update(str(store), run)}


@pytest.mark.usefixtures("later")
def test_figures_are_made_again_without_the_source(store: Path) -> None:
    before = {run: contents(store, run) for run in "ab"}
    assert states(store, "a") == {"a": "updated"}
    done = hallmarks("update", "--store", store, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["runs"] == [
        {"run": "a", "state": "current", "reason": ""},
        {"run": "b", "state": "updated", "reason": ""},
    ]
    assert {run: contents(store, run) for run in "ab"} == before
    opened = pipeline.open_store(store)
    figures = opened.sql("SELECT DISTINCT figures FROM attempts").fetchall()
    assert figures == [(FIGURES_FORMAT + 1,)]
    assert opened.sql("SELECT settings->>'lr' FROM runs WHERE run = 'a'").fetchall() == [("0.5",)]
    assert opened.sql("SELECT count(*) FROM sparsity").fetchall()[0][0] > 0
    assert hallmarks("update", "--store", store).stdout == "a: current\nb: current\n"


def test_current_runs_are_left_alone(store: Path) -> None:
    files = sorted((path, path.stat().st_mtime_ns) for path in store.rglob("*"))
    assert pipeline.update(store) == [
        pipeline.Updated("a", "current"),
        pipeline.Updated("b", "current"),
    ]
    assert sorted((path, path.stat().st_mtime_ns) for path in store.rglob("*")) == files


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("fault", ["plan gone", "plan damaged", "sums gone", "sums damaged"])
def test_a_run_that_cannot_be_made_again_is_named_and_stays(store: Path, fault: str) -> None:
    before = contents(store, "a")
    what, how = fault.split()
    pattern = "plan" if what == "plan" else "*.safetensors"
    for path in (store / "_sums" / "run=a").rglob(pattern):
        path.unlink() if how == "gone" else path.write_bytes(path.read_bytes()[:-5] + b"other")
    done = hallmarks("update", "--store", store)
    assert done.returncode == 3
    first, second = done.stdout.splitlines()
    assert first.startswith("a: not updated: _sums/run=a/") and second == "b: updated"
    assert "damaged" in first
    assert contents(store, "a") == before


@pytest.mark.usefixtures("later")
def test_runs_without_sums_are_named(store: Path) -> None:
    shutil.rmtree(store / "_sums")
    said = {each.run: each.reason for each in update(str(store))}
    assert all("no sums of it are kept" in reason for reason in said.values()) and len(said) == 2


def test_a_followed_run_is_made_again_by_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    follow_once(suite(tmp_path / "source"), store, run="f")
    assert states(store) == {"f": "current"}
    as_of(monkeypatch)
    (said,) = update(str(store))
    assert said.state == "not updated"
    assert said.reason == "it is followed; `hallmarks follow` with its SOURCE makes it again"


def test_what_there_is_not_is_said(store: Path, tmp_path: Path) -> None:
    done = hallmarks("update", "--store", store, "--run", "c")
    assert done.returncode == 2
    assert "no run c in" in done.stderr.replace("'", "") and "there are: a, b" in done.stderr
    assert hallmarks("update", "--store", tmp_path / "none").returncode == 2


def test_figures_of_a_later_version_are_kept(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_of(monkeypatch, -1)
    assert states(store) == {"a": "not updated", "b": "not updated"}


@pytest.mark.usefixtures("later")
def test_tables_that_are_damaged_are_made_again(store: Path) -> None:
    before = contents(store, "a")
    for path in (store / "path" / "run=a").iterdir():
        path.write_bytes(b"")
    assert states(store, "a") == {"a": "updated"}
    assert contents(store, "a") == before


@pytest.mark.usefixtures("later")
def test_interrupted_it_goes_on_and_nothing_is_lost(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {run: contents(store, run) for run in "ab"}
    from pipeline.store.write import RunWriter

    complete = RunWriter.complete

    def interrupted(writer: RunWriter, plan: Plan, *rest: Any) -> None:
        complete(writer, plan, *rest)
        if plan.run == "b":
            raise Interrupted("SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "complete", interrupted)
        with pytest.raises(Interrupted):
            update(str(store))
    assert {run: contents(store, run) for run in "ab"} == before
    assert states(store) == {"a": "current", "b": "updated"}


@pytest.mark.usefixtures("later")
def test_tiles_of_another_analysis_of_the_name_stay(store: Path) -> None:
    tile = store / "_tiles" / "run=a" / "other" / "x.safetensors"
    tile.parent.mkdir(parents=True)
    tile.write_bytes(b"result")
    assert states(store, "a") == {"a": "updated"}
    assert tile.read_bytes() == b"result"


def test_runs_of_one_read_are_made_together(tmp_path: Path) -> None:
    store = tmp_path / "store"
    a, b = suite(tmp_path / "a"), suite(tmp_path / "b", 7)
    analysed(a, store, b, "--joint", "--run", "both")
    shutil.rmtree(b)
    before = {run: contents(store, run) for run in ("a", "b", "both")}
    made = dict.fromkeys(("a", "b", "both"), "updated")
    with pytest.MonkeyPatch.context() as patch:
        as_of(patch, 2)
        assert states(store, "b") == made
    assert {run: contents(store, run) for run in ("a", "b", "both")} == before
    analysed(a, store)
    with pytest.MonkeyPatch.context() as patch:
        as_of(patch, 3)
        told = {each.run: each for each in update(str(store))}
    assert told["a"].state == "updated"
    assert told["both"].state == told["b"].state == "not updated"
    assert "run a of the same read has been replaced" in told["both"].reason


@pytest.mark.usefixtures("later")
def test_roles_are_those_of_this_version(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.planning import network

    known = network.roles

    def others(*of: Any) -> dict[str, Any]:
        return {
            name: replace(role, component="router", layer=(role.layer or 0) + 1)
            for name, role in known(*of).items()
        }

    monkeypatch.setattr(network, "roles", others)
    assert states(store, "a") == {"a": "updated"}
    groups = pipeline.open_store(store).sql(
        "SELECT layer, component FROM groups WHERE run = 'a' AND scope = 'layer_component' ORDER BY 1"
    )
    assert groups.fetchall() == [(1, "router"), (2, "router")]


def test_other_parts_need_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "roles.toml").write_text(ROLES)
    source = suite(tmp_path / "a", names=("mixer", "mlp.up_proj"))
    analysed(source, tmp_path / "store", "--roles", tmp_path / "roles.toml")
    before = contents(tmp_path / "store", "a")
    as_of(monkeypatch)
    assert states(tmp_path / "store") == {"a": "updated"}
    assert contents(tmp_path / "store", "a") == before
    as_of(monkeypatch, 2)
    from pipeline.planning import network

    whole = network.parts
    monkeypatch.setattr(network, "parts", lambda name, *of: whole(name, of[0], of[1], {}, 0))
    (told,) = update(str(tmp_path / "store"))
    assert told.state == "not updated" and "other parts" in told.reason


def kept(plan: Plan) -> Plan:
    """What is kept of a plan."""
    bare = replace(plan, files=(), account=replace(plan.account, logs=()))
    return bare.knowing([({}, Training())] * len(plan.firsts))


def test_plans_are_kept_whole(tmp_path: Path, trained: dict[str, Path]) -> None:
    """Fused parts, heads, ties, samples and several paths among them."""
    sources = [suite(tmp_path / name, seed) for seed, name in enumerate("ab")]
    plans = [
        make_joint_plan([Request(str(source), None) for source in sources], "both")[0],
        pipeline.plan(sources[0], fraction=0.2),
        *(pipeline.plan(source, by_head=True) for source in trained.values()),
    ]
    for plan in plans:
        found, expected = decode_plan(encode_plan(plan)), kept(plan)
        for field in fields(Plan):
            assert getattr(found, field.name) == getattr(expected, field.name), field.name
        assert found.renamed() == expected


def test_a_plan_of_another_form_is_refused(tmp_path: Path) -> None:
    import zlib

    import xxhash

    data = encode_plan(pipeline.plan(suite(tmp_path / "a")))
    version, fields_of_plan = json.loads(zlib.decompress(data[16:]))

    def made(value: Any) -> bytes:
        packed = zlib.compress(json.dumps(value).encode())
        return xxhash.xxh3_128_digest(packed) + packed

    assert decode_plan(made([version, fields_of_plan]))
    rng = np.random.default_rng(0)
    others: list[Any] = [None, 1, "x", [], {}, True, 1.5, [[]], -1, [None] * 4]
    for number in range(len(fields_of_plan)):
        for other in rng.permutation(len(others))[:4]:
            changed = [*fields_of_plan]
            changed[number] = others[other]
            try:
                decode_plan(made([version, changed]))
            except FormatError:
                continue
    for wrong in (
        b"",
        b"x" * 40,
        data[:-1],
        made(3),
        made([version + 1, fields_of_plan]),
        made([version, {}]),
    ):
        with pytest.raises(FormatError):
            decode_plan(wrong)


def test_only_whole_sums_count(store: Path) -> None:
    folder = Folder(str(store))
    assert [run for run, _ in kept_plans(folder)] == ["a", "b"]
    next((store / "_sums" / "run=a").rglob("complete")).unlink()
    assert [run for run, _ in kept_plans(folder)] == ["b"]
    with pytest.raises(StoreUnusable):
        update(str(store / "nothing"))
