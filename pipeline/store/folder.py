"""The store's files: each appears whole or not at all."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore

from pipeline.errors import StoreUnusable


class Folder:
    """A directory of files, named by paths relative to it. Picklable.

    obstore writes to a temporary name beside the target and then links or renames it: a reader
    never sees half a file, and of several writers that `create` one name the first wins.
    """

    def __init__(self, root: str) -> None:
        if "://" in root:
            raise StoreUnusable(
                f"--store {root}: expected a directory", "object storage is not supported yet"
            )
        self.root = str(Path(root).resolve())

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return Folder, (self.root,)

    @cached_property
    def _files(self) -> LocalStore:
        try:
            return LocalStore(self.root, mkdir=True)
        except OSError as error:
            raise StoreUnusable(
                f"--store {self.root} cannot be written: {error}", "choose another directory"
            ) from None

    @property
    def exists(self) -> bool:
        """True if there is anything to read."""
        return Path(self.root).is_dir()

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that is not there yet; return False if it is, and leave it."""
        try:
            self._write(path, data, "create")
        except AlreadyExistsError:
            return False
        return True

    def replace(self, path: str, data: bytes) -> None:
        """Write a file, or replace it, at once."""
        self._write(path, data, "overwrite")

    def read(self, path: str) -> bytes | None:
        """Return a file's contents, or None if there is no such file."""
        try:
            return obstore.get(self._files, path).bytes().to_bytes()
        except FileNotFoundError:
            return None

    def list(self, prefix: str) -> list[str]:
        """Return the paths of all files below a prefix, sorted."""
        if not self.exists:
            return []
        return sorted(entry["path"] for page in obstore.list(self._files, prefix) for entry in page)

    def delete(self, paths: list[str]) -> None:
        """Remove files; one that is gone already is no error."""
        for path in paths:
            try:
                obstore.delete(self._files, path)
            except FileNotFoundError:
                continue

    def _write(self, path: str, data: bytes, mode: Literal["create", "overwrite"]) -> None:
        try:
            obstore.put(self._files, path, data, mode=mode, use_multipart=False)
        except AlreadyExistsError:
            raise
        except (obstore.exceptions.BaseError, OSError) as error:
            raise StoreUnusable(
                f"{self.root}/{path} cannot be written: {str(error).splitlines()[0][:200]}",
                "is the disk full, or the directory read-only?",
            ) from None
