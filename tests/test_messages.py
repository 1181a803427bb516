"""What people get wrong, and the sentence that puts them right."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import hallmarks as hm
from jobs.cli import COMMANDS
from tests.commands import hallmarks
from tests.suites import trajectory, write_suite


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, runs side by side, names without a step, and a file."""
    folder = tmp_path_factory.mktemp("messages")
    rows = trajectory("walk", 5, 200, 0.1)
    write_suite(folder / "demo", {"w": rows}, steps=[0, 1, 10, 11, 20])
    write_suite(folder / "runs" / "a", {"w": rows})
    write_suite(folder / "runs" / "b", {"w": rows})
    write_suite(folder / "one", {"w": rows[:1]})
    pointer = write_suite(folder / "lfs", {"w": rows}) / "step3" / "model.safetensors"
    oid = f"oid sha256:{'0' * 64}"
    pointer.write_text(f"version https://git-lfs.github.com/spec/v1\n{oid}\nsize 1234\n")
    for name in ("alpha", "beta"):
        shutil.copytree(folder / "demo" / "step0", folder / "odd" / name)
    write_suite(folder / "other", {"v": rows})
    for name, uri in (("lists/good", "../demo/step{}"), ("lists/bad", "../demi/step{}")):
        table = folder / f"{name}.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text("uri\n" + "".join(f"{uri.format(step)}\n" for step in (0, 10)))
    (folder / "file").write_text("x")
    hm.analyze(folder / "demo", folder / "store", executor="local")
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)


@pytest.mark.parametrize(
    ("line", "error", "hint"),
    [
        ("analyz demo", "no such command: 'analyz'", "did you mean analyze?"),
        ("nonsense", "no such command: 'nonsense'", f"there are {', '.join(COMMANDS)}"),
        ("plan demo --stps 1:2", "No such option '--stps'", "plan --help"),
        ("plan demo --device gpu", "--device: expected auto, cpu or cuda, found 'gpu'", ""),
        (
            "plan demo --steps 300:100",
            "--steps: A must not exceed B, found '300:100'",
            "--steps 100:300",
        ),
        ("plan demo --budget 20gigs", "--budget: '20gigs' is not a size, such as 2GiB", ""),
        ("plan one", "expected at least 2 checkpoints, found 1", "a trajectory needs two"),
        ("plan /nope/ckpts", "no such directory: '/nope/ckpts'", "'/' is there, but has no 'nope'"),
        (
            "plan ./runs/c/d",
            "no such directory: './runs/c/d'",
            "runs' is there, but has no 'c' in it",
        ),
        ("plan demoo", "no such directory: 'demoo'", "did you mean 'demo'?"),
        ("plan nothing-like-it", "no such directory", "; a Hub repository is org/name"),
        ("plan runs/*", "no such directory: 'runs/*'", "patterns and ~ are for the shell"),
        ("plan runs/x*", "no such directory: 'runs/x*'", "runs' is there, but has no 'x*' in it"),
        ("plan https://hub.example/org/name/tree/main", "no such directory", "perhaps 'org/name'"),
        ("plan huggingface.co/org/name", "no such directory", "perhaps 'org/name'"),
        ("plan file:///tmp/x", "no such directory", "by its path, without file://"),
        ("plan ftp://host/x", "no such directory", "begin with hf://, s3://, gs:// or az://"),
        ("plan ~/runs", "no such directory: '~/runs'", "leave out the quotes"),
        ("plan demo/step10", "found one, which is the SOURCE itself", "'demo' holds 5 of them"),
        ("plan demo/step10/model.safetensors", "is a file", "'demo' holds 5 of them: name that"),
        ("plan demo/step10 --revisions step*", "the SOURCE itself", "'demo' holds 5 of them"),
        ("plan file", "'file' is a file", "name the directory that holds the checkpoints"),
        (
            "plan demo other --joint",
            "'w' [200]: absent from 5 checkpoints, first step0 of other",
            "--joint compares runs of one network",
        ),
        ("plan demo --joint", "needs at least 2 SOURCEs, found 1", "leave out --joint"),
        (
            "plan lists/bad.csv",
            "lists/bad.csv, row 1: no such directory: 'lists/../demi/step0'",
            "did you mean 'lists/../demo'?",
        ),
        ("plan demo --seeds 3", "no run '3': there is one run alone", "leave --seeds out"),
        ("plan demo --weights *.bin", "found 0 of the 0", "--weights '*.bin': no such file; 'step"),
        ("plan runs", "found them in 2 folders: 'a' (5), 'b' (5)", "name one of them as SOURCE"),
        ("plan odd", "found 0 of the 2 candidates", "found 'alpha', 'beta': --names"),
        ("plan lfs", "expected weights, found a pointer of Git LFS", "git lfs pull"),
        (
            "analyze demo --store file",
            "--store 'file' is a file, a store is a directory",
            "--store",
        ),
        ("sql --store nowhere FROM(runs)", "no such store: nowhere", "name it with --store"),
        ("status --store nowhere", "no such store: nowhere", "name it with --store"),
        ("audit --store nowhere", "no such store: nowhere", "name it with --store"),
        ("report --store nowhere", "no such store: nowhere", "name it with --store"),
        ("sql --store empty FROM(runs)", "no finished run in empty", "hallmarks analyze"),
        ("status --store empty", "no finished run in empty", "hallmarks analyze"),
        ("audit --store store --run dmo", "no run 'dmo' in store", "there are: demo"),
        ("report --store store --run dmo", "no run 'dmo' in store", "there are: demo"),
        (
            "sql --store store FROM(indicators)WHERE(indicator=mds)",
            'Referenced column "mds" not found',
            "mds is an indicator, and texts stand in single quotes: 'mds'",
        ),
        ("sql --store store --rows 0 FROM(runs)", "--rows", "sql --help"),
    ],
)
def test_mistakes(line: str, error: str, hint: str, made: Path) -> None:
    """One line says what is wrong, a second what cures it."""
    (made / "empty").mkdir(exist_ok=True)
    done = hallmarks(
        *line.split(), *(("--executor", "local") if line.startswith("analyze") else ())
    )
    assert done.returncode == 2 and done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: ") and error in first, first
    assert len(rest) == bool(hint) and all(hint in line for line in rest), rest


