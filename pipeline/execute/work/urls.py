"""How readers in workers get at what only the driver has: signed URLs come from its `UrlBroker`.

A reader in the driver's own process calls the broker. Elsewhere `DriverUrls` takes its place: it puts
requests into a box that the driver empties, has the broker answer and sends the answers back. Answers
with URLs are small enough to travel in the call itself, so that no object store holds one, or spills
it to disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

from pipeline.errors import HallmarksError, ReadError
from pipeline.sources.base import File, Source
from pipeline.transport.access import Access, for_workers
from pipeline.transport.waiting import announce

REQUESTS_AT_ONCE = 8
"""Threads of the driver that wait for the Hub: a URL takes about 0.1 s there."""
FILES_A_REQUEST = 16
"""URLs have at most 5,000 characters (`hub_urls.py`): 80 KB, and Ray puts arguments from 100 KiB on
into its object store."""


class AccessRequest(NamedTuple):
    """Access to these files is needed, of a later generation than `after`."""

    files: tuple[int, ...]
    after: int


class BytesRequest(NamedTuple):
    """Bytes of a file are needed that the driver alone may read."""

    file: int
    start: int
    stop: int


class BlockRequest(NamedTuple):
    """A block of so many bytes is to be pulled through the object store: the answer is when."""

    bytes: int


class HostPaused(NamedTuple):
    """A host requested a pause, which concerns all workers."""

    host: str
    seconds: float


class LongWait(NamedTuple):
    """Reading from a host takes long, and why."""

    host: str
    why: str


class TileBegun(NamedTuple):
    """Work on a tile begins."""

    tile: int


class BlockReleased(NamedTuple):
    """A block of so many bytes has left the object store."""

    bytes: int


Request = AccessRequest | BytesRequest | BlockRequest
Notice = HostPaused | LongWait | TileBegun | BlockReleased
"""What is not answered."""


class Files(Protocol):
    """A plan as far as its files are read."""

    @property
    def files(self) -> Sequence[File]: ...


class UrlBroker:
    """Gives access to a plan's files: to readers in this process, and in answer to requests."""

    def __init__(self, plan: Files, source: Source, keep: bool = False) -> None:
        """`keep`: keep files in the Hub cache."""
        self._plan, self._source, self._keep = plan, source, keep
        self._pool = ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="urls")

    def close(self) -> None:
        """Answer no more requests."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def accesses(self, files: Sequence[int], after: int = 0) -> dict[int, Access | HallmarksError]:
        """Return access to each of these files, or why there is none."""
        if len(files) == 1:
            return {files[0]: self._access(files[0], after)}
        return dict(
            zip(files, self._pool.map(lambda file: self._access(file, after), files), strict=True)
        )

    def read(self, file: int, start: int, stop: int) -> bytes:
        """Return bytes of a file."""
        return self._source.read(self._plan.files[file], start, stop)

    def paused(self, host: str, seconds: float) -> None:
        """Do nothing: the readers of this process wait already."""

    def waiting(self, host: str, why: str) -> None:
        """Say why reading takes long."""
        announce(host, why)

    def answer(self, request: AccessRequest | BytesRequest, reply: Callable[[Any], None]) -> None:
        """Have a request answered in another thread; `reply` is called with the answer or an error."""
        self._pool.submit(lambda: reply(self._answer(request)))

    def _answer(self, request: AccessRequest | BytesRequest) -> Any:
        match request:
            case AccessRequest(files, after):
                return {
                    file: _or_error(lambda file=file: for_workers(self._given(file, after)))
                    for file in files
                }
            case BytesRequest(file, start, stop):
                return _or_error(lambda: self.read(file, start, stop))

    def _access(self, file: int, after: int) -> Access | HallmarksError:
        try:
            return self._given(file, after)
        except HallmarksError as error:
            return error

    def _given(self, file: int, after: int) -> Access:
        return self._source.access(self._plan.files[file], after, self._keep)


class DriverUrls:
    """The driver's broker as a worker in a process of its own sees it: a box of requests."""

    def __init__(self) -> None:
        self._open: dict[int, Future[Any]] = {}  # by number of the request
        self._box: SimpleQueue[tuple[int, Request | Notice]] = SimpleQueue()
        self._last = 0
        self._lock = threading.Lock()

    def accesses(self, files: Sequence[int], after: int) -> dict[int, Access | HallmarksError]:
        """Return access to each of these files, or why there is none."""
        batches = [
            tuple(files[first : first + FILES_A_REQUEST])
            for first in range(0, len(files), FILES_A_REQUEST)
        ]
        answers = [self.ask(AccessRequest(batch, after)) for batch in batches]
        return {file: access for answer in answers for file, access in answer.result().items()}

    def read(self, file: int, start: int, stop: int) -> bytes:
        """Return bytes of a file that the driver alone can read."""
        answer = self.ask(BytesRequest(file, start, stop)).result()
        if isinstance(answer, HallmarksError):
            raise answer
        return answer

    def paused(self, host: str, seconds: float) -> None:
        """Have all workers pause for a host."""
        self.tell(HostPaused(host, seconds))

    def waiting(self, host: str, why: str) -> None:
        """Have the driver say why reading takes long."""
        self.tell(LongWait(host, why))

    def ask(self, request: Request) -> Future[Any]:
        """Ask the driver for something; the answer may be an error."""
        with self._lock:
            self._last += 1
            answer = self._open[self._last] = Future()
            self._box.put((self._last, request))
            return answer

    def tell(self, notice: Notice) -> None:
        """Tell the driver something that it does not answer."""
        self._box.put((0, notice))

    def requests(self, wait_s: float) -> list[tuple[int, Request | Notice]]:
        """Return what has come in, with numbers, as soon as there is something; nothing after a while."""
        return list(self._emptied(wait_s))

    def answer(self, number: int, answer: Any) -> None:
        """Take the answer to a request, which may be an error."""
        with self._lock:
            future = self._open.pop(number)
        future.set_result(answer)

    def _emptied(self, wait_s: float) -> Iterator[tuple[int, Request | Notice]]:
        try:
            yield self._box.get(timeout=wait_s)
            while True:
                yield self._box.get_nowait()
        except Empty:
            return


def _or_error(question: Callable[[], Any]) -> Any:
    """Return an answer, or the error that prevents it: nobody may wait for ever."""
    try:
        return question()
    except HallmarksError as error:
        return error
    except Exception as error:  # of the client: its text may hold a URL
        return ReadError(f"the driver failed to answer: {type(error).__name__}")
