"""Settings and metrics of a training: what is read of logs and files, and what a store makes of them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import pipeline
from pipeline.errors import HallmarksError, PackageMissing, RequestError
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request
from pipeline.training import logs as module
from pipeline.training.logs import Log, read_best, read_logs
from pipeline.training.metrics import Metric, Training
from pipeline.training.settings import SUFFIXES, assigned, flat, of_text, read_settings
from tests.commands import hallmarks
from tests.hub import Hub
from tests.suites import trajectory, write_suite

STEPS = [0, 10, 20, 30]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    rows = trajectory("smooth", len(STEPS), 300, 0.1)
    return write_suite(tmp_path / "suite", {"layers.0.w.weight": rows}, steps=STEPS)


def analyzed(suite: Path, store: Path, **options: Any) -> pipeline.Store:
    pipeline.analyze(suite, store, executor="local", run="r", **options)
    return pipeline.open_store(store)


def rows_of(store: pipeline.Store, run: str = "r") -> set[tuple]:
    query = "SELECT k, step, split, metric, value FROM training WHERE run = ?"
    return set(store.sql(query, [run]).fetchall())


def log(path: Path, root: Path | None = None) -> Log:
    name = str(path.relative_to(root or path.parent))
    data = path.read_bytes()
    return Log(name, len(data), str(path), lambda start, stop: data[start:stop])


def written(folder: Path, name: str, content: str | bytes) -> Log:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return log(path, folder)


def values(training: Training) -> dict[str, dict[int, float]]:
    return {
        metric.shown: dict(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))
        for metric, curve in training.curves.items()
    }


def trainer_state(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write one as transformers does."""
    from transformers.trainer_callback import TrainerState

    TrainerState(log_history=history).save_to_json(str(folder / "trainer_state.json"))


def test_the_trainer_s_state(tmp_path: Path) -> None:
    history = [
        {"loss": 2.5, "grad_norm": 1.0, "learning_rate": 1e-4, "epoch": 0.1, "step": 10},
        {"eval_loss": 2.4, "eval_runtime": 1.5, "epoch": 0.1, "step": 10},
        {"loss": math.nan, "grad_norm": math.inf, "learning_rate": 5e-5, "epoch": 0.2, "step": 20},
        {"train_runtime": 8.0, "train_loss": 2.45, "step": 20},
        {"eval_confusion": [[1, 2]], "step": 20},
    ]
    trainer_state(tmp_path, history)
    read = read_logs([log(tmp_path / "trainer_state.json")])
    shown = values(read)
    assert shown["eval loss"] == {10: 2.4} and shown["train train_loss"] == {20: 2.45}
    assert shown["train learning_rate"] == {10: 1e-4, 20: 5e-5}
    assert shown["train loss"][10] == 2.5 and math.isnan(shown["train loss"][20])
    assert math.isnan(shown["train grad_norm"][20])
    assert "eval confusion" not in shown
    (note,) = read.notes
    assert "'confusion' that is no number" in note


