"""A repository on the Hub: the real client, real range reads, each byte once, nothing on disk."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from huggingface_hub import HfApi

import pipeline
from pipeline.errors import FormatError, HallmarksError, ReadError, SourceNotFound
from pipeline.planning.make import make_plan
from pipeline.planning.plan_cache import cache_file
from pipeline.planning.request import Request
from pipeline.sources.hub import HubRepository
from pipeline.transport.access import Access, Url
from tests.commands import hallmarks
from tests.conftest import Clock
from tests.hub import Fault, Hub
from tests.hub.faults import Action
from tests.test_bits import everything
from tests.trained import STEPS

NAME = "org/neox"


@pytest.fixture
def hub(served_hub: Hub, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub with one repository: a branch per checkpoint, a main branch, and a tag."""
    repository = served_hub.repository(NAME)
    for step in STEPS:
        repository.commit_folder(trained["neox-f16"] / f"step{step}", branch=f"step{step}")
    repository.branches["main"] = repository.branches["step12"]
    repository.tag("v1", repository.branches["step0"])
    monkeypatch.setattr("pipeline.transport.limits.FIRST_PAUSE_S", 0.001)
    return served_hub


def analysed_by_command(
    store: Path, home: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, against the Hub that this process talks to."""
    from huggingface_hub import constants

    command = [sys.executable, "-m", "jobs.analyze", NAME, "--store", str(store)]
    return subprocess.run(
        [*command, "--executor", "local", "--json"],
        env=os.environ | {"HF_ENDPOINT": constants.ENDPOINT, "HF_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def analysed(store: Path) -> dict[str, list]:
    pipeline.analyze(NAME, str(store), executor="local", run="r")
    return everything(store)


def test_a_repository_gives_what_its_files_give(
    hub: Hub, trained: dict[str, Path], tmp_path: Path
) -> None:
    remote = analysed(tmp_path / "remote")
    pipeline.analyze(str(trained["neox-f16"]), str(tmp_path / "local"), executor="local", run="r")
    assert remote == everything(tmp_path / "local")
    rows = pipeline.open_store(str(tmp_path / "remote")).sql(
        "SELECT name, commit FROM checkpoints ORDER BY k"
    )
    branches = hub.repositories[NAME].branches
    assert rows.fetchall() == [(f"step{step}", branches[f"step{step}"]) for step in STEPS]


def test_each_weight_is_read_once_and_the_hub_is_asked_little(hub: Hub, tmp_path: Path) -> None:
    plan, _ = make_plan(Request(NAME))
    headers = sum(stop - start for r in hub.records if r.range for start, stop in [r.range])
    hub.reset()
    cache_file().unlink()  # as on another machine
    analysed(tmp_path / "store")
    shards = len(plan.files)
    assert hub.count("refs") == 1
    assert hub.count("tree") == len(STEPS)
    # the indexes and the config, too; indexes of equal contents are read once
    assert shards < hub.count("resolve_head") <= shards + len(STEPS) // 3 * 2 + 1
    for file in plan.files:
        commit = file.checkpoint.commit
        ranges = hub.ranges(file.path, commit)
        weights = [(start, stop) for start, stop in ranges if start > 0]
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(weights))
    sent = sum(
        stop - start
        for r in hub.records
        if r.kind == "cdn" and r.range
        for start, stop in [r.range]
    )
    assert sent <= plan.bytes_total + headers


def test_checkpoints_of_the_same_files_are_read_once(
    hub: Hub, trained: dict[str, Path], tmp_path: Path
) -> None:
    """Two names of one commit, and another commit of the same contents."""
    repository, late = hub.repositories[NAME], max(STEPS)
    repository.branches["step9000"] = repository.branches[f"step{late}"]
    folder = trained["neox-f16"] / f"step{late}"
    for name in ("step9100", "step9200"):
        repository.commit_folder(folder, name, message=name)
    plan, _ = make_plan(Request(NAME))
    names = [checkpoint.name for checkpoint in plan.checkpoints]
    again = ("step9000", "step9100", "step9200")
    assert {names[k]: names[first] for k, first in plan.repeats.items()} == dict.fromkeys(
        again, f"step{late}"
    )
    hub.reset()
    remote = analysed(tmp_path / "remote")
    sent = sum(b - a for r in hub.records if r.kind == "cdn" and r.range for a, b in [r.range] if a)
    assert sent == plan.bytes_total == 2 * plan.parameters * len(STEPS)
    copies = tmp_path / "copies"
    shutil.copytree(trained["neox-f16"], copies)
    for name in again:
        shutil.copytree(folder, copies / name)
    pipeline.analyze(str(copies), str(tmp_path / "local"), executor="local", run="r")
    assert remote == everything(tmp_path / "local")


def test_no_weight_file_lands_on_disk(hub: Hub, tmp_path: Path) -> None:
    del hub
    home, store = tmp_path / "home", tmp_path / "store"
    done = analysed_by_command(store, home, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == "org--neox"
    kept = [path for path in tmp_path.rglob("*.safetensors") if "_sums" not in path.parts]
    assert not kept, "sums over weights are kept, weights are not"
    assert not home.exists() or not list(home.rglob("blobs/*"))


def test_the_token_goes_to_the_hub_alone(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[NAME].private = True
    with pytest.raises(SourceNotFound, match="no such repository"):
        make_plan(Request(NAME))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.reset()
    analysed(tmp_path / "store")
    assert all(record.authorized for record in hub.records if record.kind != "cdn")
    assert not any(record.authorized for record in hub.records if record.kind == "cdn")
    plan, source = make_plan(Request(NAME))
    access = source.access(plan.files[0])
    assert isinstance(access, Url)
    assert "Signature" in access.url
    assert "Signature" not in repr(access)
    assert hub.token not in repr(access)


def test_revisions_are_pinned_before_anything_is_read(hub: Hub, tmp_path: Path) -> None:
    plan, source = make_plan(Request(NAME))
    repository = hub.repositories[NAME]
    old = repository.branches["step4"]
    repository.commit({"README.md": b"moved"}, branch="step4")
    file = next(file for file in plan.files if file.checkpoint.name == "step4")
    assert file.checkpoint.commit == old
    assert len(source.read(file, 0, 8)) == 8


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=503, headers={"Retry_After": "0"}, occurrences={40, 41, 45}),
        Fault("status", status=429, headers={"Retry_After": "0"}, occurrences={40, 41}),
        Fault("truncate", after_bytes=7, occurrences={41, 44}),
        Fault("truncate", after_bytes=0, occurrences={40}),
        Fault("reset", after_bytes=100, occurrences={40, 43}),
    ],
    ids=lambda fault: f"{fault.action}-{fault.status}-{fault.after_bytes}",
)
def test_passing_faults_change_nothing(hub: Hub, fault: Fault, tmp_path: Path) -> None:
    """After the headers (some 20 reads), weights are read; the figures are those of a quiet run."""
    quiet = analysed(tmp_path / "quiet")
    reads = hub.count("cdn")
    hub.reset()
    shifted = {number - 40 + reads // 2 for number in fault.occurrences or ()}
    hub.faults.add(
        Fault(
            fault.action,
            status=fault.status,
            headers=fault.headers,
            after_bytes=fault.after_bytes,
            occurrences=shifted,
        )
    )
    assert analysed(tmp_path / "disturbed") == quiet
    assert hub.faults.applied


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("encoded", "Content-Encoding"),
        ("wrong_content_range", "Content-Range"),
        ("wrong_total", "expected a file of"),
    ],
)
def test_wrong_answers_are_refused(hub: Hub, action: Action, message: str) -> None:
    hub.faults.add(Fault(action))
    with pytest.raises(ReadError, match=message) as raised:
        make_plan(Request(NAME))
    assert "Signature" not in str(raised.value)
    assert f"{NAME}@" in raised.value.message


def test_a_file_that_cannot_be_read_leaves_its_groups_null(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 3: what succeeded is kept, the tensors that a lost tile touches are NULL."""

    access = HubRepository.access

    def then_gone(*arguments: Any) -> Access:
        given = access(*arguments)
        hub.faults.add(Fault("status", status=404))
        return given

    monkeypatch.setattr(HubRepository, "access", then_gone)
    summary = pipeline.analyze(NAME, str(tmp_path / "store"), executor="local", run="r")
    assert not summary.complete
    assert "HTTP 404" in summary.lost[0]
    store = pipeline.open_store(str(tmp_path / "store"))
    assert store.sql("SELECT complete FROM runs").fetchall() == [(False,)]
    assert store.sql("SELECT count(value), count(*) > 0 FROM indicators").fetchall() == [(0, True)]
    assert (
        store.sql(
            "SELECT count(cosine), count(*) FROM similarity WHERE scope = 'model'"
        ).fetchall()[0][0]
        == 0
    )


def test_addresses_are_renewed_before_they_expire(hub: Hub, clock: Clock) -> None:
    hub.address_life_s = 1000
    source = HubRepository(NAME)
    file = next(f for f in source.files(source.candidates()[0]) if f.path.endswith(".safetensors"))
    before = hub.count("resolve_head")
    source.access(file)
    assert source.access(file).good_for_s <= 800
    assert hub.count("resolve_head") == before + 1
    clock.sleep(850)
    source.access(file)
    assert hub.count("resolve_head") == before + 2
    clock.sleep(850)
    hub.address_life_s = 3600
    source.access(file)
    source.access(file)
    assert hub.count("resolve_head") == before + 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/absent", "no such repository"),
        ("hf://org/absent", "no such repository"),
        ("hf://not-a-name", "does not name a Hub repository"),
    ],
)
def test_no_such_repository(hub: Hub, name: str, message: str) -> None:
    del hub
    with pytest.raises(SourceNotFound, match=message):
        make_plan(Request(name))


