"""The user's Hub cache: read where it holds a file, filled where that is asked for, enough offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import hf_hub_download, snapshot_download

import pipeline
from pipeline.errors import HallmarksError, SourceNotFound
from pipeline.execute.work.urls import UrlBroker
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request
from pipeline.transport.access import LocalPath, Url
from pipeline.transport.reader import Reader
from tests import fault_table
from tests.fault_table import CHECKPOINTS, NAME
from tests.hub import Hub
from tests.test_bits import everything

REVISIONS = [f"step{step}" for step in range(CHECKPOINTS)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    folder = tmp_path / "home" / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def hub(served_hub: Hub, tmp_path: Path, cache: Path) -> Hub:
    del cache
    fault_table.fill(served_hub, tmp_path / "suite")
    return served_hub


def analysed(store: Path, **options: Any) -> dict[str, list]:
    pipeline.analyze(NAME, str(store), executor="local", run="r", **options)
    return everything(store)


def blobs(cache: Path) -> list[Path]:
    return sorted(cache.glob("models--*/blobs/*"))


def test_files_in_the_cache_are_read_there(hub: Hub, cache: Path, tmp_path: Path) -> None:
    """Downloaded by the Hub's own client, as other programs of the user's do."""
    expected = analysed(tmp_path / "remote")
    for revision in REVISIONS[:5]:
        snapshot_download(NAME, revision=revision)
    assert len(blobs(cache)) == 5
    hub.reset()
    assert analysed(tmp_path / "mixed") == expected
    branches = hub.repositories[NAME].branches
    read = {record.commit for record in hub.records if record.kind == "cdn"}
    assert read == {branches[revision] for revision in REVISIONS[5:]}


def test_what_is_read_can_be_kept(hub: Hub, cache: Path, tmp_path: Path) -> None:
    """--cache: once from the Hub, then from here, for us and for every other program."""
    expected = analysed(tmp_path / "remote")
    assert not blobs(cache)
    assert analysed(tmp_path / "kept", cache=True) == expected
    assert len(blobs(cache)) == CHECKPOINTS
    hub.reset()
    assert analysed(tmp_path / "again", cache=True) == expected
    assert hub.count("cdn") == hub.count("resolve_head") == 0
    path = hf_hub_download(NAME, "model.safetensors", revision=REVISIONS[0], local_files_only=False)
    assert hub.count("cdn") == 0 and Path(path).read_bytes()


def test_a_damaged_blob_is_not_used(hub: Hub, cache: Path, tmp_path: Path) -> None:
    expected = analysed(tmp_path / "remote")
    snapshot_download(NAME, revision=REVISIONS[0])
    (blob,) = blobs(cache)
    blob.write_bytes(blob.read_bytes()[:-1])
    hub.reset()
    assert analysed(tmp_path / "again") == expected
    assert hub.count("cdn")


def test_on_another_machine_the_cache_is_not_there(hub: Hub, cache: Path) -> None:
    """The reader asks for another way, which is an address."""
    snapshot_download(NAME, revision=REVISIONS[0])
    plan, source = make_plan(Request(NAME))
    access = source.access(plan.files[0])
    assert isinstance(access, LocalPath)
    expected = source.read(plan.files[0], 1000, 2000)
    (blob,) = blobs(cache)
    blob.rename(blob.with_name("elsewhere"))
    reader = Reader(UrlBroker(plan, source))
    reader.hold(0, access)
    buffer = bytearray(1000)
    reader.read(0, [(1000, memoryview(buffer))])
    assert buffer == expected
    assert isinstance(reader.access(0), Url)


def test_offline_the_cache_is_all_there_is(
    hub: Hub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = analysed(tmp_path / "remote")
    for revision in REVISIONS[:4]:
        snapshot_download(NAME, revision=revision)
    hub.reset()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    plan, _ = make_plan(Request(NAME))
    assert [checkpoint.name for checkpoint in plan.checkpoints] == REVISIONS[:4]
    four = analysed(tmp_path / "offline")
    assert not hub.records
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert analysed(tmp_path / "online", revisions=REVISIONS[:4]) == four
    assert analysed(tmp_path / "all") == expected, "what was seen offline is not taken for all"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceNotFound, match="HF_HUB_OFFLINE is set, and its list of commits"):
        make_plan(Request(NAME, layout="commits"))
    with pytest.raises(HallmarksError, match="HF_HUB_OFFLINE"):
        make_plan(Request("org/absent"))


def test_offline_by_the_command(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import constants

    home, store = tmp_path / "home", tmp_path / "store"
    command = [sys.executable, "-m", "jobs.analyze", NAME, "--executor", "local", "--json"]
    online = os.environ | {"HF_ENDPOINT": constants.ENDPOINT, "HF_HOME": str(home)}
    kept = subprocess.run(
        [*command, "--store", str(store), "--cache"],
        env=online, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert kept.returncode == 0, kept.stderr
    refused = subprocess.run(
        [*command, "--store", str(tmp_path / "nothing")],
        env=online | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "HF_HUB_OFFLINE is set" in refused.stderr and "hint: " in refused.stderr
    assert not (tmp_path / "nothing").exists()
    hub.reset()
    done = subprocess.run(
        [*command, "--store", str(tmp_path / "offline")],
        env=online | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not hub.records
    assert json.loads(done.stdout)["mds"] == json.loads(kept.stdout)["mds"]
