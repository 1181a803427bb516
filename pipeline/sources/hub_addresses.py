"""Where the files of a repository lie: in the Hub cache, or at an address that is signed for a while.

Lives in the driver, which asks once for a file and an address's life, whatever the number of workers.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from functools import partial
from urllib.parse import parse_qs, urljoin, urlsplit

from huggingface_hub import get_hf_file_metadata, hf_hub_url

from pipeline.errors import ReadError, SourceChanged, quoted
from pipeline.sources.base import Access, File
from pipeline.sources.hub_cache import CachedAccess, HubCache
from pipeline.sources.hub_client import HubClient
from pipeline.transport.connections import Transport, host_of, without_password
from pipeline.transport.http import UrlAccess
from pipeline.transport.waiting import announce

ADDRESS_LIFE_S = 3600.0
"""Assumed where an address does not say, or says that it is over: what the Hub signs
(X-Amz-Expires=3600). Whether it is over is for the host that it leads to to say."""
_USED_SHARE = 0.8  # of an address's life; the rest is for the reads that are under way
_LONGEST_ADDRESS = 5_000
"""Characters. As many as a worker asks for at once still travel in one small message."""


@dataclass
class _Address:
    """How one file is reached now. The lock is held while a new address is asked for."""

    file: File
    access: Access | None = None
    until: float = 0.0
    """By this process's own clock, which nobody sets: `time.monotonic`."""
    lock: threading.RLock = field(default_factory=threading.RLock)


class HubAddresses:
    """The addresses of one repository's files, and reads of the driver's own."""

    def __init__(self, client: HubClient) -> None:
        self._client, self._cache = client, HubCache(client.name)
        self._transport = Transport(self)
        self._addresses: dict[str, _Address] = {}
        self._lock = threading.Lock()

    def access(self, file: File, after: int = 0, keep: bool = False) -> Access:
        """Return how to reach a file for a while.

        Args:
            after: number of an access that was not accepted; a later one is returned.
            keep: put the file into the Hub cache and read it there.
        """
        address = self._address(file)
        with address.lock:
            access = self._current(address, after, keep)
            if isinstance(access, UrlAccess):
                if access.etag is None and file.size:
                    access = access.read_pinned(self._transport, 0, memoryview(bytearray(1)))
                    address.access = access
                if isinstance(access, UrlAccess):
                    return replace(access, good_for_s=address.until - time.monotonic())
            return access

    def bytes_of(self, file: File, start: int, stop: int) -> bytes:
        """Return bytes of a file."""
        buffer = bytearray(stop - start)
        if buffer:
            address = self._address(file)
            with address.lock:
                access = self._current(address)
            if isinstance(access, UrlAccess):
                if not access.signed:  # then this is one more request of the Hub
                    self._client.take("resolvers")
                used = access.read_pinned(self._transport, start, memoryview(buffer))
                with address.lock:
                    if access is address.access:
                        address.access = used
            else:
                access.read_into(self._transport, start, memoryview(buffer))
        return bytes(buffer)

    def renewed(self, access: Access) -> Access:
        """Return another address of a file; this one was not accepted."""
        address = self._addresses[access.where]
        with address.lock:
            return self._current(address, access.issue)

    def read(self, where: str, start: int, stop: int) -> bytes:
        """Return bytes of a file that has an address here."""
        return self.bytes_of(self._addresses[where].file, start, stop)

    def paused(self, host: str, seconds: float) -> None:
        """Nothing is to be done: the driver's own reads wait already."""

    def waiting(self, host: str, why: str) -> None:
        """Say why reading takes long."""
        announce(host, why)

    def _address(self, file: File) -> _Address:
        with self._lock:
            return self._addresses.setdefault(file.where, _Address(file))

    def _current(self, address: _Address, after: int = 0, keep: bool = False) -> Access:
        file = address.file
        found, keep = address.access, keep and after == 0
        good = found is not None and found.issue > after and address.until > time.monotonic()
        if found is not None and good and not (keep and isinstance(found, UrlAccess)):
            return found
        here = self._cache.access(file) if after == 0 else None
        if here is None and keep:
            names = self._client.names[file.checkpoint.commit or ""]
            here = self._cache.keep(file, partial(self.bytes_of, file), names)
        if here is not None:
            address.access, address.until = here, float("inf")
        else:
            last = max(after, found.issue if found else CachedAccess.issue)
            address.access, address.until = self._resolve(file, last + 1)
        return address.access

    def _resolve(self, file: File, issue: int) -> tuple[UrlAccess, float]:
        """Return a new address and until when it may be used."""
        client, commit = self._client, file.checkpoint.commit
        url = hf_hub_url(
            client.name, file.path_in_commit, revision=commit, endpoint=client.api.endpoint
        )
        asked = time.monotonic()
        found = client.ask(lambda: get_hf_file_metadata(url, **client.identity), file.where)
        if found.size != file.size or found.commit_hash != commit:
            raise SourceChanged(
                f"{file.where}: expected {file.size:,} bytes of commit {commit}, found"
                f" {found.size} of {quoted(found.commit_hash)}"
            )
        if _differ(found.etag, file.identity):
            raise SourceChanged(
                f"{file.where}: expected contents {file.identity}, found {quoted(found.etag)}: the"
                " file changed under its commit"
            )
        location, host = _leads_to(url, found.location, file.where)
        # A file that the Hub host serves itself is read with the user's rights; an address
        # elsewhere is signed, and the token must never go there.
        signed = host != client.endpoint
        access = UrlAccess(
            file.where, file.size, location, None, issue, signed=signed,
            rights={} if signed else client.rights(),
        )  # fmt: skip
        life_s = _life_s(location, client.clock.now()) if signed else None
        if life_s is not None and life_s <= 0:
            announce(f"life of {host}", f"{host}: addresses are over when {client.endpoint} gives"
                     " them; they are tried all the same")  # fmt: skip
        return access, asked + _USED_SHARE * (life_s if life_s and life_s > 0 else ADDRESS_LIFE_S)


def _leads_to(url: str, location: str, where: str) -> tuple[str, str]:
    """Return the address that a file's leads to, and its host.

    Raises:
        ReadError: it is none that is read: not HTTP, no longer https, or too long.
    """
    if len(location) > _LONGEST_ADDRESS:
        raise ReadError(f"{where}: an address of {len(location):,} characters")
    try:
        location = without_password(urljoin(url, location))
        host = host_of(location)
    except ValueError:
        host = ""
    kept = ("https://",) if url.startswith("https:") else ("http://", "https://")
    if not host.startswith(kept):
        raise ReadError(
            f"{where}: expected an address of {' or '.join(kept)}, found {quoted(host)}",
            f"{host_of(url)} leads there",
        )
    return location, host


def _differ(etag: str | None, identity: str) -> bool:
    """Return whether two hashes of contents are of one kind and not the same.

    The Hub states the one that it lists; a mirror may have another kind.
    """
    return etag is not None and len(etag) == len(identity) and etag != identity


def _life_s(url: str, now: float) -> float | None:
    """Return for how many seconds a signed address is good, as its query states it.

    Args:
        now: by the clock of who gave it.
    """
    query = parse_qs(urlsplit(url).query)
    try:
        if "X-Amz-Expires" in query:
            return float(query["X-Amz-Expires"][0])
        if "Expires" in query:
            return float(query["Expires"][0]) - now
    except ValueError:
        pass
    return None