LONG = [
    (0, "loss", 3.5, "train"),
    (10, "loss", 2.5, None),
    (5, "a b", -1e-9, "dev"),
    (7, "ü", None, None),
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_row_for_each_value(suffix: str, tmp_path: Path) -> None:
    """As DuckDB writes and reads it."""
    path = tmp_path / f"m.{suffix}"
    connection = duckdb.connect()
    connection.execute("CREATE TABLE m (step BIGINT, metric VARCHAR, value DOUBLE, split VARCHAR)")
    connection.executemany("INSERT INTO m VALUES (?, ?, ?, ?)", LONG)
    kind = {"jsonl": "JSON"}.get(suffix, suffix)
    connection.execute(f"COPY m TO '{path}' (FORMAT {kind})")
    training = read_logs([log(path)])
    assert not training.notes
    expected = {(metric, split): {step: value} for step, metric, value, split in LONG}
    assert {
        (metric.name, metric.split): {
            step: None if math.isnan(value) else value
            for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
        }
        for metric, curve in training.curves.items()
    } == expected


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_column_for_each_metric(suffix: str, tmp_path: Path) -> None:
    """The form of Lightning's metrics.csv: most cells are empty, and columns begin with their split."""
    path = tmp_path / f"metrics.{suffix}"
    connection = duckdb.connect()
    connection.execute(
        "CREATE TABLE m AS SELECT * FROM (VALUES (0, 9, 2.5, NULL, 0.1), (0, 9, NULL, 2.25, NULL),"
        ' (1, 19, 2.0, NULL, 0.05)) t(epoch, step, train_loss, "val/loss", "lr-AdamW")'
    )
    kind = {"jsonl": "JSON"}.get(suffix, suffix)
    connection.execute(
        f'COPY (SELECT epoch, step, train_loss::DOUBLE AS train_loss, "val/loss"::DOUBLE AS'
        f' "val/loss", "lr-AdamW"::DOUBLE AS "lr-AdamW" FROM m) TO \'{path}\' (FORMAT {kind})'
    )
    training = read_logs([log(path)])
    assert values(training) == {
        "epoch": {9: 0, 19: 1},
        "train loss": {9: 2.5, 19: 2.0},
        "val loss": {9: 2.25},
        "lr-AdamW": {9: 0.1, 19: 0.05},
    }
    assert not training.notes


def test_steps_that_are_logged_again(tmp_path: Path) -> None:
    """A training that was resumed: the later value counts, and that is said where they differ."""
    text = "step,metric,value\n1,loss,3\n2,loss,2\n3,loss,9\n2,loss,2\n3,loss,1\n1,lr,1\n"
    training = read_logs([written(tmp_path, "m.csv", text)])
    assert values(training) == {"loss": {1: 3, 2: 2, 3: 1}, "lr": {1: 1}}
    (note,) = training.notes
    assert "1 × another value at a step that is logged again, of 'loss'" in note


def test_what_is_not_understood_is_named(tmp_path: Path) -> None:
    text = (
        "step,metric,value,wall time\n1,loss,3,x\nnone,loss,2,x\n-1,loss,2,x\n1.5,loss,2,x\n"
        f"1e99,loss,2,x\n2.0,loss,two,x\n3,,1,x\n4,{'m' * 300},1,x\n5,loss,1,x\n"
    )
    training = read_logs([written(tmp_path, "m.csv", text)])
    assert values(training) == {"loss": {1: 3, 5: 1}}
    notes = "\n".join(training.notes)
    assert "4 × a step that is no whole number (first 'none')" in notes
    assert "1 × a value of 'loss' that is no number (first 'two')" in notes
    assert "2 × no name of a metric" in notes and "a column 'wall time'" in notes


HOSTILE: Mapping[str, tuple[str, bytes, str]] = {
    "empty": ("m.csv", b"", "found no rows"),
    "other columns": ("m.csv", b"a,b\n1,2\n", "found 'a', 'b'"),
    "steps alone": ("m.csv", b"step\n1\n", "found 'step'"),
    "nothing understood": ("m.csv", b"step,loss\n1,x\n", "found none; .*no number"),
    "not UTF-8": ("m.csv", b"step,loss\n1,\xff\n", "utf-8"),
    "more cells": ("m.csv", b"step,loss\n1,2,3\n", "more cells"),
    "a column twice": ("m.csv", b"step,loss,loss\n1,2,3\n", "twice"),
    "a long cell": ("m.csv", b"step,loss\n1," + b"9" * 200_000, "field larger"),
    "many columns": ("m.csv", b"step," + b",".join(b"m%d" % n for n in range(6000)) + b"\n1", "found none|columns"),
    "no object": ("m.jsonl", b'null\n{"step": 1, "loss": 2}\n', "line 1"),
    "nested": ("m.jsonl", b"[" * 100_000, "line 1"),
    "a long value": ("m.jsonl", b'{"step": 1, "loss": "' + b"x" * 100_000 + b'"}', "line 1"),
    "no Parquet": ("m.parquet", b"PAR1" * 9, "m.parquet"),
    "no history": ("trainer_state.json", b"{}", "log_history"),
    "no JSON": ("trainer_state.json", b"{'a'", "trainer_state.json"),
    "no entries": ("trainer_state.json", b'{"log_history": []}', "found none"),
    "other entries": ("trainer_state.json", b'{"log_history": [[1]]}', "expected '{'"),
    "deep": ("trainer_state.json", b'{"log_history": [{"step": 1, "x": ' + b"[" * 99_999, "trainer_state"),
    "another file": ("training_args.bin", b"PK", "expected .csv"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE, ids=str)
def test_hostile_logs(case: str, tmp_path: Path) -> None:
    name, data, message = HOSTILE[case]
    with pytest.raises(RequestError, match=message) as raised:
        read_logs([written(tmp_path, name, data)])
    assert "\n" not in raised.value.message and len(raised.value.message) < 700
    with pytest.raises(RequestError):
        Request("x", training=tmp_path / name)  # pyright: ignore[reportArgumentType]


def test_logs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = written(tmp_path, "m.csv", "step,loss\n" + "".join(f"{n},1\n" for n in range(50)))
    monkeypatch.setattr("pipeline.training.metrics.MOST_VALUES", 20)
    with pytest.raises(RequestError, match="more than 20 values"):
        read_logs([entry])
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    with pytest.raises(RequestError, match="expected at most"):
        read_logs([entry])


def test_a_text_that_repeats_is_no_memory(tmp_path: Path) -> None:
    """A dictionary of Parquet's names a megabyte a thousand times in a bit each."""
    path = tmp_path / "m.parquet"
    duckdb.execute(
        "COPY (SELECT range AS step, repeat('x', 1000000) AS metric, 1.0 AS value FROM range(1000))"
        f" TO '{path}' (FORMAT parquet)"
    )
    with pytest.raises(RequestError, match="a text of 1,000,000 characters"):
        read_logs([log(path)])


def test_event_files(tmp_path: Path) -> None:
    """As torch writes them; a second file, of a training that went on, continues the first."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    for begun, steps in ((1_700_000_000, range(0, 50, 10)), (1_700_009_999, range(40, 80, 10))):
        with tensorboard.SummaryWriter(str(tmp_path / "new")) as writer:
            for step in steps:
                writer.add_scalar("train/loss", step + begun % 2, step)
            writer.add_scalar("lr", float("nan"), 3)
            writer.add_text("note", "no metric", 0)
            writer.add_histogram("weights", np.arange(9.0), 0)
        (file,) = (tmp_path / "new").glob("events*")
        file.rename(tmp_path / f"events.out.tfevents.{begun}.host")
    files = sorted(tmp_path.glob("events*"))
    training = read_logs([log(file) for file in files])
    assert training.logs == tuple(map(str, files))
    shown = values(training)
    assert shown["train loss"] == {s: s + (s >= 40) for s in range(0, 80, 10)}
    assert math.isnan(shown["lr"][3]) and len(shown) == 2
    data = files[0].read_bytes()
    cut = read_logs([written(tmp_path / "cut", "events.out.tfevents.1.host", data[:-7])])
    assert "breaks off" in cut.notes[0] and values(cut)["train loss"][40] == 40
    data = data[:200] + bytes([data[200] ^ 1]) + data[201:]
    damaged = read_logs([written(tmp_path / "damaged", "events.out.tfevents.1.host", data)])
    assert "behind a damaged one" in damaged.notes[0]
    for hostile in (b"", b"x" * 100, b"\xff" * 64):
        with pytest.raises(RequestError, match="no whole record"):
            read_logs([written(tmp_path / "hostile", "events.out.tfevents.1.host", hostile)])


def test_event_files_need_a_package(suite: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("pipeline.training.events.find_spec", lambda name: None)
    name = "events.out.tfevents.1700000000.host"
    with pytest.raises(PackageMissing) as raised:
        read_logs([written(tmp_path, name, b"x")])
    assert raised.value.hint == "pip install tensorboard"
    shutil.copy(tmp_path / name, suite / name)
    plan, _ = make_plan(Request(str(suite)))
    assert not plan.training.curves and "pip install tensorboard" in plan.training.notes[0]


def test_of_several_logs_one_is_read(tmp_path: Path) -> None:
    """All of one training say the same; tables of several trainings are none of one."""
    history = '{"log_history": [{"loss": 1.0, "step": 1}]}'
    table = "step,loss\n1,2\n"
    state = written(tmp_path, "trainer_state.json", history)
    deeper = written(tmp_path, "critic/trainer_state.json", history.replace("1.0", "9"))
    first, second = (written(tmp_path, f"version_{n}/metrics.csv", table) for n in (0, 1))
    assert values(read_best([first, deeper, state])) == {"train loss": {1: 1.0}}
    assert values(read_best([first])) == {"loss": {1: 2}}
    several = read_best([first, second])
    assert not several.curves and "--training names one" in several.notes[0]
    broken = written(tmp_path, "broken/trainer_state.json", "{")
    rest = read_best([broken, first])
    assert values(rest) == {"loss": {1: 2}} and "not read" in rest.notes[0]


SETTINGS = {"lr": 3e-4, "seed": 0, "name": "a b", "fused": True, "betas": [0.9, 0.95], "none": None}
FILES = {
    ".json": json.dumps(SETTINGS | {"optimizer": {"eps": 1e-8, "inner": {"x": 1}}}),
    ".toml": 'lr = 3e-4\nseed = 0\nname = "a b"\nfused = true\nbetas = [0.9, 0.95]\n'
    "[optimizer]\neps = 1e-8\ninner.x = 1\n",
    ".yaml": "lr: 3e-4\nseed: 0\nname: a b\nfused: true\nbetas: [0.9, 0.95]\nnone: null\n"
    "optimizer:\n  eps: 1e-8\n  inner:\n    x: 1\n",
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_settings_of_a_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"settings{suffix}"
    path.write_text(FILES[".yaml" if suffix == ".yml" else suffix])
    expected = SETTINGS | {"optimizer.eps": 1e-8, "optimizer.inner.x": 1}
    if suffix == ".toml":  # which knows no null
        del expected["none"]
    read = read_settings("--settings", path)
    assert read == expected and {type(read["lr"]), type(read["seed"])} == {float, int}
    assert of_text(json.dumps(read)) == read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("1e5", 1e5), (".5", 0.5), ("1.", 1.0), ("-2", -2), ("007", "007"), ("0", 0),
        ("true", True), ("True", "True"), ("null", None), ("cosine", "cosine"), ("", ""), ("a=b", "a=b"),
        ("[1, 2]", [1, 2]), ("nan", "nan"), ("NaN", "nan"), ("-Infinity", "-inf"), ('"1"', "1"),
    ],
)  # fmt: skip
def test_settings_on_the_command_line(text: str, value: Any) -> None:
    read = assigned("--set", (f"x.y={text}",))
    assert read == {"x.y": value} and type(read["x.y"]) is type(value)


def test_settings_in_python() -> None:
    """Numbers of NumPy's and paths are taken for what they are, anything else is named."""
    stated = {
        "lr": np.float32(0.5),
        "n": np.int64(3),
        "path": Path("/a"),
        "clip": math.inf,
        "t": (1,),
    }
    expected = {"lr": 0.5, "n": 3, "path": "/a", "clip": "inf", "t": [1]}
    assert Request("x", settings=stated).settings == expected
    for wrong in ({"x": object()}, {"x": {1, 2}}, {"": 1}, {1j: 1}, {"x": "\ud800"}, ["a"], 7):
        with pytest.raises(RequestError, match="--settings: "):
            Request("x", settings=wrong)  # pyright: ignore[reportArgumentType]


def test_secrets_are_no_settings() -> None:
    """Trainers keep tokens among their arguments; names that only speak of tokens are others."""
    kept = {"max_tokens": "7", "tokenizer": "x", "secretary.name": "y", "hub_token": None, "lr": 1}
    secret = {"hub_token": "abc", "wandb.api_key": "k", "PASSWORD": "p", "x": ["hf_abcdefghij"]}
    secret |= {"url": "https://user:word@host/x", "aws.secret_access_key": "z"}
    assert flat({**kept, **secret}) == {**kept, **dict.fromkeys(secret, "…")}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("s.json", b"{", "not valid JSON"),
        ("s.json", b"[1]", "expected settings by name"),
        ("s.json", b"[" * 100_000, "not valid JSON"),
        ("s.json", json.dumps({f"k{n}": n for n in range(2000)}).encode(), "more than 1,000"),
        ("s.json", b'{"a": "' + b"x" * 9000 + b'"}', "longer than"),
        ("s.json", b'{"a":' * 200 + b"1" + b"}" * 200, "longer than|expected a number"),
        ("s.json", b" " * 2_000_000, "at most 1 MiB"),
        ("s.json", b"\xff", "UTF-8"),
        ("s.toml", b"a = ", "not valid TOML"),
        ("s.yaml", b"a: &x [1]\nb: *x", "an alias"),
        ("s.yaml", b"a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("s.yaml", b"- 1", "expected settings by name"),
        ("s.txt", b"a=1", "expected .json"),
        ("absent.json", None, "No such file"),
    ],
)
def test_hostile_settings(name: str, data: bytes | None, message: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(RequestError, match=message) as raised:
        read_settings("--settings", tmp_path / name)
    assert "\n" not in raised.value.message and len(raised.value.message) < 500


def test_a_store_holds_them(suite: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(
        "step,split,metric,value\n0,train,loss,3\n10,train,loss,nan\n15,,loss,2\n99,,x,1\n"
    )
    store = analyzed(suite, tmp_path / "store", settings={"lr": 3e-4, "seed": 1}, training=path)
    assert rows_of(store) == {
        (0, 0, "train", "loss", 3.0),
        (1, 10, "train", "loss", None),
        (None, 15, None, "loss", 2.0),
        (None, 99, None, "x", 1.0),
    }
    assert store.sql("SELECT settings->>'lr', settings->>'seed' FROM runs").fetchall() == [
        ("0.0003", "1")
    ]
    before = (
        "ASOF JOIN (FROM training WHERE metric = 'loss') t ON c.run = t.run AND c.step >= t.step"
    )
    losses = store.sql(f"SELECT c.k, t.step FROM checkpoints c {before} ORDER BY 1").fetchall()
    assert losses == [(0, 0), (1, 10), (2, 15), (3, 15)]
    shown = store.sql("SELECT run, settings->>'lr' FROM compare('mds')").fetchall()
    assert shown == [("r", "0.0003")]


def test_a_store_s_own_views_read_them(suite: Path, tmp_path: Path, monkeypatch: Any) -> None:
    trainer_state(suite / "step30", [{"loss": 1.0, "step": 20}])
    store = analyzed(suite, tmp_path / "store")
    monkeypatch.chdir(tmp_path / "store")
    connection = duckdb.connect()
    connection.execute((tmp_path / "store" / "views.sql").read_text())
    expected = store.sql("FROM training").fetchall()
    assert connection.execute("FROM training").fetchall() == expected != []


def test_another_setting_reads_no_weights(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do others: what was stated once is kept, and what is stated anew replaces it."""
    metrics = tmp_path / "m.csv"
    metrics.write_text("step,metric,value\n10,accuracy,0.5\n20,accuracy,0.75\n")
    store = tmp_path / "store"
    options: dict[str, Any] = {"executor": "local", "run": "r"}

    def settings() -> dict[str, Any]:
        return json.loads(
            pipeline.open_store(store).sql("SELECT settings FROM runs").fetchall()[0][0]
        )

    first = pipeline.analyze(suite, store, settings={"lr": 1.0}, training=metrics, **options)
    figures = pipeline.open_store(store).sql("FROM indicators ORDER BY ALL").fetchall()
    assert first.bytes_read > 0 and not first.already_complete
    again = pipeline.analyze(suite, store, **options)
    assert again.already_complete and not again.recomputed and settings() == {"lr": 1.0}
    monkeypatch.setattr("pipeline.job.analyze.executor", None)  # which alone reads weights
    changed = pipeline.analyze(suite, store, settings={"wd": 0.1}, **options)
    assert changed.recomputed and changed.bytes_read == 0
    assert settings() == {"lr": 1.0, "wd": 0.1}
    assert rows_of(pipeline.open_store(store)) == {
        (1, 10, None, "accuracy", 0.5),
        (2, 20, None, "accuracy", 0.75),
    }
    metrics.write_text("step,metric,value\n20,accuracy,0.8\n")
    newer = pipeline.analyze(suite, store, training=metrics, settings={"lr": 2.0}, **options)
    assert newer.recomputed and settings() == {"lr": 2.0, "wd": 0.1}
    assert rows_of(pipeline.open_store(store)) == {(2, 20, None, "accuracy", 0.8)}
    assert pipeline.open_store(store).sql("FROM indicators ORDER BY ALL").fetchall() == figures
    assert pipeline.analyze(suite, store, training=metrics, **options).already_complete
    monkeypatch.undo()
    pipeline.analyze(suite, store, fresh=True, **options)
    assert rows_of(pipeline.open_store(store)) == set()


def test_what_a_source_says_grows_with_it(suite: Path, tmp_path: Path) -> None:
    """A trainer's log goes on; what was stated of steps finds its new checkpoint."""
    metrics, last = tmp_path / "m.csv", suite / "step30"
    metrics.write_text("step,metric,value\n30,accuracy,0.5\n")
    trainer_state(suite / "step20", [{"loss": 3.0, "step": 10}])
    shutil.move(last, tmp_path / "later")
    store = tmp_path / "store"
    shown = rows_of(analyzed(suite, store, training=metrics))
    assert shown == {(1, 10, "train", "loss", 3.0), (None, 30, None, "accuracy", 0.5)}
    shutil.move(tmp_path / "later", last)
    trainer_state(last, [{"loss": 3.0, "step": 10}, {"loss": 2.0, "step": 30}])
    assert rows_of(analyzed(suite, store)) == {
        (1, 10, "train", "loss", 3.0),
        (3, 30, "train", "loss", 2.0),
        (3, 30, None, "accuracy", 0.5),
    }


def root_state(suite: Path) -> None:
    trainer_state(suite, [{"loss": 1.0, "step": 10}])


def state_of_the_last(suite: Path) -> None:
    trainer_state(suite / "step10", [{"loss": 9.0, "step": 10}])
    trainer_state(suite / "step30", [{"loss": 1.0, "step": 10}])


def lightning(suite: Path) -> None:
    (suite.parent / "metrics.csv").write_text("epoch,step,train_loss\n,10,1.0\n")


def in_runs(suite: Path) -> None:
    folder = suite / "lightning_logs" / "version_3"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,train_loss\n10,1.0\n")


@pytest.mark.parametrize("place", [root_state, state_of_the_last, lightning, in_runs])
def test_where_trainers_log(place: Callable[[Path], None], suite: Path) -> None:
    checkpoints = suite.rename(suite.parent / "checkpoints") if place is lightning else suite
    place(checkpoints)
    plan, _ = make_plan(Request(str(checkpoints)))
    curve = plan.training.curves[Metric("train", "loss")]
    assert (curve.steps.tolist(), curve.k.tolist(), curve.values.tolist()) == ([10], [1], [1.0])


def test_a_configuration_states_settings(suite: Path, tmp_path: Path) -> None:
    for step, text in (
        (0, '{"training": {"lr": 1}}'),
        (30, '{"training": {"lr": 2, "opt": {"b": NaN}}}'),
    ):
        (suite / f"step{step}" / "config.json").write_text(text)
    plan, _ = make_plan(Request(str(suite), settings={"seed": 3}))
    assert plan.settings == {"lr": 2, "opt.b": "nan", "seed": 3}
    (suite / "step30" / "config.json").write_text('{"training": {"": 1}}')
    plan, _ = make_plan(Request(str(suite)))
    assert plan.settings == {} and "expected the name of a setting" in plan.training.notes[0]
    (suite / "step30" / "config.json").write_text("{")
    plan, _ = make_plan(Request(str(suite)))
    assert plan.settings == {} and "not valid JSON" in plan.training.notes[0]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_columns_of_a_manifest(suffix: str, suite: Path, tmp_path: Path) -> None:
    """Numbers measured at each checkpoint, whether its step is known or not; other columns are named."""
    path = tmp_path / f"m.{suffix}"
    rows = ", ".join(
        f"('{suite / f'step{step}'}', '{name}', {step if n else 'NULL'}, {n / 8}, {n}, 'x')"
        for n, (step, name) in enumerate(zip(STEPS, ("step0", "a10", "a20", "a30"), strict=True))
    )
    kind = {"jsonl": "JSON"}.get(suffix, suffix)
    duckdb.execute(
        f"COPY (SELECT uri, name, step, accuracy::DOUBLE AS accuracy, CASE WHEN n > 1 THEN n END AS n,"
        f" remark FROM (VALUES {rows}) t(uri, name, step, accuracy, n, remark)) TO '{path}' (FORMAT {kind})"
    )
    store = analyzed(path, tmp_path / "store")
    assert rows_of(store) == {
        *((k, step, None, "accuracy", k / 8) for k, step in enumerate(STEPS)),
        *((k, STEPS[k], None, "n", float(k)) for k in (2, 3)),
    }
    assert pipeline.analyze(path, tmp_path / "store", executor="local", run="r").already_complete
    shown = hallmarks("plan", path).stdout
    assert "remark" in shown and "holds no numbers" in shown


def test_integers_of_a_manifest_may_be_larger_than_any_double(suite: Path, tmp_path: Path) -> None:
    rows = [
        {"uri": str(suite / f"step{step}"), "n": (-(10**400), 3)[k % 2]}
        for k, step in enumerate(STEPS)
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = rows_of(analyzed(tmp_path / "m.jsonl", tmp_path / "store"))
    assert {(k, value) for k, *_, value in found} == {(0, None), (1, 3.0), (2, None), (3, 3.0)}


def test_a_joint_run_has_what_is_at_its_checkpoints(suite: Path, tmp_path: Path) -> None:
    other = suite.parent / "other"
    shutil.copytree(suite, other)
    for folder, loss in ((suite, 1.0), (other, 2.0)):
        trainer_state(folder / "step30", [{"loss": loss, "step": 10}, {"loss": 0.5, "step": 15}])
        (folder / "step30" / "config.json").write_text(
            json.dumps({"training": {"lr": 3, "seed": loss}})
        )
    store = tmp_path / "store"
    sources = [suite, other]
    pipeline.analyze_joint(sources, store, run="both", executor="local", settings={"wd": 0.1})
    opened = pipeline.open_store(store)
    assert rows_of(opened, "both") == {(1, 10, "train", "loss", 1.0), (5, 10, "train", "loss", 2.0)}
    assert {(None, 15, "train", "loss", 0.5)} < rows_of(opened, opened.runs().fetchall()[1][0])
    settings = dict(opened.sql("SELECT run, settings FROM runs").fetchall())
    assert json.loads(settings["both"]) == {"lr": 3, "wd": 0.1}
    done = pipeline.analyze_joint(sources, store, run="both", executor="local")
    assert all(summary.already_complete for summary in done)
    done = pipeline.analyze_joint(
        sources, store, run="both", executor="local", settings={"wd": 0.2}
    )
    assert all(summary.recomputed for summary in done)


def test_on_a_hub_the_last_log_is_read(served_hub: Hub, suite: Path, tmp_path: Path) -> None:
    """One small file more, whatever the number of checkpoints."""
    repository = served_hub.repository("org/logged")
    for step in STEPS:
        trainer_state(suite / f"step{step}", [{"loss": 5.0 - step / 10, "step": step}])
        repository.commit_folder(suite / f"step{step}", branch=f"step{step}")
    plan, _ = make_plan(Request("org/logged"))
    assert values(plan.training) == {"train loss": {30: 2.0}}
    assert sum(1 for r in served_hub.records if "trainer_state" in str(r)) <= 3


def test_a_repeated_step_names_no_checkpoint(tmp_path: Path) -> None:
    from pipeline.training.metrics import Collector

    collector = Collector("x")
    for step in (0, 5, 10, 20):
        collector.add(Metric(None, "loss"), step, 1.0)
    training = collector.training().at([0, 10, None, 0, 20])
    (curve,) = training.curves.values()
    assert curve.k.tolist() == [-1, -1, 1, 4]


def test_the_commands(suite: Path, tmp_path: Path) -> None:
    trainer_state(suite / "step0", [{"loss": 1.0, "step": 0}])
    trainer_state(suite / "step30", [{"loss": 1.0, "step": 10}, {"loss": "?", "step": 20}])
    settings = tmp_path / "s.yaml"
    settings.write_text("lr: 3e-4\nwd: 0.1\n")
    chosen = ("--settings", settings, "--set", "lr=1e-3", "--set", "note=x")
    done = hallmarks("plan", suite, *chosen)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert 'settings lr 0.001, wd 0.1, note "x"' in shown
    assert "train loss: 1 values at steps 10 … 10" in shown and "no number (first '?')" in shown
    assert "trainer state: 1 × trainer_state.json" in shown  # that of step 0, which is not read
    described = json.loads(hallmarks("plan", suite, "--json", *chosen).stdout)
    assert described["settings"] == {"lr": 1e-3, "wd": 0.1, "note": "x"}
    assert described["training"] == [{"split": "train", "metric": "loss", "values": 1}]
    asked = ("--store", tmp_path / "store", "--executor", "local")
    done = hallmarks("analyze", suite, *asked, *chosen)
    assert done.returncode == 0 and "no number (first '?')" in done.stderr
    assert 'settings: lr 0.001, wd 0.1, note "x"' in done.stdout
    assert "training: train loss, 1 values" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "lr"), "--set: expected KEY=VALUE, found 'lr'"),
        (("--set", "=1"), "--set: expected KEY=VALUE"),
        (("--settings", "absent.toml"), "No such file"),
        (("--training", "absent.csv"), "No such file"),
        (("--training", "."), "expected .csv"),
    ],
)
def test_commands_that_are_refused(
    options: tuple[str, ...], message: str, suite: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    done = hallmarks("analyze", suite, "--store", "store", "--executor", "local", *options)
    assert done.returncode == 2 and message in done.stderr.replace("\n", " "), done.stderr
    assert not (tmp_path / "store").exists()


def test_a_log_is_of_one_training(suite: Path, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("step,loss\n1,1\n")
    shutil.copytree(suite, tmp_path / "other")
    done = hallmarks("plan", suite, tmp_path / "other", "--training", tmp_path / "m.csv")
    assert done.returncode == 2 and "tells of one run, found 2" in done.stderr


def test_names_of_outside_stay_text(suite: Path, tmp_path: Path) -> None:
    """Into a terminal go no control characters, whatever a log calls its metrics."""
    name = "\x1b[31mloss\u202e"
    trainer_state(suite / "step30", [{name: 1.0, "step": 10}])
    done = hallmarks("plan", suite, "--set", "\x1b[2J=1")
    assert done.returncode == 0 and "\x1b" not in done.stdout and "\u202e" not in done.stdout
    assert ("train", name) in analyzed(suite, tmp_path / "store").sql(
        "SELECT split, metric FROM training"
    ).fetchall()


def test_errors_of_a_log_are_no_end_of_a_job(suite: Path, tmp_path: Path) -> None:
    (suite / "step30" / "trainer_state.json").write_text("{" * 10_000)
    summary = pipeline.analyze(suite, tmp_path / "store", executor="local")
    assert summary.complete
    with pytest.raises(HallmarksError):
        read_logs([log(suite / "step30" / "trainer_state.json")])
