"""How addresses travel from the driver to workers: asked for once, small, and without the token."""

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
from pipeline.execute.work.addresses import (
    FILES_A_QUESTION,
    FrontDesk,
    InProcess,
    Paused,
    Remote,
    Wanted,
)
from pipeline.planning.plan import Plan, make_plan
from pipeline.planning.request import Request
from pipeline.sources import hub_addresses
from pipeline.sources.base import Source
from pipeline.transport.connections import Transport
from pipeline.transport.http import DIRECT_BYTES, ThroughDriver, UrlAccess
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
def at_work(plan: Plan, source: Source) -> Iterator[tuple[Remote, list[Any]]]:
    """A worker's box that the driver empties, as on Ray; yield it and what was asked."""
    remote, desk = Remote(plan), FrontDesk(InProcess(plan, source))
    over, asked = threading.Event(), []

    def drive() -> None:
        while not over.is_set():
            for number, question in remote.questions(0.05):
                asked.append(question)
                if number:  # else no answer is expected
                    desk.answer(
                        question,
                        lambda found, n=number: remote.answer(n, pickle.loads(pickle.dumps(found))),
                    )

    thread = threading.Thread(target=drive)
    thread.start()
    try:
        yield remote, asked
    finally:
        over.set()
        thread.join()
        desk.close()


def test_each_file_is_asked_for_once(hub: Hub) -> None:
    """Whatever the number of threads; expired addresses are asked for again, in time."""
    plan, source = make_plan(Request(NAME))
    files = list(range(len(plan.files)))
    with at_work(plan, source) as (remote, asked):
        threads = [threading.Thread(target=remote.prepare, args=(files,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(number for question in asked for number in question.files) == files
        before = hub.count("resolve_head")
        buffer = bytearray(1000)
        remote.get(3).read_into(Transport(remote), 500, memoryview(buffer))
        assert buffer == source.read(plan.files[3], 500, 1500)
        assert len(asked) == 1 and hub.count("resolve_head") == before


def test_a_refused_address_is_exchanged_in_the_middle_of_a_read(hub: Hub) -> None:
    plan, source = make_plan(Request(NAME))
    with at_work(plan, source) as (remote, asked):
        first = remote.get(0)
        hub.reset()
        hub.faults.add(Fault("truncate", after_bytes=100, occurrences={0}))
        hub.faults.add(Fault("status", status=403, occurrences={0, 1}))
        buffer = bytearray(1000)
        first.read_into(Transport(remote), 500, memoryview(buffer))
        assert buffer == source.read(plan.files[0], 500, 1500)
        assert asked[1:] == [Wanted((0,), 2)]
        assert remote.get(0).issue == 4  # the driver itself was refused once
        assert {(500, 600), (600, 1500)} < set(hub.ranges("model.safetensors")), "only the rest"


def test_an_answer_fits_into_its_call(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """From this size on Ray puts an argument into its object store, which is spilled to disk."""
    plan, source = make_plan(Request(NAME))
    access = source.access(plan.files[0])
    assert isinstance(access, UrlAccess)
    longest = replace(access, url="https://" + "x" * hub_addresses._LONGEST_ADDRESS)
    answer = dict.fromkeys(range(FILES_A_QUESTION), 0) | {
        n: replace(longest, url=longest.url + str(n)) for n in range(FILES_A_QUESTION)
    }
    assert len(pickle.dumps(answer)) < 0.9 * RAY_MAX_DIRECT_CALL_BYTES
    remote = Remote(plan)
    remote._ask_for(range(len(plan.files)), 0)
    assert all(len(question.files) <= FILES_A_QUESTION for _, question in remote.questions(0.1))
    monkeypatch.setattr(hub_addresses, "_LONGEST_ADDRESS", 100)
    with pytest.raises(ReadError, match=r"an address of \d+ characters"):
        make_plan(Request(NAME))[1].access(plan.files[0])


def test_errors_reach_those_who_asked(hub: Hub) -> None:
    """For one file of several; also what nobody expected, of which only the kind is told."""
    plan, source = make_plan(Request(NAME))
    del hub.repositories[NAME].commits[plan.files[1].checkpoint.commit or ""]
    source = make_plan(Request(NAME, revisions=("step[2-9]",)))[1]  # knows no address of it
    with at_work(plan, source) as (remote, _):
        with pytest.raises(SourceNotFound, match="no such revision"):
            remote.prepare([0, 1, 2])
        assert remote.get(2).where == plan.files[2].where
        source.access = lambda *_: 1 / 0
        with pytest.raises(ReadError, match="failed to answer: ZeroDivisionError"):
            remote.get(5)


def test_a_host_that_pauses_one_worker_pauses_all(hub: Hub, clock: Clock) -> None:
    plan, source = make_plan(Request(NAME))
    with at_work(plan, source) as (remote, asked):
        access = remote.get(0)
        hub.faults.add(Fault("status", status=429, headers={"Retry_After": "1"}, occurrences={0}))
        access.read_into(Transport(remote), 0, memoryview(bytearray(10)))
        other = Transport(remote)
        (told,) = [question for question in asked if isinstance(question, Paused)]
        other.pause(*told)
        before = clock.slept
        access.read_into(other, 0, memoryview(bytearray(10)))
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
    with at_work(plan, source) as (remote, asked):
        access = remote.get(0)
        assert isinstance(access, ThroughDriver) and plan.files[0].size <= DIRECT_BYTES
        buffer = bytearray(1000)
        access.read_into(Transport(remote), 500, memoryview(buffer))
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
    monkeypatch.setattr("pipeline.transport.http.DIRECT_BYTES", 1_000_000)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    plan, source = make_plan(Request(NAME))
    with at_work(plan, source) as (remote, _):
        access = remote.get(0)
        assert isinstance(access, UrlAccess) and not access.rights
        hub.reset()
        access.read_into(Transport(remote), 0, memoryview(bytearray(10)))
        assert [record.authorized for record in hub.records] == [False]
        repository.private = True
        with pytest.raises(ReadError, match="wants a token") as raised:
            access.read_into(Transport(remote), 0, memoryview(bytearray(10)))
        assert raised.value.hint == "use --executor local"
    source.access(plan.files[0]).read_into(
        Transport(InProcess(plan, source)), 0, memoryview(bytearray(10))
    )


def test_a_token_cannot_be_sent(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by mistake either: what carries one does not become a message, and shows nothing."""
    hub.repositories[NAME].direct = True
    monkeypatch.setenv("HF_TOKEN", hub.token)
    plan, source = make_plan(Request(NAME))
    access = source.access(plan.files[0])
    assert isinstance(access, UrlAccess) and hub.token in str(access.rights)
    with pytest.raises(HallmarksError, match="does not leave the driver"):
        pickle.dumps(access)
    assert hub.token not in repr(access) and access.url not in repr(access)
    copy = pickle.loads(pickle.dumps(replace(access, rights={})))
    assert copy == replace(access, rights={})
