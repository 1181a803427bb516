"""The user's Hub cache: files that are in it are read there, and a repository's names offline.

Its layout is huggingface_hub's: `refs/<name>` holds a commit, `snapshots/<commit>/<path>` leads to
the contents, in `blobs/` under the hash that the Hub lists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

from pipeline.errors import ReadError, SourceNotFound, quoted
from pipeline.sources.base import File
from pipeline.sources.directory import LocalAccess
from pipeline.sources.hub_client import Entry, HubClient
from pipeline.sources.hub_session import SignsOfLife
from pipeline.sources.transport import Transport


@dataclass(frozen=True, slots=True)
class CachedAccess:
    """Reads of a file in the cache of the driver's machine; elsewhere the desk knows another way."""

    where: str
    file: LocalAccess

    issue = 1
    good_for_s = math.inf
    reads_at_once = 1

    def read_into(self, transport: Transport, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `start` on."""
        try:
            self.file.read(start, buffer)
        except ReadError:
            if Path(self.file.where).exists():
                raise
            transport.desk.renewed(self).read_into(transport, start, buffer)


def cached(repository: str, file: File) -> CachedAccess | None:
    """Return access to a file in the cache, if it is there whole and of the listed contents."""
    found = try_to_load_from_cache(repository, file.path_in_commit, revision=file.checkpoint.commit)
    if not isinstance(found, str):
        return None
    blob = Path(found).resolve()
    status = blob.stat()
    if status.st_size != file.size:
        return None
    # where links cannot be made, a copy lies in place of the link and has no hash for a name
    if blob.parent.name == "blobs" and blob.name != file.identity:
        return None
    return CachedAccess(file.where, LocalAccess(str(blob), file.size, status.st_mtime_ns))


def keep_in_cache(client: HubClient, file: File) -> CachedAccess | None:
    """Put a file into the cache, as every program of the Hub does, and return access to it."""
    client.ask(
        lambda: hf_hub_download(
            client.name,
            file.path_in_commit,
            revision=file.checkpoint.commit,
            endpoint=client.api.endpoint,
            tqdm_class=SignsOfLife,
            **client.identity,
        ),
        file.where,
        download=True,
    )
    commit = file.checkpoint.commit or ""
    refs = _root(client.name) / "refs"
    for name in client.names[commit]:
        # the client notes names only of what it is asked for by name; offline they are needed
        path = refs / name
        if ".." not in path.parts and name != commit:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(commit)
    return cached(client.name, file)


def _root(repository: str) -> Path:
    folder = repo_folder_name(repo_id=repository, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder


class CachedListing:
    """What the cache holds of a repository: the names that were asked for, the files that came."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._root = _root(name)

    def refs(self) -> list[tuple[str, str]]:
        """Return name and commit of every branch and tag in the cache."""
        root = self._root / "refs"
        return [
            (path.relative_to(root).as_posix(), path.read_text().strip())
            for path in sorted(root.rglob("*"))
            if path.is_file()
        ]

    def commits(self, revision: str | None) -> list[tuple[str, str]]:
        """Refuse: the cache does not know the order of commits."""
        del revision
        raise self._absent("its list of commits")

    def commit(self, revision: str | None) -> str:
        """Return the commit that a revision was when it was asked for."""
        revision = revision or "main"
        if (self._root / "snapshots" / revision).is_dir():
            return revision
        for name, commit in self.refs():
            if name == revision:
                return commit
        raise self._absent(f"revision {quoted(revision)}")

    def tree(self, commit: str) -> list[Entry]:
        """Return the files of a commit that are in the cache."""
        root = self._root / "snapshots" / commit
        found = []
        for path in sorted(root.rglob("*")):
            if path.is_file():
                blob, size = path.resolve(), path.stat().st_size
                identity = blob.name if blob.parent.name == "blobs" else f"{size} bytes"
                found.append(Entry(path.relative_to(root).as_posix(), size, identity))
        return found

    def _absent(self, what: str) -> SourceNotFound:
        return SourceNotFound(
            f"HF_HUB_OFFLINE is set, and {what} of {self._name} is not in the Hub cache",
            "unset HF_HUB_OFFLINE, or fill the cache with `hf download`",
        )
