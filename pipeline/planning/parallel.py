"""Runs side by side in one source: seeds in one repository, branches of one stage. They are never mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.checkpoint.names import LAST_BRANCH, Position
from pipeline.errors import NothingMatches, RequestError, quoted
from pipeline.planning.request import Request, run_name_from
from pipeline.sources.base import Candidate

Reasons = list[tuple[str, str]]
"""Name and reason of each candidate that is not of the run."""
_NAMES_SHOWN = 6
_NO_SEED = "none"
"""What the run is called whose checkpoints name no seed, where others do."""


def of_one_run(
    candidates: Sequence[Candidate], wanted: Sequence[Candidate], request: Request
) -> tuple[list[Candidate], Reasons]:
    """Return the candidates of one run, and why the others are not.

    Of several seeds it is the one that comes furthest, by stage, step and tokens, and has the most
    checkpoints; of several branches of a stage the first. `--seeds NAME` names another.

    Args:
        wanted: those of the candidates that the request speaks of: they choose.

    Raises:
        NothingMatches: `--seeds` names none that is there.
        RequestError: `--seeds all` is a run each.
    """
    names = run_names(wanted)
    asked = request.seeds
    if asked == "all" and len(names) > 1:
        raise RequestError(
            f"{request.source}: --seeds all would be {len(names)} runs, found where one is expected",
            f"name one of them: --seeds {quoted(names[0])}",
        )
    if asked not in ("first", "all", *names):
        shown = ", ".join(quoted(name, 40) for name in names[:_NAMES_SHOWN]) or "one run alone"
        raise NothingMatches(
            f"{request.source}: --seeds: no run {quoted(asked)}: there is {shown}",
            f"{'name one of these' if names else 'leave --seeds out'}, or say how names are read:"
            " --names REGEX with a group seed",
        )
    kept, reasons = _of_one_seed(candidates, wanted, asked)
    kept, of_branches = _of_one_branch(kept, wanted, asked)
    return kept, reasons + of_branches


def run_names(candidates: Sequence[Candidate]) -> list[str]:
    """Return what the runs in a source are called, the one that is taken first; one or none: no choice."""
    seeds = _seeds(candidates)
    if len(seeds) > 1:
        return seeds
    numbers = {c.position.branch for c in candidates if c.position.branch is not None}
    return [_branch(number) for number in sorted(numbers)]


def one_request_each(request: Request, candidates: Sequence[Candidate], run: str) -> list[Request]:
    """Return a request for each run of a source; `run` is what one of all would be called."""
    names = run_names(candidates)
    if len(names) < 2:
        return [replace(request, seeds="first")]
    return [replace(request, seeds=name, run=run_name_from(f"{run}--{name}")) for name in names]


def _seeds(candidates: Sequence[Candidate]) -> list[str]:
    """Return the seeds that steps are of, the one that comes furthest first."""
    seeds: dict[str, list[Position]] = {}
    for candidate in candidates:
        if candidate.position.is_known:
            seeds.setdefault(_seed(candidate.position), []).append(candidate.position)

    def length(seed: str) -> tuple[tuple[float, float, float], int]:
        return max(where.order for where in seeds[seed]), len(seeds[seed])

    return sorted(sorted(seeds), key=length, reverse=True)


def _of_one_seed(
    candidates: Sequence[Candidate], wanted: Sequence[Candidate], asked: str
) -> tuple[list[Candidate], Reasons]:
    seeds = _seeds(wanted)
    if not seeds:
        return list(candidates), []
    taken = asked if asked in seeds else seeds[0]
    kept: list[Candidate] = []
    reasons: Reasons = []
    for candidate in candidates:
        where = candidate.position
        # a last checkpoint without a seed is of the run that is called nothing, or of the longest
        is_end = not (where.seed or where.is_known) and _NO_SEED not in seeds
        if (seeds[0] if is_end else _seed(where)) == taken:
            kept.append(candidate)
        else:
            why = f"of a parallel run, {_seed(where)}: {taken} is taken"
            reasons.append((candidate.name, f"{why} (--seeds chooses, or all)"))
    return kept, reasons


def _of_one_branch(
    candidates: Sequence[Candidate], wanted: Sequence[Candidate], asked: str
) -> tuple[list[Candidate], Reasons]:
    """Keep one of the parallel branches of each stage: the first, or the one that was asked for."""
    branches: dict[int | None, set[int]] = {}
    for candidate in wanted:
        where = candidate.position
        if where.branch is not None:
            branches.setdefault(where.stage, set()).add(where.branch)
    taken = {
        stage: next((number for number in numbers if _branch(number) == asked), min(numbers))
        for stage, numbers in branches.items()
    }
    kept: list[Candidate] = []
    reasons: Reasons = []
    for candidate in candidates:
        where = candidate.position
        if where.branch is None or taken.get(where.stage, where.branch) == where.branch:
            kept.append(candidate)
        else:
            why = (
                f"a parallel branch of stage {where.stage}: {_branch(taken[where.stage])} is taken"
            )
            reasons.append((candidate.name, f"{why} (--revisions or --seeds chooses)"))
    return kept, reasons


def _seed(where: Position) -> str:
    return where.seed or _NO_SEED


def _branch(number: int) -> str:
    return "souped" if number == LAST_BRANCH else f"ingredient{number}"
