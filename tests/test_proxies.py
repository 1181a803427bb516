"""Planning and ranges take the same way: through the proxy that the environment names, or not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import pytest
from huggingface_hub import constants, get_session
from huggingface_hub.utils import close_session
from obstore.store import from_url

import pipeline
from pipeline.errors import HallmarksError, TransientReadError
from pipeline.job.summary import Summary
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request
from pipeline.transport import object_client
from pipeline.transport.proxies import proxy_of
from tests import buckets
from tests.commands import hallmarks
from tests.conftest import serving
from tests.hub import Authority, Hub, Proxy
from tests.suites import trajectory, write_suite

NAME = "org/proxied"
PASSWORD = "us@r:s3cr/t"
QUOTED = "us%40r:s3cr%2Ft"
"""The same as it stands in an address."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    hub = Hub()
    rows = trajectory("walk", 3, 20_000, 0.1)
    for folder in write_suite(tmp_path_factory.mktemp("suite"), {"w": rows}).iterdir():
        hub.repository(NAME).commit_folder(folder, folder.name)
    return hub


@pytest.fixture(autouse=True)
def own_client(hub: Hub) -> Iterator[None]:
    """The Hub's client reads the environment when it is made."""
    hub.reset()
    close_session()
    yield
    close_session()


@pytest.fixture
def endpoint(hub: Hub) -> Iterator[str]:
    with serving(hub):
        yield constants.ENDPOINT


def analyse(folder: Path) -> Summary:
    return pipeline.analyze(NAME, str(folder / "store"), executor="local")


def host(url: str) -> str:
    return urlsplit(url).netloc


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_everything_goes_through_a_proxy(
    hub: Hub, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Listings, addresses and ranges, with the password that the proxy asks for."""
    proxy = Proxy(PASSWORD)
    with proxy.serve() as address:
        monkeypatch.setenv(name, f"http://{QUOTED}@{address}")
        assert analyse(tmp_path).complete
    assert proxy.hosts() == {host(endpoint), host(hub.cdn_url)} and not proxy.refused
    assert len(proxy.passed) == len(hub.records) and hub.count("cdn") > 0


def test_tls_goes_through_in_tunnels(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which the proxy sees neither addresses nor bytes."""
    proxy, authority = Proxy(PASSWORD), Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    with serving(hub, authority), proxy.serve() as address:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{QUOTED}@{address}")
        assert analyse(tmp_path).complete
        hosts = {host(constants.ENDPOINT), host(hub.cdn_url)}
    assert set(proxy.passed) == {f"CONNECT {name}" for name in hosts}
    assert not proxy.refused and hub.count("cdn") > 0


@pytest.mark.parametrize(
    ("spared", "by_proxy"),
    [("127.0.0.1", {"hub"}), ("127.0.0.0/8", {"hub"}), ("localhost", {"cdn"}), ("*", set()),
     (".localhost, example.com", {"hub", "cdn"})],
)  # fmt: skip
def test_exceptions(
    hub: Hub, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spared: str,
    by_proxy: set[str],
) -> None:  # fmt: skip
    proxy = Proxy()
    with proxy.serve() as address:
        monkeypatch.setenv("HTTP_PROXY", address)
        monkeypatch.setenv("NO_PROXY", spared)
        assert analyse(tmp_path).complete
    hosts = {"hub": host(endpoint), "cdn": host(hub.cdn_url)}
    assert proxy.hosts() == {hosts[name] for name in by_proxy}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tunnels"])
@pytest.mark.parametrize("status", [407, 403])
@pytest.mark.parametrize("spared", ["", "localhost"], ids=["planning", "ranges"])
def test_a_proxy_that_refuses_is_named(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool, status: int, spared: str
) -> None:
    """Without the password, at once, in planning as in reading. A 403 may be the host's own, but of
    a tunnel."""
    proxy, authority = Proxy(), Authority(tmp_path) if tls else None
    proxy.status = status
    if authority:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    monkeypatch.setenv("NO_PROXY", spared)
    with serving(hub, authority), proxy.serve() as address:
        monkeypatch.setenv("ALL_PROXY", f"http://{QUOTED}@{address}")
        with pytest.raises(HallmarksError, match=f"HTTP {status}") as raised:
            make_plan(Request(NAME))
    if tls or status == 407:
        why = "asks for a user and a password" if status == 407 else "refuses the connection"
        assert f"the proxy http://{address} {why}" in raised.value.message
    assert "s3cr" not in str(raised.value) + raised.value.hint
    assert (
        proxy.refused <= 18
    )  # six addresses for each of three files, of a 403 that may be the host's


def test_a_proxy_that_is_not_there_is_named(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.transport.limits.FIRST_PAUSE_S", 0.001)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("HTTP_PROXY", f"http://{QUOTED}@{address}")
        with pytest.raises(TransientReadError, match="ConnectError, 5 times") as raised:
            make_plan(Request(NAME))
    assert raised.value.hint == f"is {endpoint} reachable through the proxy http://{address}?"


@pytest.mark.parametrize(
    "address", ["socks5://u:s3cr@127.0.0.1:1", "https://127.0.0.1:1", "http://u:s3cr@127.0.0.1:x"]
)
@pytest.mark.usefixtures("endpoint")
def test_what_is_no_http_proxy_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", address)
    done = hallmarks("plan", NAME)
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error == "error: ALL_PROXY is not the URL of an HTTP proxy"
    assert hint.startswith("hint: write http://user:password@host:port")


URLS = (
    "http://example.com/a", "https://www.example.com/", "http://example.com:8080/",
    "http://localhost/", "http://a.localhost/", "http://10.1.2.3/", "http://10.1.2.30/",
    "http://[::1]:80/",
)  # fmt: skip


@pytest.mark.parametrize(
    "spared",
    ["", "*", "example.com", ".example.com", "*.example.com", "EXAMPLE.com", "ample.com",
     "www.example.com,other.org", "example.com:8080", "localhost", "10.0.0.0/8", "10.1.2.3",
     "::1", "[::1]", " example.com , 10.1.2.3 ", "10.0.0.0/33", "example.com:x"],
)  # fmt: skip
def test_the_rules_are_those_of_the_hubs_client(
    monkeypatch: pytest.MonkeyPatch, spared: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", spared)
    client = get_session()
    for url in URLS:
        way = client._transport_for_url(client.build_request("GET", url).url)
        assert (proxy_of(url) is None) == (way is client._transport), url


def test_object_storage_goes_through_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client reads the same variables: listings and ranges."""
    proxy = Proxy(PASSWORD)
    with buckets.served() as endpoint, proxy.serve() as address:
        bucket = buckets.named("proxied", endpoint, monkeypatch)
        rows = trajectory("walk", 2, 1_000, 0.1)
        for folder in write_suite(tmp_path / "suite", {"w": rows}).iterdir():
            file = folder / "model.safetensors"
            obstore.put(from_url(bucket), f"{folder.name}/{file.name}", file.read_bytes())
        monkeypatch.setenv("HTTP_PROXY", f"http://{QUOTED}@{address}")
        object_client.client.cache_clear()
        summary = pipeline.analyze(bucket, str(tmp_path / "store"), executor="local")
    assert summary.complete and proxy.hosts() == {host(endpoint)} and not proxy.refused
    assert any(".safetensors" in entry for entry in proxy.passed)
