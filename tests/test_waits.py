"""Whatever a server does, no wait is without an end, and long ones are announced with their reason."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ReadError, TransientReadError
from pipeline.execute.work.urls import LongWait, UrlBroker
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request
from pipeline.sources.hub import HubRepository
from pipeline.transport import waiting
from pipeline.transport.limits import Limits, pause_s
from pipeline.transport.reader import Reader
from tests import fault_table
from tests.conftest import Clock
from tests.fault_table import NAME, impatient
from tests.hub import Fault, Hub
from tests.hub.faults import Action
from tests.test_addresses import at_work

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def hub(served_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    fault_table.fill(served_hub, tmp_path / "suite")
    monkeypatch.setattr("pipeline.sources.hub_session.SILENCE_S", 0.5)
    monkeypatch.setattr("pipeline.transport.connections._ANSWER_S", 0.5)
    waiting._announced.clear()
    with impatient():
        yield served_hub


def endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def first_bytes(num_bytes: int = 200_000) -> bytes:
    """Plan anew, and read the beginning of the first file as a worker does."""
    plan, source = make_plan(Request(NAME))
    buffer = bytearray(num_bytes)
    Reader(UrlBroker(plan, source)).read(0, [(0, memoryview(buffer))])
    return bytes(buffer)


@pytest.mark.parametrize("kind", ["refs", "tree", "resolve_head", "cdn"])
@pytest.mark.parametrize("action", ["silent", "slow_headers"])
def test_headers_that_do_not_come(hub: Hub, kind: str, action: Action) -> None:
    """Not at all, or a byte now and then: asked again after a stated time."""
    expected = first_bytes()
    for file in Path(os.environ["XDG_CACHE_HOME"]).rglob("*.sqlite"):
        file.unlink()
    hub.reset()
    hub.faults.add(
        Fault(action, kind=kind, occurrences={0}, seconds=30 if action == "silent" else 0.02)
    )
    assert first_bytes() == expected
    assert len(hub.faults.applied) == 1


@pytest.mark.parametrize("kind", ["refs", "tree"])
def test_listings_at_a_byte_now_and_then(hub: Hub, kind: str) -> None:
    hub.faults.add(Fault("trickle", kind=kind, occurrences={0}, seconds=0.02))
    first_bytes()
    assert len(hub.faults.applied) == 1


def test_a_hub_that_never_answers(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.hub_session.SILENCE_S", 0.1)
    hub.faults.add(Fault("silent", kind="refs", seconds=30))
    with pytest.raises(TransientReadError, match=r"no answer for 0.1 s, 5 times"):
        make_plan(Request(NAME))


def test_bytes_that_come_one_by_one_are_no_progress(hub: Hub) -> None:
    """Else a megabyte would take days: each attempt brings a few, and each new one is a new start."""
    plan, source = make_plan(Request(NAME))
    reader = Reader(UrlBroker(plan, source))
    reader.access(0)
    hub.reset()
    hub.faults.add(Fault("trickle", seconds=0.05))
    with pytest.raises(TransientReadError, match="6 times"):
        reader.read(0, [(1000, memoryview(bytearray(200_000)))])


@pytest.mark.parametrize("kind", ["refs", "tree", "resolve_head", "cdn"])
@pytest.mark.parametrize(
    "headers",
    [
        {"RateLimit": '"api";r=0;t=99999999'},
        {"RateLimit": '"api";r=0;t=99999999', "Retry_After": "1"},
        {"Retry_After": "9" * 40},
    ],
    ids=["window", "both", "years"],
)
def test_a_pause_that_nobody_waits_for(hub: Hub, kind: str, headers: dict[str, str]) -> None:
    hub.faults.add(Fault("status", kind=kind, status=429, headers=headers))
    with pytest.raises(TransientReadError, match="HTTP 429: the server requested a back-off of"):
        first_bytes()


def test_a_window_without_an_end(hub: Hub) -> None:
    """Stated with an answer that is right: waited for silently until 2026-08-01."""
    hub.windows = {"api": (1, 99_999_999)}
    with pytest.raises(TransientReadError, match="HTTP 429: the server requested a back-off of"):
        make_plan(Request(NAME))


def test_a_window_of_which_only_the_end_is_known(clock: Clock) -> None:
    limits = Limits()
    limits.note({"RateLimit": '"api";r=0;t=0'})
    for _ in range(3):
        limits.take("api", clock.sleep)
    assert clock.slept < 2


def test_a_date_is_the_servers_own() -> None:
    later = "Thu, 01 Jan 2026 00:00:07 GMT"
    assert pause_s({"Retry-After": later, "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}) == 7
    aged = {"Retry-After": later, "Date": "Thu, 01 Jan 2026 00:00:00 GMT", "Age": "5"}
    assert pause_s(aged) == 2


def test_pages_without_an_end(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.hub_session.MOST_REQUESTS", 50)
    commit = hub.repositories[NAME].branches["step0"]
    hub.link = f"{endpoint()}/api/models/{NAME}/tree/{commit}?cursor=0"
    with pytest.raises(ReadError, match="expected a listing of at most 50 pages, found more"):
        make_plan(Request(NAME))
    assert hub.count("tree") <= 50 * len(hub.repositories[NAME].branches)


@pytest.mark.parametrize("ahead_s", [-7200.0, 7200.0])
def test_addresses_are_timed_by_the_clock_of_who_gives_them(
    hub: Hub, ahead_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by the driver's: by that they may be over when they come, and were asked for for ever."""
    hub.absolute_expiry, hub.ahead_s = True, ahead_s
    plan, source = make_plan(Request(NAME))
    with at_work(plan, source) as (urls, _):
        reader = Reader(urls)
        reader.accesses(range(len(plan.files)))
        for file in range(len(plan.files)):
            reader.read(file, [(0, memoryview(bytearray(10)))])
            assert 0.7 * 3600 < reader.access(file).good_for_s < 0.8 * 3600 + 2
    assert hub.count("resolve_head") == len(plan.files)
    side = "behind" if ahead_s > 0 else "ahead of"
    (told,) = [text for text in caplog.messages if "clock" in text]
    assert f"s {side} that of {endpoint()}" in told


