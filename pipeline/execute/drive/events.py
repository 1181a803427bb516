"""What happens to workers and tiles, and what is to be done about it: plain data between the loop
and an engine.

Workers are numbers that the loop gives them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import HallmarksError
from pipeline.execute.drive.schedule import Lost
from pipeline.execute.work.receipt import Receipt

# ---- what happens


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a look at the cluster shows: an engine looks about once a second."""

    nodes: frozenset[str]
    """Those that can work, whether they are left out or not."""
    workers: int | None
    """How many there is room for; None if nobody can say at present."""
    store_bytes: int = 0
    """Of the smallest object store among the nodes."""
    has_room: bool = True
    """A node has free what one more worker needs."""


@dataclass(frozen=True, slots=True)
class ProbePassed:
    """A worker has started, and sees what it needs."""

    worker: int


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """A worker's node lacks what a worker needs."""

    worker: int
    node: str
    error: HallmarksError


@dataclass(frozen=True, slots=True)
class Died:
    """A worker has died."""

    worker: int
    why: str


@dataclass(frozen=True, slots=True)
class Reported:
    """A worker has said how far it is."""

    worker: int
    work: int
    """A number that rises with every byte read and every block computed."""
    spoke: bool = False
    """It has told or asked something besides."""


@dataclass(frozen=True, slots=True)
class Began:
    """A worker works at a tile: from now on its death may be the tile's fault."""

    worker: int
    tile: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker has put a tile's result, or has failed to."""

    worker: int
    tile: int
    outcome: Receipt | HallmarksError


@dataclass(frozen=True, slots=True)
class Verified:
    """A worker's share of the files is what was published."""

    worker: int


@dataclass(frozen=True, slots=True)
class Failed:
    """What a worker found ends the work."""

    worker: int
    error: HallmarksError


@dataclass(frozen=True, slots=True)
class Limited:
    """A host has asked a worker to send nothing for so many seconds."""

    worker: int
    host: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Asked:
    """A worker waits for an answer that the driver is busy with."""

    worker: int
    request: int


@dataclass(frozen=True, slots=True)
class Answered:
    """It has the answer."""

    worker: int
    request: int


@dataclass(frozen=True, slots=True)
class BlockWanted:
    """A worker asks whether a block of so many bytes may be pulled through the object stores."""

    worker: int
    request: int
    bytes: int


@dataclass(frozen=True, slots=True)
class BlockGone:
    """Such a block has left the object stores."""

    worker: int
    bytes: int


Event = (
    Cluster
    | ProbePassed
    | ProbeFailed
    | Died
    | Reported
    | Began
    | Ended
    | Verified
    | Failed
    | Limited
    | Asked
    | Answered
    | BlockWanted
    | BlockGone
)

# ---- what is to be done


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker and probe it."""

    worker: int
    share: int
    """Its number among those that divide the files to verify."""


@dataclass(frozen=True, slots=True)
class Run:
    """Hand a tile to a worker."""

    worker: int
    tile: int
    position: int
    """How many tiles it was handed before."""


@dataclass(frozen=True, slots=True)
class Verify:
    """Have a worker compare the hashes of its share of the files."""

    worker: int


@dataclass(frozen=True, slots=True)
class Drop:
    """End a worker. Nothing that it may still say counts."""

    worker: int


@dataclass(frozen=True, slots=True)
class Admit:
    """Tell a worker that its block may be pulled."""

    worker: int
    request: int


@dataclass(frozen=True, slots=True)
class BackOff:
    """Tell a worker that a host wants nothing for so many seconds."""

    worker: int
    host: str
    seconds: float


@dataclass(frozen=True, slots=True)
class LeaveOut:
    """Start no worker on a node any more, and say why."""

    node: str
    error: HallmarksError


@dataclass(frozen=True, slots=True)
class AnnounceNoRoom:
    """Say that workers wait for room on a node."""

    at_work: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The work is over: nothing follows."""

    error: HallmarksError | None = None
    """What ended it, if not all tiles have an end."""


Command = (
    Start
    | Run
    | Verify
    | Drop
    | Admit
    | BackOff
    | LeaveOut
    | AnnounceNoRoom
    | Receipt
    | Lost
    | Finish
)
"""A receipt or a lost tile is to be passed on to whoever ordered the work."""
