"""Following a source that grows: what is read when, what is kept, and what the run says of it."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import torch
from obstore.store import from_url
from safetensors.torch import save_file

import pipeline
from pipeline.errors import Interrupted, RequestError, StoreFailed, StoreUnusable
from pipeline.findings.finding import Finding
from pipeline.follow import follow_once
from pipeline.follow import following as subject
from pipeline.follow.alarm import Alarm
from pipeline.follow.following import Followed
from pipeline.planning.request import Request, Resources
from pipeline.store.folder import Folder
from pipeline.store.lease import Lease
from pipeline.store.query import Store
from tests import buckets
from tests.commands import hallmarks
from tests.hub import Hub

TABLES = (
    "similarity",
    "path",
    "indicators",
    "spectrum",
    "projection",
    "values",
    "tensors",
    "findings",
)
"""And `checkpoints`: all that does not say when and by whom it was written."""

Weights = dict[str, torch.Tensor]


def weights(step: int, seed: int = 0) -> Weights:
    """Return a network on a path from a random start, with noise: 30,000 weights, most in one matrix."""
    start, across = (torch.Generator().manual_seed(seed * 1000 + n) for n in (1, 2))
    noise = torch.Generator().manual_seed(seed * 1000 + 3 + step)
    shapes = {
        "model.embed_tokens.weight": (40, 32),
        "model.layers.0.mlp.up_proj.weight": (900, 32),
        "model.layers.0.input_layernorm.weight": (32,),
    }
    return {
        name: torch.randn(shape, generator=start)
        + 0.0005 * step * torch.randn(shape, generator=across)
        + 0.05 * torch.randn(shape, generator=noise)
        for name, shape in shapes.items()
    }


def save(folder: Path, step: int, values: Weights | None = None) -> Path:
    """Write a checkpoint as one file."""
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True, exist_ok=True)
    save_file(weights(step) if values is None else values, place / "model.safetensors")
    return place


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A training with checkpoints at steps 0 to 400."""
    for step in range(0, 500, 100):
        save(tmp_path / "run", step)
    return tmp_path / "run"


def sql(store: Path | str, query: str) -> list[tuple[Any, ...]]:
    return Store(str(store)).sql(query).fetchall()


def steps(store: Path | str) -> list[int]:
    return [step for (step,) in sql(store, "SELECT step FROM checkpoints ORDER BY k")]


def findings(store: Path | str) -> dict[str, str]:
    return dict(sql(store, "SELECT kind, message FROM findings"))


def tables(store: Path) -> dict[str, Any]:
    """Return all that a run's tables say, to the bit, but for who has written them and when."""
    opened = Store(str(store))
    contents = {name: opened.table(f"FROM {name} ORDER BY ALL").to_pydict() for name in TABLES}
    columns = "k, name, step, elapsed, tokens, stage, bytes, dtype"
    contents["checkpoints"] = opened.table(f"SELECT {columns} FROM checkpoints").to_pydict()
    contents["runs"] = opened.table(
        "SELECT bytes_read, complete, followed, plan FROM runs"
    ).to_pydict()
    # NaN is no value of a table; what is left of inequality is a difference of bits
    return {name: {c: list(map(repr, v)) for c, v in of.items()} for name, of in contents.items()}


