"""From sums to runs in the store: figures, findings, tables, and a summary of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from threadpoolctl import threadpool_limits

from pipeline.findings.finding import Finding
from pipeline.findings.judge import findings
from pipeline.findings.observe import Observations
from pipeline.job.outcome import Outcome
from pipeline.job.runs import Runs
from pipeline.job.summary import Execution, Summary, run_row, summary
from pipeline.planning.plan import Plan
from pipeline.reduce.batches import OfGroups
from pipeline.reduce.groups import Grouping
from pipeline.reduce.matrices import MatrixFigures
from pipeline.reduce.memory import Buffers
from pipeline.reduce.reduce import reduce
from pipeline.reduce.rows import table_rows
from pipeline.reduce.tables import rows
from pipeline.signals import uninterrupted
from pipeline.statistics.rows import RowSums
from pipeline.statistics.table import on_request
from pipeline.store.folder import Folder
from pipeline.store.query import views_sql
from pipeline.store.write import RunWriter


class Written:
    """The tables of each run of a plan: written, but not counting yet."""

    def __init__(self, writers: Sequence[RunWriter], summaries: Sequence[Summary]) -> None:
        self._writers = writers
        self.summaries = list(summaries)

    def commit(self) -> None:
        """Make them count, whatever signal arrives meanwhile. May be tried again.

        Raises:
            LeaseLost: another driver has taken a run over.
            StoreUnusable: the storage does not answer; they may count all the same.
        """
        with uninterrupted():
            for writer in self._writers:
                writer.commit()


def write_runs(
    runs: Runs,
    attempts: Sequence[str],
    grouped: Grouping,
    sums: Iterable[OfGroups],
    folder: Folder,
    execution: Execution,
    outcome: Outcome,
    *,
    rows: Iterable[RowSums] = (),
    lost: frozenset[int] = frozenset(),
    matrices: Iterable[MatrixFigures] = (),
    final: bool,
    check: Callable[[], None],
    ready: Callable[[], None],
) -> Written:
    """Make the figures and findings of each run and write its tables, all but the row that counts.

    Args:
        attempts: the name of the attempt at each run.
        grouped: the groups of the plan.
        sums: of all of them.
        outcome: what has been done of the tiles that the sums are of.
        rows: the sums of rows of all tiles; estimates have none.
        lost: tensors of which some weights could not be read.
        matrices: their spectra, if the second read is done.
        final: False of an estimate from the tiles read so far.
        check: called between batches of groups.
        ready: called when all is written; what either raises ends the attempt, and nothing stays.
    """
    writers = [
        RunWriter(folder, plan.run, attempt, execution.buffers.file)
        for plan, attempt in zip(runs, attempts, strict=True)
    ]
    summaries: list[Summary] = []
    findings_of_runs: list[list[Finding]] = []
    try:
        observed = _write_figures(runs, grouped, sums, writers, execution.buffers, check)
        if final:
            _write_rows(runs, rows, lost, writers, observed)
        for matrix in matrices:
            writers[-1].add_matrix(matrix)
        folder.replace("views.sql", views_sql(folder).encode())
        for plan, writer, seen in zip(runs, writers, observed, strict=True):
            fraction = _fraction(plan, outcome)
            findings_of_runs.append(_findings(plan, seen, fraction, findings_of_runs))
            about = summary(plan, execution, outcome, fraction, seen.model, findings_of_runs[-1])
            writer.complete(plan, findings_of_runs[-1], run_row(plan, about, final))
            summaries.append(about)
        ready()
    except BaseException:  # an interrupt, too, must not leave this attempt's files
        for writer in writers:
            writer.abandon()
        raise
    return Written(writers, summaries)


def _write_figures(
    runs: Runs,
    grouped: Grouping,
    sums: Iterable[OfGroups],
    writers: Sequence[RunWriter],
    buffers: Buffers,
    check: Callable[[], None],
) -> list[Observations]:
    """Write the figures of every group of every run; return what findings are judged from."""
    observed = [Observations(plan) for plan in runs]
    with threadpool_limits(1, user_api="blas"):  # as tiles are: more threads, other bits
        tapped = _with_statistics(runs, sums, writers)
        for batch in reduce(runs.whole, grouped, tapped, buffers):
            for writer, seen, of_run in zip(writers, observed, (*batch.paths, batch), strict=True):
                writer.add(of_run, grouped)
                seen.add(of_run)
            check()
    return observed


def _with_statistics(
    runs: Runs, sums: Iterable[OfGroups], writers: Sequence[RunWriter]
) -> Iterator[OfGroups]:
    """Pass the sums on; write what the statistics on request say of each group."""
    whole = runs.whole
    firsts, count = whole.firsts, len(whole.checkpoints)
    asked = on_request(whole.statistics_asked)
    paths = [slice(*bounds) for bounds in pairwise((*firsts, count))] if runs.alone else []
    for groups, group_sums in sums:
        if group_sums is not None and group_sums.tables:
            for statistic in asked:
                columns = rows(statistic, group_sums, firsts)
                for writer, checkpoints in zip(writers, (*paths, slice(None)), strict=True):
                    of_run = {name: values[checkpoints] for name, values in columns.items()}
                    writer.add_statistic(groups, statistic.name, of_run)
        yield groups, group_sums


def _write_rows(
    runs: Runs,
    sums: Iterable[RowSums],
    lost: frozenset[int],
    writers: Sequence[RunWriter],
    observed: Sequence[Observations],
) -> None:
    """Write the rows of tables to the run of each source: one over several sources has none."""
    for of_paths in table_rows(runs.whole, sums, lost):
        for table, writer, seen in zip(of_paths, writers, observed, strict=False):
            writer.add_rows(table)
            seen.add_rows(table)


def _fraction(plan: Plan, outcome: Outcome) -> float:
    """Return the share of a run's weights that its figures are made from."""
    if plan.sketch is not None:
        return 1.0  # each checkpoint was read whole, when it was new
    read = sum(tile.bytes for tile in plan.tiles if tile.index in outcome.done)
    return read / plan.bytes_total


def _findings(
    plan: Plan, seen: Observations, fraction: float, of_paths: Sequence[Sequence[Finding]]
) -> list[Finding]:
    """Return a run's findings; those of a run over several sources are the ones of each."""
    if not plan.paths:
        return findings(plan, seen, fraction)
    return [
        replace(
            finding,
            k=None if finding.k is None else finding.k + path.first,
            message=f"{path.run}: {finding.message}",
        )
        for path, of_path in zip(plan.paths, of_paths, strict=True)
        for finding in of_path
    ]
