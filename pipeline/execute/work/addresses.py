"""How workers get at files: signed addresses come from the driver, which alone asks the Hub.

A worker asks for what it lacks: an address that it has not had, that nears its end, or that is no
longer accepted. In the driver's own process that is a call (`InProcess`). Elsewhere it is a question
in a box (`Remote`) that the driver empties and answers (`FrontDesk`): answers with addresses are
small enough to travel in the call itself, so that no object store holds one, or spills it to disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

from pipeline.errors import HallmarksError, ReadError
from pipeline.planning.plan import Plan
from pipeline.sources.base import Access, Source
from pipeline.transport.http import UrlAccess
from pipeline.transport.waiting import announce

QUESTIONS_AT_ONCE = 8
"""Threads of the driver that wait for the Hub: an address takes about 0.1 s there."""
FILES_A_QUESTION = 16
"""Addresses have at most 5,000 characters (`hub_addresses.py`): 80 KB, and Ray puts arguments from
100 KiB on into its object store."""


class Addresses(Protocol):
    """What a worker and its readers ask of the driver. Safe in threads; a reader's `Desk`."""

    def prepare(self, files: Sequence[int]) -> None:
        """Have access to each of these files at hand, by number; all that lack are asked together."""
        ...

    def get(self, file: int, after: int = 0) -> Access:
        """Return access to a file, of a later issue than `after`."""
        ...

    def renewed(self, access: Access) -> Access: ...
    def read(self, where: str, start: int, stop: int) -> bytes: ...
    def paused(self, host: str, seconds: float) -> None: ...
    def waiting(self, host: str, why: str) -> None: ...


class InProcess:
    """The source itself, asked by several threads."""

    def __init__(self, plan: Plan, source: Source, keep: bool = False) -> None:
        """`keep`: keep files in the Hub cache."""
        self._plan, self._source, self._keep = plan, source, keep
        self._numbers = {file.where: number for number, file in enumerate(plan.files)}
        self._pool = ThreadPoolExecutor(QUESTIONS_AT_ONCE, thread_name_prefix="addresses")

    def prepare(self, files: Sequence[int]) -> None:
        for _ in self._pool.map(self.get, files):
            pass

    def get(self, file: int, after: int = 0) -> Access:
        return self._source.access(self._plan.files[file], after, self._keep)

    def renewed(self, access: Access) -> Access:
        return self.get(self._numbers[access.where], access.issue)

    def read(self, where: str, start: int, stop: int) -> bytes:
        return self._source.read(self._plan.files[self._numbers[where]], start, stop)

    def paused(self, host: str, seconds: float) -> None:
        """Nothing is to be done: the readers of this process wait already."""

    def waiting(self, host: str, why: str) -> None:
        announce(host, why)


class Wanted(NamedTuple):
    """Access to these files is lacking."""

    files: tuple[int, ...]
    after: int


class Range(NamedTuple):
    """Bytes that the driver alone may read are lacking."""

    where: str
    start: int
    stop: int


class Paused(NamedTuple):
    """A host wants to be left alone, by all workers. No answer is expected."""

    host: str
    seconds: float


class Waiting(NamedTuple):
    """Reading from a host takes long, and why. No answer is expected."""

    host: str
    why: str


class Begun(NamedTuple):
    """A tile is being worked at. No answer is expected."""

    tile: int


class Room(NamedTuple):
    """A block of so many bytes is to be pulled through the object store: the answer is when."""

    bytes: int


class Left(NamedTuple):
    """Such a block is gone. No answer is expected."""

    bytes: int


Question = Wanted | Range | Paused | Waiting | Begun | Room | Left


