"""What there is in a source besides what is analysed: nothing that was seen goes unnamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.planning.select import LeftOut, Selection
from pipeline.sources.base import File, Source
from pipeline.sources.beside import Beside


@dataclass(frozen=True, slots=True)
class Account:
    """What there is in a source besides what is analysed, and how its checkpoints were ordered."""

    ordering: str = ""
    """How stages were ordered, where names alone do not say."""
    lacking: tuple[LeftOut, ...] = ()
    """Checkpoints of the series that hold no weights that can be read."""
    unplaced: tuple[str, ...] = ()
    """Last and best checkpoints that are taken, though their names state no step."""
    beside: tuple[Beside, ...] = ()
    """Files and folders of the source that belong to no checkpoint."""
    logs: tuple[File, ...] = ()
    """Those of them in which trainers log."""


def account_of(source: Source, selection: Selection) -> Account:
    """Return the account of one source whose candidates have been listed."""
    unplaced = [e.candidate.name for e in selection.checkpoints if not e.is_placed]
    beside, logs = tuple(source.beside()), tuple(source.logs())
    return Account(selection.ordering, selection.lacking, tuple(unplaced), beside, logs)


def of_several(accounts: Sequence[Account]) -> Account:
    """Return the account of several sources."""
    return Account(
        "; ".join(account.ordering for account in accounts if account.ordering),
        tuple(entry for account in accounts for entry in account.lacking),
        tuple(name for account in accounts for name in account.unplaced),
        tuple(each for account in accounts for each in account.beside),
    )