def test_gated_repositories_say_what_to_do(hub: Hub) -> None:
    hub.repositories[NAME].gated = True
    with pytest.raises(SourceNotFound, match="gated") as raised:
        make_plan(Request(NAME))
    assert "accept the terms" in raised.value.hint


def test_a_shard_that_the_index_names_is_absent(hub: Hub) -> None:
    repository = hub.repositories[NAME]
    commit = repository.resolve("step1")
    assert commit is not None
    files = {path: file.content for path, file in commit.files.items()}
    del files["model-00002-of-00002.safetensors"]
    repository.commit(files, branch="step1")
    plan, _ = make_plan(Request(NAME))
    assert "step1" not in {checkpoint.name for checkpoint in plan.checkpoints}
    (lacking,) = plan.account.lacking
    assert lacking.name == "step1"
    assert lacking.reason.startswith("shard 'model-00002-of-00002.safetensors'"), lacking.reason
    with pytest.raises(FormatError, match="'model-00002-of-00002.safetensors'.* is absent"):
        make_plan(Request(NAME, revisions=("step0", "step1")))


def test_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.hub_client._ATTEMPTS", 1)
    with pytest.raises(HallmarksError, match="1 times") as raised:
        make_plan(Request("org/name"))
    assert "\n" not in raised.value.message


