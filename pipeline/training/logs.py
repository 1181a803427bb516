"""The logs that trainers write of a training: which files they are, and what each says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.checkpoint.json_text import JsonText
from pipeline.errors import FormatError, HallmarksError, Interrupted, quoted
from pipeline.training.events import need_tensorboard, take_events
from pipeline.training.metrics import Collector, Metric, Training
from pipeline.training.rows import SUFFIXES, take_rows

MOST_BYTES = 128 << 20
"""Of one log: a million entries of the Trainer's."""
STATE = "trainer_state.json"
TABLES = ("metrics.csv", "metrics.jsonl")
"""Lightning's, and the recorder's."""
EVENTS = re.compile(r"events\.out\.tfevents\.(\d{1,20})\..*|.*\.tfevents\..*")

Read = Callable[[int, int], bytes]
"""Gives the bytes [start, stop) of a file."""


@dataclass(frozen=True, slots=True)
class Log:
    """One file, and how it is read."""

    path: str
    size: int
    where: str
    """For people."""
    read: Read

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]


def is_log(path: str) -> bool:
    """Return whether a file is what a trainer logs to, by its name."""
    name = path.rpartition("/")[2]
    return name in (STATE, *TABLES) or EVENTS.fullmatch(name) is not None


def read_logs(logs: Sequence[Log]) -> Training:
    """Return what one log says, or several that continue each other.

    Raises:
        FormatError: it is none, it is too large, or nothing in it is understood.
        PackageMissing: it is an event file, and `tensorboard` is not installed.
    """
    first = logs[0]
    where = first.where if len(logs) == 1 else f"{first.where} and {len(logs) - 1} more"
    collector = Collector(where)
    size = sum(log.size for log in logs)
    if size > MOST_BYTES:
        raise FormatError(f"{where}: expected at most {MOST_BYTES >> 20} MiB, found {size:,} bytes")
    for log in logs:
        try:
            take = _reader(log)
            take(log.name, log.read(0, log.size) if log.size else b"", collector)
        except (ValueError, RecursionError) as error:
            if isinstance(error, HallmarksError):
                raise
            why = " ".join(str(error).split())[:400]
            raise FormatError(f"{log.where}: not a log of metrics: {why}") from None
    training = collector.training()
    if not training.curves:
        why = f"; {training.notes[0]}" if training.notes else ""
        raise FormatError(f"{where}: expected numbers by step, found none{why}")
    return replace(training, logs=tuple(log.where for log in logs))


def read_best(logs: Sequence[Log]) -> Training:
    """Return what the best of a training's logs says: of several kinds all say the same.

    The Trainer's state, else a table, else event files. What cannot be read is noted.
    """
    notes: list[str] = []
    for kind in _kinds(logs):
        if len(kind) > 1 and kind[0].name in TABLES:
            names = ", ".join(quoted(log.path, 60) for log in kind[:3])
            notes.append(f"not read: {names}: each is of another training; --training names one")
            continue
        try:
            training = read_logs(kind)
        except Interrupted:
            raise
        except HallmarksError as error:
            hint = f" ({error.hint})" if error.hint else ""
            notes.append(f"not read: {error.message}{hint}")
        else:
            return replace(training, notes=(*notes, *training.notes))
    return Training(notes=tuple(notes))


def _kinds(logs: Sequence[Log]) -> Iterator[Sequence[Log]]:
    """Yield the logs of each kind that count: the Trainer's state nearest to the top, all tables, and
    the event files of the folder that was written last, as a trainer that starts again begins another."""
    if states := [log for log in logs if log.name == STATE]:
        yield [min(states, key=lambda log: log.path.count("/"))]
    if tables := [log for log in logs if log.name in TABLES]:
        yield tables
    events = [log for log in logs if EVENTS.fullmatch(log.name)]
    if events:
        newest = max(events, key=_written).folder
        yield sorted((log for log in events if log.folder == newest), key=_written)


def _written(log: Log) -> tuple[int, str]:
    """Return when an event file was begun, as its name states, to the second."""
    match = EVENTS.fullmatch(log.name)
    return int(match[1] or 0) if match else 0, log.path


def _reader(log: Log) -> Callable[[str, bytes, Collector], None]:
    if EVENTS.fullmatch(log.name):
        need_tensorboard(log.where)
        return take_events
    if log.name.endswith(SUFFIXES):
        return take_rows
    if log.name.endswith(".json"):
        return _take_state
    raise FormatError(
        f"{log.where}: expected {', '.join(SUFFIXES)}, {STATE} or an event file of TensorBoard"
    )


def _take_state(name: str, data: bytes, collector: Collector) -> None:
    """Take `log_history` of a `trainer_state.json`: an object for each time that something was logged.

    Splits as transformers itself derives them for other logs (`rewrite_logs`): eval_ and test_ begin
    the names of theirs, everything else is of the training.
    """
    del name
    text = JsonText(data)
    logged = False
    for key in text.members():
        if key != "log_history":
            text.skip()
            continue
        logged = True
        for _ in text.items():
            entry = {name: text.value() for name in text.members()}
            step = entry.pop("step", None)
            for metric, value in entry.items():
                split, _, rest = metric.partition("_")
                of_other = split in ("eval", "test") and rest
                collector.add(
                    Metric(split, rest) if of_other else Metric("train", metric), step, value
                )
    text.end()
    if not logged:
        raise ValueError("expected log_history")
