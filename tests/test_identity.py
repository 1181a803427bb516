"""What tells one file from another: never its size, and never what another host has said of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import snapshot_download

import pipeline
from pipeline.errors import RequestError
from pipeline.planning.make import make_plan
from pipeline.planning.plan import Plan
from pipeline.planning.request import Request
from pipeline.sources.directory import FileState
from tests.conftest import serving
from tests.hub import Hub
from tests.hub.repository import Commit, StoredFile
from tests.suites import trajectory, write_suite
from tests.test_bits import everything

NAMES = ("org/first", "org/other")
STEPS = 4


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home" / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def fill(hub: Hub, name: str, folder: Path, tensor: str) -> None:
    """Commit a suite whose files are all of one size, whatever is in them."""
    rows = trajectory("walk", STEPS, 3000, 1.0, seed=len(folder.name))
    suite = write_suite(folder, {tensor: rows})
    for step in suite.iterdir():
        hub.repository(name).commit_folder(step, branch=step.name)


@pytest.fixture
def hub(served_hub: Hub, tmp_path: Path) -> Hub:
    fill(served_hub, NAMES[0], tmp_path / "one", "layers.0.first.weight")
    fill(served_hub, NAMES[1], tmp_path / "two", "layers.0.other.weight")
    return served_hub


def analysed(source: str, store: Path, **options: object) -> dict[str, list]:
    pipeline.analyze(source, str(store), executor="local", run="r", **options)  # pyright: ignore
    return everything(store)


def planned(name: str) -> Plan:
    return make_plan(Request(name))[0]


def names_of(plan: Plan) -> list[str]:
    return [tensor.name for tensor in plan.tensors]


@contextmanager
def offline_with_a_copy(cache: Path) -> Iterator[None]:
    """Have the cache as `cp -rL` leaves it: no links, and no Hub to ask."""
    for name in NAMES:
        for step in range(STEPS):
            snapshot_download(name, revision=f"step{step}")
    copy = cache.with_name("copied")
    shutil.copytree(cache, copy)
    assert not any(path.is_symlink() for path in copy.rglob("*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(copy))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


def test_a_copied_cache_gives_the_figures_of_the_hub(hub: Hub, cache: Path, tmp_path: Path) -> None:
    """Its files have no hashes for names; of one size they all are."""
    expected = analysed(NAMES[0], tmp_path / "online")
    with offline_with_a_copy(cache):
        assert len({file.identity for file in planned(NAMES[0]).files}) == STEPS
        assert analysed(NAMES[0], tmp_path / "offline") == expected


def test_headers_of_one_repository_are_not_believed_for_another(hub: Hub, cache: Path) -> None:
    with offline_with_a_copy(cache):
        assert names_of(planned(NAMES[0])) == ["layers.0.first.weight"]
        assert names_of(planned(NAMES[1])) == ["layers.0.other.weight"]


def test_a_folder_called_blobs_is_no_cache_of_hashes(
    served_hub: Hub, cache: Path, tmp_path: Path
) -> None:
    rows = trajectory("walk", STEPS, 3000, 1.0)
    suite = write_suite(tmp_path / "suite", {"w": rows})
    for step in suite.iterdir():
        nested = step / "blobs"
        nested.mkdir()
        (step / "model.safetensors").rename(nested / "model.safetensors")
    (tmp_path / "whole").mkdir()
    for step in suite.iterdir():
        shutil.copytree(step, tmp_path / "whole" / step.name)
    served_hub.repository(NAMES[0]).commit_folder(tmp_path / "whole", branch="main")
    snapshot_download(NAMES[0])
    copy = cache.with_name("copied")
    shutil.copytree(cache, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(copy))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert len({file.identity for file in planned(NAMES[0]).files}) == STEPS


def lying(hub: Hub, name: str, tensor: str) -> Hub:
    """Return a mirror with the names and hashes of a repository, and other contents."""
    mirror = Hub()
    honest, copied = hub.repository(name), mirror.repository(name)
    copied.branches = dict(honest.branches)
    for sha, commit in honest.commits.items():
        files = {}
        for path, stored in commit.files.items():
            content = stored.read(0, stored.size)
            assert isinstance(content, bytes)
            file = StoredFile(path, content.replace(b"layers.0.first", tensor.encode()))
            file.__dict__["sha256"] = stored.sha256
            files[path] = file
        copied.commits[sha] = Commit(sha, commit.message, files, commit.parent)
    return mirror


def test_what_a_mirror_says_is_not_believed_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    with serving(lying(hub, NAMES[0], "layers.9.wrong")):
        assert names_of(planned(NAMES[0])) == ["layers.9.wrong.weight"]
    assert names_of(planned(NAMES[0])) == ["layers.0.first.weight"]


def test_a_planning_cache_of_an_earlier_version_is_not_believed(hub: Hub) -> None:
    """Whatever is in a file of another format: the headers are read again."""
    expected = planned(NAMES[0])
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "hallmarks"
    (learnt,) = folder.iterdir()
    learnt.rename(folder / "commits-2.sqlite")
    hub.reset()
    assert planned(NAMES[0]) == expected
    assert hub.count("tree") and hub.count("cdn")


def overwrite(file: Path, data: bytes) -> None:
    """Put other bytes in a file's place: of the same size, and by its time as old."""
    before = file.stat()
    assert len(data) == before.st_size
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(first: Path, second: Path) -> None:
    one, two = first.read_bytes(), second.read_bytes()
    overwrite(first, two)
    overwrite(second, one)


