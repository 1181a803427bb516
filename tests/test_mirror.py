"""A self-hosted mirror, `olah`, over git repositories: what works through `HF_ENDPOINT`, what is refused.

It answers names, listings and the sizes of files as the Hub does, each pinned to its commit. It
knows no byte ranges of files in git: any GET is answered 200, with the whole file, in chunks,
without `Content-Length`, `ETag` or commit. Small files are read so, and have to be as long as was
listed; large ones are refused.

It cannot share the project's environment: its `fastapi-utils` 0.8.0 demands psutil below 6, which
`constraints.txt` has at 7. The tests give it an environment of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import get_hf_file_metadata, hf_hub_url

from pipeline import open_store
from pipeline.errors import ReadError
from pipeline.sources.base import Candidate, File
from pipeline.sources.hub import HubRepository
from tests.suites import trajectory, write_suite

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed"),
]

STEPS = (0, 1, 2)
CONFIG = b'{"model_type": "gpt_neox"}\n'
PLAIN, LFS = "org/plain", "org/lfs"  # weights in git itself; pointers to them, as on the Hub
BUFFERED_BYTES = 8192  # what http.client takes from a socket at once to find status and headers


def git(repository: Path, *arguments: str) -> str:
    """Run git with nobody's settings and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-c", "user.name=tests", "-c", "user.email=tests@localhost", *arguments]
    done = subprocess.run(
        command, cwd=repository, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(repository: Path, message: str) -> None:
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", message)


def move_to_lfs(repository: Path, file: Path) -> None:
    """Put a pointer in a file's place and its bytes where git-lfs, which need not exist, has them."""
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    kept = repository / ".git/lfs/objects" / digest[:2] / digest[2:4] / digest
    kept.parent.mkdir(parents=True)
    kept.write_bytes(data)
    file.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n"
    )


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of 160 KB: more than is read of a file to find its header."""
    rows = trajectory("walk", len(STEPS), 40_000, 0.1)
    directory = tmp_path_factory.mktemp("suite")
    return write_suite(directory, {"layers.0.w.weight": rows, "b": rows[:, :3]}, steps=STEPS)


@pytest.fixture(scope="module")
def mirrors(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that olah serves: repositories with a branch for each step."""
    directory = tmp_path_factory.mktemp("mirrors")
    for name in (PLAIN, LFS):
        repository = directory / "models" / name
        repository.mkdir(parents=True)
        git(repository, "init", "--quiet", "--initial-branch=main")
        (repository / "config.json").write_bytes(CONFIG)
        commit(repository, "no weights yet")
        for step in STEPS:
            git(repository, "checkout", "--quiet", "-b", f"step{step}", "main")
            weights = repository / "model.safetensors"
            shutil.copy(suite / f"step{step}" / weights.name, weights)
            if name == LFS:
                move_to_lfs(repository, weights)
            commit(repository, f"step {step}")
        git(repository, "checkout", "--quiet", "main")
    return directory