def test_the_fixture_speaks_the_protocol_of_the_client(hub: Hub) -> None:
    """The parts of it that the job itself does not use."""
    hub.page_size = 2
    api = HfApi(endpoint=f"http://localhost:{_port()}")
    commit = hub.repositories[NAME].branches["step1"]
    paths = {entry.path for entry in api.list_repo_tree(NAME, revision=commit, recursive=True)}
    assert paths == set(hub.repositories[NAME].commits[commit].files)
    assert api.repo_info(NAME, revision="v1").sha == hub.repositories[NAME].tags["v1"]
    hub.repositories[NAME].commit({"a.txt": b"x"}, branch="step1", message="second")
    titles = [entry.title for entry in api.list_repo_commits(NAME, revision="step1")]
    assert titles == ["second", "upload"]
    infos = api.get_paths_info(NAME, ["a.txt"], revision="step1")
    assert [info.path for info in infos] == ["a.txt"]


def _port() -> str:
    import huggingface_hub.constants as constants

    return constants.ENDPOINT.rpartition(":")[2]


def test_a_lost_tile_is_an_exit_code_of_its_own(hub: Hub, tmp_path: Path) -> None:
    """Figures that it touches are NULL, the command says so; the next attempt completes the run."""
    plan, _ = make_plan(Request(NAME))
    options = ["--store", tmp_path / "store", "--executor", "local", "--json"]
    path = plan.files[-1].path
    headers = sum(file.path == path for file in plan.files)  # read well; the weights are not
    hub.faults.add(Fault("status", path=path, status=404, occurrences=range(headers, 999)))
    done = hallmarks("analyze", NAME, *options)
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert not found["complete"]
    assert found["mds"] is None
    assert "HTTP 404" in done.stderr
    hub.faults.clear()
    done = hallmarks("analyze", NAME, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mds"] is not None


def suite_of_folders(trained: dict[str, Path]) -> dict[str, bytes | Path]:
    files: dict[str, bytes | Path] = {"README.md": b"a suite"}
    for step in STEPS:
        folder = trained["neox-f16"] / f"step{step}"
        files |= {f"runs/step-{step:04d}/{p.name}": p for p in folder.iterdir()}
    return files


def dots(source: str, store: Path, **options: Any) -> list[tuple]:
    pipeline.analyze(source, str(store), executor="local", run="r", **options)
    query = "SELECT i, j, step_i, dot FROM similarity WHERE scope = 'model' ORDER BY ALL"
    return pipeline.open_store(str(store)).sql(query).fetchall()


def test_every_layout_gives_the_same(hub: Hub, trained: dict[str, Path], tmp_path: Path) -> None:
    expected = dots(NAME, tmp_path / "revisions")
    folders = hub.repository("org/folders")
    folders.commit(suite_of_folders(trained), message="all at once")
    hub.reset()
    assert dots("org/folders", tmp_path / "auto-folders") == expected
    assert hub.count("refs") == 1
    assert hub.count("tree") == 1
    assert dots("hf://org/folders@main", tmp_path / "at", layout="folders") == expected
    commits = hub.repository("org/commits")
    for step in STEPS:
        folder = trained["neox-f16"] / f"step{step}"
        commits.commit_folder(folder, branch="main", message=f"Saving weights, step {step}")
    commits.commit({"README.md": b"the end"}, message="a word at the end")
    hub.reset()
    assert dots("org/commits", tmp_path / "auto-commits") == expected
    assert hub.count("commits") == 1
    assert dots("org/commits", tmp_path / "commits", layout="commits") == expected


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_manifests(hub: Hub, trained: dict[str, Path], suffix: str, tmp_path: Path) -> None:
    """One repository a checkpoint, one revision, one directory: what a table lists is one path."""
    expected = dots(NAME, tmp_path / "revisions")
    rows = []
    for number, step in enumerate(STEPS):
        folder = trained["neox-f16"] / f"step{step}"
        if number == 0:
            uri = str(folder)
        elif number == 1:
            uri = f"hf://{NAME}@step{step}"
        else:
            uri = f"org/model-seed_0-step_{step}"
            hub.repository(uri).commit_folder(folder, branch="main")
        rows.append({"uri": uri, "name": f"the {number}th", "step": step})
    path = tmp_path / f"suite.{suffix}"
    table = pa.Table.from_pylist(list(reversed(rows)))
    if suffix == "csv":
        pyarrow.csv.write_csv(table, path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(table, path)
    assert dots(str(path), tmp_path / "manifest") == expected
    names = pipeline.open_store(str(tmp_path / "manifest")).sql(
        "SELECT name FROM checkpoints ORDER BY k"
    )
    assert names.fetchall() == [(row["name"],) for row in rows]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\nx\n", "expected a column uri"),
        ("uri\n\n", "expected a uri|expected a column uri|at least 2"),
        ("uri,step\n.,many\n.,2\n", "not one checkpoint|expected a number"),
        ("uri\nother.csv\nthird.csv\n", "cannot list another"),
        ('uri\n"broken', "not a readable table|no such directory"),
    ],
)
def test_manifests_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(HallmarksError, match=message):
        make_plan(Request(str(tmp_path / "m.csv")))


