"""How URLs travel from the driver to workers: requested once, small, and without the token."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.errors import HallmarksError, ReadError, SourceNotFound
from pipeline.execute.work.urls import (
    FILES_A_REQUEST,
    AccessRequest,
    DriverUrls,
    HostPaused,
    UrlBroker,
)
from pipeline.planning.make import make_plan
from pipeline.planning.plan import Plan
from pipeline.planning.request import Request
from pipeline.sources import hub_urls
from pipeline.sources.base import Source
from pipeline.transport.access import DIRECT_BYTES, ThroughDriver, Url
from pipeline.transport.reader import Reader
from tests import fault_table
from tests.conftest import Clock
from tests.fault_table import NAME, impatient
from tests.hub import Fault, Hub
from tests.test_bits import everything

RAY_MAX_DIRECT_CALL_BYTES = 100 * 1024
"""Ray's `max_direct_call_object_size`."""


@pytest.fixture
def hub(served_hub: Hub, tmp_path: Path) -> Iterator[Hub]:
    fault_table.fill(served_hub, tmp_path / "suite")
    with impatient():
        yield served_hub


@contextmanager
def at_work(plan: Plan, source: Source) -> Iterator[tuple[DriverUrls, list[Any]]]:
    """A worker's box that the driver empties, as on Ray; yield it and what was requested."""
    urls, broker = DriverUrls(), UrlBroker(plan, source)
    over, asked = threading.Event(), []

    def drive() -> None:
        while not over.is_set():
            for number, request in urls.requests(0.05):
                asked.append(request)
                if number:  # else no answer is expected
                    broker.answer(
                        request,
                        lambda found, n=number: urls.answer(n, pickle.loads(pickle.dumps(found))),
                    )

    thread = threading.Thread(target=drive)
    thread.start()
    try:
        yield urls, asked
    finally:
        over.set()
        thread.join()
        broker.close()


