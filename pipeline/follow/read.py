"""Reading one checkpoint, whole and once, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pipeline.errors import StoreFailed
from pipeline.execute.drive.schedule import Lost
from pipeline.follow.record import in_order
from pipeline.job.executor import executor
from pipeline.job.memory import give_back
from pipeline.planning.plan import Plan
from pipeline.planning.request import Resources
from pipeline.reduce.parts import sums_of_parts
from pipeline.sources.base import Source
from pipeline.statistics.parts import Sums
from pipeline.store.tiles import TileFolder

_AHEAD = 2
"""Results of tiles that are read ahead: of one checkpoint each is small."""


def read(
    plan: Plan, source: Source, resources: Resources, tiles: TileFolder, done: Callable[[int], None]
) -> Sums:
    """Return the sums of all parts of a plan of one checkpoint.

    What was read before this was interrupted is taken up.

    Args:
        tiles: where results lie meanwhile.
        done: called with each tile that has a result; what it raises ends the work.

    Raises:
        ReadError: bytes could not be had, or are others than were planned.
        StoreFailed: a result cannot be kept.
    """
    stored = tiles.finished()
    pending = [
        tile.index for tile in plan.tiles if tile.name not in stored or tiles.get(tile.name) is None
    ]
    for index in sorted({tile.index for tile in plan.tiles}.difference(pending)):
        done(index)
    if pending:
        with executor(plan, source, resources) as chosen:
            for outcome in chosen.work(pending, tiles):
                if isinstance(outcome, Lost):
                    raise outcome.error
                done(outcome.tile)
    give_back()
    return in_order(plan, sums_of_parts(plan, _results(plan, tiles)))


def _results(plan: Plan, tiles: TileFolder) -> Iterator[tuple[int, Sums]]:
    for number, sums in tiles.results(plan.tiles, _AHEAD):
        if sums is None:
            raise StoreFailed(f"the result of tile {number} is damaged or gone")
        yield number, sums
