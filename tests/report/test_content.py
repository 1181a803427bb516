"""What goes into the page, against explicit weights and the store."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.report import content as module
from pipeline.report.content import command, content
from pipeline.report.maps import increment_cosines
from pipeline.report.packing import FloatArray
from pipeline.report.page import in_script, page
from pipeline.report.paths import walk
from pipeline.store.query import Store
from tests import buckets
from tests.commands import hallmarks
from tests.report.test_packing import unpacked
from tests.suites import trajectory, write_suite


def analyzed(folder: Path, count: int, **options: Any) -> tuple[Store, FloatArray]:
    rows = trajectory("smooth", count, 2000, 0.05)
    suite = write_suite(folder / "suite", {"layers.0.self_attn.q_proj.weight": rows})
    pipeline.analyze(suite, folder / "store", executor="local", **options)
    return Store(str(folder / "store")), rows.astype(np.float32).astype(float)


@pytest.fixture
def of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what a page shows of parts left out, five sixths of the time."""
    monkeypatch.setattr(module, "SCOPES", {"model": module.SCOPES["model"]})


def cosines(rows: FloatArray) -> FloatArray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(rows))]


@pytest.mark.parametrize("every", [1, 3, 4])
def test_increments_of_a_map_are_those_between_its_checkpoints(every: int) -> None:
    rows = trajectory("decaying", 30, 5000, 1e-3)
    increments = np.diff(rows, axis=0)
    dots = (increments @ increments.T)[np.triu_indices(29)]
    made = increment_cosines(dots, every)
    count = len(rows[::every])
    square = np.full((count, count), np.nan)
    square[np.triu_indices(count)] = made
    assert np.isnan(square[0]).all()
    assert square[1:, 1:][np.triu_indices(count - 1)] == pytest.approx(
        cosines(np.diff(rows[::every], axis=0)), abs=1e-9
    )


def test_an_increment_that_is_zero_or_undefined_has_no_cosine() -> None:
    dots = np.array([0.0, 0.0, np.nan, 4.0, np.nan, np.nan])
    assert increment_cosines(dots, 1)[4:] == pytest.approx(
        [np.nan, np.nan, np.nan, 1.0, np.nan, np.nan], nan_ok=True
    )


@pytest.mark.usefixtures("of_the_model")
def test_maps_are_the_weights_own(tmp_path: Path) -> None:
    store, rows = analyzed(tmp_path, 12)
    shown = content(store, "store", ["suite"])["runs"][0]
    group = shown["groups"][0]
    assert group["scope"] == "model" and group["maps"]["every"] == 1
    half = np.array(unpacked(group["maps"]["weights"]))
    assert 1 - 2 * half**2 == pytest.approx(cosines(rows), abs=2e-5)
    half = np.array(unpacked(group["maps"]["displacements"]))[12:]
    assert 1 - 2 * half**2 == pytest.approx(cosines(rows[1:] - rows[0]), abs=2e-5)
    norms = np.linalg.norm(rows, axis=1)
    assert unpacked(group["curves"]["norm"]) == pytest.approx(norms, rel=1e-6)


def test_long_runs_show_every_second_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rows = analyzed(tmp_path, 11)
    monkeypatch.setattr(module, "SCOPES", {"model": (True, 6)})
    maps = content(store, "store", ["suite"])["runs"][0]["groups"][0]["maps"]
    assert maps["every"] == 2
    half = np.array(unpacked(maps["weights"]))
    assert 1 - 2 * half**2 == pytest.approx(cosines(rows[::2]), abs=2e-5)
    half = np.array(unpacked(maps["increments"]))[6:]
    assert 1 - 2 * half**2 == pytest.approx(cosines(np.diff(rows[::2], axis=0)), abs=2e-5)


@pytest.mark.usefixtures("of_the_model")
def test_long_logs_are_means(tmp_path: Path) -> None:
    """Of more values than a curve has points: means of as many consecutive ones, at the last one's step."""
    log = tmp_path / "m.csv"
    values = np.random.default_rng(0).standard_normal(1700)
    lines = [f"{n},loss,{value!r}\n" for n, value in enumerate(values.tolist())]
    log.write_text("step,metric,value\n" + "".join([*lines, "7,epoch,1\n", "3,accuracy,nan\n"]))
    store, _ = analyzed(tmp_path, 4, training=log)
    shown = content(store, "store", ["suite"])["runs"][0]["training"]
    assert shown["others"] == ["epoch"] and shown["points"] == 800
    loss, accuracy = shown["curves"]
    assert (loss["metric"], loss["split"], loss["number"]) == ("loss", None, 1700)
    each = 3  # 1700 / 800, up
    expected = [values[at : at + each].mean() for at in range(0, 1700, each)]
    assert loss["value"] == pytest.approx(expected, rel=1e-5)
    assert loss["step"] == [min(at + each - 1, 1699) for at in range(0, 1700, each)]
    assert accuracy["value"] == [None] and accuracy["k"] == [3]