def test_each_file_is_asked_for_once(hub: Hub) -> None:
    """Whatever the number of threads; expired addresses are asked for again, in time."""
    plan, source = make_plan(Request(NAME))
    files = list(range(len(plan.files)))
    with at_work(plan, source) as (urls, asked):
        reader = Reader(urls)
        threads = [threading.Thread(target=reader.accesses, args=(files,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(number for request in asked for number in request.files) == files
        before = hub.count("resolve_head")
        buffer = bytearray(1000)
        reader.read(3, [(500, memoryview(buffer))])
        assert buffer == source.read(plan.files[3], 500, 1500)
        assert len(asked) == 1 and hub.count("resolve_head") == before


def test_a_refused_address_is_exchanged_in_the_middle_of_a_read(hub: Hub) -> None:
    plan, source = make_plan(Request(NAME))
    with at_work(plan, source) as (urls, asked):
        reader = Reader(urls)
        reader.access(0)
        hub.reset()
        hub.faults.add(Fault("truncate", after_bytes=100, occurrences={0}))
        hub.faults.add(Fault("status", status=403, occurrences={0, 1}))
        buffer = bytearray(1000)
        reader.read(0, [(500, memoryview(buffer))])
        assert buffer == source.read(plan.files[0], 500, 1500)
        assert asked[1:] == [AccessRequest((0,), 2)]
        assert reader.access(0).generation == 4  # the driver itself was refused once
        assert {(500, 600), (600, 1500)} < set(hub.ranges("model.safetensors")), "only the rest"


def test_an_answer_fits_into_its_call(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """From this size on Ray puts an argument into its object store, which is spilled to disk."""
    plan, source = make_plan(Request(NAME))
    access = source.access(plan.files[0])
    assert isinstance(access, Url)
    longest = replace(access, url="https://" + "x" * hub_urls._LONGEST_URL)
    answer = dict.fromkeys(range(FILES_A_REQUEST), 0) | {
        n: replace(longest, url=longest.url + str(n)) for n in range(FILES_A_REQUEST)
    }
    assert len(pickle.dumps(answer)) < 0.9 * RAY_MAX_DIRECT_CALL_BYTES
    with at_work(plan, source) as (urls, asked):
        Reader(urls).accesses(range(len(plan.files)))
    assert all(len(request.files) <= FILES_A_REQUEST for request in asked)
    monkeypatch.setattr(hub_urls, "_LONGEST_URL", 100)
    with pytest.raises(ReadError, match=r"a URL of \d+ characters"):
        make_plan(Request(NAME))[1].access(plan.files[0])


def test_errors_reach_those_who_asked(hub: Hub) -> None:
    """For one file of several; also what nobody expected, of which only the kind is told."""
    plan, source = make_plan(Request(NAME))
    del hub.repositories[NAME].commits[plan.files[1].checkpoint.commit or ""]
    source = make_plan(Request(NAME, revisions=("step[2-9]",)))[1]  # knows no URL of it
    with at_work(plan, source) as (urls, _):
        reader = Reader(urls)
        with pytest.raises(SourceNotFound, match="no such revision"):
            reader.accesses([0, 1, 2])
        assert reader.access(2).where == plan.files[2].where
        source.access = lambda *_: 1 / 0
        with pytest.raises(ReadError, match="failed to answer: ZeroDivisionError"):
            reader.access(5)


def test_a_host_that_pauses_one_worker_pauses_all(hub: Hub, clock: Clock) -> None:
    plan, source = make_plan(Request(NAME))
    with at_work(plan, source) as (urls, asked):
        reader, other = Reader(urls), Reader(urls)
        other.access(0)
        hub.faults.add(Fault("status", status=429, headers={"Retry_After": "1"}, occurrences={0}))
        reader.read(0, [(0, memoryview(bytearray(10)))])
        other.access(1)  # is answered, after what was told before: nobody waits for that
        (told,) = [request for request in asked if isinstance(request, HostPaused)]
        other.pause(*told)
        before = clock.slept
        other.read(0, [(0, memoryview(bytearray(10)))])
        assert clock.slept - before >= 0.9


def test_small_files_that_the_hub_serves_itself_are_read_by_the_driver(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"source": NAME, "executor": "local", "run": "r"}
    pipeline.analyze(store=str(tmp_path / "signed"), **options)
    repository = hub.repositories[NAME]
    repository.direct = repository.private = True
    monkeypatch.setenv("HF_TOKEN", hub.token)
    plan, source = make_plan(Request(NAME))
    hub.reset()
    with at_work(plan, source) as (urls, asked):
        reader = Reader(urls)
        access = reader.access(0)
        assert isinstance(access, ThroughDriver) and plan.files[0].size <= DIRECT_BYTES
        buffer = bytearray(1000)
        reader.read(0, [(500, memoryview(buffer))])
        assert buffer == source.read(plan.files[0], 500, 1500)
        assert len(asked) == 2
    assert all(record.authorized for record in hub.records)
    pipeline.analyze(store=str(tmp_path / "direct"), **options)
    assert everything(tmp_path / "direct") == everything(tmp_path / "signed")


def test_large_ones_are_read_without_a_token_or_not_at_all(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.repositories[NAME]
    repository.direct = True
    monkeypatch.setattr("pipeline.transport.access.DIRECT_BYTES", 1_000_000)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    plan, source = make_plan(Request(NAME))
    with at_work(plan, source) as (urls, _):
        reader = Reader(urls)
        access = reader.access(0)
        assert isinstance(access, Url) and not access.credentials
        hub.reset()
        reader.read(0, [(0, memoryview(bytearray(10)))])
        assert [record.authorized for record in hub.records] == [False]
        repository.private = True
        with pytest.raises(ReadError, match="wants a token") as raised:
            reader.read(0, [(0, memoryview(bytearray(10)))])
        assert raised.value.hint == "use --executor local"
    Reader(UrlBroker(plan, source)).read(0, [(0, memoryview(bytearray(10)))])


def test_a_token_cannot_be_sent(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by mistake either: what carries one does not become a message, and shows nothing."""
    hub.repositories[NAME].direct = True
    monkeypatch.setenv("HF_TOKEN", hub.token)
    plan, source = make_plan(Request(NAME))
    access = source.access(plan.files[0])
    assert isinstance(access, Url) and hub.token in str(access.credentials)
    with pytest.raises(HallmarksError, match="does not leave the driver"):
        pickle.dumps(access)
    assert hub.token not in repr(access) and access.url not in repr(access)
    copy = pickle.loads(pickle.dumps(replace(access, credentials={})))
    assert copy == replace(access, credentials={})
