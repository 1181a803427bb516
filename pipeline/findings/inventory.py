"""Findings about what there is and what is not: the start, gaps, tensors left out, frozen ones.

Nothing here explains a checkpoint away, so the order does not matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from pipeline.checkpoint.file_kinds import UNREAD_WEIGHTS
from pipeline.checkpoint.names import unplaced
from pipeline.findings.finding import Finding
from pipeline.findings.naming import label, labels, name, some
from pipeline.findings.observe import Observations
from pipeline.findings.start import starts_late
from pipeline.findings.untrained import untrained_rows
from pipeline.numerics.straight_turns import SAYS_NOTHING_DEG
from pipeline.planning.align import LeftOutTensor
from pipeline.planning.plan import Plan
from pipeline.planning.unknown import unknown

_SEVERITIES = {
    "shape_changed": "warning",
    "missing_tensor": "warning",
    "valueless_tensor": "warning",
    "tied_weights": "info",
    "excluded_tensor": "info",
}


def inventory(plan: Plan, seen: Observations) -> list[Finding]:
    """Return the findings of this kind."""
    return [
        *starts_late(plan, seen),
        *_missing_steps(plan),
        *_incomplete(plan),
        *_unplaced(plan),
        *_left_out(plan, "shape_changed"),
        *_resized(plan),
        *_left_out(plan, "missing_tensor"),
        *_not_tied(plan),
        *_unknown_roles(plan),
        *_left_out(plan, "valueless_tensor"),
        *_dtype_changed(plan),
        *_unread(plan),
        *_frozen(seen),
        *untrained_rows(plan, seen),
        *_below_noise_floor(plan, seen),
        *_left_out(plan, "tied_weights"),
        *_left_out(plan, "excluded_tensor"),
    ]


def _missing_steps(plan: Plan) -> Iterator[Finding]:
    for gap in plan.gaps:
        places = [
            k
            for k, checkpoint in enumerate(plan.checkpoints)
            if checkpoint.step == gap.before and checkpoint.stage == gap.stage
        ]
        stage = "" if gap.stage is None else f" of stage {gap.stage}"
        yield Finding(
            "warning",
            "missing_steps",
            f"{gap.missing} missing between step {gap.after} and step {gap.before}{stage}, by the"
            " spacing on both sides",
            places[0] if places else None,
            evidence={
                "stage": gap.stage,
                "after": gap.after,
                "before": gap.before,
                "missing": gap.missing,
            },
        )


def _incomplete(plan: Plan) -> Iterator[Finding]:
    for entry in plan.account.lacking:
        yield Finding(
            "warning",
            "incomplete_checkpoint",
            f"{entry.name}: {entry.reason}; left out",
            evidence={"name": entry.name, "reason": entry.reason},
        )


def _unplaced(plan: Plan) -> Iterator[Finding]:
    """Say which checkpoints stand where they stand without a step: a best one may be of any time."""
    for k, checkpoint in enumerate(plan.checkpoints):
        kind = unplaced(checkpoint.name) if checkpoint.name in plan.account.unplaced else None
        if kind is not None:
            yield Finding(
                "warning" if kind == "best" else "info",
                "unplaced_checkpoint",
                f"{checkpoint.name}: its name states no step; no copy of another, so it is taken"
                f" as checkpoint {k}",
                k,
                evidence={"checkpoint": label(plan, k)},
            )


def _unread(plan: Plan) -> Iterator[Finding]:
    places: dict[str, list[int]] = defaultdict(list)
    for k, files in enumerate(plan.unread):
        for path, kind in files.items():
            if kind == UNREAD_WEIGHTS:
                places[path].append(k)
    if places:
        yield Finding(
            "info",
            "unread_weights",
            f"{some(list(places))}: weights that are not read (another network's, or the same ones"
            " in another format); --weights reads them",
            min(ks[0] for ks in places.values()),
            evidence={"files": {path: len(ks) for path, ks in places.items()}},
        )


def _left_out(plan: Plan, kind: str) -> Iterator[Finding]:
    """One finding a reason: a network has one mask a layer."""
    reasons: dict[str, list[LeftOutTensor]] = defaultdict(list)
    for tensor in plan.all_left_out:
        if tensor.kind == kind:
            reason = "counted once" if kind == "tied_weights" else tensor.reason
            reasons[reason].append(tensor)
    for reason, entries in reasons.items():
        names = [tensor.name for tensor in entries]
        said = entries[0].reason if len(entries) == 1 else reason
        yield Finding(
            _SEVERITIES[kind],
            kind,
            f"{some(names)}: {said}; left out",
            entries[0].k,
            names[0],
            {
                "tensors": names,
                "reasons": sorted({tensor.reason for tensor in entries}),
            },
        )


def _unknown_roles(plan: Plan) -> Iterator[Finding]:
    roles = unknown(plan)
    if not roles.worth_a_warning:
        return
    yield Finding(
        "warning",
        "unknown_roles",
        f"{roles.share_of_layers:.1%} of the weights of layers have no known role and count as other:"
        f" {roles}; --roles FILE.toml says what they are",
        evidence={
            "share": roles.share,
            "share_of_layers": roles.share_of_layers,
            "patterns": dict(roles.patterns),
        },
    )


def _resized(plan: Plan) -> Iterator[Finding]:
    """One finding a change: a vocabulary has an embedding and a head."""
    changes: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for _, tensor in plan.counted:
        if tensor.rows:
            changes[tensor.rows].append(tensor.name)
    for rows, names in changes.items():
        k = next(k for k, count in enumerate(rows) if count != rows[0])
        yield Finding(
            "warning",
            "shape_changed",
            f"{some(names)}: {rows[0]} rows, {rows[k]} from {name(plan, k)} on; the first"
            f" {min(rows)} count, which all checkpoints have",
            k,
            names[0],
            {"tensors": names, "rows": list(rows)},
        )


def _not_tied(plan: Plan) -> Iterator[Finding]:
    for number, k in (plan.apart or {}).items():
        tensor = plan.tensors[number]
        if tensor.twin is None or not tensor.twin.stated:
            continue
        yield Finding(
            "warning",
            "not_tied",
            f"{tensor.name}: config.json says that it is {tensor.twin.name}, but its values are others,"
            f" first at {name(plan, k)}; it counts as a tensor of its own",
            k,
            tensor.name,
            {"checkpoint": label(plan, k), "of": tensor.twin.name},
        )


def _dtype_changed(plan: Plan) -> Iterator[Finding]:
    changes: dict[tuple[int, str, str], list[str]] = defaultdict(list)
    for tensor in plan.tensors:
        for k in range(1, len(tensor.dtypes)):
            if tensor.dtypes[k] != tensor.dtypes[k - 1]:
                changes[k, tensor.dtypes[k - 1], tensor.dtypes[k]].append(tensor.name)
    for (k, before, after), names in sorted(changes.items()):
        yield Finding(
            "info",
            "dtype_changed",
            f"{name(plan, k)}: {some(names)} stored as {after}, before as {before}",
            k,
            names[0],
            {"checkpoint": label(plan, k), "from": before, "to": after, "tensors": names},
        )


def _frozen(seen: Observations) -> Iterator[Finding]:
    if seen.model is None or not seen.model.moves:
        return
    names = seen.tensors.named(seen.tensors.frozen)
    if names:
        yield Finding(
            "info",
            "frozen_tensor",
            f"{some(names)}: the same values in every checkpoint",
            tensor=names[0],
            evidence={"tensors": names},
        )


def _below_noise_floor(plan: Plan, seen: Observations) -> Iterator[Finding]:
    if seen.model is None:
        return
    floors = seen.model.noise_floors
    below = np.flatnonzero(floors >= SAYS_NOTHING_DEG).tolist()
    if below:
        yield Finding(
            "info",
            "below_noise_floor",
            f"{len(below)} of {np.count_nonzero(~np.isnan(floors))} update angles, the first at"
            f" {name(plan, below[0])}: rounding alone makes a straight path turn by"
            f" {SAYS_NOTHING_DEG:.0f}° or more, the angles say nothing",
            below[0],
            evidence={"checkpoints": labels(plan, below)},
        )
