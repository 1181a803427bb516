"""The user's Hub cache: files that are in it are read there, and a repository's names offline.

Its layout is huggingface_hub's: `refs/<name>` holds a commit, `snapshots/<commit>/<path>` leads to
the contents, in `blobs/` under the hash that the Hub lists. Where links cannot be made, or a copy
has followed them, the contents lie in place of the link, and have no hash for a name.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import are_symlinks_supported, repo_folder_name

from pipeline.errors import Corrupted, ReadError, SourceNotFound, quoted
from pipeline.sources.base import File
from pipeline.sources.hub_client import Entry
from pipeline.sources.nearby import nearest_to_repository
from pipeline.sources.plain import inside, is_hash
from pipeline.transport.access import FileState, LocalPath

_BYTES_AT_ONCE = 16 << 20  # of a file that is kept: what is held of it at once


class HubCache:
    """What the cache holds of one repository."""

    def __init__(self, repository: str) -> None:
        folder = repo_folder_name(repo_id=repository, repo_type="model")
        self._name, self._root = repository, Path(constants.HF_HUB_CACHE) / folder

    def access(self, file: File) -> LocalPath | None:
        """Return access to a file, if it is there whole and of the listed contents."""
        pointer = self._pointer(file)
        if not pointer.is_file():
            return None
        state = FileState.of(pointer.stat())
        if state.size != file.size or _hash_of(pointer) not in (None, file.identity):
            return None
        return LocalPath(file.where, str(pointer.resolve()), state, cached=True)

    def keep(
        self, file: File, read: Callable[[int, int], bytes], names: set[str]
    ) -> LocalPath | None:
        """Put a file in, where every program of the Hub finds it, and return access to it.

        Args:
            read: gives a range of the file.
            names: branches and tags of its commit: offline they are needed.

        Raises:
            Corrupted: the contents do not have the hash that was published.
            ReadError: they could not be read, or the cache cannot be written.
        """
        commit = file.checkpoint.commit or ""
        try:
            blob = inside(self._root / "blobs", file.identity)
            if not blob.is_file() or blob.stat().st_size != file.size:
                with _written(blob) as target:
                    _fetch(file, read, target)
            self._point(self._pointer(file), blob)
        except OSError as error:
            if isinstance(error, ReadError):
                raise
            raise ReadError(
                f"{file.where} cannot be kept in the Hub cache: {error.strerror}",
                f"free space in {constants.HF_HUB_CACHE}, or run without --cache",
            ) from None
        for name in names - {commit}:
            # a branch and a tag may have names of which one is the other's folder: one is left out
            with contextlib.suppress(OSError), _written(inside(self._root / "refs", name)) as ref:
                ref.write_text(commit)
        return self.access(file)

    def _pointer(self, file: File) -> Path:
        return inside(self._root / "snapshots", f"{file.checkpoint.commit}/{file.path_in_commit}")

    def _point(self, pointer: Path, blob: Path) -> None:
        """Make a commit's path lead to the contents, which move there if links cannot be made."""
        pointer.parent.mkdir(parents=True, exist_ok=True)
        if not are_symlinks_supported(self._root):
            blob.replace(pointer)
            return
        with _written(pointer) as link:
            link.symlink_to(os.path.relpath(blob, pointer.parent))

    def refs(self) -> list[tuple[str, str]]:
        """Return name and commit of every branch and tag in the cache."""
        root = self._root / "refs"
        refs = [
            (path.relative_to(root).as_posix(), path.read_text(errors="replace").strip())
            for path in sorted(root.rglob("*"))
            if path.is_file()
        ]
        return [(name, commit) for name, commit in refs if is_hash(commit)]

    def commits(self, revision: str | None) -> list[tuple[str, str]]:
        """Refuse: the cache does not know the order of commits."""
        del revision
        raise self._absent("its list of commits")

    def commit(self, revision: str | None) -> str:
        """Return the commit that a revision was when it was asked for."""
        revision = revision or "main"
        if is_hash(revision) and (self._root / "snapshots" / revision).is_dir():
            return revision
        for name, commit in self.refs():
            if name == revision:
                return commit
        raise self._absent(f"revision {quoted(revision)}")

    def tree(self, commit: str) -> list[Entry]:
        """Return the files of a commit that are in the cache.

        One without a hash is known by its commit and path: of its contents only that is known.
        """
        root = inside(self._root / "snapshots", commit)
        entries = []
        for pointer in sorted(root.rglob("*")):
            if pointer.is_file():
                path = pointer.relative_to(root).as_posix()
                identity = _hash_of(pointer) or f"{self._name}@{commit}/{path}"
                entries.append(Entry(path, pointer.stat().st_size, identity))
        return entries

    def _absent(self, what: str) -> SourceNotFound:
        return SourceNotFound(
            f"HF_HUB_OFFLINE is set, and {what} of {self._name} is not in the Hub cache",
            "unset HF_HUB_OFFLINE, or fill the cache with `hf download`."
            + nearest_to_repository(self._name),
        )


def _hash_of(pointer: Path) -> str | None:
    """Return the hash that a path's contents lie under, or None if they lie in its own place."""
    if not pointer.is_symlink():
        return None
    target = pointer.readlink()
    return target.name if target.parent.name == "blobs" and is_hash(target.name) else None


def _fetch(file: File, read: Callable[[int, int], bytes], target: Path) -> None:
    """Write a file's contents, which must have the hash that it is listed with."""
    digest = file.digest()
    with target.open("xb") as out:
        for start in range(0, file.size, _BYTES_AT_ONCE):
            data = read(start, min(file.size, start + _BYTES_AT_ONCE))
            digest.update(data)
            out.write(data)
    if (actual := digest.hexdigest()) != file.identity:
        raise Corrupted(
            f"{file.where}: expected contents with the hash {file.identity}, found {actual}",
            "what was read is not what was published: is HF_ENDPOINT a mirror?",
        )


@contextlib.contextmanager
def _written(path: Path) -> Iterator[Path]:
    """Yield where to write what is to appear under a path, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.with_name(f"{uuid.uuid4().hex}.incomplete")
    try:
        yield target
        target.replace(path)
    finally:
        target.unlink(missing_ok=True)
