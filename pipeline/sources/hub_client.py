"""Questions to the Hub, tried again where that may help.

The driver alone asks, so one place keeps to the account's limits for the whole cluster
(`hub_session.py`).
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.hf_api import GitRefs, RepoFile
from huggingface_hub.utils import build_hf_headers

from pipeline.checkpoint.outside import count, text
from pipeline.errors import HallmarksError, SourceNotFound, TransientReadError, quoted
from pipeline.sources import hub_session
from pipeline.sources.hub_errors import Errors
from pipeline.sources.hub_session import Session
from pipeline.sources.nearby import nearest_to_repository
from pipeline.transport.limits import LONGEST_PAUSE_S, TRANSIENT, backoff_s, pause_s, too_long
from pipeline.transport.proxies import basic, proxy_of
from pipeline.transport.waiting import ANNOUNCED_S, announce
from pipeline.version import VERSION

_ATTEMPTS = 5
_ATTEMPTS_OF_PAGES = 2  # the client itself asks six times for each page, over 23 s
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a commit."""

    path: str
    size: int
    identity: str
    """SHA-256 of contents in large-file storage; else the blob's name in git."""


def _entry(listed: RepoFile) -> Entry:
    """Return a file of a listing, or raise ValueError: the client takes whatever a server says."""
    identity = listed.lfs.sha256 if listed.lfs else listed.blob_id
    return Entry(text(listed.path), count(listed.size), text(identity))


def _refs(listed: GitRefs) -> list[tuple[str, str]]:
    """Return name and commit of branches and tags, or raise ValueError."""
    refs = (*listed.branches, *listed.tags)
    return [(text(ref.name), text(ref.target_commit)) for ref in refs]


class HubClient:
    """The Hub as one repository's reader sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.api = HfApi(library_name="hallmarks", library_version=VERSION)
        self.requests: Counter[str] = Counter()
        """Made so far, by rate-limit class."""
        self.names: dict[str, set[str]] = defaultdict(set)
        """Branches and tags that were seen, by commit."""
        self._lock = threading.Lock()
        self._session = Session(self.api.endpoint, self._count)
        self.endpoint = self._session.host
        """Scheme, host and port of HF_ENDPOINT, which may also hold a password: to be shown."""
        self.clock = self._session.clock
        self._errors = Errors(name, self.api.endpoint, self.endpoint)

    @property
    def identity(self) -> dict[str, Any]:
        """Arguments that say to the client's functions who asks."""
        return {
            "token": self.api.token,
            "library_name": self.api.library_name,
            "library_version": self.api.library_version,
        }

    def credentials(self) -> dict[str, str]:
        """Return the headers that carry the user's token, or the password in HF_ENDPOINT."""
        headers, parts = build_hf_headers(**self.identity), urlsplit(self.api.endpoint)
        if parts.username or parts.password:  # of the two the client sends this one
            headers["authorization"] = basic(parts.username, parts.password)
        return headers

    def take(self, kind: str) -> None:
        """Wait until the account's window has room for one more request, and count it."""
        self._session.take(kind)

    def _count(self, kind: str) -> None:
        with self._lock:
            self.requests[kind] += 1

    def refs(self) -> list[tuple[str, str]]:
        """Return name and commit of every branch and tag."""
        refs = self.ask(lambda: _refs(self.api.list_repo_refs(self.name)), self.name)
        for name, commit in refs:
            self.names[commit].add(name)
        return refs

    def commits(self, revision: str | None) -> list[tuple[str, str]]:
        """Return title and id of a branch's commits, newest first."""
        where = self._at(revision)
        return self.ask(
            lambda: [
                (text(entry.title), text(entry.commit_id))
                for entry in self.api.list_repo_commits(self.name, revision=revision)
            ],
            where,
            attempts=_ATTEMPTS_OF_PAGES,
        )

    def commit(self, revision: str | None) -> str:
        """Return the commit that a revision is now."""
        where = self._at(revision)
        revision = revision or "main"  # not every mirror answers without
        commit = self.ask(lambda: self.api.repo_info(self.name, revision=revision).sha, where)
        if not isinstance(commit, str):
            raise SourceNotFound(f"no such revision: {quoted(where)}")
        self.names[commit].add(revision)
        return commit

    def tree(self, commit: str) -> list[Entry]:
        """Return every file of a commit."""
        return self.ask(
            lambda: [
                _entry(entry)
                for entry in self.api.list_repo_tree(self.name, revision=commit, recursive=True)
                if isinstance(entry, RepoFile)
            ],
            self._at(commit),
            attempts=_ATTEMPTS_OF_PAGES,
        )

    def _at(self, revision: str | None) -> str:
        return f"{self.name}@{revision}" if revision else self.name

    def ask(
        self, question: Callable[[], _Answer], where: str, attempts: int | None = None
    ) -> _Answer:
        """Return the client's answer; its errors are translated, never quoted or chained.

        They carry URLs, and may carry headers.

        Raises:
            SourceNotFound: no such thing, or no right to see it.
            TransientReadError: every attempt failed.
            ReadError: the Hub refused for good.
        """
        failure, since = "", time.monotonic()
        attempts = attempts or _ATTEMPTS
        silence_s = hub_session.SILENCE_S
        for attempt in range(1, attempts + 1):
            asked_s = None
            try:
                return self._session.answer(question, where, silence_s)
            except HfHubHTTPError as error:
                response = error.response
                # some of its errors come without one
                status = response.status_code if response is not None else 0  # pyright: ignore[reportUnnecessaryComparison]
                if status not in TRANSIENT:
                    raise self._errors.refused(error, status, where) from None
                failure = f"HTTP {status}"
                asked_s = pause_s(response.headers)
                if asked_s is not None and asked_s > LONGEST_PAUSE_S:
                    message = f"{where}: {failure}: {too_long(asked_s)}"
                    raise TransientReadError(message) from None
            except HallmarksError:
                raise  # some are OSErrors too
            except (OfflineModeIsEnabled, LocalEntryNotFoundError, HFValidationError) as error:
                raise self._errors.refused(error, 0, where) from None
            except TimeoutError:
                failure = f"no answer for {silence_s:g} s"
            except OSError as error:
                failure = type(error).__name__
            except Exception as error:
                failure = self._errors.passing(error, where)
            if attempt < attempts:
                self._rest(asked_s or backoff_s(attempt), failure, since)
        via = f" through the proxy {proxy}" if (proxy := proxy_of(self.api.endpoint)) else ""
        raise TransientReadError(
            f"{where}: {failure}, {attempts} times",
            f"is {self.endpoint} reachable{via}?" + nearest_to_repository(self.name),
        )

    def _rest(self, seconds: float, failure: str, since: float) -> None:
        """Wait before the next attempt."""
        if time.monotonic() + seconds - since >= ANNOUNCED_S:
            text = f"{self.endpoint}: {failure}; retrying in {seconds:.0f} s"
            announce(self.endpoint, text)
        time.sleep(seconds)
