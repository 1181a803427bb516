"""The directory of a training that is recorded: `step-N/` for each checkpoint, `metrics.jsonl`, a lock.

A checkpoint is written to `step-N.partial`, which nothing takes for a checkpoint, down to the disk, and then
renamed. What a process leaves that was killed is removed by the next one.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from pipeline.errors import HallmarksError, RequestError, quoted

LOG = "metrics.jsonl"
_LOCK = "recorder.lock"
_STEP = re.compile(r"step-(\d{1,18})")
_PARTIAL = re.compile(r"step-\d{1,18}\.partial|metrics\.jsonl\.partial")


class Folder:
    """The directory, held by one process."""

    def __init__(self, path: Path, resume: int | None) -> None:
        """Take the directory for a new training, or for one that is continued.

        Of a training that is continued from step K, checkpoints and metrics after K are those of an
        attempt that was given up: they are set aside, in a hidden folder, and that is said.

        Raises:
            RequestError: it holds a training already, another process writes it, or it cannot be written.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path)
            try:
                self._open(resume)
            except BaseException:
                self._lock.close()
                raise
        except OSError as error:
            if isinstance(error, HallmarksError):
                raise
            raise RequestError(f"{quoted(path)} cannot be written: {error.strerror}") from None

    @property
    def steps(self) -> list[int]:
        """The steps that are recorded."""
        matches = (_STEP.fullmatch(each.name) for each in self.path.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def checkpoint(self, step: int) -> Path:
        """Return where the checkpoint of a step is, or will be."""
        return self.path / f"step-{step}"

    def add(self, step: int, write: Callable[[Path], None]) -> None:
        """Add a checkpoint, as a whole or not at all.

        Args:
            write: fills an empty folder, down to the disk.

        Raises:
            HallmarksError: it cannot be written.
        """
        growing = self.path / f"step-{step}.partial"
        try:
            growing.mkdir()
            write(growing)
            sync(growing)
            growing.rename(self.checkpoint(step))
            sync(self.path)
        except OSError as error:
            shutil.rmtree(growing, ignore_errors=True)
            raise self._cannot_write(f"checkpoint of step {step:,}", error) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a line of metrics.

        Raises:
            HallmarksError: it cannot be written.
        """
        try:
            if self._log is None:
                self._log = (self.path / LOG).open("ab", buffering=0)
            self._log.write(json.dumps({"step": step, **metrics}).encode() + b"\n")
        except OSError as error:
            raise self._cannot_write(f"metrics of step {step:,}", error) from error

    def close(self) -> None:
        """Give the directory up."""
        if self._log is not None:
            self._log.close()
        self._lock.close()

    def _cannot_write(self, what: str, error: OSError) -> HallmarksError:
        return HallmarksError(
            f"{what}: {quoted(self.path)} cannot be written: {error.strerror}",
            "checkpoints that were written are kept; once there is room, resume from the last of them",
        )

    def _open(self, resume: int | None) -> None:
        self._log: IO[bytes] | None = None
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
        """Move what an earlier attempt recorded after a step to a hidden folder, and say so."""
        later = [step for step in self.steps if step > resume]
        log = self.path / LOG
        lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        kept = [line for line in lines if line.endswith(b"\n") and _step_of(line) <= resume]
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
            self.checkpoint(step).rename(aside / f"step-{step}")
        sync(self.path)
        warnings.warn(
            f"{self.path}: continued from step {resume:,}: {len(later)} checkpoints and"
            f" {len(lines) - len(kept)} lines of metrics after it are of an earlier attempt and were moved to {aside.name}",
            stacklevel=2,
        )


def sync(path: Path) -> None:
    """Have what a file or folder holds reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file, down to the disk."""
    path.write_bytes(data)
    sync(path)


def _locked(path: Path) -> IO[bytes]:
    lock = (path / _LOCK).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise RequestError(
            f"another process records in {quoted(path)}",
            "record in another directory; of a distributed training, initialize torch.distributed before",
        ) from None
    return lock


def _step_of(line: bytes) -> int:
    """Return the step of a line that `log` wrote."""
    return json.loads(line)["step"]