def test_scopes_that_do_not_fit_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = analyzed(tmp_path, 6)
    monkeypatch.setattr(module, "SIZE", 9000)
    shown = content(store, "store", ["suite"])["runs"][0]
    kept = {group["scope"] for group in shown["groups"]}
    left_out = {entry["scope"] for entry in shown["left_out"]}
    assert "model" in kept and left_out and not kept & left_out
    scopes = store.sql("SELECT DISTINCT scope FROM groups").fetchall()
    assert kept | left_out == {scope for (scope,) in scopes}


@pytest.mark.usefixtures("of_the_model")
def test_a_sample_s_errors_are_shown(tmp_path: Path) -> None:
    rows = trajectory("smooth", 5, 300_000, 0.05)
    suite = write_suite(tmp_path / "suite", {"layers.0.self_attn.q_proj.weight": rows})
    pipeline.analyze(suite, tmp_path / "store", executor="local", fraction=0.2)
    store = Store(str(tmp_path / "store"))
    shown = content(store, "store", ["suite"])["runs"][0]
    errors = unpacked(shown["groups"][0]["maps"]["weights_error"])
    stored = store.table(
        "SELECT cosine_stderr FROM similarity WHERE scope = 'model' ORDER BY i, j"
    )[0].to_pylist()
    assert max(stored) > 0
    assert errors == pytest.approx(stored, abs=max(stored) / 500)
    assert "--fraction 0.2 --seed 0" in shown["command"]


