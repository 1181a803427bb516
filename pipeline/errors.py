"""Every error this project raises on purpose.

    HallmarksError                  anything else that went wrong            exit 1
    ├── RequestError                the request cannot be met; nothing was written   exit 2
    │   ├── SourceNotFound          no such repository, revision or path
    │   ├── NothingMatches          the selection leaves too few checkpoints or tensors
    │   ├── PlanDoesNotFit          the memory budget is too small
    │   ├── StoreUnusable           the store cannot be written
    │   │   └── RunInUse            another driver holds the run
    │   ├── QueryError              DuckDB refused a query
    │   └── FormatError             a header, an index or a listing is malformed
    ├── ReadError                   bytes that were planned could not be read
    │   ├── TransientReadError      may succeed when tried again
    │   │   └── AccessExpired       the signed URL is no longer valid; ask for a new one
    │   └── SourceChanged           the bytes are not those that were planned
    │       └── Corrupted           a whole file has another hash than the published one
    ├── StoreFailed                 the store failed after the work had begun
    ├── LeaseLost                   another driver writes the run
    ├── TileLost                    a worker died while it held a tile
    ├── PackageMissing              an optional package is not installed
    ├── DeviceFull                  a GPU has no memory for the least that can be computed at once
    ├── Diverged                    the loss of a training is no finite number any more
    └── Interrupted                 SIGINT or SIGTERM                         exit 130

An error says in one line what, where, expected and found; `hint` says what cures it. The second paragraph
of a class says what cures those without a hint (docs/operations.md is made from both).
All of them cross process borders: `__reduce__` rebuilds them from message and hint alone.
Outside text (names, server answers) goes into a message only through `quoted`. Whatever prints text that
others have written, an error or not, prints it through `printable`.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any


class HallmarksError(Exception):
    """Anything else that went wrong; `message` is one line, `hint` (may be empty) names a cure.

    Finished tiles are kept: rerun the same command to resume.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = printable(message), printable(hint)
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint)


class RequestError(HallmarksError, ValueError):
    """The request is wrong; found before anything was written.

    Correct what the message names; `--help` lists the options.
    """

    exit_code = 2


class SourceNotFound(RequestError):
    """No such repository, revision or path, or no right to see it.

    Check the spelling and the credentials; `hallmarks plan SOURCE` says what there is.
    """


class NothingMatches(RequestError):
    """The selection leaves fewer than two checkpoints, or no tensor.

    Widen the selection: --revisions, --steps, --include, --exclude.
    """


class PlanDoesNotFit(RequestError):
    """The memory budget is below the least that would do.

    Give more memory, or read fewer checkpoints at once: --memory, --max-workers, --steps.
    """


class StoreUnusable(RequestError):
    """The store cannot be written or read.

    Name another store, or make this one writable.
    """


class RunInUse(StoreUnusable):
    """Another driver holds the run.

    Wait for the other driver, or stop it.
    """


class QueryError(RequestError):
    """DuckDB refused a query.

    Correct the query; `FROM glossary` lists the views and columns.
    """


class FormatError(RequestError):
    """A header, an index or a listing does not keep to its format.

    The file is damaged, or not what its name says: fetch it again, or leave its checkpoint out.
    """

    def __init__(
        self,
        message: str,
        hint: str = "fetch the file again, or leave the checkpoint out with --revisions or --steps",
    ) -> None:
        super().__init__(message, hint)


class ReadError(HallmarksError, OSError):
    """Planned bytes could not be read.

    Rerun the same command: finished tiles are kept. What fails again is named with its file and bytes.
    """


class TransientReadError(ReadError):
    """Reading failed in a way that may pass: worth another attempt.

    It was tried again and again already: check the network or the disk, then rerun the same command.
    """


class AccessExpired(TransientReadError):
    """A signed URL is no longer valid; the driver makes a new one.

    Rerun the same command; finished tiles are kept.
    """


class SourceChanged(ReadError):
    """A file is not the one that was planned: another size, time or ETag.

    Let nothing write the checkpoints meanwhile; rerun with --fresh to read them as they are now.
    """


class Corrupted(SourceChanged):
    """A file's contents have another hash than the published one.

    Fetch the file again; if its publisher's copy is damaged, leave its checkpoint out.
    """


class StoreFailed(HallmarksError):
    """The store cannot be written or read any more; what was finished is kept.

    Mend the storage, then rerun the same command to resume.
    """


class LeaseLost(HallmarksError):
    """The right to write the run is another driver's; what was finished is kept.

    `hallmarks status` says who writes it; one driver a run.
    """


class TileLost(HallmarksError):
    """A worker died while it held a tile.

    Often it was killed for its memory: use a smaller --memory or fewer --max-workers, and rerun the same command.
    """


class PackageMissing(HallmarksError, ImportError):
    """What was asked for needs a package that is optional, and not installed.

    Install what the hint names.
    """


class DeviceFull(HallmarksError):
    """A GPU has no memory for the least that can be computed at once.

    Free the GPU, read fewer checkpoints at once, or use --device cpu.
    """


class Diverged(HallmarksError):
    """The loss of a training is no finite number any more.

    Lower its learning rate, or lengthen its warmup.
    """


class Interrupted(HallmarksError):
    """SIGINT or SIGTERM arrived; everything finished is kept.

    Rerun the same command to resume.
    """

    exit_code = 130


class DamagedRun(UserWarning):
    """A run of a store, or a part of it, is left out of an answer; the message is one line."""


def printable(text: object) -> str:
    """Return text as it may be shown on a terminal, or stand in one line of a file.

    Line breaks, control characters, escape sequences and what changes the direction of writing are
    shown as escapes, halves of characters too: names come from repositories, folders and stores that
    others have made.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in shown)


class _Short(reprlib.Repr):
    """Shows the beginning of a value, and looks at no more of it."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict = 2, 16  # each level multiplies
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 64

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, dict | list | tuple):  # of a kind that it does not know: it would show all
            return f"a {type(x).__name__}"
        return super().repr_instance(x, level)


_SHORT = _Short()
_NAMED = 12
"""Names in a hint."""


def names_like(name: str, known: Iterable[str]) -> str:
    """Return names for a hint, those most like one first, at most _NAMED of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 3)
    shown = list(dict.fromkeys([*near, *names]))[:_NAMED]
    more = f", … ({len(names) - len(shown):,} more)" if len(names) > len(shown) else ""
    return ", ".join(shown) + more


def quoted(text: object, limit: int = 120) -> str:
    """Return outside text fit for a one-line message: escaped, in quotes, at most `limit` long."""
    if isinstance(text, str | bytes):
        text = text[: limit + 1]
    elif isinstance(text, dict | list | tuple | set | frozenset):
        text = _SHORT.repr(text)
    shown = repr(str(text))
    return shown if len(shown) <= limit else shown[: limit - 2] + "…'"
