"""What is meant for the Hub's host stays there: the token, a password in HF_ENDPOINT, and https."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

import pipeline
from pipeline.errors import HallmarksError, ReadError
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request
from pipeline.sources.hub import HubRepository
from pipeline.transport.access import ThroughDriver, Url, for_workers
from tests import canary
from tests.commands import hallmarks
from tests.conftest import serving
from tests.hub import Authority, Fault, Hub
from tests.suites import trajectory, write_suite

NAME = "org/kept"
PASSWORD = "mirr0rPassw0rd"
SIGNATURE = "canarySignature"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub()
    hub.marker = SIGNATURE
    rows = trajectory("walk", 3, 20_000, 0.1)
    for folder in write_suite(tmp_path / "suite", {"w": rows}).iterdir():
        hub.repository(NAME).commit_folder(folder, folder.name)
    close_session()  # it has read the environment when it was made
    yield hub
    close_session()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def secured(hub: Hub, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Both hosts over TLS, and a token."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with serving(hub, authority):
        yield hub


@pytest.mark.parametrize("kind", ["resolve_head", "tree"])
def test_https_is_never_left(secured: Hub, kind: str) -> None:
    """Neither by an address of a file nor by a next page, which would get the token in clear text."""
    plain = Hub()
    with plain.serve() as other:
        if kind == "tree":
            secured.link = f"{other}/api/models/{NAME}/tree/main"
        else:
            secured.cdn_url = other
        with pytest.raises(ReadError, match="https") as raised:
            make_plan(Request(NAME))
    assert other in raised.value.message and not plain.records
    assert constants.ENDPOINT in raised.value.message + raised.value.hint


def test_the_token_goes_to_no_other_host(secured: Hub, authority: Authority) -> None:
    """Nor to the host of a next page, where huggingface_hub would send it."""
    stranger = Hub()
    with stranger.serve(authority) as other:
        secured.link = f"{other}/api/models/{NAME}/tree/main"
        with pytest.raises(ReadError, match="where the token does not go") as raised:
            make_plan(Request(NAME))
    assert other in raised.value.message and not stranger.records


def run(module: str, endpoint: str, folder: Path, *options: str, **more: str) -> str:
    """Run a command, and return all that it said."""
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{module}", NAME, *options],
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home")} | more,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_a_token_that_has_expired_is_said_to_be_refused(
    secured: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that there is no such repository, which is what huggingface_hub makes of it."""
    secured.refuses_strangers = True
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    error, hint = hallmarks("plan", NAME).stderr.splitlines()
    assert error == (
        f"error: {NAME}: {constants.ENDPOINT} refused the request: the token is not valid"
    )
    assert hint == "hint: it may have expired: log in with `hf auth login`, or unset HF_TOKEN"
    del secured.repositories[NAME]
    monkeypatch.setenv("HF_TOKEN", "")
    assert "no such repository on" in hallmarks("plan", NAME).stderr


def test_a_certificate_that_is_not_accepted_is_named_at_once(
    hub: Hub, authority: Authority, tmp_path: Path
) -> None:
    """Not as a host that cannot be reached, five times. A wrong clock is a frequent cause."""
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    with hub.serve(authority) as endpoint:
        said = run("plan", endpoint, tmp_path, SSL_CERT_FILE=str(other.ca))
    error, hint = said.splitlines()
    assert "the host's certificate is not trusted" in error and endpoint in error
    assert "SSL_CERT_FILE" in hint and "clock" in hint


@pytest.fixture
def everything_logged() -> Iterator[list[str]]:
    """What any library logs, as a program that embeds this one may have it."""
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, root = Kept(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize("direct", [False, True], ids=["signed", "direct"])
@pytest.mark.parametrize("cache", [False, True], ids=["ranges", "cache"])
def test_a_password_in_the_endpoint(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everything_logged: list[str],
    direct: bool, cache: bool,
) -> None:  # fmt: skip
    """A mirror that asks for one is read, and the password is printed, logged and stored nowhere."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    hub.password = f"me:{PASSWORD}"
    hub.repository(NAME).direct = direct
    with serving(hub):
        assert PASSWORD in constants.ENDPOINT
        summary = pipeline.analyze(NAME, str(tmp_path / "store"), executor="local", cache=cache)
        assert summary.complete
    assert all(record.status < 400 for record in hub.records)
    with_rights = {record.kind for record in hub.records if record.authorized}
    assert "cdn" not in with_rights and "tree" in with_rights
    folders = [tmp_path / "store", tmp_path / "hub", Path(os.environ["XDG_CACHE_HOME"])]
    assert not canary.in_files([PASSWORD, SIGNATURE], *folders)
    assert not [line for line in everything_logged if PASSWORD in line or SIGNATURE in line]


@pytest.mark.parametrize("wrong", ["password", "down", "address"])
def test_errors_do_not_show_a_password_in_the_endpoint(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr("pipeline.transport.limits.FIRST_PAUSE_S", 0.001)
    hub.password = f"me:{PASSWORD}"
    with serving(hub):
        shown = constants.ENDPOINT.replace(f"me:{PASSWORD}@", "")
        if wrong == "password":
            hub.password = "me:other"
        elif wrong == "down":
            hub.faults.add(Fault("status", kind="refs", status=503))
        else:
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"{constants.ENDPOINT}x")
        with pytest.raises(HallmarksError) as raised:
            make_plan(Request(NAME))
    said = f"{raised.value.message}\n{raised.value.hint}"
    expected = {
        "password": f"{shown} refused the request: the user and password in HF_ENDPOINT are",
        "down": f"is {shown} reachable?",
        "address": "HF_ENDPOINT is not a URL",
    }
    assert expected[wrong] in said and PASSWORD not in said


def test_the_workers_do_not_get_it(hub: Hub, tmp_path: Path) -> None:
    """What a worker may have of a file that the mirror serves itself."""
    hub.password = f"me:{PASSWORD}"
    hub.repository(NAME).direct = True
    with serving(hub):
        source = HubRepository(NAME)
        access = source.access(source.files(source.candidates()[0])[0])
    assert isinstance(access, Url) and PASSWORD not in access.url
    with pytest.raises(HallmarksError, match="does not leave the driver"):
        pickle.dumps(access)
    assert isinstance(for_workers(access), ThroughDriver)
    assert PASSWORD.encode() not in pickle.dumps(for_workers(access))


@pytest.mark.slow
@pytest.mark.ray
def test_no_process_of_a_local_ray_has_it(hub: Hub, tmp_path: Path) -> None:
    hub.password, hub.bytes_per_s = f"me:{PASSWORD}", 200_000
    with serving(hub):
        job = subprocess.Popen(
            [sys.executable, "-m", "jobs.analyze", NAME, "--store", str(tmp_path / "store")],
            env=os.environ | {"HF_ENDPOINT": constants.ENDPOINT, "HF_HOME": str(tmp_path / "home")},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        found: Counter[str] = Counter()
        while job.poll() is None:
            found.update(canary.in_processes([PASSWORD], but=[job.pid]))
            time.sleep(0.2)
        said = job.communicate()[1]
    # a child that has been forked, and does not run its own program yet, looks like the driver
    assert job.returncode == 0 and not [name for name, times in found.items() if times > 2], said
