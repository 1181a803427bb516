"""One run of a sweep: trained and analysed, and neither twice.

A process that is killed at any time leaves what the next one goes on from: the checkpoints of a training
are there as a whole or not at all, and an analysis resumes. Of several processes one has a run in hand,
by a lock beside its checkpoints, which the system takes away with the process; where processes do not
see each other's files, the store's lease on the run stands between them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.errors import HallmarksError, RequestError, RunInUse, quoted
from pipeline.store.folder import Folder
from pipeline.store.names import stored_settings
from pipeline.sweep.grid import Run


@dataclass(frozen=True, slots=True)
class Place:
    """Where runs are trained and stored, and how."""

    store: str
    checkpoints: str
    """The directory of all trainings: each has one of its own in it, with its run's name."""
    device: str = "auto"
    """That trainings are computed on: `auto`, `cpu` or `cuda`."""
    replace: bool = False
    """A run of that name with other settings may be replaced, with its checkpoints."""


@dataclass(frozen=True, slots=True)
class Done:
    """What has been done of one run."""

    run: str
    training_seconds: float = 0.0
    """0 if its checkpoints were there."""
    analysis_seconds: float = 0.0
    """0 if the store had it."""

    @property
    def seconds(self) -> float:
        return self.training_seconds + self.analysis_seconds

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


def carry_out(run: Run, place: Place) -> Done:
    """Train and analyse one run, as far as that has not been done.

    Raises:
        RunInUse: another process has it in hand.
        RequestError: there is another one of that name, which may not be replaced.
        HallmarksError: it failed; the message says why.
    """
    checkpoints = Path(place.checkpoints, run.name)
    with _in_hand(checkpoints):
        if is_stored(run, place):
            return Done(run.name)
        if not is_trained(run, place) and checkpoints.exists():
            _remove(checkpoints)
        begun = time.monotonic()
        if not checkpoints.exists():
            _train(run, checkpoints, place.device)
        trained = time.monotonic()
        _analyze(run, checkpoints, place)
        return Done(run.name, trained - begun, time.monotonic() - trained)


def is_stored(run: Run, place: Place) -> bool:
    """Return whether the store has a run, complete.

    Raises:
        RequestError: the run of that name has other settings, and may not be replaced.
    """
    stored = stored_settings(Folder(place.store), run.name)
    if stored is None:
        return False
    settings, complete = stored
    different = _difference(settings, run.stated)
    if different and not place.replace:
        raise RequestError(
            f"run {run.name} of this store has other settings: {different}",
            "give the sweep another name, or replace its runs with --replace",
        )
    return complete and not different


def is_trained(run: Run, place: Place) -> bool:
    """Return whether the checkpoints of a run are there.

    Raises:
        RequestError: what is there is of another training, and may not be replaced; or of none.
    """
    checkpoints = Path(place.checkpoints, run.name)
    if not checkpoints.exists():
        return False
    settings = _settings_of(checkpoints)
    if settings is None:
        raise RequestError(
            f"{quoted(checkpoints)} is there, and not a training of this program",
            "name another directory with --checkpoints",
        )
    different = _difference(settings, run.settings.as_dict())
    if different and not place.replace:
        raise RequestError(
            f"the checkpoints in {quoted(checkpoints)} have other settings: {different}",
            "give the sweep another name, or replace them with --replace",
        )
    return not different


def _difference(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return in what settings differ from those that are wanted; of what is derived they say more."""
    return "; ".join(
        f"{key} {_shown(settings.get(key))}, now {_shown(value)}"
        for key, value in wanted.items()
        if settings.get(key) != value
    )


def _shown(value: Any) -> str:
    return "not stated" if value is None else quoted(value)


def _settings_of(checkpoints: Path) -> Mapping[str, Any] | None:
    """Return the settings that a training has left with its last checkpoint; None if there are none."""
    for config in checkpoints.glob("step-*/config.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            settings = json.loads(config.read_bytes())["training"]
            return settings if isinstance(settings, dict) else None
    return None


def _train(run: Run, checkpoints: Path, device: str) -> None:
    from pipeline.execute.work.device import choose_device  # torch takes two seconds
    from pipeline.sweep.train import train

    try:
        train(run.settings, checkpoints, device=choose_device(device))
    except OSError as error:
        raise HallmarksError(
            f"{quoted(checkpoints)} cannot be written: {error.strerror}",
            "is the disk full, the directory read-only, or gone?",
        ) from None


def _analyze(run: Run, checkpoints: Path, place: Place) -> None:
    from pipeline.job.analyze import analyze
    from pipeline.planning.request import Request, Resources

    summary = analyze(
        Request(str(checkpoints), run.name, settings=run.stated),
        place.store,
        Resources(executor="local", device="cpu", threads=1),  # others compute beside it
        replace=place.replace,
    )
    if not summary.complete:
        raise HallmarksError(f"its analysis is incomplete: {'; '.join(summary.lost)}")


@contextmanager
def _in_hand(checkpoints: Path) -> Iterator[None]:
    """Have one run in hand, alone among the processes that see its directory.

    Raises:
        RunInUse: another process has it.
    """
    lock = checkpoints.with_name(f".{checkpoints.name}.lock")
    try:
        checkpoints.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise HallmarksError(
            f"{quoted(checkpoints.parent)} cannot be written: {error.strerror}",
            "name another directory with --checkpoints",
        ) from None
    with file:
        if not _locked(file, lock):
            raise RunInUse(
                f"run {checkpoints.name} is being trained by another process", "wait for it"
            )
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _locked(file: IO[str], path: Path) -> bool:
    """Lock a file; return False if another process has, or has removed what it had locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _remove(checkpoints: Path) -> None:
    """Remove checkpoints, which are no training any more before the first of them has gone."""
    removed = checkpoints.with_name(f".{checkpoints.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    checkpoints.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)
