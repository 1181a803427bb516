"""A mirror that wants to write where it has no business: its names stay within the Hub cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

import pipeline
from pipeline.errors import Corrupted, RequestError
from tests.commands import hallmarks
from tests.conftest import serving
from tests.hub import Hub
from tests.hub.repository import Commit, StoredFile
from tests.suites import trajectory, write_suite

NAME = "org/hostile"
STEPS = 3


@pytest.fixture
def mirror(tmp_path: Path) -> Hub:
    hub = Hub()
    suite = write_suite(tmp_path / "suite", {"w": trajectory("walk", STEPS, 1000, 0.1)})
    for step in suite.iterdir():
        hub.repository(NAME).commit_folder(step, branch=step.name)
    return hub


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the caches are, and the store."""
    home = tmp_path / "home"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "learnt"))
    return home


def analyzed(mirror: Hub, home: Path) -> None:
    with serving(mirror):
        pipeline.analyze(NAME, str(home / "store"), executor="local", cache=True)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def commit_with(mirror: Hub, branch: str, **changes: str) -> StoredFile:
    """Replace the only file of a branch's commit by one that has another path or hash."""
    repository = mirror.repository(NAME)
    commit = repository.commits[repository.branches[branch]]
    (stored,) = commit.files.values()
    file = StoredFile(changes.get("path", stored.path), stored.content)
    if "sha256" in changes:
        file.__dict__["sha256"] = changes["sha256"]
    files = {file.path: file}
    repository.commits[commit.sha] = Commit(commit.sha, commit.message, files, None)
    return file


@pytest.mark.parametrize("attack", ["absolute", "upwards", "inner"])
@pytest.mark.parametrize("name", ["branch", "tag", "commit", "path", "hash"])
def test_a_name_that_is_a_path_is_refused(
    mirror: Hub, home: Path, tmp_path: Path, name: str, attack: str
) -> None:
    victim = tmp_path / "victim" / "step7.safetensors"
    victim.parent.mkdir()
    victim.write_bytes(b"the user's own")
    evil = {
        "absolute": str(victim),
        "upwards": "../" * 12 + str(victim).lstrip("/"),
        "inner": f"step7/{'../' * 12}{str(victim).lstrip('/')}",
    }[attack]
    repository = mirror.repository(NAME)
    sha = repository.branches["step2"]
    if name == "branch":
        repository.branches[evil] = sha
    elif name == "tag":
        repository.tags[evil] = sha
    elif name == "commit":
        repository.commits[evil] = repository.commits[sha]
        repository.branches["step2"] = evil
    elif name == "path":
        commit_with(mirror, "step2", path=evil)
    else:
        commit_with(mirror, "step2", sha256=evil)
    before = files_of(tmp_path / "victim")
    with pytest.raises(RequestError) as refused:
        analyzed(mirror, home)
    assert files_of(tmp_path / "victim") == before
    assert refused.value.message.startswith(NAME) and "mirror" in refused.value.hint
    assert not (home / "store").exists() and not (home / "hub").exists()


def test_the_command_says_so(mirror: Hub, home: Path, tmp_path: Path) -> None:
    repository = mirror.repository(NAME)
    repository.branches[str(tmp_path / "victim")] = repository.branches["step2"]
    with serving(mirror):
        options = ["--executor", "local", "--cache", "--store", home / "store"]
        done = hallmarks("analyze", NAME, *options)
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {NAME}: the listing is malformed: ")
    assert hint.startswith("hint: ")
    assert not (tmp_path / "victim").exists() and not (home / "store").exists()


def test_the_id_of_a_commit_is_looked_at_before_it_is_asked_for(mirror: Hub, home: Path) -> None:
    """One of 70,000 letters is too long for an address, and would fill the message."""
    repository = mirror.repository(NAME)
    endless = "a" * 70_000
    files = repository.commits[repository.branches["step2"]].files
    repository.commits[endless] = Commit(endless, "", files, None)
    repository.branches["main"] = endless
    with serving(mirror), pytest.raises(RequestError, match="expected the id of a commit") as error:
        pipeline.plan(NAME, layout="folders")
    assert len(error.value.message) < 500


class Changing(StoredFile):
    """A file with the right hash when it is listed, and a path for one when it is fetched."""

    @property
    def sha256(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        own = self.__dict__
        own["asked"] = own.get("asked", 0) + 1
        listed = hashlib.sha256(self.read(0, self.size)).hexdigest()
        return listed if own["asked"] <= 2 else own["victim"]  # a listing asks twice


def test_a_hash_in_a_header_is_no_path_either(mirror: Hub, home: Path, tmp_path: Path) -> None:
    """What is written is called by the hash that was listed and that it has, whatever is stated."""
    victim = tmp_path / "victim"
    repository = mirror.repository(NAME)
    commit = repository.commits[repository.branches["step2"]]
    (stored,) = commit.files.values()
    file = Changing(stored.path, stored.content)
    file.__dict__["victim"] = str(victim)
    repository.commits[commit.sha] = Commit(commit.sha, "", {file.path: file}, None)
    analyzed(mirror, home)
    assert file.__dict__["asked"] > 2
    assert not list(tmp_path.glob("victim*")), "nor a lock, nor a part of it"


def test_other_contents_do_not_get_a_hash_for_a_name(mirror: Hub, home: Path) -> None:
    """Every program of the user's would read them for what was published."""
    published = "ab" * 32
    commit_with(mirror, "step2", sha256=published)
    with pytest.raises(Corrupted, match=published):
        analyzed(mirror, home)
    assert not any(published in path for path in files_of(home / "hub"))


def test_plain_names_are_kept_as_ever(mirror: Hub, home: Path) -> None:
    """Branches with slashes, tags, files in folders: what every program of the Hub writes."""
    repository = mirror.repository(NAME)
    repository.branches["refs/step7"] = repository.branches.pop("step2")
    repository.tags["v1.0"] = repository.branches["step1"]
    analyzed(mirror, home)
    cache = home / "hub"
    refs = {p.name: p.read_text() for p in cache.glob("models--*/refs/**/*") if p.is_file()}
    assert refs["step7"] == repository.branches["refs/step7"]
    assert refs["v1.0"] == repository.branches["step1"]
    with serving(mirror):
        mirror.reset()
        path = hf_hub_download(NAME, "model.safetensors", revision="refs/step7")
        assert not mirror.count("cdn")
        assert Path(path).is_symlink() and load_file(path)
