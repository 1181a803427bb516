"""A Hub repository whose revisions, folders or commits are checkpoints.

Control plane (names, listings, addresses, errors): huggingface_hub. Data plane: range reads of
the signed address that one resolve per file gives (`http.py`); HfFileSystem would make one
rate-limited resolve request per range.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers

from pipeline.checkpoint.shards import holds_weights
from pipeline.errors import ReadError, SourceChanged, SourceNotFound, TransientReadError, quoted
from pipeline.sources.base import Candidate, File
from pipeline.sources.http import Transport, UrlAccess

HUB_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?"
)

LAYOUTS = ("auto", "revisions", "commits", "folders")

ADDRESS_LIFE_S = 3600.0
"""Assumed where an address does not say: what the Hub signs (X-Amz-Expires=3600)."""
_USED_SHARE = 0.8  # of an address's life; the rest is for the reads that are under way
_ATTEMPTS = 4
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_Answer = TypeVar("_Answer")


class HubRepository:
    """One repository on the Hub, or on a mirror that `HF_ENDPOINT` names."""

    waits = True

    def __init__(self, name: str, revision: str | None = None, layout: str = "auto") -> None:
        """`layout`: how checkpoints are exposed, one of LAYOUTS (docs/contract.md, §1)."""
        self.label = f"{name}@{revision}" if revision else name
        self.run_name = self.label.replace("/", "--")
        self._name, self._revision, self._layout = name, revision, layout
        self._api = HfApi(library_name="hallmarks", library_version=version("hallmarks"))
        self._transport = Transport()
        self._trees: dict[str, list[RepoFile]] = {}
        self._addresses: dict[tuple[str | None, str], tuple[UrlAccess, float]] = {}
        self._lock = threading.Lock()
        self.requests: Counter[str] = Counter()

    def candidates(self) -> list[Candidate]:
        """Return what the layout exposes; `auto` takes the first that has two steps or more.

        In the order revisions, folders, commits: as many as exist are of the first kind, and the
        requests that it takes to know rise in that order.
        """
        layouts: dict[str, Callable[[], list[Candidate]]] = {
            "revisions": self._revisions,
            "folders": self._folders,
            "commits": self._commits,
        }
        if self._revision is not None:
            # the revision is chosen: what is in it, or itself alone
            layouts["revisions"] = self.whole
        if self._layout != "auto":
            return layouts[self._layout]()
        first: list[Candidate] = []
        for find in layouts.values():
            found = find()
            if sum(candidate.position.is_known for candidate in found) > 1:
                return found
            first = first or found
        return first

    def whole(self) -> list[Candidate]:
        """Return the chosen revision, or main, as one checkpoint."""
        return [Candidate(self._revision or "main", self._commit())]

    def _revisions(self) -> list[Candidate]:
        refs = self._ask(lambda: self._api.list_repo_refs(self._name), self._name)
        return [Candidate(ref.name, ref.target_commit) for ref in [*refs.branches, *refs.tags]]

    def _folders(self) -> list[Candidate]:
        commit = self._commit()
        folders: dict[str, list[str]] = {}
        for entry in self._tree(commit):
            folder, _, name = entry.path.rpartition("/")
            folders.setdefault(folder, []).append(name)
        return [
            Candidate(folder, commit, folder)
            for folder, names in sorted(folders.items())
            if folder and holds_weights(names)
        ]

    def _commits(self) -> list[Candidate]:
        entries = self._ask(
            lambda: self._api.list_repo_commits(self._name, revision=self._revision), self.label
        )
        # newest first: of two commits for one step the later one counts
        return [Candidate(entry.title, entry.commit_id) for entry in entries]

    def _commit(self) -> str:
        info = self._ask(
            lambda: self._api.repo_info(self._name, revision=self._revision), self.label
        )
        if info.sha is None:
            raise SourceNotFound(f"no such revision: {quoted(self.label)}")
        return info.sha

    def _tree(self, commit: str) -> list[RepoFile]:
        if commit not in self._trees:
            where = f"{self._name}@{commit}"
            entries = self._ask(
                lambda: list(self._api.list_repo_tree(self._name, revision=commit, recursive=True)),
                where,
            )
            self._trees[commit] = [entry for entry in entries if isinstance(entry, RepoFile)]
        return self._trees[commit]

    def files(self, candidate: Candidate) -> list[File]:
        if candidate.commit is None:
            raise SourceNotFound(f"no such revision: {quoted(candidate.name)}")
        prefix = f"{candidate.folder}/" if candidate.folder else ""
        return [
            File(
                candidate,
                entry.path.removeprefix(prefix),
                f"{self._name}@{candidate.commit}/{entry.path}",
                entry.size,
                entry.lfs.sha256 if entry.lfs else entry.blob_id,
            )
            for entry in self._tree(candidate.commit)
            if entry.path.startswith(prefix)
        ]

    def read(self, file: File, start: int, stop: int) -> bytes:
        buffer = bytearray(stop - start)
        if buffer:
            self.access(file).read_into(self._transport, start, memoryview(buffer))
        return bytes(buffer)

    def access(self, file: File) -> UrlAccess:
        """Return the file's address, asking for a new one when the old one nears its end."""
        key = (file.checkpoint.commit, self._path(file))
        with self._lock:
            found = self._addresses.get(key)
        if found is None or found[1] < time.time():
            found = self._resolve(file)
            with self._lock:
                self._addresses[key] = found
        return found[0]

    @staticmethod
    def _path(file: File) -> str:
        folder = file.checkpoint.folder
        return f"{folder}/{file.path}" if folder else file.path

    def _resolve(self, file: File) -> tuple[UrlAccess, float]:
        url = hf_hub_url(
            self._name,
            self._path(file),
            revision=file.checkpoint.commit,
            endpoint=self._api.endpoint,
        )
        asked = time.time()
        metadata = self._ask(
            lambda: get_hf_file_metadata(url, **self._identity), file.where, "resolvers"
        )
        if metadata.size != file.size or metadata.commit_hash != file.checkpoint.commit:
            raise SourceChanged(
                f"{file.where}: expected {file.size:,} bytes of commit {file.checkpoint.commit},"
                f" found {metadata.size} of {quoted(metadata.commit_hash)}"
            )
        # A file that the Hub host serves itself is read with the user's rights; an address
        # elsewhere is signed, and the token must never go there.
        own = urlsplit(metadata.location).netloc == urlsplit(url).netloc
        headers = build_hf_headers(**self._identity) if own else {}
        access = UrlAccess(file.where, file.size, metadata.location, headers)
        return access, asked + _USED_SHARE * _life_s(metadata.location, asked)

    @property
    def _identity(self) -> dict[str, Any]:
        return {
            "token": self._api.token,
            "library_name": self._api.library_name,
            "library_version": self._api.library_version,
        }

    def _ask(self, question: Callable[[], _Answer], where: str, kind: str = "api") -> _Answer:
        """Return the client's answer; its errors are translated, never quoted or chained.

        They carry addresses, and may carry headers.
        """
        failure = ""
        for attempt in range(1, _ATTEMPTS + 1):
            with self._lock:
                self.requests[kind] += 1
            try:
                return question()
            except GatedRepoError:
                raise SourceNotFound(
                    f"{where}: access is gated",
                    f"accept the terms at {constants.ENDPOINT}/{self._name} and set HF_TOKEN",
                ) from None
            except RepositoryNotFoundError:
                raise SourceNotFound(
                    f"no such repository on {constants.ENDPOINT}: {quoted(self._name)}",
                    "check the spelling; for a private repository log in with `hf auth login`",
                ) from None
            except RevisionNotFoundError:
                raise SourceNotFound(f"no such revision: {where}") from None
            except EntryNotFoundError:
                raise SourceNotFound(f"no such file: {where}") from None
            except OfflineModeIsEnabled:
                raise SourceNotFound(
                    f"{where} cannot be reached: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"
                ) from None
            except HFValidationError:
                raise SourceNotFound(
                    f"{quoted(self._name)} is not a repository name", "write org/name"
                ) from None
            except HfHubHTTPError as error:
                status = error.response.status_code if error.response is not None else 0
                if status in (401, 403):
                    raise SourceNotFound(f"{where}: HTTP {status}", "check HF_TOKEN") from None
                if status not in _TRANSIENT:
                    raise ReadError(f"{where}: HTTP {status}") from None
                failure = f"HTTP {status}"
            except OSError as error:
                failure = type(error).__name__
            except Exception as error:  # the HTTP client's own errors, whose package may change
                if not _is_network_error(error):
                    raise
                failure = type(error).__name__
            if attempt < _ATTEMPTS:
                time.sleep(0.5 * 2**attempt)
        raise TransientReadError(
            f"{where}: {failure}, {_ATTEMPTS} times", f"is {constants.ENDPOINT} reachable?"
        )


def _is_network_error(error: Exception) -> bool:
    """httpx before huggingface_hub 2, httpx2 since: known by name, so that neither is imported."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2")


def _life_s(url: str, asked: float) -> float:
    """Return for how many seconds a signed address is good, as its query states it."""
    query = parse_qs(urlsplit(url).query)
    try:
        if "X-Amz-Expires" in query:
            return float(query["X-Amz-Expires"][0])
        if "Expires" in query:
            return max(0.0, float(query["Expires"][0]) - asked)
    except ValueError:
        pass
    return ADDRESS_LIFE_S