class Kept:
    """Access to files, until it expires. Safe in threads."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Access, float]] = {}

    def get(self, file: int, after: int = 0) -> Access | None:
        """Return access of a later issue than `after`, if there is one."""
        access, until = self._kept.get(file, (None, 0.0))
        return access if access and access.issue > after and until > time.monotonic() else None

    def left_s(self, file: int) -> float:
        """Return for how long access to a file is good."""
        return self._kept[file][1] - time.monotonic()

    def keep(self, file: int, access: Access, good_for_s: float) -> None:
        """Keep access to a file for so long from now."""
        self._kept[file] = access, time.monotonic() + good_for_s


class Remote:
    """A worker's box of questions, in a process of its own."""

    def __init__(self, plan: Plan) -> None:
        self._numbers = {file.where: number for number, file in enumerate(plan.files)}
        self._kept = Kept()
        self._asked: dict[int, Future[Any]] = {}  # by file
        self._open: dict[int, Future[Any]] = {}  # by number of the question
        self._box: SimpleQueue[tuple[int, Question]] = SimpleQueue()
        self._last = 0
        self._lock = threading.Lock()

    def prepare(self, files: Sequence[int]) -> None:
        self._ask_for(files, 0)
        for file in files:
            self.get(file)

    def get(self, file: int, after: int = 0) -> Access:
        while (access := self._kept.get(file, after)) is None:
            asked = self._ask_for([file], after).get(file)
            if asked is None:
                continue  # another thread's question was answered meanwhile
            found = asked.result()
            access = found if isinstance(found, HallmarksError) else found[file]
            if isinstance(access, HallmarksError):
                raise access
            if access.issue > after:  # also if it expires at once: each is tried
                return access
        return access

    def renewed(self, access: Access) -> Access:
        return self.get(self._numbers[access.where], access.issue)

    def read(self, where: str, start: int, stop: int) -> bytes:
        found = self.ask(Range(where, start, stop)).result()
        if isinstance(found, HallmarksError):
            raise found
        return found

    def paused(self, host: str, seconds: float) -> None:
        self.tell(Paused(host, seconds))

    def waiting(self, host: str, why: str) -> None:
        self.tell(Waiting(host, why))

    def passed_on(self, files: Sequence[int], after: int) -> dict[int, tuple[Access, float]]:
        """Return access to some files for another process, and for how many seconds it is good."""
        self._ask_for(files, after)
        return {file: (self.get(file, after), self._kept.left_s(file)) for file in files}

    def ask(self, question: Range | Room) -> Future[Any]:
        """Ask the driver something; the answer may be an error."""
        with self._lock:
            return self._put(question)

    def tell(self, news: Paused | Waiting | Begun | Left) -> None:
        """Tell the driver something that it does not answer."""
        self._box.put((0, news))

    def questions(self, wait_s: float) -> list[tuple[int, Question]]:
        """Return what was asked since, as soon as there is something, or nothing after a while."""
        found = []
        try:
            found.append(self._box.get(timeout=wait_s))
            while True:
                found.append(self._box.get_nowait())
        except Empty:
            return found

    def answer(self, number: int, found: Any) -> None:
        """Take the answer to a question: what it asks for, or an error."""
        with self._lock:
            future = self._open.pop(number)
            for file in [file for file, asked in self._asked.items() if asked is future]:
                del self._asked[file]
                access = found if isinstance(found, HallmarksError) else found[file]
                if not isinstance(access, HallmarksError):
                    self._kept.keep(file, access, access.good_for_s)
        future.set_result(found)

    def _ask_for(self, files: Sequence[int], after: int) -> dict[int, Future[Any]]:
        """Ask for access to those files that have none; return the answers to come."""
        with self._lock:
            lacking = [file for file in files if not self._kept.get(file, after)]
            unasked = [file for file in lacking if file not in self._asked]
            for first in range(0, len(unasked), FILES_A_QUESTION):
                group = tuple(unasked[first : first + FILES_A_QUESTION])
                self._asked |= dict.fromkeys(group, self._put(Wanted(group, after)))
            return {file: self._asked[file] for file in lacking}

    def _put(self, question: Question) -> Future[Any]:
        self._last += 1
        future = self._open[self._last] = Future()
        self._box.put((self._last, question))
        return future


class FrontDesk:
    """Answers workers' questions, in threads of the driver."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._pool = ThreadPoolExecutor(QUESTIONS_AT_ONCE, thread_name_prefix="desk")

    def answer(self, question: Wanted | Range, reply: Callable[[Any], None]) -> None:
        """Have a question answered; `reply` is called with the answer, or an error."""
        self._pool.submit(lambda: reply(self._answer(question)))

    def close(self) -> None:
        """Answer nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, question: Wanted | Range) -> Any:
        match question:
            case Wanted(files, after):
                return {file: self._access(file, after) for file in files}
            case Range(where, start, stop):
                return _or_error(lambda: self._addresses.read(where, start, stop))

    def _access(self, file: int, after: int) -> Access | HallmarksError:
        found = _or_error(lambda: self._addresses.get(file, after))
        return found.for_workers() if isinstance(found, UrlAccess) else found


def _or_error(question: Callable[[], Any]) -> Any:
    """Return an answer, or the error that prevents it: nobody may wait for ever."""
    try:
        return question()
    except HallmarksError as error:
        return error
    except Exception as error:  # of the client: its text may hold an address
        return ReadError(f"the driver failed to answer: {type(error).__name__}")
