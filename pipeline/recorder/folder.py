"""The directory of a training that is recorded: `step-N/` for each checkpoint, `metrics.jsonl`, a lock.

A checkpoint is written to `step-N.partial`, which nothing takes for a checkpoint, down to the disk, and then
renamed. What a process leaves that was killed is removed by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from pipeline.errors import HallmarksError, RequestError, quoted
from pipeline.files import sync, write_synced
from pipeline.recorder.schedule import step_number

LOG = "metrics.jsonl"
_LOCK = "recorder.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Of file systems of clusters: Lustre unless it is mounted with `flock`, NFS without its lock service."""
_STEP = re.compile(r"step-(0|[1-9]\d{0,17})")
_PARTIAL = re.compile(r"step-\d{1,18}\.partial|metrics\.jsonl\.partial")


def finished(directory: Path, step: int) -> Path:
    """Return the checkpoint of a step."""
    return directory / f"step-{step}"


def unfinished(directory: Path, step: int) -> Path:
    """Return where it is written."""
    return directory / f"step-{step}.partial"


class Folder:
    """The directory, held by one process."""

    def __init__(self, path: Path, resume: int | None) -> None:
        """Take the directory for a new training, or for one that is continued.

        Of a training that is continued from step K, checkpoints and metrics after K are those of an
        attempt that was given up: they are set aside, in a hidden folder.

        Raises:
            RequestError: it holds a training already, another process writes it, or it cannot be written.
        """
        self.path = path
        self.set_aside = ""
        """What was, for people; empty: nothing."""
        self._log: int | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path)
            try:
                self._open(resume)
            except BaseException:  # an interrupt, too, leaves this process without the lock
                self.close()
                raise
        except OSError as error:
            raise RequestError(f"{quoted(path)} cannot be written: {error.strerror}") from None

    @property
    def steps(self) -> list[int]:
        """The steps that are recorded."""
        matches = (_STEP.fullmatch(each.name) for each in self.path.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def begin(self, step: int, config: bytes | None) -> None:
        """Make the folder in which a checkpoint is written, with the network's configuration."""
        growing = unfinished(self.path, step)
        growing.mkdir()
        if config is not None:
            write_synced(growing / "config.json", config)

    def publish(self, step: int) -> None:
        """Give a checkpoint its name, once its files are on the disk."""
        growing = unfinished(self.path, step)
        sync(growing)
        if self._log is not None:
            os.fsync(self._log)
        growing.rename(finished(self.path, step))
        sync(self.path)

    def discard(self, step: int) -> None:
        """Leave nothing of a checkpoint that cannot be written."""
        shutil.rmtree(unfinished(self.path, step), ignore_errors=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a line of metrics.

        Raises:
            HallmarksError: it cannot be written.
        """
        try:
            if self._log is None:
                self._log = os.open(self.path / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            line = json.dumps({"step": step, **metrics}).encode() + b"\n"
            if (written := os.write(self._log, line)) < len(
                line
            ):  # no line may follow a part of one
                os.ftruncate(self._log, os.fstat(self._log).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise cannot_write(f"metrics of step {step:,}", self.path, error) from error

    def close(self) -> None:
        """Give the directory up."""
        if self._log is not None:
            os.close(self._log)
            self._log = None
        if not self._lock.closed:
            (self.path / _LOCK).unlink(missing_ok=True)
            self._lock.close()

    def _open(self, resume: int | None) -> None:
        for each in list(self.path.iterdir()):
            if _PARTIAL.fullmatch(each.name):
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        if resume is not None:
            self._set_aside(resume)
        elif (steps := self.steps) or (self.path / LOG).exists():
            what = f"checkpoints up to step {steps[-1]:,}" if steps else "metrics"
            raise RequestError(
                f"{quoted(self.path)} holds {what} of an earlier training",
                "record in another directory, or continue it: resume=STEP, the step that the loop begins with",
            )

    def _set_aside(self, resume: int) -> None:
        """Move what an earlier attempt recorded after a step to a hidden folder."""
        later = [step for step in self.steps if step > resume]
        log = self.path / LOG
        lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        whole = [
            line for line in lines if line.endswith(b"\n")
        ]  # the last may have been being written
        kept = [line for line in whole if self._step_of(line) <= resume]
        if not later and kept == lines:
            return
        aside = next(
            place for i in range(1, 1 << 20) if not (place := self.path / f".earlier-{i}").exists()
        )
        aside.mkdir()
        if kept != lines:
            shutil.copyfile(log, aside / LOG)
            growing = log.with_name(f"{LOG}.partial")
            write_synced(growing, b"".join(kept))
            growing.rename(log)
        for step in reversed(later):  # so that what is left of a training is its beginning
            finished(self.path, step).rename(finished(aside, step))
        sync(self.path)
        self.set_aside = (
            f"what was recorded after it, by an earlier attempt, was moved to {aside.name}:"
            f" {len(later):,} checkpoint(s) and {len(lines) - len(kept):,} line(s) of metrics"
        )

    def _step_of(self, line: bytes) -> int:
        try:
            return step_number("step", json.loads(line)["step"])
        except (ValueError, TypeError, LookupError):
            raise RequestError(
                f"{quoted(self.path / LOG)}: expected lines of a recorder, found {quoted(line, 60)}",
                "record in another directory",
            ) from None


def cannot_write(what: str, directory: Path, error: OSError) -> HallmarksError:
    """Return the error of a directory that cannot be written."""
    return HallmarksError(
        f"{what}: {quoted(directory)} cannot be written: {error.strerror}",
        "what was recorded before is kept: resume from there",
    )


def _locked(path: Path) -> IO[bytes]:
    """Return a lock, whose file is removed before it is given up."""
    while True:
        lock = (path / _LOCK).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RequestError(
                f"another process records in {quoted(path)}",
                "record in another directory; of a distributed training, initialize torch.distributed before",
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                lock.close()
                raise
        if os.fstat(lock.fileno()).st_nlink:  # not removed by the process that held it before
            return lock
        lock.close()
