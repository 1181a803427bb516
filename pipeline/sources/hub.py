"""A Hub repository whose revisions, folders or commits are checkpoints.

Names and listings come from the Hub (`hub_client.py`), or offline from the user's cache
(`hub_cache.py`); bytes from where `hub_urls.py` finds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

from huggingface_hub import constants

from pipeline.checkpoint.layouts import (
    Layout,
    ListFolder,
    checkpoint_files,
    discover,
    listed,
    name_alone,
)
from pipeline.checkpoint.reading import BY_TABLES, Reading
from pipeline.errors import FormatError, SourceNotFound, quoted
from pipeline.sources.base import ROOT, Candidate, File
from pipeline.sources.beside import Beside, beside
from pipeline.sources.hub_cache import HubCache
from pipeline.sources.hub_client import Entry, HubClient
from pipeline.sources.hub_urls import HubUrls
from pipeline.sources.logs import log_paths
from pipeline.sources.plain import is_hash, is_plain
from pipeline.transport.access import Access


class HubRepository:
    """One repository on the Hub, or on a mirror that `HF_ENDPOINT` names."""

    is_remote = True

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        layout: str = "auto",
        reading: Reading = BY_TABLES,
    ) -> None:
        """Expose checkpoints by `layout` (docs/contract.md, §1).

        `reading`: what the user says of names and files.
        """
        self._reading = reading
        self._layout_of_tree: Layout[Entry] = Layout()
        self._commit_of_folders: str | None = None
        """The commit whose folders are the candidates."""
        self.label = f"{name}@{revision}" if revision else name
        self.uri = f"hf://{self.label}"
        self.run_name = self.label.replace("/", "--")
        if revision and not is_plain(revision):
            raise SourceNotFound(f"{name}: not the name of a revision: {quoted(revision)}")
        self._name, self._revision, self._layout = name, revision, layout
        self._client = HubClient(name)
        offline = constants.is_offline_mode()
        self._listing = HubCache(name) if offline else self._client
        # offline only some of a commit's files may be there, and nobody vouches for them
        self._repository = "" if offline else _url(self._client.api.endpoint, name)
        self._urls = HubUrls(self._client)
        self._trees: dict[str, ListFolder[Entry]] = {}

    @property
    def requests(self) -> Counter[str]:
        """Requests made so far, by rate-limit class."""
        return self._client.requests

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
            candidates = find()
            if sum(candidate.position.is_known for candidate in candidates) > 1:
                return candidates
            first = first or candidates
        return first

    def whole(self) -> list[Candidate]:
        """Return the chosen revision, or main, as one checkpoint."""
        return [self._candidate(self._revision or "main", self._commit())]

    def beside(self) -> list[Beside]:
        return beside(self._layout_of_tree, self._reading)

    def logs(self) -> list[File]:
        commit = self._commit_of_folders
        if commit is None:
            return []  # where revisions are the checkpoints, logs are files of these
        return [
            file
            for path in log_paths(self._tree(commit))
            for file in self.files(self._candidate(path, commit, path, True))
        ]

    def _revisions(self) -> list[Candidate]:
        refs = self._listing.refs()
        for name, _ in refs:
            if not is_plain(name):
                raise self._malformed("plain names of branches and tags", name)
        return [self._candidate(name, commit) for name, commit in refs]

    def _folders(self) -> list[Candidate]:
        self._commit_of_folders = commit = self._commit()
        self._layout_of_tree = discover(self._tree(commit), self._reading)
        return [
            self._candidate(path or ROOT, commit, path, is_file)
            for path, is_file in self._layout_of_tree.checkpoints
        ]

    def _commits(self) -> list[Candidate]:
        # newest first: of two commits for one step the later one counts
        commits = self._listing.commits(self._revision)
        return [self._candidate(title, commit) for title, commit in commits]

    def _commit(self) -> str:
        return self._id(self._listing.commit(self._revision))

    def _id(self, commit: str) -> str:
        """Return the id of a commit as a server says it: it becomes part of addresses, and of messages."""
        if not is_hash(commit):
            raise self._malformed("the id of a commit", commit)
        return commit

    def _candidate(
        self, name: str, commit: str, path: str = "", is_file: bool = False
    ) -> Candidate:
        stated = self._reading.stated(name)
        return Candidate(
            name, self._id(commit), path, is_file, stated=stated, repository=self._repository
        )

    def _tree(self, commit: str) -> ListFolder[Entry]:
        if commit not in self._trees:
            entries = self._listing.tree(commit)
            for entry in entries:
                self._check(entry)
            self._trees[commit] = listed({entry.path: entry for entry in entries})
        return self._trees[commit]

    def _check(self, entry: Entry) -> None:
        """Refuse a file whose name could lead anywhere, and one that nothing tells from others."""
        if not is_plain(entry.path):
            raise self._malformed("plain relative paths of files", entry.path)
        # what a listing says is of any type
        if not isinstance(entry.size, int) or entry.size < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._malformed(f"the size of {quoted(entry.path)}", entry.size)
        if self._repository and not is_hash(entry.identity):
            raise self._malformed(f"the hash of {quoted(entry.path)}", entry.identity)

    def _malformed(self, expected: str, actual: object) -> FormatError:
        return FormatError(
            f"{self._name}: the listing is malformed: expected {expected}, found {quoted(actual)}",
            "no repository of the Hub has such: is HF_ENDPOINT a mirror?",
        )

    def files(self, candidate: Candidate) -> list[File]:
        if candidate.commit is None:
            raise SourceNotFound(f"no such revision: {quoted(candidate.name)}")
        tree = self._tree(candidate.commit)
        if candidate.is_file:
            folder, _, name = candidate.path.rpartition("/")
            files = {name_alone(name): tree(folder).files[name]}
        else:
            files = checkpoint_files(tree, candidate.path, self._reading)
        return [
            File(
                candidate,
                path,
                f"{self._name}@{candidate.commit}/{entry.path}",
                entry.size,
                entry.identity,
            )
            for path, entry in files.items()
        ]

    def read(self, file: File, start: int, stop: int) -> bytes:
        return self._urls.bytes_of(file, start, stop)

    def access(self, file: File, after: int = 0, keep: bool = False) -> Access:
        return self._urls.access(file, after, keep)


def _url(endpoint: str, name: str) -> str:
    """Return a repository's URL, without the password that an endpoint may hold."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/{name}"
