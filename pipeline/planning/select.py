"""Which of a source's candidates are the checkpoints, and in which order."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.checkpoint.names import Position, position
from pipeline.checkpoint.shards import holds_weights
from pipeline.errors import NothingMatches, quoted
from pipeline.planning.gaps import Gap, gaps
from pipeline.planning.request import Request
from pipeline.sources.base import Candidate, Source


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A checkpoint or tensor that is not analysed, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Selected:
    """One checkpoint of the trajectory."""

    candidate: Candidate
    position: Position
    elapsed: float | None
    """Training time in steps, continued over stages whose numbering restarts."""


@dataclass(frozen=True, slots=True)
class Selection:
    checkpoints: tuple[Selected, ...]
    left_out: tuple[LeftOut, ...]
    gaps: tuple[Gap, ...] = ()
    """What the source itself lacks, judged before the request's own selection."""


def select(candidates: Sequence[Candidate], request: Request) -> Selection:
    """Return the checkpoints that the request keeps, in order of stage, step and tokens.

    Training time is counted before the request's own selection, so that leaving checkpoints out
    does not change when the others were.

    Raises:
        NothingMatches: fewer than two are left, or they are of several runs.
    """
    _check_one_run(candidates, request)
    one_path, left_out = _one_path(candidates, request)
    final = _final(candidates)
    ordered, unordered = _ordered([c for c in one_path if c is not final])
    left_out += unordered
    if final is not None:
        ordered.append(Selected(final, Position(None, None, None), None))
    kept = []
    for entry in ordered:
        reason = _unwanted(entry, request)
        if reason is None:
            kept.append(entry)
        else:
            left_out.append(LeftOut(entry.candidate.name, reason))
    if len(kept) < 2:
        raise _too_few(kept, left_out, candidates, request)
    return Selection(tuple(kept), tuple(left_out), _gaps(ordered))


def _check_one_run(candidates: Sequence[Candidate], request: Request) -> None:
    """Refuse checkpoints in several folders, unless these say which part of the training they hold."""
    counts = Counter(
        candidate.path.rpartition("/")[0]
        for candidate in candidates
        if candidate.position.is_known and _is_wanted(candidate.name, request)
    )
    unknown = Position(None, None, None)
    if len(counts) > 1 and all(position(folder) == unknown for folder in counts):
        shown = ", ".join(f"{quoted(path)} ({n:,})" for path, n in sorted(counts.items())[:6])
        raise NothingMatches(
            f"{request.source}: expected the checkpoints of one run, found them in"
            f" {len(counts):,} folders: {shown}" + (", …" if len(counts) > 6 else ""),
            f"name one of them as SOURCE, or choose with --revisions {quoted(min(counts) + '/*')}",
        )


def _gaps(ordered: Sequence[Selected]) -> tuple[Gap, ...]:
    stages: dict[int | None, list[int]] = {}
    for entry in ordered:
        if entry.position.step is not None:
            stages.setdefault(entry.position.stage, []).append(entry.position.step)
    return tuple(gap for stage, steps in stages.items() for gap in gaps(steps, stage))


def _one_path(
    candidates: Sequence[Candidate], request: Request
) -> tuple[list[Candidate], list[LeftOut]]:
    """Keep one of the parallel branches of each stage: the first that `--revisions` matches."""
    branches: dict[int | None, set[int]] = {}
    for candidate in candidates:
        where = candidate.position
        if where.branch is not None and _is_wanted(candidate.name, request):
            branches.setdefault(where.stage, set()).add(where.branch)
    firsts = {stage: min(numbers) for stage, numbers in branches.items()}
    kept, left_out = [], []
    for candidate in candidates:
        where = candidate.position
        first = firsts.get(where.stage)
        if where.branch is not None and first is not None and where.branch != first:
            why = f"a parallel branch of stage {where.stage}: the first is taken"
            left_out.append(LeftOut(candidate.name, f"{why} (--revisions chooses)"))
        else:
            kept.append(candidate)
    return kept, left_out