def test_addresses_that_are_over_by_their_own_clock(hub: Hub) -> None:
    """A few tries each, then an error that says so."""
    hub.absolute_expiry, hub.address_life_s = True, -10.0
    source = HubRepository(NAME)
    file = source.files(source.candidates()[0])[0]
    with pytest.raises(TransientReadError, match="the URL is not accepted"):
        source.access(file)
    assert hub.count("resolve_head") <= 7


def test_expired_when_they_come_a_worker_tries_them(hub: Hub) -> None:
    """On the way from the driver the rest of an address's life may pass."""
    plan, source = make_plan(Request(NAME))
    with at_work(plan, source) as (urls, asked):
        plain = source.access
        source.access = lambda *given: replace(plain(*given), good_for_s=-1.0)
        reader = Reader(urls)
        reader.accesses([0, 1])
        for file in (0, 1):
            reader.read(file, [(0, memoryview(bytearray(10)))])
        assert len(asked) <= 5


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Announce what takes half a second."""
    for module in (
        "transport.waiting",
        "transport.http",
        "sources.hub_client",
        "sources.hub_session",
    ):
        monkeypatch.setattr(f"pipeline.{module}.ANNOUNCED_S", 0.5)


PAUSE = {"status": 429, "headers": {"Retry_After": "1"}}


@pytest.mark.usefixtures("talkative")
def test_a_worker_has_the_driver_say_why_it_waits(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    plan, source = make_plan(Request(NAME))
    with at_work(plan, source) as (urls, asked):
        reader = Reader(urls)
        reader.access(0)
        hub.faults.add(Fault("status", occurrences={0}, **PAUSE))
        reader.read(0, [(0, memoryview(bytearray(10)))])
    (told,) = [request for request in asked if isinstance(request, LongWait)]
    assert told == (hub.cdn_url, f"{hub.cdn_url}: HTTP 429; retrying in 1 s")
    assert not caplog.messages


@pytest.mark.usefixtures("talkative")
@pytest.mark.parametrize("kind", ["refs", "tree", "resolve_head", "cdn"])
def test_a_pause_is_announced(hub: Hub, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Once, however many wait for it."""
    hub.faults.add(Fault("status", kind=kind, occurrences={0, 1}, **PAUSE))
    first_bytes()
    (told,) = caplog.messages
    assert told.startswith(hub.cdn_url if kind == "cdn" else endpoint()) and "HTTP 429" in told


@pytest.mark.usefixtures("talkative")
def test_a_spent_window_is_announced(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.windows = {"api": (4, 2.0)}
    make_plan(Request(NAME))
    assert "the account's window of api requests is spent: waiting" in caplog.text


@pytest.mark.usefixtures("talkative")
def test_a_long_listing_is_announced(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.sources.hub_session.SILENCE_S", 30.0)
    hub.faults.add(Fault("trickle", kind="refs", seconds=0.002))
    make_plan(Request(NAME))
    (told,) = caplog.messages
    assert told.startswith(f"{NAME}: waiting for {endpoint()} for") and "1 requests so far" in told


def test_a_notice_on_standard_error(hub: Hub, tmp_path: Path) -> None:
    """A line each, whatever the executor; results are not mixed with it."""
    hub.absolute_expiry, hub.ahead_s = True, -7200.0
    done = subprocess.run(
        [sys.executable, "-m", "jobs.plan", NAME, "--json"],
        env=os.environ | {"HF_ENDPOINT": endpoint(), "HF_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (note,) = done.stderr.splitlines()
    assert note.startswith("note: this machine's clock is 7,") and "ahead of" in note


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(180)
def test_workers_on_ray_are_heard_too(hub: Hub, tmp_path: Path) -> None:
    """Also with a clock by which every address is over: asked for once a file."""
    hub.absolute_expiry, hub.ahead_s = True, -7200.0
    # planning reads the head of every file
    fault = Fault("status", occurrences={fault_table.CHECKPOINTS + 3}, status=429)
    hub.faults.add(replace(fault, headers={"Retry_After": "16"}))
    command = [sys.executable, "-m", "jobs.analyze", NAME, "--store", str(tmp_path / "store")]
    done = subprocess.run(
        [*command, "--max-workers", "1"],
        env=os.environ | {"HF_ENDPOINT": endpoint(), "HF_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if line.startswith("note:")]
    assert f"note: {hub.cdn_url}: HTTP 429; retrying in 16 s" in notes
    assert hub.count("resolve_head") == fault_table.CHECKPOINTS
