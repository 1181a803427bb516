"""What goes wrong with a question to the Hub, in one line each.

Errors of huggingface_hub carry URLs, and may carry headers: nothing of their texts is passed on.
"""

from __future__ import annotations

import re
import ssl
from urllib.parse import urlsplit

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pipeline.errors import HallmarksError, ReadError, SourceNotFound, quoted
from pipeline.sources.nearby import nearest_to_repository
from pipeline.transport.connections import untrusted
from pipeline.transport.limits import TRANSIENT
from pipeline.transport.proxies import HINT, refusal


class Errors:
    """Translates the errors of one repository's client."""

    def __init__(self, name: str, endpoint: str, host: str) -> None:
        """`endpoint`: as given, which may hold a password; `host`: what is shown of it."""
        self._name, self._endpoint, self._host = name, endpoint, host

    def passing(self, error: Exception, where: str) -> str:
        """Return what to call an error that may pass.

        Raises:
            HallmarksError: it will not.
        """
        if not _is_network_error(error):  # an answer that the client cannot make out
            raise ReadError(
                f"{where}: the Hub's answer is malformed ({type(error).__name__})"
            ) from None
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise untrusted(f"{where}: {self._host}", cause) from None
            cause = cause.__cause__ or cause.__context__
        if type(error).__name__ == "ProxyError" and (shown := re.match(r"(\d{3}) ", str(error))):
            status = int(shown[1])
            if status not in TRANSIENT:
                raise self._refused_by_proxy(status, where) from None
            return f"HTTP {status} from the proxy"
        return type(error).__name__

    def refused(self, error: Exception, status: int, where: str) -> HallmarksError:
        """Return what an answer means that will not change."""
        if status == 407:
            return self._refused_by_proxy(status, where)
        match error:
            case GatedRepoError():
                return SourceNotFound(
                    f"{where}: access is gated",
                    f"accept the terms at {self._host}/{self._name} and set HF_TOKEN",
                )
            case HfHubHTTPError() if status == 401 and _carried_a_token(error):
                return self._refused_token(where)
            case RepositoryNotFoundError():
                return SourceNotFound(
                    f"no such repository on {self._host}: {quoted(self._name)}",
                    "check the spelling; for a private repository log in with `hf auth login`."
                    + nearest_to_repository(self._name),
                )
            case RevisionNotFoundError():
                return SourceNotFound(
                    f"no such revision: {where}",
                    f"hallmarks plan {self._name} names those there are",
                )
            case OfflineModeIsEnabled() | LocalEntryNotFoundError():
                return SourceNotFound(
                    f"{where} cannot be reached: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"
                )
            case EntryNotFoundError() if where == self._name:
                return SourceNotFound(
                    f"no such repository on {self._host}: {quoted(self._name)}",
                    "check the spelling",
                )
            case EntryNotFoundError():
                return SourceNotFound(f"no such file: {where}")
            case HFValidationError():
                return SourceNotFound(
                    f"{quoted(self._name)} is not a repository name", "write org/name"
                )
        if status in (401, 403):
            return SourceNotFound(f"{where}: HTTP {status}", "check HF_TOKEN")
        return ReadError(f"{where}: HTTP {status}")

    def _refused_by_proxy(self, status: int, where: str) -> SourceNotFound:
        return SourceNotFound(f"{where}: {refusal(self._endpoint, status)}", HINT)

    def _refused_token(self, where: str) -> SourceNotFound:
        parts = urlsplit(self._endpoint)
        if parts.username or parts.password:
            what, hint = "user and password in HF_ENDPOINT are", "check them"
        else:
            what = "token is"
            hint = "it may have expired: log in with `hf auth login`, or unset HF_TOKEN"
        return SourceNotFound(
            f"{where}: {self._host} refused the request: the {what} not valid", hint
        )


def _carried_a_token(error: HfHubHTTPError) -> bool:
    """Return whether a request was made in somebody's name.

    The Hub answers 401 to those who have no name and ask for what is private or not there, and to
    those whose token it does not know, whatever they ask for. huggingface_hub takes both for a
    repository that is not there.
    """
    request = getattr(error.response, "request", None)
    return request is not None and "authorization" in request.headers


def _is_network_error(error: Exception) -> bool:
    """httpx before huggingface_hub 2, httpx2 since: known by name, so that neither is imported."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2")
