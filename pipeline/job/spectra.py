"""The second read: whole matrices, whose spectra are kept in the store beside the run's sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from pipeline.execute.drive.schedule import Lost
from pipeline.job.executor import executor
from pipeline.job.memory import driver_budget, matrix_room
from pipeline.job.outcome import Account, Outcome
from pipeline.job.progress import Progress
from pipeline.planning.matrices import MatrixPlan, matrix_plan
from pipeline.planning.plan import Plan
from pipeline.planning.request import Resources
from pipeline.reduce.matrices import MatrixFigures, matrix_figures
from pipeline.sources.base import Source
from pipeline.statistics.matrices import matrix_specs
from pipeline.store.folder import Folder
from pipeline.store.tiles import SPECTRA, TileFolder


class Spectra:
    """What a run has of them, and what is left to do."""

    def __init__(self, folder: Folder, plan: Plan) -> None:
        """`plan`: whose ties are settled."""
        self.made: MatrixPlan = matrix_plan(plan)
        specs = matrix_specs(len(self.made.checkpoints))
        self._tiles = TileFolder(folder, plan.run, self.made.plan.content, specs, SPECTRA)

    def figures(self) -> Iterator[MatrixFigures]:
        """Yield the figures of every matrix that has a result."""
        for tile in self.made.plan.tiles:
            result = self._tiles.get(tile.name)
            if result is not None:
                yield from matrix_figures(self.made, tile.index, result)

    def pending(self, resources: Resources) -> list[int]:
        """Return the matrices without a result for which there is memory, as tiles of the second read."""
        too_large = self.made.too_large(matrix_room(driver_budget(resources)))
        return [number for number in self._lacking() if number not in too_large]

    def read(
        self, source: Source, resources: Resources, progress: Progress, check: Callable[[], None]
    ) -> Outcome:
        """Compute what has no result yet.

        Args:
            check: called after each matrix; what it raises ends the work.

        Raises:
            HallmarksError: a matrix cannot be read; what was computed is kept.
        """
        budget, plan = driver_budget(resources), self.made.plan
        too_large, lacking = self.made.too_large(matrix_room(budget)), self._lacking()
        for entry in (*self.made.left_out, *(too_large[n] for n in lacking if n in too_large)):
            progress.note(f"--spectra leaves out {entry.name}: {entry.reason}")
        pending = [number for number in lacking if number not in too_large]
        account = Account()
        if not pending:
            return account.outcome()
        progress.planned(plan, sum(t.bytes for t in plan.tiles if t.index not in {*pending}))
        # the same budget wherever workers run, and whole matrices on the processor alone
        anywhere = replace(resources, memory=budget, device="cpu", pull="auto", verify=False)
        with executor(plan, source, anywhere) as chosen:
            for outcome in chosen.work(pending, self._tiles):
                check()
                if isinstance(outcome, Lost):
                    raise outcome.error
                account.finished(outcome)
                progress.tile_done(outcome.bytes)
        return account.outcome()

    def remove_others(self) -> None:
        """Remove results of other checkpoints, or of what the source held before."""
        self._tiles.remove_others()

    def _lacking(self) -> list[int]:
        finished = self._tiles.finished()
        return [tile.index for tile in self.made.plan.tiles if tile.name not in finished]
