"""What a network does to a long read: the bytes are right, or an error says which are not."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pipeline
from pipeline.errors import HallmarksError, ReadError, SourceChanged, TransientReadError
from pipeline.execute.work.urls import UrlBroker
from pipeline.planning.make import make_plan
from pipeline.planning.plan_cache import cache_file
from pipeline.planning.request import Request
from pipeline.sources.hub import HubRepository
from pipeline.transport.access import Url
from pipeline.transport.limits import Limits, pause_s, windows
from pipeline.transport.reader import Reader
from tests import fault_table
from tests.commands import hallmarks
from tests.conftest import Clock
from tests.fault_table import NAME, Bench, Outcome, impatient
from tests.hub import Fault, Hub
from tests.hub.faults import Action


@pytest.fixture
def hub(served_hub: Hub, tmp_path: Path) -> Iterator[Hub]:
    fault_table.fill(served_hub, tmp_path / "suite")
    with impatient():
        yield served_hub


@pytest.fixture
def bench(hub: Hub) -> Bench:
    return Bench(hub)


@pytest.fixture
def quiet(bench: Bench) -> Outcome:
    return bench.run()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bench, Outcome]]:
    """One Hub for the whole table."""
    from tests.conftest import serving

    served = Hub()
    with serving(served), impatient():
        fault_table.fill(served, tmp_path_factory.mktemp("faults") / "suite")
        bench = Bench(served)
        yield bench, bench.run()


def _shown(row: str) -> object:
    """Of those that come often, a few are enough for every day."""
    often = "20%" in row and not row.startswith(("503", "truncate half", "reset half"))
    return pytest.param(row, marks=pytest.mark.slow) if often else row


@pytest.mark.parametrize("row", [_shown(row) for row in fault_table.rows()])
def test_faults_that_pass_change_no_bit(table: tuple[Bench, Outcome], row: str) -> None:
    bench, quiet = table
    found = bench.run(*fault_table.rows()[row])
    assert found.faults
    assert found.results == quiet.results
    assert found.repeated < 0.1


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        ("encoded", ReadError, "expected the bytes as they are, found Content-Encoding 'gzip'"),
        ("wrong_content_range", ReadError, r"expected bytes \d+-\d+, found Content-Range"),
        ("wrong_total", SourceChanged, "expected a file of"),
        ("wrong_etag", SourceChanged, "expected the ETag"),
    ],
)
@pytest.mark.parametrize("occurrence", [0, 7])
def test_a_wrong_answer_is_an_error_that_says_which(
    table: tuple[Bench, Outcome], action: Action, error: type, message: str, occurrence: int
) -> None:
    """At once, in one line that names the bytes; what comes after is none the worse."""
    bench, quiet = table
    with pytest.raises(error, match=message) as raised:
        bench.run(Fault(action, occurrences={occurrence}))
    assert re.search(rf"{NAME}@[0-9a-f]{{40}}/model.safetensors\[\d+:\d+\]", str(raised.value))
    assert "Signature" not in str(raised.value) and raised.value.__cause__ is None
    assert [fault.action for fault, _ in bench.hub.faults.applied] == [action]
    assert bench.run().results == quiet.results


def test_small_files_may_come_whole(bench: Bench, quiet: Outcome, hub: Hub) -> None:
    """A server may ignore `Range`, now and then or always."""
    found = bench.run(Fault("ignore_range", occurrences=range(7, 20)))
    assert found.faults == 13 and found.results == quiet.results


@pytest.mark.parametrize("action", ["ignore_range", "chunked"])
def test_any_range_of_a_file_that_comes_whole(hub: Hub, action: Action) -> None:
    """Also of a server that states neither how long the file is nor a tag."""
    plan, source = make_plan(Request(NAME))
    size = plan.files[0].size
    for start, stop in ((0, 10), (5000, 100_000), (size - 1, size), (0, size)):
        expected = source.read(plan.files[0], start, stop)
        hub.faults.add(Fault(action))
        buffer = bytearray(stop - start)
        Reader(UrlBroker(plan, HubRepository(NAME))).read(0, [(start, memoryview(buffer))])
        assert buffer == expected and hub.faults.applied
        hub.faults.clear()


@pytest.mark.parametrize("action", ["truncate", "reset"])
def test_a_file_that_comes_whole_only_at_the_second_time(hub: Hub, action: Action) -> None:
    plan, source = make_plan(Request(NAME))
    reader, size = Reader(UrlBroker(plan, source)), plan.files[0].size
    reader.access(0)
    hub.faults.add(Fault(action, occurrences={0}, after_share=0.9, whole=True))
    hub.faults.add(Fault("ignore_range"))
    buffer = bytearray(10)
    reader.read(0, [(50, memoryview(buffer))])
    hub.faults.clear()
    assert buffer == source.read(plan.files[0], 50, 60)
    assert [found for found in hub.ranges("model.safetensors") if found == (0, size)]


@pytest.mark.parametrize("longer", [-1, 1])
@pytest.mark.parametrize("action", ["ignore_range", "chunked"])
def test_another_file_that_comes_whole_is_refused(hub: Hub, action: Action, longer: int) -> None:
    plan, source = make_plan(Request(NAME))
    access = source.access(plan.files[0])
    assert isinstance(access, Url)
    reader = Reader(UrlBroker(plan, source))
    reader.hold(0, replace(access, size=access.size + longer, etag=""))
    hub.faults.add(Fault(action))
    with pytest.raises(SourceChanged, match="expected a file of"):
        reader.read(0, [(50, memoryview(bytearray(10)))])


def test_a_large_file_that_comes_whole_is_refused_unread(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that ignores ranges would send terabytes. It is named."""
    plan, source = make_plan(Request(NAME))
    reader, size = Reader(UrlBroker(plan, source)), plan.files[0].size
    reader.access(0)
    monkeypatch.setattr("pipeline.transport.http.WHOLE_BYTES", size - 1)
    hub.reset()
    hub.bytes_per_s = 1e6  # the file takes more than two seconds
    hub.faults.add(Fault("ignore_range"))
    said = f"{hub.cdn_url} sent the whole file .* taken up to {size - 1:,} bytes; .* has {size:,}"
    with pytest.raises(ReadError, match=said):
        reader.read(0, [(5000, memoryview(bytearray(100)))])
    hub.bytes_per_s = None
    while not hub.count("cdn"):
        time.sleep(0.01)
    (record,) = [record for record in hub.records if record.kind == "cdn"]
    assert record.range and record.range[1] - record.range[0] < size


