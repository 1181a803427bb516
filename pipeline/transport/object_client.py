"""The client of object storage: everything read from and written to `s3://`, `gs://`, `az://`.

Credentials, region and endpoint come from the environment, as the storage's own tools read them
(AWS_…, GOOGLE_…, AZURE_…); AWS_SKIP_SIGNATURE=true reads public buckets without any.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from enum import Enum, auto
from functools import lru_cache, partial
from typing import Any, TypeVar

from obstore.exceptions import (
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from pipeline.errors import HallmarksError, RequestError
from pipeline.transport.limits import backoff_s
from pipeline.transport.waiting import ANNOUNCED_S, Signs, announce, answered

SCHEMES = ("s3://", "gs://", "az://")

ATTEMPTS = 6
# The client's own retries ignore Retry-After, send eleven requests to a 429 in two seconds, and
# accept another ETag when they resume a body; and it notices a stall after 30 s.
_RETRIES: Any = {"max_retries": 0, "retry_timeout": timedelta(0)}
_CLIENT: Any = {"connect_timeout": "10s", "timeout": "5min"}
GET_SILENCE = "5s"
QUESTION_S = 600.0
"""For all requests of one question, each of which `_CLIENT` bounds: a listing of two million files, at
0.3 s for a thousand, or 600 MB written at 1 MB/s. The client itself lists for as long as it is told
that there is more."""
_Answer = TypeVar("_Answer")


class Trouble(Enum):
    """Why the storage did not do what it was asked."""

    ADDRESS = auto()
    """Not a URL, or one that the environment does not complete."""
    NO_BUCKET = auto()
    ABSENT = auto()
    DENIED = auto()
    CHANGED = auto()
    PASSING = auto()
    """Anything else: an answer that did not come, or one that says to come back."""


@lru_cache(maxsize=64)
def client(url: str, silence: str = GET_SILENCE) -> Any:
    """Return this process's client for a bucket and prefix.

    Args:
        silence: how long the storage may send nothing, also while it is still being sent the body.
    """
    # options given here replace those that the client takes from the environment: this one is used
    names = ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP")
    plain = any(os.environ.get(name, "").lower() in ("true", "1") for name in names)
    options = _CLIENT | {"allow_http": plain, "read_timeout": silence}
    return from_url(url, retry_config=_RETRIES, client_options=options)


def ask(
    url: str,
    question: Callable[[Any], _Answer],
    translated: Callable[[Trouble, str], HallmarksError],
    silence: str = GET_SILENCE,
) -> _Answer:
    """Return the answer to a question that is put to the client, again while trouble may pass.

    The client's errors carry URLs, which may be signed, and the storage's XML: they are never
    quoted or chained.

    Args:
        translated: the error for a trouble; it is also told the name of the client's error.
        silence: as of `client`.

    Raises:
        HallmarksError: what `translated` returned.
        RequestError: this machine's clock is too wrong for the storage.
    """
    since = time.monotonic()
    try:
        store = client(url, silence)
    except BaseError as error:
        raise translated(Trouble.ADDRESS, type(error).__name__) from None
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return answered(partial(question, store), Signs(), QUESTION_S, partial(_long, url))
        except (BaseError, FileNotFoundError) as error:
            if "RequestTimeTooSkewed" in str(error):
                shown = time.strftime("%Y-%m-%d %H:%M %Z")
                raise RequestError(
                    f"{url}: the storage takes no request from a clock as wrong as this machine's",
                    f"which says {shown}",
                ) from None
            trouble, name = _trouble(error), type(error).__name__
        except TimeoutError:
            trouble, name = Trouble.PASSING, f"no answer for {QUESTION_S:g} s"
        if trouble is not Trouble.PASSING or attempt == ATTEMPTS:
            raise translated(trouble, name) from None
        pause = backoff_s(attempt)
        if time.monotonic() + pause - since >= ANNOUNCED_S:
            announce(url, f"{url}: {name}; retrying in {pause:.0f} s")
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _long(url: str, seconds: float) -> None:
    announce(url, f"{url}: waiting for the storage for {seconds:,.0f} s")


def _trouble(error: Exception) -> Trouble:
    text = str(error)
    if any(sign in text for sign in ("NoSuchBucket", "ContainerNotFound")):
        return Trouble.NO_BUCKET
    if isinstance(error, FileNotFoundError):
        return Trouble.ABSENT
    if isinstance(error, PreconditionError):
        return Trouble.CHANGED
    denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    # of a listing the client tells the status in words alone; one without a bucket is not found
    if denied or "403 Forbidden" in text or "401 Unauthorized" in text:
        return Trouble.DENIED
    return Trouble.NO_BUCKET if "404 Not Found" in text else Trouble.PASSING