def test_other_bytes_under_the_old_time_are_another_plan(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite", {"w": trajectory("walk", STEPS, 3000, 1.0)})
    before = analysed(str(suite), tmp_path / "store")
    swap(suite / "step1" / "model.safetensors", suite / "step3" / "model.safetensors")
    summary = pipeline.analyze(str(suite), str(tmp_path / "store"), executor="local", run="r")
    assert not summary.already_complete and summary.bytes_read
    assert everything(tmp_path / "store") != before


def test_a_file_that_is_replaced_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite", {"w": trajectory("walk", STEPS, 3000, 1.0)})
    plan, source = make_plan(Request(str(suite)))
    swap(suite / "step1" / "model.safetensors", suite / "step3" / "model.safetensors")
    with pytest.raises(OSError, match="changed since it was planned"):
        source.read(plan.files[1], 0, 100)


def test_what_was_moved_or_copied_is_another_plan(tmp_path: Path) -> None:
    """Nothing but reading it could tell that it is as it was; that is the whole job."""
    suite = write_suite(tmp_path / "suite", {"w": np.ones((STEPS, 100))})
    digest = planned(str(suite)).digest
    assert planned(str(shutil.copytree(suite, tmp_path / "copy"))).digest != digest
    moved = suite.rename(tmp_path / "elsewhere")
    assert planned(str(moved)).digest != digest
    assert planned(str(moved.rename(suite))).digest == digest


def test_suites_that_are_written_at_one_moment_are_two(tmp_path: Path) -> None:
    """Times of files come in steps of some milliseconds: of small ones they may be the same."""
    suites = [
        write_suite(tmp_path / name, {"w": trajectory("walk", STEPS, 10, 1.0, seed=n)})
        for n, name in enumerate("ab")
    ]
    before = {planned(str(suite)).digest for suite in suites}
    assert len(before) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileState, "of", lambda status: FileState(status.st_size, 1, 1))
        assert len({planned(str(suite)).digest for suite in suites}) == 2


def test_a_checkpoint_whose_name_no_table_can_hold_is_refused_before_it_is_read(
    tmp_path: Path,
) -> None:
    suite = write_suite(tmp_path / "suite", {"w": np.ones((STEPS, 100))})
    (suite / "step2").rename(suite / os.fsdecode(b"step2-\xff"))
    with pytest.raises(RequestError, match=r"is not UTF-8"):
        pipeline.analyze(str(suite), str(tmp_path / "store"), executor="local")
    assert not (tmp_path / "store").exists()