def test_a_pattern_that_the_shell_expanded(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made / "demo")
    done = hallmarks("plan", ".", "--revisions", "step1", "step10", "step11")  # step1*
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: --revisions 'step1' is followed by the SOURCE 'step10' and 1 more: the shell has expanded"
        " a pattern",
        "hint: quote it: --revisions 'step1*'",
    ]
    assert hallmarks("plan", ".", "--revisions", "step1*").returncode == 0
    monkeypatch.chdir(made / "runs")
    assert (
        hallmarks("plan", "a", "b", "--revisions", "step*").returncode == 0
    )  # no pattern of theirs


def test_both_sources_are_named_with_what_the_other_lacks() -> None:
    done = hallmarks("plan", "demo", "other", "--joint")
    for missing in ("'v' [200]: absent from 5 checkpoints, first step0 of demo", "step0 of other"):
        assert missing in done.stderr
    assert done.stderr.startswith("error: demo + other: no tensor is left of 2")


def test_paths_in_a_manifest_begin_where_it_lies(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is named from, and whatever has the same name there."""
    shutil.copytree(made / "one", made / "elsewhere" / "demo" / "step0", dirs_exist_ok=True)
    for folder, manifest in ((made, "lists/good.csv"), (made / "elsewhere", "../lists/good.csv")):
        monkeypatch.chdir(folder)
        plan = hm.plan(manifest)
        assert [checkpoint.step for checkpoint in plan.checkpoints] == [0, 10]
        assert {Path(file.where).parents[1] for file in plan.files} == {made / "demo"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("runs/zzz", "The directory 'runs' has no 'zzz' in it."),
        ("runs/aa", "Or did you mean the directory 'runs/a'?"),
        ("nobody/zzz", "with `hf download`."),
    ],
)
def test_a_path_that_reads_like_a_repository(
    name: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = hallmarks("plan", name)
    assert done.returncode == 2 and done.stderr.splitlines()[1].endswith(hint)


def test_in_python_the_same_sentences(made: Path) -> None:
    with pytest.raises(hm.RequestError, match="--budget: '20 gigs' is not a size, such as 2GiB"):
        hm.plan(made / "demo", budget="20 gigs")
    with pytest.raises(hm.StoreUnusable, match="no such store: nowhere"):
        hm.open_store("nowhere")
    with pytest.raises(hm.QueryError, match="no run 'dmo'") as error:
        hm.open_store(made / "store").trajectory_map("dmo")
    assert error.value.hint == "there are: demo"
