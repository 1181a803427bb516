"""How long a job waits for a store that fails while it uses it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from pipeline.errors import StoreFailed, StoreUnusable

PAUSES_S = (1, 2, 4, 8, 15, 30)
"""Between tries of a store that fails, a minute in all: someone may make room, or a server come back.
A job that waits longer holds a cluster, and resumes as well tomorrow."""


class Patience:
    """Growing pauses between tries, from each success anew."""

    def __init__(self, note: Callable[[str], None]) -> None:
        """`note`: told why there is a pause."""
        self._note = note
        self._pauses = iter(PAUSES_S)

    def succeeded(self) -> None:
        """Begin again with the shortest pause."""
        self._pauses = iter(PAUSES_S)

    def wait(self, error: StoreUnusable | StoreFailed) -> None:
        """Wait before the next try.

        Raises:
            StoreFailed: it has been tried for long enough.
        """
        pause = next(self._pauses, None)
        if pause is None:
            raise StoreFailed(
                f"{error.message} (retried for {sum(PAUSES_S)} s)",
                "finished tiles are kept: fix the store and rerun the same command to resume",
            ) from None
        self._note(f"{error.message}; retrying in {pause} s")
        time.sleep(pause)


@contextlib.contextmanager
def store_in_use() -> Iterator[None]:
    """Tell a store that fails while a job uses it from one that could not be used at all."""
    try:
        yield
    except StoreUnusable as error:
        raise StoreFailed(error.message, error.hint) from None