def _final(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return `main` if it is a checkpoint after those with a step: a commit that no other has."""
    commits = Counter(candidate.commit for candidate in candidates)
    stepped = [candidate for candidate in candidates if candidate.position.is_known]
    for candidate in candidates:
        if candidate.name == "main" and candidate.commit is not None:
            return candidate if len(stepped) > 1 and commits[candidate.commit] == 1 else None
    return None


def without_repeated_main(source: Source, selection: Selection) -> Selection:
    """Leave `main` out if it has no weights, or the very files of the checkpoint before it.

    A Hub suite's `main` usually repeats its last step in a commit of its own.
    """
    *others, last = selection.checkpoints
    if last.candidate.name != "main" or last.position.is_known or len(others) < 2:
        return selection
    files = {
        entry: {
            f.path: f.identity for f in source.files(entry.candidate) if holds_weights([f.path])
        }
        for entry in (others[-1], last)
    }
    if files[last] and not set(files[last].values()) <= set(files[others[-1]].values()):
        return selection
    why = f"the same files as {others[-1].candidate.name}" if files[last] else "holds no weights"
    return Selection(tuple(others), (*selection.left_out, LeftOut("main", why)), selection.gaps)


def _is_wanted(name: str, request: Request) -> bool:
    return not request.revisions or any(
        fnmatch.fnmatchcase(name, pattern) for pattern in request.revisions
    )


def _ordered(candidates: Sequence[Candidate]) -> tuple[list[Selected], list[LeftOut]]:
    left_out: list[LeftOut] = []
    at: dict[tuple[float, float, float], tuple[Candidate, Position]] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.name):
        where = candidate.position
        if not where.is_known:
            left_out.append(LeftOut(candidate.name, "its name states no step"))
        elif where.order in at:
            first = at[where.order][0]
            same = first.commit is not None and first.commit == candidate.commit
            why = "the same commit as" if same else "the same step as"
            left_out.append(LeftOut(candidate.name, f"{why} {first.name}, which is taken"))
        else:
            at[where.order] = (candidate, where)
    entries = [at[order] for order in sorted(at)]
    times = elapsed_times([where for _, where in entries])
    return [
        Selected(candidate, where, time)
        for (candidate, where), time in zip(entries, times, strict=True)
    ], left_out


def elapsed_times(positions: Sequence[Position]) -> list[float | None]:
    """Return the training time of ordered positions: steps, counted on where a stage restarts."""
    times: list[float | None] = []
    offset, last = 0.0, None
    stage: int | None = None
    for where in positions:
        if where.step is None:
            times.append(None)
            continue
        if last is not None and where.stage != stage and offset + where.step <= last:
            offset = last
        stage, last = where.stage, offset + where.step
        times.append(last)
    return times


def _unwanted(selected: Selected, request: Request) -> str | None:
    name = selected.candidate.name
    if not _is_wanted(name, request):
        return "not matched by --revisions"
    step = selected.position.step
    if request.steps is not None and (step is None or step not in request.steps):
        return "outside --steps"
    return None


def _too_few(
    kept: list[Selected],
    left_out: list[LeftOut],
    candidates: Sequence[Candidate],
    request: Request,
) -> NothingMatches:
    count = f"{len(kept)} of the {len(candidates)} candidates"
    if kept:
        count += f" ({quoted(kept[0].candidate.name)})"
    names = ", ".join(quoted(checkpoint.name, 40) for checkpoint in left_out[:3])
    if request.revisions or request.steps:
        hint = "widen --revisions or --steps" + (f"; there are {names}, …" if names else "")
    elif left_out:
        hint = f"checkpoint names must state a step, like step1000 or checkpoint-500; found {names}"
    else:
        hint = "a checkpoint is a branch, a tag or a sub-directory with weight files"
    return NothingMatches(f"{request.source}: expected at least 2 checkpoints, found {count}", hint)
