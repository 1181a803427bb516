"""Calls that are made elsewhere, several at once, by processes that may die."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, Protocol


class Calls(Protocol):
    """Who makes calls: `Processes` of this machine, or Ray (`execute/ray/calls.py`)."""

    @property
    def free(self) -> int:
        """How many more can be begun now."""
        ...

    def begin(self, number: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Have a function called.

        Args:
            number: of the call, for who is told of its end.
            function: one that a module has by its name, like all its arguments.
        """
        ...

    def ended(self, within_s: float) -> list[tuple[int, Any]]:
        """Return the calls that have ended, each with what it returned or the error that it raised,
        as soon as there is one, or none after this time. A process that died is a TileLost.

        Raises:
            HallmarksError: nobody can make calls any more.
        """
        ...


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; return what it returned or the error that it raised, with where as a note."""
    try:
        return function(*arguments)
    except Exception as error:  # whoever asked for it is told
        error.add_note("".join(traceback.format_exception(error)))
        return error
