"""A request is judged in one place, whether it comes from the command line or from Python."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.errors import RequestError
from pipeline.planning.request import Resources
from tests.commands import hallmarks
from tests.suites import trajectory, write_suite

COMPONENTS = ("attn.q_proj", "attn.k_proj", "mlp.up_proj")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = trajectory("walk", 4, 300, 0.1)
    tensors = {f"model.layers.0.{name}.weight": rows for name in COMPONENTS}
    return write_suite(tmp_path_factory.mktemp("requests") / "suite", tensors)


def refused(suite: Path, store: Path, **options: Any) -> RequestError:
    with pytest.raises(RequestError) as error:
        pipeline.analyze(str(suite), str(store), **{"executor": "local", **options})
    assert not store.exists()
    assert "\n" not in error.value.message
    return error.value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "--device: expected auto, cpu or cuda, found 'gpu'"),
        ({"executor": "Local"}, "--executor: expected ray or local, found 'Local'"),
        ({"pull": "foo"}, "--pull: expected auto, actor or tasks, found 'foo'"),
        ({"layout": "foo"}, "--layout: expected auto, revisions, commits or folders, found 'foo'"),
        ({"max_workers": 0}, "--max-workers: expected a whole number of at least 1, found '0'"),
        ({"max_workers": True}, "--max-workers: "),
        ({"seed": 1.5}, "--seed: expected a whole number, found '1.5'"),
        ({"seed": "x"}, "--seed: expected a whole number, found 'x'"),
        ({"fraction": math.nan}, "--fraction: expected more than 0 and at most 1, found 'nan'"),
        ({"fraction": 10**400}, "--fraction: expected more than 0 and at most 1, found '1000"),
        ({"fraction": "much"}, "--fraction: expected more than 0 and at most 1, found 'much'"),
        ({"budget": "20 gigs"}, "--budget: '20 gigs' is not a size, such as 2GiB or 500MB"),
        ({"budget": 0}, "--budget: '0' is not a size"),
        ({"memory": "much"}, "--memory: 'much' is not a size"),
        ({"memory": 1.5e9}, "--memory: '1500000000.0' is not a size"),
        ({"steps": "300:100"}, "--steps: A must not exceed B, found '300:100'"),
        ({"steps": "0:100:0"}, "--steps: EVERY must be at least 1, found '0:100:0'"),
        ({"steps": 5}, "--steps: expected A:B or A:B:EVERY, found '5'"),
        ({"include": [3]}, "--include: expected text, found '3'"),
        ({"include": 3}, "--include: expected text, or several, found '3'"),
        ({"include": "("}, "--include '(' is not a regular expression"),
        ({"revisions": b"step*"}, "--revisions: expected text"),
        ({"by_head": "no"}, "--by-head: expected True or False, found 'no'"),
        ({"cache": 1}, "--cache: expected True or False"),
        ({"fresh": "no"}, "--fresh: expected True or False"),
        ({"replace": "no"}, "--replace: expected True or False"),
        ({"run": 5}, "--run: expected text, found '5'"),
        ({"run": "../x"}, "not a run name"),
        ({"address": 8265}, "--address: expected text"),
    ],
)  # fmt: skip
def test_what_python_refuses(
    suite: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    assert refused(suite, tmp_path / "store", **options).message.startswith(message)


@pytest.mark.parametrize("source", ["", 3, None, b"suite"])
def test_what_is_no_source(source: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="SOURCE: expected text"):
        pipeline.plan(source)
    with pytest.raises(RequestError, match="SOURCE: expected text"):
        pipeline.analyze_joint([source, source], str(tmp_path / "store"))


def test_a_text_where_several_may_stand_is_one_of_them(suite: Path) -> None:
    def names(**options: Any) -> list[str]:
        return [tensor.name for tensor in pipeline.plan(str(suite), **options).tensors]

    assert len(names()) == 3
    assert names(include="attn") == names(include=["attn"]) == names(include=("attn",))
    assert len(names(include="attn")) == 2
    assert len(names(exclude="attn")) == 1
    chosen = pipeline.plan(str(suite), revisions="step[12]")
    assert [checkpoint.name for checkpoint in chosen.checkpoints] == ["step1", "step2"]
    assert len(pipeline.plan(str(suite), revisions={"step1", "step3"}).checkpoints) == 2
    with pytest.raises(RequestError, match="at least 2 SOURCEs, found 1"):
        pipeline.analyze_joint(str(suite), "nowhere")


def test_paths_and_numbers_of_other_types(suite: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    summary = pipeline.analyze(suite, store, executor="local", seed=np.int64(3))
    assert summary.complete and summary.store == str(store)
    assert len(pipeline.open_store(store).runs()) == 1
    assert pipeline.plan(suite, fraction=np.float32(0.5)).sampled
    assert not pipeline.plan(suite, fraction="1").sampled


def test_two_runs_of_one_name(suite: Path, tmp_path: Path) -> None:
    """One would replace the other: neither is begun."""
    with pytest.raises(RequestError, match="two runs would both be called suite"):
        pipeline.analyze_joint([suite, suite], tmp_path / "store", executor="local")
    assert not (tmp_path / "store").exists()


def test_threads() -> None:
    for threads in (0, -1, 1.5, "x"):
        with pytest.raises(RequestError, match="--threads: expected a whole number of at least 1"):
            Resources(executor="local", threads=threads)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "line",
    [
        "--budget '20 gigs'", "--memory much", "--seed x", "--fraction nan", "--fraction 2",
        "--steps 300:100", "--steps x", "--device gpu", "--executor Local", "--pull foo",
        "--layout foo", "--max-workers 0", "--include (", "--run ../x", "--budget 0",
    ],
)  # fmt: skip
def test_the_command_line_says_the_same(suite: Path, tmp_path: Path, line: str) -> None:
    option, value = shlex.split(line)
    store = tmp_path / "store"
    error = refused(suite, store, **{option[2:].replace("-", "_"): value})
    local = ["--executor", "local"] if option != "--executor" else []
    done = hallmarks("analyze", suite, "--store", store, *local, option, value)
    assert done.returncode == 2
    said = done.stderr.splitlines()
    assert said == [f"error: {error.message}", *([f"hint: {error.hint}"] if error.hint else [])]
