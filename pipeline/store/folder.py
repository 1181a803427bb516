"""The store's files, in a directory or on object storage: each appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore

from pipeline.errors import StoreUnusable, quoted
from pipeline.transport.object_client import GET_SILENCE, SCHEMES, Trouble, ask

_PUT_SILENCE = "1min"
"""The client counts the time that it sends for, too: 50 MB of similarities at 1 MB/s."""
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file as a listing shows it."""

    path: str
    size: int
    etag: str | None


class Folder:
    """A directory of files, or those below a prefix of a bucket, named by relative paths. Picklable.

    obstore writes to a temporary name beside the target and then links or renames it, and to object
    storage in one conditional request: a reader never sees half a file, and of several writers that
    `create` one name the first wins. On object storage every process takes its credentials from its
    own environment, and what fails is tried again a few times.

    Directories below it that become empty are removed, as on object storage there are none.

    A directory holds no links: whoever put one there would have files elsewhere read, written or
    removed. They are not listed, and a path through one is refused.

    Every method raises StoreUnusable if the storage does not do as it is asked.
    """

    def __init__(self, root: str) -> None:
        """Name the folder; nothing is asked of it yet.

        Raises:
            StoreUnusable: neither a directory nor a URL on object storage, or one whose files
                could not be given to DuckDB.
        """
        self.remote = "://" in root
        self.root = _address(root) if self.remote else _directory(root)
        self._was_there = False

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return Folder, (self.root,)

    @property
    def exists(self) -> bool:
        """False if there is nothing to read for sure; of object storage only a listing can tell."""
        return self.remote or Path(self.root).is_dir()

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless there is one; return False if that has other contents, and leave it.

        A put may have arrived although its answer did not: the second try then finds a file, and
        only the contents tell whose it is.
        """

        def question(files: Any) -> bool:
            try:
                obstore.put(files, path, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                stored = self.read(path)
                if stored is None and self.remote:
                    raise  # S3 says so, too, of a put that collided with another: tried again
                return stored == data
            return True

        return self._ask(path, question, writes=True)

    def replace(self, path: str, data: bytes) -> None:
        """Write a file, or replace it, at once."""

        def question(files: Any) -> None:
            obstore.put(files, path, data, mode="overwrite", use_multipart=False)

        self._ask(path, question, writes=True)

    def read(self, path: str) -> bytes | None:
        """Return a file's contents, or None if there is no such file."""
        if self._never_was:
            return None

        def question(files: Any) -> bytes | None:
            try:
                return obstore.get(files, path).bytes().to_bytes()
            except FileNotFoundError:
                return None

        return self._ask(path, question)

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Return a part of a file.

        Raises:
            StoreUnusable: there is no such file, or as all methods.
        """
        return self._ask(
            path,
            lambda files: obstore.get_range(files, path, start=start, end=stop).to_bytes(),
        )

    def entries(self, prefix: str) -> list[Entry]:
        """Return all files below a prefix, sorted by path."""
        if self._never_was:
            return []

        def question(files: Any) -> list[Entry]:
            if not self.remote:
                return list(self._walk(prefix))
            listed = [entry for page in obstore.list(files, prefix) for entry in page]
            return [Entry(entry["path"], entry["size"], entry["e_tag"]) for entry in listed]

        return sorted(self._ask(prefix, question), key=lambda entry: entry.path)

    def list(self, prefix: str) -> list[str]:
        """Return the paths of all files below a prefix, sorted."""
        return [entry.path for entry in self.entries(prefix)]

    def delete(self, paths: list[str]) -> None:
        """Remove files, in any order; one that is gone already is no error."""

        def question(files: Any) -> None:
            for parent in () if self.remote else {path.rpartition("/")[0] for path in paths}:
                self._refuse_links(parent)
            try:
                obstore.delete(files, paths)
            except FileNotFoundError:  # in a request for many, S3 does not mind; others do
                for path in paths:
                    with contextlib.suppress(FileNotFoundError):
                        obstore.delete(files, path)

        if paths:
            self._ask(os.path.commonpath(paths), question, writes=True)

    def _walk(self, prefix: str) -> Iterator[Entry]:
        """Yield the files below a directory; links and what nobody of ours has named are passed over."""
        for directory, _, names in os.walk(Path(self.root, prefix), onerror=_raise):
            for name in names:
                file = Path(directory, name)
                path = file.relative_to(self.root).as_posix()
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    about = file.lstat()
                    if stat.S_ISREG(about.st_mode) and path.isprintable() and "#" not in name:
                        yield Entry(path, about.st_size, None)

    def _refuse_links(self, path: str) -> None:
        """Raise OSError if a part of a path, which may not exist, is a link."""
        where = Path(self.root)
        for name in PurePosixPath(path).parts:
            where /= name
            if name == ".." or where.is_symlink():
                raise OSError(f"{quoted(where)} is a link; the store of a run holds none")

    @property
    def _never_was(self) -> bool:
        """True if nothing has been stored yet; of a directory that has gone, nobody can say so."""
        return not (self._was_there or self.exists)

    @cached_property
    def _directory(self) -> LocalStore:
        return LocalStore(self.root, automatic_cleanup=True, mkdir=True)

    def _opened(self) -> LocalStore:
        """Return the directory, which is made once: in place of one that has gone, none is."""
        if self._was_there and not self.exists:
            raise FileNotFoundError(errno.ENOENT, "the directory of the store is gone")
        self._was_there = True
        return self._directory

    def _ask(self, path: str, question: Callable[[Any], _Answer], writes: bool = False) -> _Answer:
        if self.remote:
            silence = _PUT_SILENCE if writes else GET_SILENCE
            return ask(self.root, question, lambda *why: _unusable(self.root, path, *why), silence)
        try:
            self._refuse_links(path)
            return question(self._opened())
        except (BaseError, OSError) as error:
            raise StoreUnusable(
                f"{self.root}/{path} cannot be {'written' if writes else 'read'}:"
                f" {str(error).splitlines()[0][:200]}",
                "is the disk full, the directory read-only, or gone?" if writes else "",
            ) from None


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _directory(root: str) -> str:
    """Return the absolute path of a directory that may not exist yet."""
    cure = "name another directory with --store"
    if not root.strip():
        raise StoreUnusable("--store is empty", cure)
    try:
        path = str(Path(root).resolve())
        path.encode()
        is_file = Path(path).exists() and not Path(path).is_dir()
    except UnicodeEncodeError:
        raise StoreUnusable(
            f"--store {quoted(root)}: its path is not UTF-8 in this locale", cure
        ) from None
    except (OSError, RuntimeError, ValueError) as error:  # no right, a loop of links, a NUL
        raise StoreUnusable(f"--store {quoted(root)}: {type(error).__name__}", cure) from None
    if is_file:
        raise StoreUnusable(f"--store {quoted(root)} is a file, a store is a directory", cure)
    # DuckDB takes every path for a pattern; what escapes *, ? and [ conflicts with \\
    if "\\" in path and any(sign in path for sign in "*?["):
        raise StoreUnusable(
            f"--store {quoted(root)}: a backslash and one of *, ?, [ in its path", cure
        )
    return path


def _address(url: str) -> str:
    """Return a URL on object storage as it is used, and shown in messages."""
    split = urlsplit(url)
    if split.query or split.fragment or "@" in split.netloc:
        raise StoreUnusable(  # it is not shown: what does not belong there may be a secret
            "--store: expected a URL like s3://bucket/prefix and nothing more",
            "credentials come from the environment",
        )
    if not url.startswith(SCHEMES) or not split.netloc:
        raise StoreUnusable(
            f"--store {url}: expected a directory or object storage", "s3://…, gs://… or az://…"
        )
    return url.rstrip("/")


def _unusable(root: str, path: str, trouble: Trouble, name: str) -> StoreUnusable:
    where = f"{root}/{path}"
    match trouble:
        case Trouble.NO_BUCKET:
            return StoreUnusable(
                f"--store {root}: no such bucket", "make it, or name another --store"
            )
        case Trouble.DENIED:
            return StoreUnusable(
                f"{where}: access denied",
                "check the credentials in the environment: a store is listed, read, written and"
                " deleted from",
            )
        case Trouble.ABSENT:
            return StoreUnusable(f"{where} is gone", "was the run written again? open it again")
        case Trouble.ADDRESS | Trouble.CHANGED | Trouble.PASSING:
            return StoreUnusable(
                f"{where}: {name}", "are the account, endpoint, region and credentials set?"
            )