@pytest.fixture(scope="module")
def endpoint(mirrors: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("olah")
    programs = folder / "venv" / "bin"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=120)
    install = [programs / "pip", "install", "--quiet", "olah==0.5.4"]
    subprocess.run(install, check=True, timeout=280)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    (folder / "olah.toml").write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\n'
        f'repos-path = "{folder / "cache"}"\nmirrors-path = ["{mirrors}"]\n'
        "[accessibility]\noffline = true\n"
    )
    command = [programs / "olah-cli", "--config", "olah.toml", "--log-path", "logs"]
    with (folder / "output").open("wb") as output:
        server = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "output").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def mirror(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The mirror, which the client of this process talks to: it read `HF_ENDPOINT` long ago."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    return endpoint


def only(candidates: list[Candidate], name: str) -> Candidate:
    [found] = [candidate for candidate in candidates if candidate.name == name]
    return found


def file_of(source: HubRepository, branch: str, path: str) -> File:
    files = source.files(only(source.candidates(), branch))
    [found] = [file for file in files if file.path == path]
    return found


@pytest.mark.parametrize("name", [PLAIN, LFS])
def test_names_sizes_and_contents_are_those_of_git(
    mirror: str, mirrors: Path, suite: Path, name: str
) -> None:
    repository, source = mirrors / "models" / name, HubRepository(name)
    found = {candidate.name: candidate for candidate in source.candidates()}
    assert set(found) == {"main", *(f"step{step}" for step in STEPS)}
    for step in STEPS:
        branch = f"step{step}"
        assert found[branch].commit == git(repository, "rev-parse", branch)
        assert found[branch].position.step == step
        config, model = sorted(source.files(found[branch]), key=lambda file: file.path)
        assert (config.path, config.size) == ("config.json", len(CONFIG))
        assert config.identity == git(repository, "rev-parse", f"{branch}:config.json")
        data = (suite / branch / "model.safetensors").read_bytes()
        assert (model.path, model.size) == ("model.safetensors", len(data))
        blob = git(repository, "rev-parse", f"{branch}:model.safetensors")
        assert model.identity == (hashlib.sha256(data).hexdigest() if name == LFS else blob)


@pytest.mark.parametrize("name", [PLAIN, LFS])
def test_files_are_pinned_to_commits(mirror: str, mirrors: Path, suite: Path, name: str) -> None:
    """What a branch moves on to is not what was planned: here it has no weights at all."""
    repository, source = mirrors / "models" / name, HubRepository(name)
    file = file_of(source, "step1", "model.safetensors")
    old = git(repository, "rev-parse", "step1")
    git(repository, "branch", "--force", "step1", "main")
    try:
        assert only(HubRepository(name).candidates(), "step1").commit != old
        url = hf_hub_url(name, file.path, revision=file.checkpoint.commit, endpoint=mirror)
        stated = get_hf_file_metadata(url)
        found = source.read(file, 0, 8)  # there is such a file, at the commit
    finally:
        git(repository, "branch", "--force", "step1", old)
    assert found == (suite / "step1" / file.path).read_bytes()[:8]
    assert file.where == f"{name}@{old}/model.safetensors"
    assert (stated.commit_hash, stated.size, stated.etag) == (old, file.size, file.identity)
    assert stated.location == f"{mirror}/{name}/resolve/{old}/model.safetensors"


@pytest.mark.parametrize("name", [PLAIN, LFS])
@pytest.mark.parametrize(
    ("path", "stop"),
    [("model.safetensors", 8), ("model.safetensors", None), ("config.json", None)],
    ids=["a header", "a whole file", "a small file"],
)
def test_the_whole_file_is_refused_and_not_read(
    mirror: str, monkeypatch: pytest.MonkeyPatch, name: str, path: str, stop: int | None
) -> None:
    """Also where the whole file was asked for: the answer says neither how long nor what it is."""
    monkeypatch.setattr("pipeline.transport.http.WHOLE_BYTES", 10)
    source = HubRepository(name)
    file = file_of(source, "step2", path)
    received = []
    plain = socket.SocketIO.readinto  # of http.client, not of huggingface_hub's client

    def counted(self: socket.SocketIO, buffer: memoryview) -> int | None:
        count = plain(self, buffer)
        received.append(count or 0)
        return count

    monkeypatch.setattr(socket.SocketIO, "readinto", counted)
    said = f"{mirror} sent the whole file instead of the range"
    with pytest.raises(ReadError, match=said) as raised:
        source.read(file, 0, stop or file.size)
    assert raised.value.message.startswith(f"{file.where}[0:{stop or file.size}]: ")
    assert "byte ranges" in raised.value.hint
    assert 0 < sum(received) <= BUFFERED_BYTES


@pytest.mark.parametrize("name", [PLAIN, LFS])
def test_a_small_suite_is_read(endpoint: str, suite: Path, tmp_path: Path, name: str) -> None:
    """By whole files, to the figures of the files themselves."""
    store = tmp_path / "store"
    for source in (name, str(suite)):
        done = subprocess.run(
            [sys.executable, "-m", "jobs.analyze", source, "--store", str(store),
             "--executor", "local", "--run", Path(source).name],
            env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    query = "SELECT scope, tensor, i, j, dot FROM similarity WHERE run = '{}' ORDER BY ALL"
    runs = [Path(name).name, suite.name]
    there, here = (open_store(str(store)).sql(query.format(run)).fetchall() for run in runs)
    assert there == here and there