def test_main_is_the_last_checkpoint_only_if_it_is_another(
    hub: Hub, trained: dict[str, Path]
) -> None:
    repository = hub.repositories[NAME]

    def planned() -> tuple[list[str], dict[str, str]]:
        plan, _ = make_plan(Request(NAME))
        reasons = {entry.name: entry.reason for entry in plan.left_out_checkpoints}
        return [checkpoint.name for checkpoint in plan.checkpoints], reasons

    steps = [f"step{step}" for step in STEPS]
    assert planned()[0] == steps  # main is a commit that another branch has
    last = trained["neox-f16"] / steps[-1]
    repository.commit_folder(last, branch="main", message="the same files in another commit")
    names, reasons = planned()
    assert names == steps
    assert reasons["main"] == f"the same files as {steps[-1]}"
    repository.commit({"README.md": b"words"}, message="no weights")
    assert planned()[1]["main"] == "holds no weights"
    files: dict[str, bytes | Path] = {p.name: p for p in (trained["neox-f16"] / steps[0]).iterdir()}
    repository.commit(files, message="other weights")
    assert planned()[0] == [*steps, "main"]


def test_parallel_branches_are_not_one_path(hub: Hub, trained: dict[str, Path]) -> None:
    repository = hub.repository("org/branched")
    for number, name in enumerate(
        ["stage1-step10-tokens1B", "stage1-step20-tokens2B", "stage2-ingredient1-step5-tokens3B",
         "stage2-ingredient2-step5-tokens3B", "stage2-souped"]
    ):  # fmt: skip
        repository.commit_folder(trained["neox-f16"] / f"step{STEPS[number]}", branch=name)
    plan, _ = make_plan(Request("org/branched"))
    assert [c.name for c in plan.checkpoints] == [
        "stage1-step10-tokens1B", "stage1-step20-tokens2B", "stage2-ingredient1-step5-tokens3B",
    ]  # fmt: skip
    assert plan.checkpoints[-1].elapsed == 25
    reasons = {entry.name: entry.reason for entry in plan.left_out_checkpoints}
    assert "parallel branch of stage 2" in reasons["stage2-ingredient2-step5-tokens3B"]
    other, _ = make_plan(Request("org/branched", revisions=("stage1*", "stage2-ingredient2*")))
    assert other.checkpoints[-1].name == "stage2-ingredient2-step5-tokens3B"


