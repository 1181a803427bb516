"""Findings from listings alone: published hashes, sizes and names, before a byte is read.

They are of the kinds that an analysis makes, with the names of files as evidence. Which of several equal
checkpoints is right the files do not tell: an analysis does, by the neighbours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from pipeline.findings.finding import Finding
from pipeline.findings.naming import some
from pipeline.planning.gaps import Gap
from pipeline.planning.listings import ListedCheckpoint
from pipeline.planning.select import LeftOut

SAME_SIZE = 0.01
"""Relative difference of what two checkpoints of one network take: headers differ by kilobytes."""

FIRST_STEP = 1
"""From which warm-up explains that nothing moves: in all of Pythia step 1 is step 0."""


def findings_of_listings(
    checkpoints: Sequence[ListedCheckpoint],
    gaps: Sequence[Gap] = (),
    lacking: Sequence[LeftOut] = (),
) -> list[Finding]:
    """Return what is wrong, or worth knowing, by what is listed of the checkpoints of a run."""
    copies = _copies(checkpoints)
    return [
        *_identical(checkpoints, copies),
        *_foreign(checkpoints, copies),
        *_missing(checkpoints, gaps),
        *_incomplete(checkpoints, lacking),
        *_sizes(checkpoints),
    ]


def _contents(checkpoint: ListedCheckpoint) -> frozenset[str] | None:
    """Return what the contents of its weight files are known by; None: of one it is not published."""
    contents = [file.content for file in checkpoint.files.values()]
    known = frozenset(content for content in contents if content is not None)
    return known if contents and None not in contents else None


def _copies(checkpoints: Sequence[ListedCheckpoint]) -> list[list[int]]:
    """Return the checkpoints of the same files."""
    same: dict[frozenset[str], list[int]] = defaultdict(list)
    for k, checkpoint in enumerate(checkpoints):
        contents = _contents(checkpoint)
        if contents is not None:
            same[contents].append(k)
    return [ks for ks in same.values() if len(ks) > 1]


def _identical(
    checkpoints: Sequence[ListedCheckpoint], copies: Sequence[list[int]]
) -> Iterator[Finding]:
    for ks in copies:
        first, *others = ks
        at_the_start = ks == list(range(len(ks))) and (checkpoints[first].step or 0) <= FIRST_STEP
        commits = {checkpoints[k].commit for k in ks}
        one_commit = len(commits) == 1 and commits != {None}
        why = "nothing has moved yet" if at_the_start else "at most one of them is right"
        what = "the same commit as" if one_commit else "the same files as"
        yield Finding(
            "info" if at_the_start else "error",
            "identical_checkpoints",
            f"{some([checkpoints[k].name for k in others])}: {what} {checkpoints[first].name}; {why}",
            others[0],
            evidence={
                "checkpoints": [_label(checkpoints, k) for k in ks],
                "same_commit": one_commit,
                "files": sorted(checkpoints[first].files),
            },
        )


def _foreign(
    checkpoints: Sequence[ListedCheckpoint], copies: Sequence[Sequence[int]]
) -> Iterator[Finding]:
    """Yield shards that come again after others: frozen tensors would stay."""
    repeated = {k for ks in copies for k in ks[1:]}
    left = [k for k in range(len(checkpoints)) if k not in repeated]
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, k in enumerate(left):
        for path, file in checkpoints[k].files.items():
            if file.content is not None:
                places[path, file.content].append(place)
    shards: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for (path, _), at in places.items():
        if at[-1] - at[0] + 1 > len(at):
            shards[tuple(left[place] for place in at)].append(path)
    for ks, paths in shards.items():
        names = [checkpoints[k].name for k in ks]
        yield Finding(
            "error",
            "foreign_tensors",
            f"{some(names)} hold the same {some(paths)}, and those in between another: it belongs to"
            " one of them at most",
            ks[0],
            evidence={"checkpoints": [_label(checkpoints, k) for k in ks], "files": paths},
        )


def _missing(checkpoints: Sequence[ListedCheckpoint], gaps: Sequence[Gap]) -> Iterator[Finding]:
    for gap in gaps:
        ks = [k for k, c in enumerate(checkpoints) if (c.step, c.stage) == (gap.before, gap.stage)]
        yield Finding(
            "warning",
            "missing_steps",
            f"{gap.missing} missing between step {gap.after} and step {gap.before}, by the spacing on"
            " both sides",
            next(iter(ks), None),
            evidence={"after": gap.after, "before": gap.before, "missing": gap.missing},
        )


def _incomplete(
    checkpoints: Sequence[ListedCheckpoint], lacking: Sequence[LeftOut]
) -> Iterator[Finding]:
    for entry in lacking:
        text = f"{entry.name}: {entry.reason}"
        yield Finding("warning", "incomplete_checkpoint", text, evidence={"name": entry.name})
    for k, checkpoint in enumerate(checkpoints):
        if checkpoint.absent:
            yield Finding(
                "warning",
                "incomplete_checkpoint",
                f"{checkpoint.name}: {some(checkpoint.absent)} absent: an incomplete copy",
                k,
                evidence={
                    "checkpoint": _label(checkpoints, k),
                    "files": list(checkpoint.absent),
                },
            )


def _sizes(checkpoints: Sequence[ListedCheckpoint]) -> Iterator[Finding]:
    sizes = [sum(file.size for file in checkpoint.files.values()) for checkpoint in checkpoints]
    for k, (before, size) in enumerate(pairwise(sizes), 1):
        if abs(size - before) <= SAME_SIZE * max(before, size):
            continue
        ratio = size / before if before else 0.0
        other_dtype = any(abs(ratio - r) <= SAME_SIZE * r for r in (0.25, 0.5, 2, 4))
        yield Finding(
            "info" if other_dtype else "warning",
            "dtype_changed" if other_dtype else "size_changed",
            f"{checkpoints[k].name}: {size:,} bytes of weights, {checkpoints[k - 1].name} has"
            f" {before:,}" + (": another dtype, by the ratio" if other_dtype else ""),
            k,
            evidence={"checkpoint": _label(checkpoints, k), "bytes": size, "before": before},
        )


def _label(checkpoints: Sequence[ListedCheckpoint], k: int) -> dict[str, Any]:
    return {"k": k, "name": checkpoints[k].name, "step": checkpoints[k].step}