def test_a_file_that_changes_under_its_commit_stops_the_run(
    bench: Bench, quiet: Outcome, hub: Hub
) -> None:
    """By the tag that every request after the first demands; by the hash that an address comes with."""
    repository = hub.repositories[NAME]
    commit = repository.commits[repository.branches["step3"]]
    stored = commit.files["model.safetensors"]
    assert isinstance(stored.content, Path)
    changed = replace(stored, content=stored.content.read_bytes()[:-4] + b"abcd")

    def change() -> None:
        commit.files["model.safetensors"] = changed

    with pytest.raises(SourceChanged, match="HTTP 412: expected the ETag"):
        bench.run(before=change)
    with pytest.raises(SourceChanged, match="changed under its commit"):
        bench.run()
    commit.files["model.safetensors"] = stored
    assert bench.run().results == quiet.results


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "HTTP 404"), (416, "HTTP 416"), (302, "HTTP 302"), (400, "HTTP 400")],
)
def test_permanent_answers_are_not_asked_twice(
    bench: Bench, hub: Hub, status: int, message: str
) -> None:
    with pytest.raises(ReadError, match=message):
        bench.run(Fault("status", status=status, occurrences={7}))
    assert len(hub.faults.applied) == 1


def test_a_failing_host_is_given_up_after_six_attempts(bench: Bench, hub: Hub) -> None:
    hub.reset()
    with pytest.raises(TransientReadError, match="HTTP 503, 6 times"):
        bench.run(Fault("status", status=503))


def test_a_trickle_is_a_stall(hub: Hub) -> None:
    """A byte now and then keeps no read alive; what has come is kept."""
    plan, source = make_plan(Request(NAME))
    reader = Reader(UrlBroker(plan, source))
    reader.access(0)
    hub.reset()
    hub.faults.add(Fault("trickle", occurrences={0}, after_bytes=100_000, seconds=0.05))
    buffer = bytearray(200_000)
    reader.read(0, [(1000, memoryview(buffer))])
    ranges = hub.ranges("model.safetensors")
    assert ranges[-1][0] > 101_000 and ranges[-1][1] == 201_000
    assert buffer == source.read(plan.files[0], 1000, 201_000)


