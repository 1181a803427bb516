"""Ranges of objects in a bucket, and what went wrong with them in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import obstore

from pipeline.errors import (
    HallmarksError,
    SourceChanged,
    SourceNotFound,
    TransientReadError,
    quoted,
)
from pipeline.transport import object_client
from pipeline.transport.access import ObjectKey
from pipeline.transport.object_client import Trouble

_Answer = TypeVar("_Answer")


def read(access: ObjectKey, start: int, buffer: memoryview) -> None:
    """Fill a buffer from a byte of an object on.

    Raises:
        SourceChanged: the object is another one by now.
        SourceNotFound: it, or the right to read it, is gone.
        TransientReadError: it could not be read.
    """
    if not len(buffer):
        return
    where = f"{access.where}[{start}:{start + len(buffer)}]"
    options: Any = {"range": (start, start + len(buffer)), "if_match": access.etag}

    def fill(store: Any) -> None:
        answer = obstore.get(store, access.key, options=options)
        data = answer.bytes()
        if answer.meta["size"] != access.size or len(data) != len(buffer):
            raise SourceChanged(
                f"{where}: expected {len(buffer):,} bytes of {access.size:,}, found"
                f" {len(data):,} of {answer.meta['size']:,}"
            )
        buffer[:] = memoryview(data)

    ask(access.root, fill, where)


def ask(root: str, question: Callable[[Any], _Answer], where: str) -> _Answer:
    """Return the answer to a question about a source, as `object_client.ask` does."""

    def translated(trouble: Trouble, name: str) -> HallmarksError:
        match trouble:
            case Trouble.CHANGED:
                return SourceChanged(
                    f"{where} changed since it was planned", "start again with --fresh"
                )
            case Trouble.DENIED:
                return SourceNotFound(
                    f"{where}: access denied", "check the credentials in the environment"
                )
            case Trouble.ABSENT:
                return SourceNotFound(f"nothing at {quoted(where)}", "check the spelling")
            case Trouble.NO_BUCKET:
                return SourceNotFound(
                    f"no such bucket: {quoted(where)}", "check the spelling, and the endpoint"
                )
            case Trouble.ADDRESS:
                return SourceNotFound(
                    f"{quoted(where)} cannot be addressed: {name}",
                    "are the account, endpoint and credentials set?",
                )
            case Trouble.PASSING:
                return TransientReadError(
                    f"{where}: {name}", "are the endpoint, region and credentials set?"
                )

    return object_client.ask(root, question, translated)
