"""A repository's folder in a Hub cache as a source: its branches and tags are the checkpoints.

`refs/<name>` holds a commit, `snapshots/<commit>/` its files, as links into `blobs/`.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.checkpoint.file_kinds import FileKind
from pipeline.checkpoint.layouts import is_whole
from pipeline.checkpoint.reading import Reading
from pipeline.sources.base import Candidate, File
from pipeline.sources.beside import Beside
from pipeline.sources.directory import Directory
from pipeline.sources.plain import is_hash, is_plain


class CacheFolder(Directory):
    """What `hf download` has left of one repository with several revisions."""

    def __init__(self, root: Path, commits: dict[str, str], reading: Reading) -> None:
        """`commits`: of each branch and tag."""
        super().__init__(root, reading)
        self.run_name = _repository(root)
        self._commits = commits

    def candidates(self) -> list[Candidate]:
        return [
            Candidate(name, None, f"snapshots/{commit}", stated=self._reading.stated(name))
            for name, commit in self._commits.items()
            if self._is_complete(commit)
        ]

    def beside(self) -> list[Beside]:
        kind = FileKind("a commit that no branch or tag in the cache names")
        unnamed = set(_snapshots(self._root)) - set(self._commits.values())
        lacking = [
            Beside(
                f"{name}/", FileKind("no weights of it in the cache"), self._reading.position(name)
            )
            for name, commit in self._commits.items()
            if not self._is_complete(commit)
        ]
        return lacking + [Beside(f"snapshots/{commit}/", kind) for commit in sorted(unnamed)]

    def logs(self) -> list[File]:
        return []  # they are files of its revisions

    def _is_complete(self, commit: str) -> bool:
        return is_whole(lambda path: self._list(f"snapshots/{commit}/{path}"), self._reading)


def cache_folder(path: Path, reading: Reading) -> Directory | None:
    """Return the source if a folder, or the `snapshots` in it, is a repository's in a Hub cache.

    One revision alone is read as the directory that it is: its folders may be the checkpoints.
    """
    root = path.resolve()
    root = root.parent if root.name == "snapshots" else root
    refs = root / "refs"
    if not refs.is_dir() or not (snapshots := _snapshots(root)):
        return None
    stated = {
        ref.relative_to(refs).as_posix(): ref.read_text(errors="replace")[:64].strip()
        for ref in sorted(refs.rglob("*"))
        if ref.is_file()
    }
    commits = {name: c for name, c in stated.items() if c in snapshots and is_plain(name)}
    if len(commits) > 1 or len(snapshots) > 1:
        return CacheFolder(root, commits, reading)
    alone = Directory(root / "snapshots" / snapshots[0], reading)
    alone.label, alone.run_name = str(path), _repository(root)
    return alone


def _snapshots(root: Path) -> list[str]:
    folder = root / "snapshots"
    return [f.name for f in folder.iterdir() if is_hash(f.name)] if folder.is_dir() else []


def _repository(root: Path) -> str:
    return root.name.removeprefix("models--")