def test_hosts_that_want_to_be_left_alone_are(hub: Hub, clock: Clock) -> None:
    """By every thread, for as long as the answer asks."""
    plan, source = make_plan(Request(NAME))
    told: list[tuple[str, float]] = []
    urls = UrlBroker(plan, source)
    urls.paused = lambda host, seconds: told.append((host, seconds))
    reader = Reader(urls)
    reader.access(0)
    hub.reset()
    hub.faults.add(Fault("status", status=429, headers={"Retry_After": "1"}, occurrences={0}))
    reader.read(0, [(0, memoryview(bytearray(10)))])
    assert clock.slept >= 0.9
    assert told == [(hub.cdn_url, 1.0)]


def test_what_answers_ask_for() -> None:
    assert pause_s({}) is None
    assert pause_s({"Retry-After": "7"}) == 7
    assert pause_s({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0
    assert pause_s({"Retry-After": "soon"}) is None
    assert pause_s({"RateLimit": '"api";r=0;t=55'}) == 56
    assert pause_s({"RateLimit": '"api";r=3;t=55'}) is None
    assert pause_s({"Retry-After": "9" * 40}) == math.inf
    assert pause_s({"Retry-After": "7", "RateLimit": '"api";r=0;t=55'}) == 56


def test_every_request_says_who_asks(hub: Hub, tmp_path: Path) -> None:
    pipeline.analyze(NAME, str(tmp_path), executor="local", run="r")
    assert {record.kind for record in hub.records} == {"refs", "tree", "resolve_head", "cdn"}
    assert all(record.agent.startswith("hallmarks/") for record in hub.records)


def test_plan_states_the_requests(hub: Hub, tmp_path: Path) -> None:
    """As many as analyze then makes at most, by class, and the accounts whose windows hold them."""
    planned = hallmarks("plan", NAME, "--json")
    stated = json.loads(planned.stdout)
    made = {"api": hub.count("refs") + hub.count("tree"), "resolvers": hub.count("resolve_head")}
    assert stated["requests"] == made
    assert stated["windows"]["anonymous"] == {"api": 1, "resolvers": 1}
    hub.reset()
    shown = hallmarks("plan", NAME)
    needed = f"at most 1 api, {fault_table.CHECKPOINTS} resolvers to analyze"
    assert f"1 api made for this plan; {needed}" in shown.stdout
    assert "anonymous: five-minute quota (500 api, 3,000 resolvers) is sufficient" in (shown.stdout)
    hub.reset()
    pipeline.analyze(NAME, str(tmp_path / "store"), executor="local", run="r")
    assert hub.count("refs") + hub.count("tree") <= stated["requests_to_analyze"]["api"]
    assert hub.count("resolve_head") <= stated["requests_to_analyze"]["resolvers"]


def test_windows() -> None:
    needed = {"api": 936, "resolvers": 5_610}
    assert windows(needed) == {
        "anonymous": {"api": 2, "resolvers": 2},
        "free": {"api": 1, "resolvers": 2},
        "PRO": {"api": 1, "resolvers": 1},
    }


def test_the_account_is_never_spent(hub: Hub) -> None:
    """Windows of 20 requests: listings and addresses wait for the next in time."""
    hub.windows = {"api": (20, 3.0), "resolvers": (20, 3.0)}
    repository = hub.repositories[NAME]
    head = repository.branches["step0"]
    for number in range(20):
        files = {path: file.content for path, file in repository.commits[head].files.items()}
        repository.commit({**files, "n.txt": str(number).encode()}, f"step{100 + number}")
    plan, source = make_plan(Request(NAME))
    for file in plan.files:
        source.access(file)
    assert hub.count("tree") >= 28
    assert not [record for record in hub.records if record.status == 429]


def test_a_window_that_others_have_spent_is_waited_for(hub: Hub) -> None:
    hub.windows = {"api": (5, 1.0)}
    for _ in range(5):
        hub.spend("refs")
    make_plan(Request(NAME))
    assert [record for record in hub.records if record.status == 429]


def test_limits_count_what_is_under_way() -> None:
    limits = Limits()
    limits.note({"RateLimit": '"api";r=100;t=60', "RateLimit-Policy": '"fixed";"api";q=100;w=60'})
    for _ in range(90):
        limits.take("api", pytest.fail)
    limits.take("resolvers", pytest.fail)  # another class
    assert limits._taken("api") > 0


def test_addresses_that_live_for_a_moment(
    bench: Bench, quiet: Outcome, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewed in the middle of tiles, before they expire; nothing is read again."""
    monkeypatch.setattr("pipeline.transport.http._STALL_S", 5.0)  # a busy machine is not a stall
    hub.address_life_s = 0.5
    hub.bytes_per_s = 10e6  # 19 MB: four lives
    found = bench.run()
    assert found.results == quiet.results
    assert found.repeated < 1e-5  # one byte of each file says its tag
    assert hub.count("resolve_head") > 2 * fault_table.CHECKPOINTS


def test_a_lost_tile_names_its_bytes(hub: Hub, tmp_path: Path) -> None:
    """Exit 3 of the command; nothing but the bytes' place is told of the address."""
    for number in (0, 1):
        hub.faults.add(
            Fault("status", status=503, headers={"Retry_After": "0"}, occurrences=range(9, 9999))
            if number
            else Fault("status", status=404, occurrences={20})
        )
    options = ["--store", tmp_path / "store", "--executor", "local", "--json", "--debug"]
    done = hallmarks("analyze", NAME, *options)
    assert done.returncode == 3, done.stderr
    assert re.search(rf"{NAME}@[0-9a-f]{{40}}/model.safetensors\[\d+:\d+\]: HTTP", done.stderr)
    assert "Signature" not in done.stderr + done.stdout
    assert not json.loads(done.stdout)["complete"]


@pytest.mark.parametrize("kind", ["refs", "tree", "resolve_head"])
@pytest.mark.parametrize("status", [429, 503])
def test_the_hub_is_asked_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, kind: str, status: int
) -> None:
    monkeypatch.setattr("pipeline.transport.limits.FIRST_PAUSE_S", 0.001)
    expected, _ = make_plan(Request(NAME))
    cache_file().unlink()
    hub.reset()
    hub.faults.add(Fault("status", kind=kind, status=status, occurrences={0, 1}))
    found, _ = make_plan(Request(NAME))
    assert found == expected
    assert len(hub.faults.applied) == 2


@pytest.mark.parametrize(
    ("headers", "status", "message", "hint"),
    [
        ({"X_Error_Code": "RepoNotFound"}, 401, "no such repository", "hf auth login"),
        ({"X_Error_Code": "GatedRepo"}, 403, "access is gated", "accept the terms"),
        ({}, 403, "HTTP 403", "check HF_TOKEN"),
        ({"X_Error_Code": "RevisionNotFound"}, 404, "no such revision", ""),
        ({"X_Error_Code": "EntryNotFound"}, 404, "no such file", ""),
        ({}, 418, "HTTP 418", ""),
    ],
)
def test_the_hubs_refusals_are_not_asked_twice(
    hub: Hub, headers: dict[str, str], status: int, message: str, hint: str
) -> None:
    hub.faults.add(Fault("status", kind="resolve_head", status=status, headers=headers))
    source = HubRepository(NAME)
    file = source.files(source.candidates()[0])[0]
    with pytest.raises(HallmarksError, match=message) as raised:
        source.access(file)
    assert hint in raised.value.hint
    assert raised.value.__cause__ is None and raised.value.__suppress_context__
    assert hub.count("resolve_head") == 1


def test_a_host_that_asks_for_hours_is_given_up(bench: Bench, hub: Hub) -> None:
    with pytest.raises(TransientReadError, match="the server requested a back-off of 7,200 s"):
        bench.run(Fault("status", status=429, headers={"Retry_After": "7200"}))


def test_an_answer_that_makes_no_sense_is_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.hub.server._refs", lambda _: {"branches": [{"ref": 1}], "tags": []})
    with pytest.raises(ReadError, match=r"malformed \(KeyError\)"):
        make_plan(Request(NAME))
