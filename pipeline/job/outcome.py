"""What has been done of a plan's tiles: kept account of while they end, and as one value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.execute.drive.schedule import Lost
from pipeline.execute.work.receipt import Receipt


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has been done of a plan's tiles, here and by earlier attempts."""

    done: frozenset[int] = frozenset()
    """Tiles that have a result."""
    lost: tuple[Lost, ...] = ()
    """Tiles that were given up."""
    devices: frozenset[str] = frozenset()
    """What computed the results."""
    resumed_tiles: int = 0
    """Tiles that an earlier attempt had finished."""
    bytes_read: int = 0
    work_seconds: float = 0.0
    """How long tiles were worked on."""
    pull_seconds: float = 0.0
    """Summed over tiles, like `gram_seconds`."""
    gram_seconds: float = 0.0
    complete: bool = True
    """False of a run that lacks tiles."""
    already_complete: bool = False
    """Nothing was read: the store had this very run, or all that its figures are made from."""
    recomputed: bool = False
    """The figures were made again from stored sums."""


class Account:
    """What has been done so far, tile by tile."""

    def __init__(self) -> None:
        self._devices: dict[int, str] = {}  # of the tiles that have a result, as far as is known
        self._receipts: list[Receipt] = []  # two of a tile whose first result has gone
        self._resumed: set[int] = set()
        self._lost: dict[int, Lost] = {}

    @property
    def done(self) -> Mapping[int, str]:
        """The tiles that have a result, each with the device that computed it."""
        return self._devices

    @property
    def lost(self) -> Mapping[int, Lost]:
        """The tiles that were given up."""
        return self._lost

    def stored(self, devices: Mapping[int, str]) -> None:
        """Take note of the results that the store holds: these and no others."""
        computed_here = {receipt.tile for receipt in self._receipts}
        self._resumed |= devices.keys() - self._devices.keys() - computed_here
        self._devices = dict(devices)

    def finished(self, receipt: Receipt) -> None:
        """Take note of a tile's result."""
        self._receipts.append(receipt)
        self._devices[receipt.tile] = receipt.device

    def gave_up(self, lost: Lost) -> None:
        """Take note of a tile that will have no result."""
        self._lost[lost.tile] = lost

    def gone(self, tiles: Iterable[int]) -> None:
        """Take note that tiles have no result any more."""
        for tile in tiles:
            del self._devices[tile]

    def outcome(self) -> Outcome:
        """Return what has been done so far."""
        return Outcome(
            done=frozenset(self._devices),
            lost=tuple(self._lost.values()),
            devices=frozenset(self._devices.values()),
            resumed_tiles=len(self._resumed),
            bytes_read=sum(receipt.bytes for receipt in self._receipts),
            pull_seconds=sum(receipt.pull_seconds for receipt in self._receipts),
            gram_seconds=sum(receipt.gram_seconds for receipt in self._receipts),
            complete=not self._lost,
        )
