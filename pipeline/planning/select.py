"""Which of a source's candidates are the checkpoints, and in which order."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.checkpoint.names import Position, is_being_written, unplaced
from pipeline.checkpoint.stages import counting_epochs, staged
from pipeline.errors import NothingMatches, quoted
from pipeline.planning.gaps import Gap, gaps
from pipeline.planning.parallel import of_one_run
from pipeline.planning.request import Request
from pipeline.sources.base import Candidate
from pipeline.sources.beside import Beside


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

    @property
    def is_placed(self) -> bool:
        """False if it is a last or best checkpoint, whose name does not say where it stands."""
        return self.position.is_known


@dataclass(frozen=True, slots=True)
class Selection:
    checkpoints: tuple[Selected, ...]
    left_out: tuple[LeftOut, ...]
    gaps: tuple[Gap, ...] = ()
    """What the source itself lacks, judged before the request's own selection."""
    ordering: str = ""
    """How stages were ordered, where names alone do not say."""
    lacking: tuple[LeftOut, ...] = ()
    """Checkpoints of the series that hold no weights that can be read."""


def select(
    candidates: Sequence[Candidate],
    request: Request,
    beside: Sequence[Beside] = (),
    least: int = 2,
) -> Selection:
    """Return the checkpoints that the request keeps, in order of stage, step and tokens.

    Training time is counted before the request's own selection, so that leaving checkpoints out
    does not change when the others were.

    Args:
        beside: what lies beside the candidates: folders of the series without weights are named.
        least: of checkpoints; of a run that has only begun there may be none.

    Raises:
        NothingMatches: fewer are left, or they are of several runs.
    """
    written = [c for c in candidates if not is_being_written(c.name)]
    left_out = [
        LeftOut(c.name, "hidden, or being written") for c in candidates if is_being_written(c.name)
    ]
    _check_one_run(written, request)
    wanted = [c for c in written if _is_wanted(c.name, request)]
    one_run, reasons = of_one_run(written, wanted or written, request)
    left_out += [LeftOut(*reason) for reason in reasons]
    unplaced, one_run = _unplaced(one_run)
    epochs = counting_epochs([candidate.position for candidate in one_run])
    why = "its number is an epoch, where others state their step"
    left_out += [LeftOut(c.name, why) for c in one_run if c.position in epochs]
    one_run = [c for c in one_run if c.position not in epochs]
    positions, ordering = staged([candidate.position for candidate in one_run])
    ordered, unordered = _ordered(list(zip(one_run, positions, strict=True)))
    left_out += unordered
    gaps = _gaps(ordered)
    for candidate in unplaced:
        _place(candidate, ordered, dict(zip(one_run, positions, strict=True)))
    kept: list[Selected] = []
    for entry in ordered:
        reason = _unwanted(entry, request)
        if reason is None:
            kept.append(entry)
        else:
            left_out.append(LeftOut(entry.candidate.name, reason))
    if len(kept) < least:
        raise too_few(kept, left_out, candidates, request, beside)
    lacking = tuple(_lacking(beside, kept, request))
    return Selection(tuple(kept), tuple(left_out), gaps, ordering, lacking)


def _check_one_run(candidates: Sequence[Candidate], request: Request) -> None:
    """Refuse checkpoints in several folders, unless these say which part of the training they hold."""
    counts = Counter(
        candidate.path.rpartition("/")[0]
        for candidate in candidates
        if candidate.position.is_known and _is_wanted(candidate.name, request)
    )
    if len(counts) > 1 and all(request.reading.position(f) == Position() for f in counts):
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


