"""Which proxy the environment names for a URL, by the rules of the Hub's client (httpx).

Ranges thus take the same route as names and listings. A proxy's URL may hold a password: nothing
here shows one.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from pipeline.errors import RequestError

PORTS = {"http": 80, "https": 443}


HINT = "write http://user:password@host:port in HTTPS_PROXY or HTTP_PROXY, exceptions in NO_PROXY"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy."""

    host: str
    port: int
    credentials: dict[str, str] = field(repr=False)
    """Headers that carry its user name and password."""

    def __str__(self) -> str:
        return f"http://{self.host}:{self.port}"


def proxy_of(url: str) -> Proxy | None:
    """Return the proxy for a URL: HTTP_PROXY or HTTPS_PROXY by its scheme, else ALL_PROXY.

    Lower-case names take precedence, as everywhere; NO_PROXY lists the exceptions.

    Raises:
        RequestError: the variable does not hold the URL of an HTTP proxy.
    """
    parts, named = urlsplit(url), getproxies()
    kind = parts.scheme if named.get(parts.scheme) else "all"
    text = named.get(kind)
    port = parts.port or PORTS.get(parts.scheme, 0)
    if not text or _spared(parts.hostname or "", port, named.get("no", "")):
        return None
    return _proxy(text, f"{kind.upper()}_PROXY")


def refusal(url: str, status: int) -> str:
    """Return what is said where a URL's proxy passes nothing on."""
    why = "asks for a user and a password" if status == 407 else "refuses the connection"
    return f"HTTP {status}: the proxy {proxy_of(url)} {why}"


def basic(user: str | None, password: str | None) -> str:
    """Return the Authorization for a user and password as they stand in a URL."""
    pair = f"{unquote(user or '')}:{unquote(password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _proxy(text: str, variable: str) -> Proxy:
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme != "http" or not host:  # the text itself may hold a password
        raise RequestError(
            f"{variable} is not the URL of an HTTP proxy",
            HINT,
        )
    given = parts.username is not None or parts.password is not None
    credentials = {"Proxy-Authorization": basic(parts.username, parts.password)} if given else {}
    return Proxy(host, port or PORTS["http"], credentials)


def _spared(host: str, port: int, listed: str) -> bool:
    """Return whether NO_PROXY lists a host.

    Entries are `*`, a name (for the names below it, too; with a dot or `*.` before it for these
    alone), an IP address or a network, and any but the last with a port.
    """
    for entry in (text.strip().lower() for text in listed.split(",")):
        if entry == "*" or _in_network(host, entry):
            return True
        name, _, only = entry.rpartition(":") if ":" in entry else (entry, "", "")
        if not name or (only and only != str(port)):
            continue
        below = name.removeprefix("*")
        if host.endswith(below if below.startswith(".") else f".{below}") and name != "localhost":
            return True
        if host == name.strip("[]"):
            return True
    return False


def _in_network(host: str, entry: str) -> bool:
    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except (ValueError, TypeError):  # one of them is a name, or they are of two versions
        return False
