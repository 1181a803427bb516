"""Questions to the Hub: counted, paced, tried again, and their errors translated.

The driver alone asks, so one place keeps to the account's limits for the whole cluster.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import GitRefs, RepoFile
from huggingface_hub.utils import build_hf_headers

from pipeline.checkpoint.outside import count, text
from pipeline.errors import HallmarksError, ReadError, SourceNotFound, TransientReadError, quoted
from pipeline.sources.limits import LONGEST_PAUSE_S, TRANSIENT, Limits, backoff_s, pause_s
from pipeline.version import VERSION

_ATTEMPTS = 5
_ATTEMPTS_OF_PAGES = 2  # the client itself asks six times for each page, over 23 s
_Answer = TypeVar("_Answer")

_limits = Limits()
"""Of this process's account: several repositories share it."""
_asking: ContextVar[HubClient | None] = ContextVar("asking", default=None)
"""Whose question the client is busy with: one question may be several requests."""


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

    @property
    def identity(self) -> dict[str, Any]:
        """Arguments that say to the client's functions who asks."""
        return {
            "token": self.api.token,
            "library_name": self.api.library_name,
            "library_version": self.api.library_version,
        }

    def rights(self) -> dict[str, str]:
        """Return the headers that carry the user's token."""
        return build_hf_headers(**self.identity)

    def count(self, kind: str) -> None:
        """Wait until the account's window has room for one more request, and count it."""
        _limits.take(kind)
        with self._lock:
            self.requests[kind] += 1

    def refs(self) -> list[tuple[str, str]]:
        """Return name and commit of every branch and tag."""
        found = self.ask(lambda: _refs(self.api.list_repo_refs(self.name)), self.name)
        for name, commit in found:
            self.names[commit].add(name)
        return found

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
        found = self.ask(lambda: self.api.repo_info(self.name, revision=revision).sha, where)
        if not isinstance(found, str):
            raise SourceNotFound(f"no such revision: {quoted(where)}")
        self.names[found].add(revision)
        return found

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

        They carry addresses, and may carry headers.

        Raises:
            SourceNotFound: no such thing, or no right to see it.
            TransientReadError: every attempt failed.
            ReadError: the Hub refused for good.
        """
        _watch()
        failure = ""
        attempt, asked_s = 0, 0.0
        while attempt < (attempts or _ATTEMPTS) and asked_s <= LONGEST_PAUSE_S:
            time.sleep(asked_s)
            attempt += 1
            asked_s = backoff_s(attempt)
            asking = _asking.set(self)
            try:
                return question()
            except HfHubHTTPError as error:
                response = error.response
                status = response.status_code if response is not None else 0
                if status not in TRANSIENT:
                    raise self._refusal(error, status, where) from None
                failure = f"HTTP {status}"
                asked_s = pause_s(response.headers) or asked_s
            except HallmarksError:
                raise  # some are OSErrors too
            except (OfflineModeIsEnabled, LocalEntryNotFoundError, HFValidationError) as error:
                raise self._refusal(error, 0, where) from None
            except OSError as error:
                failure = type(error).__name__
            except Exception as error:
                if not _is_network_error(error):  # an answer that it cannot make out
                    raise ReadError(
                        f"{where}: the Hub's answer is malformed ({type(error).__name__})"
                    ) from None
                failure = type(error).__name__
            finally:
                _asking.reset(asking)
        raise TransientReadError(
            f"{where}: {failure}, {attempt} times", f"is {constants.ENDPOINT} reachable?"
        )

    def _refusal(self, error: Exception, status: int, where: str) -> HallmarksError:
        """Return what an answer means that will not change."""
        match error:
            case GatedRepoError():
                return SourceNotFound(
                    f"{where}: access is gated",
                    f"accept the terms at {constants.ENDPOINT}/{self.name} and set HF_TOKEN",
                )
            case RepositoryNotFoundError():
                return SourceNotFound(
                    f"no such repository on {constants.ENDPOINT}: {quoted(self.name)}",
                    "check the spelling; for a private repository log in with `hf auth login`",
                )
            case RevisionNotFoundError():
                return SourceNotFound(f"no such revision: {where}")
            case OfflineModeIsEnabled() | LocalEntryNotFoundError():
                return SourceNotFound(
                    f"{where} cannot be reached: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"
                )
            case EntryNotFoundError() if where == self.name:
                return SourceNotFound(f"no such repository: {quoted(self.name)}")
            case EntryNotFoundError():
                return SourceNotFound(f"no such file: {where}")
            case HFValidationError():
                return SourceNotFound(
                    f"{quoted(self.name)} is not a repository name", "write org/name"
                )
        if status in (401, 403):
            return SourceNotFound(f"{where}: HTTP {status}", "check HF_TOKEN")
        return ReadError(f"{where}: HTTP {status}")


def _watch() -> None:
    """Have every request of the client paced and counted, and every answer's limits noted.

    And none of its warnings printed meanwhile: they quote addresses, and we say what failed.
    """
    for name in ("utils._http", "file_download"):
        logger = logging.getLogger(f"huggingface_hub.{name}")
        if _not_asking not in logger.filters:
            logger.addFilter(_not_asking)
    hooks = get_session().event_hooks
    if _before not in hooks["request"]:
        hooks["request"].append(_before)
        hooks["response"].append(_after)


def _not_asking(record: logging.LogRecord) -> bool:
    del record
    return _asking.get() is None


def _before(request: Any) -> None:
    client, url = _asking.get(), str(request.url)
    if client is not None and url.startswith(client.api.endpoint):
        path = url.removeprefix(client.api.endpoint)
        client.count("api" if path.startswith("/api/") else "resolvers")


def _after(response: Any) -> None:
    _limits.note(response.headers)


def _is_network_error(error: Exception) -> bool:
    """httpx before huggingface_hub 2, httpx2 since: known by name, so that neither is imported."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2")
