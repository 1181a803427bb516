"""How the files of a repository are reached: in the Hub cache, or at a URL that is signed for a while.

Lives in the driver, which asks the Hub once for each file and lifetime of its URL, whatever the
number of workers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import parse_qs, urljoin, urlsplit

from huggingface_hub import get_hf_file_metadata, hf_hub_url

from pipeline.errors import ReadError, SourceChanged, quoted
from pipeline.sources.base import File
from pipeline.sources.hub_cache import HubCache
from pipeline.sources.hub_client import HubClient
from pipeline.transport.access import Access, LocalPath, Url
from pipeline.transport.connections import host_of, without_password
from pipeline.transport.reader import Reader
from pipeline.transport.waiting import announce

URL_LIFE_S = 3600.0
"""Assumed where a URL does not state its life, or states that it is over: what the Hub signs
(X-Amz-Expires=3600). Whether it is over is for the URL's host to say."""
_USED_SHARE = 0.8  # of a URL's life; the rest is for the reads that are under way
_LONGEST_URL = 5_000
"""Characters. As many as a worker asks for at once still travel in one small message."""


@dataclass
class _Known:
    """A file that was asked for."""

    file: File
    generation: int = LocalPath.generation
    """Of its last URL."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while access is prepared for others: it is kept, or its ETag is read, only once."""


class HubUrls:
    """Access to one repository's files, and reads of the driver's own.

    The driver's reader holds access for all who ask, and asks here for what it lacks.
    """

    def __init__(self, client: HubClient) -> None:
        self._client, self._cache = client, HubCache(client.name)
        self._reader: Reader[str] = Reader(self)
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def access(self, file: File, after: int = 0, keep: bool = False) -> Access:
        """Return access to a file that is good for a while.

        Args:
            after: access of this generation is not accepted any more; a later one is returned.
            keep: put the file into the Hub cache and read it there.
        """
        with self._noted(file).lock:
            if keep and after == 0 and (cached := self._kept(file)):
                return cached
            return self._reader.pinned(file.where, after)

    def bytes_of(self, file: File, start: int, stop: int) -> bytes:
        """Return bytes of a file."""
        self._noted(file)
        if start == stop:
            return b""
        match self._reader.access(file.where):
            case Url(signed=False):  # then this is one more request of the Hub
                self._client.take("resolvers")
            case _:
                pass
        return self._reader.bytes_of(file.where, start, stop)

    def accesses(self, files: Sequence[str], after: int) -> dict[str, Access]:
        """Return how files can be reached: the reader lacks access to them."""
        return {where: self._access_to(self._known[where], after) for where in files}

    def read(self, file: str, start: int, stop: int) -> bytes:
        """Return bytes of a file: there is no other driver to be asked."""
        return self.bytes_of(self._known[file].file, start, stop)

    def paused(self, host: str, seconds: float) -> None:
        """Do nothing: the driver's own reads wait already."""

    def waiting(self, host: str, why: str) -> None:
        """Say why reading takes long."""
        announce(host, why)

    def _noted(self, file: File) -> _Known:
        with self._lock:
            return self._known.setdefault(file.where, _Known(file))

    def _kept(self, file: File) -> LocalPath | None:
        """Return access to a file in the Hub cache, where it is put if it is not there."""
        cached = self._cache.access(file)
        if cached is None:
            names = self._client.names[file.checkpoint.commit or ""]
            cached = self._cache.keep(file, partial(self.bytes_of, file), names)
        return cached

    def _access_to(self, known: _Known, after: int) -> Access:
        cached = self._cache.access(known.file) if after == 0 else None
        if cached is not None:
            return cached
        known.generation = max(after, known.generation) + 1
        return self._resolved(known.file, known.generation)

    def _resolved(self, file: File, generation: int) -> Url:
        """Return a new URL, which the Hub is asked for."""
        client, commit = self._client, file.checkpoint.commit
        url = hf_hub_url(
            client.name, file.path_in_commit, revision=commit, endpoint=client.api.endpoint
        )
        asked = time.monotonic()
        metadata = client.ask(lambda: get_hf_file_metadata(url, **client.identity), file.where)
        if metadata.size != file.size or metadata.commit_hash != commit:
            raise SourceChanged(
                f"{file.where}: expected {file.size:,} bytes of commit {commit}, found"
                f" {metadata.size} of {quoted(metadata.commit_hash)}"
            )
        if _differ(metadata.etag, file.identity):
            raise SourceChanged(
                f"{file.where}: expected contents {file.identity}, found {quoted(metadata.etag)}: the"
                " file changed under its commit"
            )
        location, host = _leads_to(url, metadata.location, file.where)
        # A file that the Hub host serves itself is read with the user's credentials; a URL
        # elsewhere is signed, and the token must never go there.
        signed = host != client.endpoint
        life_s = _life_s(location, client.clock.now()) if signed else None
        if life_s is not None and life_s <= 0:
            announce(f"life of {host}", f"{host}: URLs have expired when {client.endpoint} gives"
                     " them; they are tried all the same")  # fmt: skip
        used_s = _USED_SHARE * (life_s if life_s and life_s > 0 else URL_LIFE_S)
        return Url(
            file.where, file.size, location, None, generation, used_s - (time.monotonic() - asked),
            signed, {} if signed else client.credentials(),
        )  # fmt: skip


def _leads_to(url: str, location: str, where: str) -> tuple[str, str]:
    """Return the URL that a file's URL leads to, and its host.

    Raises:
        ReadError: it is none that is read: not HTTP, no longer https, or too long.
    """
    if len(location) > _LONGEST_URL:
        raise ReadError(f"{where}: a URL of {len(location):,} characters")
    try:
        location = without_password(urljoin(url, location))
        host = host_of(location)
    except ValueError:
        host = ""
    kept = ("https://",) if url.startswith("https:") else ("http://", "https://")
    if not host.startswith(kept):
        raise ReadError(
            f"{where}: expected a URL of {' or '.join(kept)}, found {quoted(host)}",
            f"{host_of(url)} leads there",
        )
    return location, host


def _differ(etag: str | None, identity: str) -> bool:
    """Return whether two hashes of contents are of one kind and not the same.

    The Hub states the one that it lists; a mirror may have another kind.
    """
    return etag is not None and len(etag) == len(identity) and etag != identity


def _life_s(url: str, now: float) -> float | None:
    """Return for how many seconds a signed URL is good, as its query states it.

    Args:
        now: by the clock of the server that gave it.
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