def changing(count: int, weights: int, seed: int = 0) -> FloatArray:
    """Return a walk whose increments become a quarter as long half-way, (count, weights)."""
    steps = np.random.default_rng(seed).standard_normal((count, weights))
    steps[count // 2 + 1 :] /= 4
    return np.cumsum(steps * np.where(np.arange(count) > 0, 0.01, 1.0)[:, np.newaxis], axis=0)


@pytest.mark.parametrize("every", [1, 3])
def test_windows_are_the_store_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """At the last checkpoint of each, of the group that they are of; a gap where none ends."""
    rows = changing(24, 600)
    rows[20, 5] = np.nan
    tensors = {f"layers.{n}.w.weight": rows[:, 300 * n : 300 * n + 300] for n in range(2)}
    suite = write_suite(tmp_path / "suite", tensors)
    pipeline.analyze(suite, tmp_path / "store", executor="local", windows="5,8,16")
    scopes = {scope: (fine, -(-24 // every)) for scope, (fine, _) in module.SCOPES.items()}
    monkeypatch.setattr(module, "SCOPES", scopes)
    store = Store(str(tmp_path / "store"))
    shown = content(store, "store", ["suite"])["runs"][0]
    assert shown["widths"] == [8, 5, 16]
    groups = [group for group in shown["groups"] if "windows" in group]
    assert [group["scope"] for group in groups][:2] == ["model", "body"] and len(groups) >= 4
    for group in groups:
        where = " AND ".join(
            f"{key} IS NOT DISTINCT FROM {group[key]!r}" if key in group else f"{key} IS NULL"
            for key in ("layer", "component")
        )
        for name, packed in group["windows"].items():
            known = {
                k: (value, null)
                for k, value, null in store.sql(
                    "SELECT k_last, value, null_value FROM windows WHERE scope = ? AND indicator = ?"
                    f" AND w = 8 AND {where}",
                    [group["scope"], name],
                ).fetchall()
            }
            expected = np.array([known.get(k, (None, None)) for k in range(0, 24, every)], float).T
            assert np.isfinite(expected[0]).any()
            value, null = (np.array(unpacked(packed[each])) for each in ("value", "null_value"))
            assert value == pytest.approx(expected[0], rel=1e-3, abs=1e-4, nan_ok=True)
            assert null == pytest.approx(expected[1], rel=1e-2, abs=1e-2, nan_ok=True)


@pytest.mark.usefixtures("of_the_model")
@pytest.mark.parametrize("widths", ["5", "12,16"])
def test_of_other_windows_the_narrowest_are_shown(tmp_path: Path, widths: str) -> None:
    store, _ = analyzed(tmp_path, 20, windows=widths)
    shown = content(store, "store", ["suite"])["runs"][0]
    assert shown["widths"] == list(map(int, widths.split(",")))
    straightness = unpacked(shown["groups"][0]["windows"]["straightness"]["value"])
    assert np.isnan(straightness).sum() == shown["widths"][0] - 1


@pytest.mark.usefixtures("of_the_model")
def test_changes_are_the_model_s(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite", {"layers.0.w.weight": changing(30, 2000)})
    pipeline.analyze(suite, tmp_path / "store", executor="local")
    (change,) = content(Store(str(tmp_path / "store")), "store", ["suite"])["runs"][0]["changes"]
    assert change["k"] == 15 and change["jump"] == pytest.approx(-np.log(4), abs=0.1)


@pytest.mark.usefixtures("of_the_model")
def test_the_start_of_a_decay_is_its_checkpoint(tmp_path: Path) -> None:
    lengths = np.append(np.full(30, 1.0), np.linspace(1, 0.02, 16))
    steps = np.random.default_rng(0).standard_normal((47, 2000))
    steps[1:] *= 0.01 * lengths[:, np.newaxis]
    suite = write_suite(
        tmp_path / "suite",
        {"layers.0.w.weight": np.cumsum(steps, axis=0)},
        steps=[10 * k for k in range(47)],
    )
    pipeline.analyze(suite, tmp_path / "store", executor="local")
    store = Store(str(tmp_path / "store"))
    (start,) = store.sql(
        "SELECT value FROM indicators WHERE scope = 'model' AND indicator = 'decay_start_step'"
    ).fetchall()[0]
    changes = content(store, "store", ["suite"])["runs"][0]["changes"]
    assert changes == [{"k": start / 10, "jump": None}]
    assert abs(changes[0]["k"] - 31) <= 3


@pytest.mark.usefixtures("of_the_model")
def test_runs_without_parts_have_none(tmp_path: Path) -> None:
    store, _ = analyzed(tmp_path, 4)
    shown = content(store, "store", ["suite"])["runs"][0]
    assert shown["changes"] == [] and shown["widths"] == []
    assert all("windows" not in group for group in shown["groups"])


def test_turns_of_straight_paths_are_means_of_the_path_s(tmp_path: Path) -> None:
    rows = trajectory("smooth", 12, 2000, 1e-2)
    suite = write_suite(tmp_path / "suite", {"layers.0.self_attn.q_proj.weight": rows}, "BF16")
    pipeline.analyze(suite, tmp_path / "store", executor="local")
    store = Store(str(tmp_path / "store"))
    shown = content(store, "store", ["suite"])["runs"][0]["groups"]
    for group in shown:
        columns = [
            store.sql(
                f"SELECT straight_turn_{scale}_deg FROM path WHERE scope = ?", [group["scope"]]
            ).fetchall()
            for scale in (1, 2, 4, 8, 16)
        ]
        known = [[v for (v,) in column if v is not None] for column in columns]
        means = [float(np.mean(values)) if values else None for values in known]
        assert means[0] and means[0] > 1 and means[3:] == [None, None]
        for ours, truth in zip(group["straight_turns"], means, strict=True):
            assert ours == (None if truth is None else pytest.approx(truth, rel=1e-4))


@pytest.mark.usefixtures("of_the_model")
def test_joint_runs_are_shown(tmp_path: Path) -> None:
    sources = [
        write_suite(
            tmp_path / name, {"layers.0.w.weight": trajectory("walk", 5, 300, 0.1, seed=at)}
        )
        for at, name in enumerate(("one", "two"))
    ]
    pipeline.analyze_joint(sources, tmp_path / "store", run="both", executor="local")
    shown = content(Store(str(tmp_path / "store")), "store", ["both"])["runs"][0]
    assert len(set(shown["checkpoint"]["source"])) == 2
    assert "walk" not in shown["groups"][0]
    words = ["hallmarks", "analyze", *map(str, sources), "--store", "store", "--run", "both"]
    assert shown["command"] == shlex.join([*words, "--joint"])
    assert len(unpacked(shown["groups"][0]["maps"]["weights"])) == 55


@pytest.mark.usefixtures("of_the_model")
def test_an_absent_checkpoint_is_undefined(tmp_path: Path) -> None:
    rows = trajectory("walk", 6, 500, 0.1)
    rows[3, 7] = np.nan
    suite = write_suite(tmp_path / "suite", {"layers.0.w.weight": rows})
    pipeline.analyze(suite, tmp_path / "store", executor="local")
    shown = content(Store(str(tmp_path / "store")), "store", ["suite"])["runs"][0]
    square = np.full((6, 6), np.nan)
    square[np.triu_indices(6)] = unpacked(shown["groups"][0]["maps"]["weights"])
    assert np.isnan(square[3, 3:]).all() and np.isfinite(square[0, [0, 1, 2, 4, 5]]).all()
    assert shown["findings"][0]["kind"] == "non_finite"


def test_a_store_in_a_bucket_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, _ = analyzed(tmp_path, 5)
    with buckets.served() as endpoint:
        store = f"{buckets.named('reports', endpoint, monkeypatch)}/store"
        pipeline.analyze(tmp_path / "suite", store, executor="local")
        shown, same = (content(each, "s", ["suite"])["runs"][0] for each in (local, Store(store)))
        monkeypatch.chdir(tmp_path)
        assert hallmarks("report", "--store", store).returncode == 0
    assert (tmp_path / "report.html").exists()
    assert shown["groups"] == same["groups"] and shown["checkpoint"] == same["checkpoint"]


def test_the_walk_s_components_are_those_of_explicit_steps() -> None:
    lengths = np.array([3.0, 1.0, 2.0, 0.5, 1.5])
    points = np.vstack([np.zeros(5), np.cumsum(np.diag(lengths), axis=0)])
    centered = points - points.mean(axis=0)
    left, singular, _ = np.linalg.svd(centered, full_matrices=False)
    shares, coordinates = walk(lengths, 3)
    assert shares == pytest.approx((singular**2 / (singular**2).sum())[:3])
    assert np.abs(coordinates) == pytest.approx(np.abs(left[:, :2] * singular[:2]))
    assert (coordinates[-1] >= 0).all()


@pytest.mark.usefixtures("of_the_model")
def test_the_command_makes_the_run_again(tmp_path: Path) -> None:
    rows = trajectory("walk", 8, 300, 0.1)
    suite = write_suite(
        tmp_path / "a suite", {"layers.0.w.weight": rows, "layers.1.b": rows[:, :9]}
    )
    store = tmp_path / "store"
    chosen = ("--steps", "0:6:2", "--include", r"w\.w", "--revisions", "step*")
    asked = ("--store", str(store), "--run", "its", "--executor", "local")
    assert hallmarks("analyze", suite, *asked, *chosen).returncode == 0
    opened = Store(str(store))
    shown = content(opened, str(store), ["its"])["runs"][0]["command"]
    words = shlex.split(shown)
    assert words[:2] == ["hallmarks", "analyze"]
    done = hallmarks(*words[1:], "--executor", "local", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["already_complete"]


def test_the_command_of_unknown_parts() -> None:
    assert command("s", "r", ["x; rm"], None, None) == "hallmarks analyze 'x; rm' --store s --run r"


def test_what_is_in_the_script_stays_in_it() -> None:
    hostile = {"</script><script>": "<!-- & \u2028 ]]>"}
    text = in_script(hostile)
    assert not set("<>&") & set(text)
    assert json.loads(text) == hostile


@pytest.mark.usefixtures("of_the_model")
def test_a_page_is_one_file(tmp_path: Path) -> None:
    store, _ = analyzed(tmp_path, 3)
    text = page(content(store, "store", ["suite"]))
    assert "default-src 'none'" in text and "unsafe" not in text
    for reference in ("src=", "href=", "@import", "url("):
        assert reference not in text.replace("image.src = ", "").replace("href:", "")


def test_a_damaged_run_is_left_out_and_named(tmp_path: Path) -> None:
    analyzed(tmp_path, 3)
    pipeline.analyze(tmp_path / "suite", tmp_path / "store", executor="local", run="again")
    for file in (tmp_path / "store" / "path" / "run=again").glob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-9])
    done = hallmarks("report", "--store", tmp_path / "store")
    assert done.returncode == 3 and "run again is left out" in done.stderr
    text = (tmp_path / "store" / "report.html").read_text()
    assert '"run":"suite"' in text and '"run":"again"' not in text
    done = hallmarks("report", "--store", tmp_path / "store", "--run", "again")
    assert done.returncode == 2 and "is whole" in done.stderr


@pytest.mark.parametrize("text", [None, "", "[1]", "nonsense", '{"lr": NaN}', '{"lr": 1e-3}'])
def test_settings_are_an_object_or_nothing(text: str | None) -> None:
    settings = module.settings_of(text)
    assert settings is None or list(settings) == ["lr"]
    in_script(settings)


def test_reports_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    analyzed(tmp_path, 3)
    store = tmp_path / "store"
    assert hallmarks("report", "--store", store).returncode == 0
    assert (store / "report.html").exists()
    done = hallmarks("report", "--store", store, "--run", "nobody")
    assert done.returncode == 2 and "no run 'nobody'" in done.stderr
    done = hallmarks("report", "--store", store, "--out", tmp_path / "nowhere" / "x.html")
    assert done.returncode == 2 and "cannot be written" in done.stderr
    done = hallmarks("report", "--store", tmp_path / "none")
    assert done.returncode == 2 and "no such store" in done.stderr