def test_it_says_what_analyze_says_as_far_as_it_is_known(run: Path, tmp_path: Path) -> None:
    save(
        run,
        250,
        {**weights(250), "model.layers.0.input_layernorm.weight": torch.full((32,), np.nan)},
    )
    save(run, 500, weights(400))
    followed = follow_once(run, tmp_path / "followed", run="r")
    pipeline.analyze(run, tmp_path / "exact", run="r", executor="local", statistics="values")
    assert (followed.checkpoints, followed.read) == (7, 7)
    ours, exact = Store(str(tmp_path / "followed")), Store(str(tmp_path / "exact"))
    for same in (
        "SELECT k, name, step, elapsed, bytes, dtype FROM checkpoints",
        "SELECT * EXCLUDE (fraction) FROM tensors ORDER BY tensor",
        "SELECT scope, layer, component, tensor, parameters FROM groups ORDER BY ALL",
        "SELECT severity, kind, k, tensor, message, evidence FROM findings ORDER BY ALL",
        "SELECT scope, tensor, k, norm IS NULL, distance IS NULL, distance = 0 FROM path"
        " JOIN (SELECT scope, tensor, i AS k, distance FROM similarity WHERE j = 6)"
        " USING (scope, tensor, k) ORDER BY ALL",
    ):
        assert ours.sql(same).fetchall() == exact.sql(same).fetchall(), same
    values = (
        "SELECT k, mean, mean_size, variance, skewness, kurtosis, largest, zeros, size_p01, size_p999"
        " FROM values ORDER BY scope, tensor, k"
    )
    for a, b in zip(ours.sql(values).fetchall(), exact.sql(values).fetchall(), strict=True):
        assert [v is None for v in a] == [v is None for v in b]
        assert [v or 0 for v in a] == pytest.approx([v or 0 for v in b], rel=1e-9, abs=1e-12)
    unknown = "SELECT count(sign_changes) + count(sign_changes_since_first) FROM values"
    assert ours.sql(unknown).fetchall() == [(0,)]
    norms = "SELECT norm FROM path WHERE norm IS NOT NULL ORDER BY scope, tensor, k"
    pairs = zip(ours.sql(norms).fetchall(), exact.sql(norms).fetchall(), strict=True)
    assert all(a == pytest.approx(b, rel=1e-6) for (a,), (b,) in pairs)
    assert ours.sql("SELECT complete, followed, fraction FROM runs").fetchall() == [
        (False, True, 1.0)
    ]
    assert exact.sql("SELECT complete, followed FROM runs").fetchall() == [(True, False)]
    cosines = "SELECT relative_cosine, relative_cosine_stderr FROM similarity WHERE i < j AND i > 0"
    for scope, is_exact in (("component = 'embed'", True), ("component = 'mlp_up'", False)):
        rows = ours.sql(f"{cosines} AND {scope} ORDER BY scope, i, j").fetchall()
        truth = exact.sql(f"{cosines} AND {scope} ORDER BY scope, i, j").fetchall()
        known = [(a, e, b) for (a, e), (b, _) in zip(rows, truth, strict=True) if b is not None]
        assert known and all(a is not None for a, _, _ in known)
        if is_exact:  # small parts are kept as they are
            assert all(abs(a - b) < 1e-6 and e == 0 for a, e, b in known)
        else:
            assert any(e > 1e-4 for _, e, _ in known)
            assert all(abs(a - b) <= 5 * e + 1e-6 for a, e, b in known)