def _unplaced(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """Return the best and last checkpoints without a step, and the others.

    Only where there are steps that they could belong to, and where no other is the same commit.
    """
    commits = Counter(candidate.commit for candidate in candidates if not candidate.path)
    stepped = [candidate for candidate in candidates if candidate.position.is_known]
    kinds = {
        candidate: kind
        for candidate in candidates
        if len(stepped) > 1
        and not candidate.position.is_known
        and (kind := unplaced(candidate.name))
        and (candidate.commit is None or candidate.path or commits[candidate.commit] == 1)
    }
    in_order = sorted(kinds, key=lambda candidate: (kinds[candidate], candidate.name))  # best first
    return in_order, [candidate for candidate in candidates if candidate not in kinds]


def _place(
    candidate: Candidate, ordered: list[Selected], positions: Mapping[Candidate, Position]
) -> None:
    """Put a last or best checkpoint behind all others, or those of the stage that it names."""
    word = candidate.position.word
    stages = {p.stage for other, p in positions.items() if word and other.position.word == word}
    ends = [n for n, entry in enumerate(ordered, 1) if entry.position.stage in stages]
    where = Position(stage=next(iter(stages))) if ends else Position()
    ordered.insert(max(ends, default=len(ordered)), Selected(candidate, where, None))


def _lacking(
    beside: Sequence[Beside], kept: Sequence[Selected], request: Request
) -> Iterator[LeftOut]:
    """Yield the folders of the series that hold no weights, as an interrupted save leaves them."""
    held = {entry.candidate.position.order for entry in kept}
    seeds = {entry.candidate.position.seed for entry in kept}
    for each in beside:
        where, name = each.lacking, each.path.rstrip("/")
        if where is None or where.order in held or where.seed not in seeds:
            continue
        if _is_wanted(name, request) and _in_steps(where, request):
            yield LeftOut(name, each.kind.what)


def _is_wanted(name: str, request: Request) -> bool:
    return not request.revisions or any(
        fnmatch.fnmatchcase(name, pattern) for pattern in request.revisions
    )


def _ordered(
    candidates: Sequence[tuple[Candidate, Position]],
) -> tuple[list[Selected], list[LeftOut]]:
    left_out: list[LeftOut] = []
    at: dict[tuple[float, float, float], tuple[Candidate, Position]] = {}
    commits = {c.commit: c.name for c, p in candidates if p.is_known and c.commit and not c.path}
    for candidate, where in sorted(candidates, key=lambda each: each[0].name):
        if not where.is_known:
            same = None if candidate.path else commits.get(candidate.commit or "")
            why = f"the same commit as {same}" if same else "its name states no step"
            left_out.append(LeftOut(candidate.name, why))
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
        if where.time is None:
            times.append(None)
            continue
        if last is not None and where.stage != stage and offset + where.time <= last:
            offset = last
        stage, last = where.stage, offset + where.time
        times.append(last)
    return times


def _unwanted(selected: Selected, request: Request) -> str | None:
    name = selected.candidate.name
    if not _is_wanted(name, request):
        return "not matched by --revisions"
    return None if _in_steps(selected.position, request) else "outside --steps"


def _in_steps(where: Position, request: Request) -> bool:
    return request.steps is None or (where.step is not None and where.step in request.steps)


def too_few(
    kept: Sequence[Selected],
    left_out: Sequence[LeftOut],
    candidates: Sequence[Candidate],
    request: Request,
    beside: Sequence[Beside],
) -> NothingMatches:
    """Return the error of a selection that is no trajectory, with what would help."""
    count = f"{len(kept)} of the {len(candidates)} candidates"
    if kept:
        count += f" ({quoted(kept[0].candidate.name)})"
    names = ", ".join(quoted(checkpoint.name, 40) for checkpoint in left_out[:3])
    foreign = [each for each in beside if each.kind.advice]
    if request.revisions or request.steps:
        hint = "widen --revisions or --steps" + (f"; there are {names}, …" if names else "")
    elif left_out and request.names is not None:
        hint = f"--names {quoted(request.names)} must match at least two of {names}, …"
    elif left_out:
        hint = (
            f"names must state a step, like step1000 or checkpoint-500; found {names}:"
            " --names '(?P<step>\\d+)$' says how to read them, or a manifest (.csv with uri,step)"
        )
    elif request.weights and beside:
        globs = " ".join(f"--weights {quoted(glob)}" for glob in request.weights)
        hint = f"{globs}: no such file; {quoted(beside[0].path)}: {beside[0].kind.what}"
    elif foreign:
        kinds = sorted({each.kind.what for each in foreign})
        count += f"; {quoted(foreign[0].path)} is {kinds[0]}, which is not read"
        hint = foreign[0].kind.advice
    elif kept:
        hint = "a trajectory needs two checkpoints or more: name the directory that holds them all"
    else:
        shown = ", ".join(quoted(each.path, 40) for each in beside[:3])
        hint = (
            "a checkpoint is a branch, a tag, a folder with weight files or a weight file"
            + (f"; found {shown}: --weights GLOB says which files are weights" if shown else "")
            + ", or list them in a manifest (.csv with uri,step)"
        )
    return NothingMatches(f"{request.source}: expected at least 2 checkpoints, found {count}", hint)