def test_a_second_plan_asks_for_names_alone(hub: Hub, tmp_path: Path) -> None:
    """A commit never changes; one that is new is read; a damaged cache is as none."""
    first, _ = make_plan(Request(NAME))
    hub.reset()
    again, source = make_plan(Request(NAME))
    assert again == first
    assert hub.count("refs") == len(hub.records) == 1
    assert dict(source.requests) == {"api": 1}
    repository = hub.repositories[NAME]
    commit = repository.commits[repository.branches["step1"]]
    files: dict[str, bytes | Path] = {path: file.content for path, file in commit.files.items()}
    repository.commit({**files, "more.txt": b"x"}, branch="step1", message="a file more")
    hub.reset()
    changed, _ = make_plan(Request(NAME))
    assert changed.digest != first.digest
    assert hub.count("tree") == 1
    assert hub.count("cdn") == 0  # the weight files are the same contents
    cache_file().write_bytes(b"not a database" * 100)
    hub.reset()
    assert make_plan(Request(NAME))[0] == changed
    assert hub.count("tree") == len(STEPS)
    pipeline.analyze(NAME, str(tmp_path), executor="local", run="r")


def test_no_credential_is_kept(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME].private = True
    monkeypatch.setenv("HF_TOKEN", hub.token)
    make_plan(Request(NAME))
    kept = cache_file().read_bytes()
    assert b'"tensors"' in kept
    assert hub.token.encode() not in kept and b"X-Amz" not in kept and b"Signature" not in kept