def test_what_was_read_is_not_read_again(run: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = follow_once(run, store, run="r")
    before = sql(store, "SELECT attempt FROM attempts")
    for file in itertools.islice(run.rglob("*.safetensors"), 2):
        file.unlink()  # a trainer removes them file by file
    second = follow_once(run, store, run="r")
    assert (first.read, second.read, second.checkpoints) == (5, 0, 5)
    assert sql(store, "SELECT attempt FROM attempts") == before
    assert second.summary is not None and second.summary.already_complete
    assert first.summary is not None and second.summary.mds == first.summary.mds
    shutil.rmtree(run)
    save(run, 500)
    assert follow_once(run, store, run="r").read == 1
    assert steps(store) == [0, 100, 200, 300, 400, 500]


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))]
)
def test_the_bits_do_not_depend_on_what_came_together(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    order = rng.sample(range(0, 600, 100), 6)
    together, apart = tmp_path / "together", tmp_path / "apart"
    for step in order:
        save(together, step)
    follow_once(together, tmp_path / "one", run="r")
    while order:
        for step in [order.pop() for _ in range(min(len(order), rng.randint(1, 3)))]:
            save(apart, step)
        follow_once(apart, tmp_path / "many", run="r", memory="2GiB", threads=rng.randint(1, 3))
        for folder in list(apart.iterdir())[: rng.randint(0, 2)]:
            shutil.rmtree(folder)
    assert comparable(tables(tmp_path / "one")) == comparable(tables(tmp_path / "many"))


def comparable(contents: dict[str, Any]) -> dict[str, Any]:
    """Return tables without what tells one directory from another."""
    return {
        name: {
            column: values
            for column, values in columns.items()
            if column not in ("source", "source_i", "source_j", "plan")
        }
        for name, columns in contents.items()
    }


def sharded(step: int) -> dict[str, bytes]:
    """Return the files of a checkpoint in three shards with an index."""
    import json

    from safetensors.torch import save as encoded

    files, index = {}, {}
    for number, (name, values) in enumerate(weights(step).items(), 1):
        file = f"model-{number:05d}-of-00003.safetensors"
        files[file] = encoded({name: values})
        index[name] = file
    return files | {"model.safetensors.index.json": json.dumps({"weight_map": index}).encode()}


def torch_file(step: int) -> dict[str, bytes]:
    import io

    file = io.BytesIO()
    torch.save(weights(step), file)
    return {"pytorch_model.bin": file.getvalue(), "config.json": b'{"model_type": "llama"}'}


@pytest.mark.parametrize(
    ("files_of", "seed"),
    [
        (sharded, 1),
        pytest.param(torch_file, 1, marks=pytest.mark.slow),
        *(pytest.param(sharded, seed, marks=pytest.mark.slow) for seed in range(2, 8)),
    ],
)
def test_nothing_is_read_before_it_is_whole(
    tmp_path: Path, files_of: Callable[[int], dict[str, bytes]], seed: int
) -> None:
    """Whichever file comes first, and however much of it there is when somebody looks."""
    run, store, rng = tmp_path / "run", tmp_path / "store", random.Random(seed)
    for step in (0, 100):
        for name, data in files_of(step).items():
            write(run / f"checkpoint-{step}" / name, data)
    assert follow_once(run, store, run="r").read == 2
    files = files_of(200)
    place, there = run / "checkpoint-200", set[str]()
    needed = {name for name in files if name.endswith((".safetensors", ".bin"))}
    for name in rng.sample(sorted(files), len(files)):
        if name != "config.json":
            write(place / name, files[name][: rng.randrange(len(files[name]))])
            known = 2 + (needed <= there)  # without an index what shards hold is whole, too
            assert follow_once(run, store, run="r", settle=0.02).checkpoints == known, name
        write(place / name, files[name])
        there.add(name)
        whole = needed <= there
        assert follow_once(run, store, run="r", settle=0.02).checkpoints == 2 + whole, name
    follow_once(run, tmp_path / "again", run="r")
    assert tables(store) == tables(tmp_path / "again")


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_what_is_being_written_is_waited_for(run: Path, tmp_path: Path) -> None:
    save(run, 500)
    clock = time.monotonic()
    followed = follow_once(run, tmp_path / "store", run="r", settle=1.0)
    assert time.monotonic() - clock >= 0.5
    assert (followed.checkpoints, followed.pending) == (6, ())
    for file in run.rglob("*.safetensors"):
        os.utime(file, (0, time.time() + 3600))  # a clock ahead of this one
    again = save(run, 600) / "model.safetensors"
    os.utime(again, (0, time.time() + 3600))
    followed = follow_once(run, tmp_path / "store", run="r", settle=0.1)
    assert followed.checkpoints == 7


def test_a_checkpoint_that_is_written_again_takes_the_place(run: Path, tmp_path: Path) -> None:
    """As a training that was resumed writes it, with other values or the same."""
    follow_once(run, tmp_path / "store", run="r")
    save(run, 200, weights(200, seed=1))
    (run / "checkpoint-300" / "optimizer.pt").write_bytes(b"no weights that are read")
    os.utime(run / "checkpoint-400" / "model.safetensors")
    followed = follow_once(run, tmp_path / "store", run="r")
    assert (followed.checkpoints, followed.read) == (5, 2)
    assert len(list((tmp_path / "store" / "_follow").rglob("*.safetensors"))) == 5
    follow_once(run, tmp_path / "again", run="r")
    assert tables(tmp_path / "store") == tables(tmp_path / "again")


def test_checkpoints_that_cannot_be_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once while they may become whole, a finding after that, and taken if they do all the same."""
    store = tmp_path / "store"
    notes: list[str] = []
    listener = Listening(notes)
    damaged = run / "checkpoint-300" / "model.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-100])
    (run / "checkpoint-200" / "model.safetensors").unlink()

    def once(settle: float) -> Followed:
        request = Request(str(run), "r")
        return subject.follow(request, str(store), once=True, settle=settle, listener=listener)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.follow.look.GIVEN_UP_AFTER", 10_000)
        followed = once(0.5)
    assert followed.checkpoints == 3
    assert [entry.name for entry in followed.pending] == ["checkpoint-300"]
    assert [note for note in notes if "300" in note and "not whole yet" in note]
    assert "incomplete_checkpoint" in findings(store)  # the folder without weights
    assert "checkpoint-200" in findings(store)["incomplete_checkpoint"]
    assert once(0.0).pending == ()
    kinds = sql(store, "SELECT message FROM findings WHERE kind = 'incomplete_checkpoint'")
    assert len(kinds) == 2 and any("checkpoint-300: model.safetensors" in text for (text,) in kinds)
    damaged.write_bytes(whole)
    save(run, 200)
    assert (once(0.0).checkpoints, findings(store)) == (5, {})


class Listening:
    """Keeps what following says, and ends it when so many checkpoints were read."""

    def __init__(self, notes: list[str], until: int = 0) -> None:
        self.notes, self._until = notes, until
        self.errors: list[Finding] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def written(self, followed: Followed, new: list[Finding]) -> None:
        self.errors += new
        if followed.checkpoints == self._until:
            raise Interrupted("enough")


def test_tensors_that_differ_between_checkpoints(run: Path, tmp_path: Path) -> None:
    """As analyze leaves them out, with the same findings."""
    other = {**weights(450), "model.layers.0.mlp.up_proj.weight": torch.randn(800, 32)}
    del other["model.layers.0.input_layernorm.weight"]
    save(run, 450, {**other, "extra": torch.zeros(3)})
    follow_once(run, tmp_path / "followed", run="r")
    pipeline.analyze(run, tmp_path / "exact", run="r", executor="local")
    same = "SELECT kind, k, tensor, message, evidence FROM findings ORDER BY ALL"
    assert sql(tmp_path / "followed", same) == sql(tmp_path / "exact", same)
    tensors = "SELECT * EXCLUDE (fraction) FROM tensors ORDER BY tensor"
    assert sql(tmp_path / "followed", tensors) == sql(tmp_path / "exact", tensors)
    assert {"missing_tensor", "shape_changed"} <= findings(tmp_path / "followed").keys()


def test_of_two_followers_one_is_refused(run: Path, tmp_path: Path) -> None:
    other = Lease(Folder(str(tmp_path / "store")), "r")
    other.acquire()
    with pytest.raises(StoreUnusable, match="run r is being written by process"):
        follow_once(run, tmp_path / "store", run="r")
    other.release()
    assert follow_once(run, tmp_path / "store", run="r").read == 5


def test_errors_are_told_once(run: Path, tmp_path: Path) -> None:
    store, calls = tmp_path / "store", tmp_path / "calls"
    command = (
        f'echo "$HALLMARKS_KIND|$HALLMARKS_K|$HALLMARKS_STEP|$HALLMARKS_RUN|$HALLMARKS_STORE'
        f'|$HALLMARKS_MESSAGE" >> {calls}; exit 3'
    )
    follow_once(run, store, run="r", command=command)
    assert not calls.exists()
    bad = weights(500)
    bad["model.embed_tokens.weight"][3, 3] = float("nan")
    save(run, 500, bad)
    save(run, 600, weights(100))
    notes: list[str] = []
    request = Request(str(run), "r")
    subject.follow(
        request, str(store), once=True, settle=0, command=command, listener=Listening(notes)
    )
    told = sorted(calls.read_text().splitlines())
    assert [line.split("|")[:5] for line in told] == [
        ["identical_checkpoints", "6", "600", "r", str(store)],
        ["non_finite", "5", "500", "r", str(store)],
    ]
    assert "holds NaN or infinity" in told[1]
    assert notes.count("--exec: ended with code 3") == 2
    follow_once(run, store, run="r", command=command)
    save(run, 700)
    follow_once(run, store, run="r", command=command)
    assert len(calls.read_text().splitlines()) == 2


def test_a_command_that_hangs_or_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pipeline.follow.alarm.MOST_S", 2.0)
    notes: list[str] = []
    hanging = Alarm(f"sleep 60 & echo $! > {tmp_path}/child; sleep 60", notes.append)
    hanging.call({"HALLMARKS_K": "1"})
    hanging.wait()
    assert notes == ["--exec: killed after 2 s"]
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 60
    while alive(child) and time.monotonic() < end:  # it dies when it is its turn
        time.sleep(0.01)
    assert not alive(child)
    Alarm("/no/such/command", notes.append).call({"A": "b"})


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_it_goes_on_until_it_is_interrupted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, away = tmp_path / "store", tmp_path / "away"
    listener = Listening([], until=7)
    pauses = itertools.count()

    def rest(following: subject.Following, seconds: float) -> None:
        assert seconds >= subject.POLL_S
        match next(pauses):
            case 0:
                save(run, 500)
            case 1:
                run.rename(away)  # the disk is unmounted
            case 3:
                away.rename(run)
                save(run, 600)

    monkeypatch.setattr(subject.Following, "_rest", rest)
    with pytest.raises(Interrupted):
        follow_with(listener, run, store)
    assert steps(store) == [0, 100, 200, 300, 400, 500, 600]
    assert len([note for note in listener.notes if note.startswith("no such directory")]) == 1
    assert len([note for note in listener.notes if " read in " in note]) == 7
    status = hallmarks("status", "--store", store)
    assert status.stdout == "r: followed, 7 checkpoints so far\n"
    Lease(Folder(str(store)), "r").acquire()


def follow_with(listener: Listening, run: Path, store: Path) -> None:
    resources = Resources(executor="local")
    subject.follow(Request(str(run), "r"), str(store), resources, settle=0, listener=listener)


class Killed(BaseException):
    """Nothing runs after it."""


@pytest.mark.parametrize(
    "survived",
    [30, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 60) if n != 30)],
)
def test_whatever_end_it_finds_it_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    """After so many writings of the store the process is gone."""
    store, left = tmp_path / "store", itertools.count(survived, -1)
    with monkeypatch.context() as patch:
        for name in ("create", "replace", "delete"):
            method = getattr(Folder, name)

            def dying(self: Folder, *arguments: Any, method: Any = method) -> Any:
                if next(left) <= 0:
                    raise Killed
                return method(self, *arguments)

            patch.setattr(Folder, name, dying)
        patch.setattr(Lease, "release", lambda self: None)
        with pytest.raises(Killed):
            follow_once(run, store, run="r")
    gone(Folder(str(store)))
    kept = len(list(store.rglob("_follow/**/*.safetensors")))
    again = follow_once(run, store, run="r")
    assert (again.checkpoints, again.read) == (5, 5 - kept)
    follow_once(run, tmp_path / "undisturbed", run="r")
    assert tables(store) == tables(tmp_path / "undisturbed")
    assert not list(store.rglob("_tiles/**/*.*"))


def gone(folder: Folder) -> None:
    """Have it seen that the holder of a lease in this process is gone."""
    from pipeline.store import lease

    lease._held.clear()


@pytest.mark.slow
def test_records_that_are_damaged(run: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    follow_once(run, store, run="r")
    first, second, *_ = sorted(store.rglob("_follow/**/*.safetensors"))
    first.write_bytes(first.read_bytes()[:100])
    flipped = bytearray(second.read_bytes())
    flipped[-9] ^= 1
    second.write_bytes(flipped)
    save(run, 500)
    with pytest.raises(StoreFailed, match="the record of checkpoint-.* is damaged"):
        follow_once(run, store, run="r")
    again = follow_once(run, store, run="r")
    assert again.checkpoints == 6
    follow_once(run, tmp_path / "again", run="r")
    assert tables(store) == tables(tmp_path / "again")


def test_analyze_takes_the_place_of_estimates(run: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    follow_once(run, store, run="r")
    was = dict(sql(store, "SELECT indicator, value FROM indicators WHERE scope = 'model'"))
    cosines = (
        "SELECT i, j, relative_cosine FROM similarity WHERE scope = 'model' AND 0 < i AND i < j"
    )
    estimated = {(i, j): cosine for i, j, cosine in sql(store, cosines)}
    shutil.move(run / "checkpoint-0", tmp_path / "checkpoint-0")
    with pytest.raises(RequestError, match=r"1 of its checkpoints are not in the source any more"):
        pipeline.analyze(run, store, run="r", executor="local")
    assert steps(store) == [0, 100, 200, 300, 400]
    shutil.move(tmp_path / "checkpoint-0", run / "checkpoint-0")
    summary = pipeline.analyze(run, store, run="r", executor="local")
    exact = {(i, j): cosine for i, j, cosine in sql(store, cosines)}
    assert summary.complete and not summary.followed and summary.estimates is not None
    off = summary.estimates["relative_cosine"]
    assert off["largest"] == max(abs(estimated[pair] - exact[pair]) for pair in exact) > 0
    assert 0 < off["largest_in_stderr"] < 6 and summary.estimates["checkpoints"] == 5
    relative = summary.estimates["indicators"]["relative_mds"]
    assert relative["was"] == was["relative_mds"] and relative["is"] == summary.relative_mds
    assert not list((store / "_follow").rglob("*.*"))
    with pytest.raises(RequestError, match="made by analyze: its figures are exact"):
        follow_once(run, store, run="r")
    assert follow_once(run, store, run="r", replace=True).read == 5
    again = pipeline.analyze(run, store, run="r", executor="local")  # from sums that are kept
    assert again.recomputed and again.estimates is not None
    assert "estimates" in hallmarks("analyze", run, "--store", store, "--run", "r", "--json").stdout


def test_what_is_refused(run: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for wrong, said in (
        ({"settle": -1}, "--settle: expected seconds, found '-1'"),
        ({"settle": "soon"}, "--settle: expected seconds, found 'soon'"),
        ({"seeds": "all"}, "--seeds all is a run each"),
        ({"include": "nothing"}, "no tensor"),
    ):
        with pytest.raises(RequestError, match=said):
            follow_once(run, store, run="r", **wrong)
    with pytest.raises(RequestError, match="no such directory"):
        follow_once(tmp_path / "none", store)
    follow_once(run, store, run="r")
    with pytest.raises(RequestError, match="exclude not given, now"):
        follow_once(run, store, run="r", exclude="embed")
    followed = follow_once(run, store, run="r", exclude="embed", replace=True)
    assert followed.read == 5 and len(list(store.glob("_follow/run=r/*/*.safetensors"))) == 5


def test_before_there_are_two(tmp_path: Path) -> None:
    run, store = tmp_path / "run", tmp_path / "store"
    run.mkdir()
    assert follow_once(run, store, run="r").as_dict()["checkpoints"] == 0
    save(run, 0)
    done = hallmarks("follow", run, "--store", store, "--run", "r", "--once", "--settle", "0")
    assert (done.returncode, done.stdout) == (
        0,
        "run r: 1 checkpoint read; figures begin with the second\n",
    )
    save(run, 100)
    done = hallmarks(
        "follow", run, "--store", store, "--run", "r", "--once", "--settle", "0", "--json"
    )
    import json

    told = json.loads(done.stdout)
    assert (told["checkpoints"], told["checkpoints_read"], told["followed"]) == (2, 1, True)
    assert (told["complete"], told["pending"]) == (False, [])
    assert "relative_mds" in told and "checkpoint-100: " in done.stderr


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with buckets.served() as served:
        yield served


def test_a_bucket_that_grows(
    run: Path, tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the store in it, too."""
    bucket = buckets.named("growing", endpoint, monkeypatch)
    objects = from_url(bucket)
    for file in run.rglob("*.safetensors"):
        obstore.put(objects, f"run/{file.relative_to(run)}", file.read_bytes())
    store = f"{bucket}/store"
    assert follow_once(f"{bucket}/run", store, run="r").read == 5
    for name, data in sharded(500).items():
        obstore.put(objects, f"run/checkpoint-500/{name}", data)
    obstore.delete(objects, "run/checkpoint-0/model.safetensors")
    followed = follow_once(f"{bucket}/run", store, run="r", settle=0.2)
    assert (followed.checkpoints, followed.read) == (6, 1)
    assert steps(store) == [0, 100, 200, 300, 400, 500]


@pytest.mark.parametrize(
    "layout",
    ["folders", *(pytest.param(each, marks=pytest.mark.slow) for each in ("revisions", "commits"))],
)
def test_a_repository_that_grows(run: Path, tmp_path: Path, served_hub: Hub, layout: str) -> None:
    """A commit is there all at once: nothing is waited for."""
    repository = served_hub.repository("org/name")
    files: dict[str, bytes] = {"README.md": b"about"}

    def push(step: int) -> None:
        from safetensors.torch import save as encoded

        data = encoded(weights(step))
        match layout:
            case "revisions":
                repository.commit({"model.safetensors": data}, branch=f"step{step}")
            case "folders":
                files[f"checkpoint-{step}/model.safetensors"] = data
                repository.commit(files)
            case _:
                files["model.safetensors"] = data
                repository.commit(files, message=f"Training in progress, step {step}")

    repository.commit(files)
    for step in (0, 100, 200):
        push(step)
    first = follow_once("org/name", tmp_path / "store", run="r", layout=layout, settle=3600)
    assert (first.checkpoints, first.read, first.pending) == (3, 3, ())
    push(300)
    push(100)  # a folder that is pushed once more holds the same
    second = follow_once("org/name", tmp_path / "store", run="r", layout=layout, settle=3600)
    assert (second.checkpoints, second.read) == (4, 1)
    assert steps(tmp_path / "store") == [0, 100, 200, 300]


@pytest.mark.slow
def test_the_report_and_the_rest_show_it_as_a_run(run: Path, tmp_path: Path) -> None:
    store, page = tmp_path / "store", tmp_path / "page.html"
    follow_once(run, store, run="r")
    assert hallmarks("report", "--store", store, "--out", page).returncode == 0
    assert '"followed":true' in page.read_text().replace(" ", "")
    done = hallmarks("audit", "--store", store, "--run", "r")
    assert (done.returncode, done.stdout) == (0, "run r: nothing found\n")
    assert "followed" in hallmarks("status", "--store", store, "--json").stdout


def command(run: Path, store: Path, *options: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "jobs.follow", str(run), "--store", str(store), "--run", "r"]
    return subprocess.Popen(
        [*words, "--settle", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_signal_ends_it(run: Path, tmp_path: Path) -> None:
    process = command(run, tmp_path / "store")
    assert process.stdout is not None
    while not process.stdout.readline().startswith("run r: 5 checkpoints"):
        assert process.poll() is None
    second = command(run, tmp_path / "store", "--once")
    assert "is being written by process" in second.communicate(timeout=120)[1]
    assert second.returncode == 2
    status = hallmarks("status", "--store", tmp_path / "store").stdout
    assert status.startswith("r: following, nothing new; last heartbeat ")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        "interrupted (SIGTERM): what was read is kept; rerun the same command to resume" in errors
    )
    assert hallmarks("status", "--store", tmp_path / "store").stdout.startswith("r: followed, 5")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_moments_it_makes_the_same_tables(tmp_path: Path) -> None:
    """While checkpoints come and go; each is read once as far as its record was written."""
    rng = random.Random(0)
    run, store = tmp_path / "run", tmp_path / "store"
    for step in range(0, 500, 100):
        save(run, step)
    seconds = 12.0
    for step in range(500, 1300, 100):
        process = command(run, store)
        time.sleep(rng.uniform(0.3, 1.0) * seconds)
        process.kill()
        process.communicate()
        read = list(store.rglob("_follow/**/*.safetensors"))
        if read and step == 800:
            follow_once(run, store, run="r")
            shutil.rmtree(run / "checkpoint-0")
        save(run, step)
    follow_once(run, store, run="r")
    undisturbed = tmp_path / "undisturbed"
    save(run, 0)
    follow_once(run, undisturbed, run="r")
    ours, theirs = comparable(tables(store)), comparable(tables(undisturbed))
    assert ours == theirs
    assert len(list(store.rglob("_follow/**/*.safetensors"))) == 13
