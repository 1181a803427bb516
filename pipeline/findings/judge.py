"""The findings of a run: tests in the order of docs/method.md, §3.

A checkpoint that one test has explained is left out of the later ones, also as a neighbour; there
is one finding for a defect. Thresholds are those of method.md, from 22 clean trainings against
planted defects; the figure beside each is the worst that a clean one showed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.findings.finding import Finding
from pipeline.findings.inventory import inventory
from pipeline.findings.naming import label, labels, name, some
from pipeline.findings.observe import LAGS, Observations, Seen, SeenModel, misfit
from pipeline.findings.phases import phase_changes
from pipeline.numerics.stack import first_equal
from pipeline.numerics.straight_turns import SAYS_NOTHING_DEG
from pipeline.planning.plan import Plan

LEAST_RECURRING_WEIGHTS = 1024
"""Small norms and biases recur by rounding, 2 to 13 times in clean bf16 runs."""
DETOUR = 3.0
"""Times the distance of its neighbours that a checkpoint lies away from both (clean: 1.57)."""
NEAR_ANOTHER = 0.1
"""Of the way to its nearer neighbour, to a checkpoint that is not one (clean: 0.34)."""
NOT_A_NEIGHBOUR = 3
"""Checkpoints apart, for that."""
LEAP = 8.0
"""Times the larger neighbouring increment, in equal times (clean: 4.3)."""
FIRST_LEAP = 30.0
"""Times the second increment, for the first (clean: 13.6)."""
LEAST_MATRIX_WEIGHTS = 1000


def findings(plan: Plan, seen: Observations, fraction: float) -> list[Finding]:
    """Return everything found in one run, in the order in which it was looked for.

    Args:
        fraction: share of the weights that was read.
    """
    if seen.model is None:
        return inventory(plan, seen)
    judge = _Judge(plan, seen.tensors, seen.model, fraction)
    judge.non_finite()
    judge.identical_checkpoints()
    judge.foreign_tensors()
    judge.off_trajectory()
    judge.discontinuity()
    return [
        *judge.findings,
        *inventory(plan, seen),
        *phase_changes(plan, seen.model, judge.explained),
    ]


class _Judge:
    def __init__(self, plan: Plan, tensors: Seen, model: SeenModel, fraction: float) -> None:
        self._plan, self._tensors, self._model = plan, tensors, model
        self._explained: set[int] = set()
        self._partial = fraction < 1
        self._said = (
            f" (in the {fraction:.3%} of the weights that was read)" if self._partial else ""
        )
        self.findings: list[Finding] = []

    @property
    def explained(self) -> frozenset[int]:
        """Checkpoints that are known to be wrong, or to be copies."""
        return frozenset(self._explained)

    # ---- values that are not finite

    def non_finite(self) -> None:
        absent = self._tensors.absent
        bad = {
            int(k): self._tensors.named(absent[:, k]) for k in np.flatnonzero(absent.any(axis=0))
        }
        for ks in _stretches(sorted(bad), lambda a, b: b == a + 1 and bad[a] == bad[b]):
            names = bad[ks[0]]
            self._add(
                "error",
                "non_finite",
                f"{self._names(ks)}: {some(names)} {_hold(names)} NaN or infinity; the figures of"
                f" {'these checkpoints are' if len(ks) > 1 else 'this checkpoint are'} NULL there{self._said}",
                ks,
                names[0],
                {"checkpoints": self._labels(ks), "tensors": names},
            )
        self._explained |= bad.keys()

    # ---- the same values twice

    def identical_checkpoints(self) -> None:
        equal = self._model.labels
        by_label: dict[int, list[int]] = defaultdict(list)
        for k in self._left():
            by_label[int(equal[k])].append(k)
        for copies in (copies for copies in by_label.values() if len(copies) > 1):
            neighbours = self._are_neighbours(copies)
            others = [k for k in self._left() if k not in copies]
            if neighbours and not any(k < copies[0] for k in others):
                why, severity, right = "nothing has moved yet", "info", copies[0]
            elif neighbours and self._below_floor_before(copies[0]):
                why, severity, right = (
                    "the steps before are below rounding already",
                    "info",
                    copies[0],
                )
            else:
                severity = "error"
                right = self._rightful(copies)
                why = (
                    f"by its neighbours {self._name(right)} is where they belong" if others else ""
                )
            wrong = [k for k in copies if k != right]
            proven = all(self._plan.repeats.get(k, k) == copies[0] for k in copies)
            said = " (the published files are the same)" if proven and self._partial else self._said
            self._add(
                severity,
                "identical_checkpoints",
                f"{self._names(wrong)}: the same weights as {self._name(right)}{said}"
                + (f"; {why}" if why else ""),
                wrong,
                None,
                {
                    "checkpoints": self._labels(copies),
                    "belongs_at": self._label(right),
                    "same_files": proven,
                },
            )
            self._explained.update(wrong)

    def foreign_tensors(self) -> None:
        """Tensors of one checkpoint in another, by values that recur; or a shard of a neighbour's."""
        wrong: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        left, seen = self._left(), self._tensors
        large = seen.numels >= LEAST_RECURRING_WEIGHTS
        for n in np.flatnonzero(large & _recur(seen.labels[:, left])).tolist():
            for copies in _recurrences(seen.labels[n], left):
                right = min(copies, key=lambda k, n=n: seen.misfits[n, k])
                for k in copies:
                    if k != right and abs(left.index(k) - left.index(right)) > 1:
                        wrong[k][right].append(n)
        for before, k in pairwise(left):
            for shard in self._shards_that_stand_still(before, k, left):
                largest = max(shard, key=lambda n: seen.numels[n])
                right = min((before, k), key=lambda k, n=largest: seen.misfits[n, k])
                other = k if right == before else before
                if other not in wrong:
                    wrong[other][right] = shard
        for k in sorted(wrong):
            names = [seen.names[n] for shard in wrong[k].values() for n in shard]
            sources = sorted(wrong[k])
            self._add(
                "error",
                "foreign_tensors",
                f"{self._name(k)}: {some(names)} {_hold(names)} the values of"
                f" {self._names(sources)}{self._said}",
                [k],
                names[0],
                {"checkpoint": self._label(k), "of": self._labels(sources), "tensors": names},
            )
        self._explained |= wrong.keys()

    # ---- where the path leads

    def off_trajectory(self) -> None:
        while (worst := self._farthest_off()) is not None:
            k, evidence, message = worst
            self._add(
                "warning",
                "off_trajectory",
                f"{self._name(k)}: {message}; distances across it carry its error: leave it out and"
                " run again",
                [k],
                None,
                {"checkpoint": self._label(k), **evidence},
            )
            self._explained.add(k)

    def discontinuity(self) -> None:
        left = self._left()
        if len(left) < 3:
            return
        lengths = [self._distance(a, b) for a, b in pairwise(left)]
        gaps = np.diff(self._times()[left])
        for i in range(len(lengths)):
            k = left[i + 1]
            evidence: dict[str, Any] = {}
            said = []
            beside = [
                lengths[j] * max(1.0, gaps[i] / gaps[j] if gaps[j] > 0 else 1.0)
                for j in (i - 1, i + 1)
                if 0 <= j < len(lengths)
            ]
            limit = FIRST_LEAP if i == 0 else LEAP
            if i + 1 < len(lengths) and lengths[i] >= limit * max(beside) > 0:
                ratio = lengths[i] / max(beside)
                said.append(f"a step of {ratio:.3g} times those beside it")
                evidence["times_the_steps_beside"] = ratio
            if i + 2 < len(left) and (names := self._unrelated(left[i], k, left[i + 2])):
                said.append(f"{some(names)} {_hold(names, 'are', 'is')} unrelated to before")
                evidence["unrelated"] = names
            if said:
                before = left[i]
                self._add(
                    "warning",
                    "discontinuity",
                    f"{self._name(k)} does not follow from {self._name(before)}: {'; '.join(said)}",
                    [k],
                    None,
                    {"checkpoint": self._label(k), "before": self._label(before), **evidence},
                )

    # ---- what the tests share

    def _farthest_off(self) -> tuple[int, dict[str, Any], str] | None:
        left = self._left()
        if len(left) < 3:
            return None
        distances = np.sqrt(self._model.squared_distances[np.ix_(left, left)])
        numbers = np.array(left)
        best, farthest = 1.0, None
        for i, k in enumerate(left):
            sides = [j for j in (i - 1, i + 1) if 0 <= j < len(left)]
            nearer = min(distances[i, j] for j in sides)
            if len(sides) == 2:
                across = distances[sides[0], sides[1]]
                if across > 0 and nearer / across / DETOUR >= best:
                    best = nearer / across / DETOUR
                    evidence = {"times_the_distance_of_its_neighbours": nearer / across}
                    text = (
                        f"{nearer / across:.3g} times as far from both neighbours as they lie apart"
                    )
                    farthest = k, evidence, text
            apart = (np.abs(numbers - k) >= NOT_A_NEIGHBOUR) & (distances[i] > 0)
            if apart.any():
                j = int(np.where(apart, distances[i], np.inf).argmin())
                share = distances[i, j] / nearer if nearer > 0 else np.inf
                if NEAR_ANOTHER / share >= best:
                    best = NEAR_ANOTHER / share
                    evidence = {"near": self._label(left[j]), "of_the_way_to_a_neighbour": share}
                    text = (
                        f"{share:.2g} of the way to its nearer neighbour from {self._name(left[j])}"
                    )
                    farthest = k, evidence, text
        return farthest

    def _unrelated(self, before: int, k: int, after: int) -> list[str]:
        """Return the weight matrices that are new at k, if they are most of them."""
        if max(k - before, after - k) > LAGS:
            return []
        seen = self._tensors
        judged = seen.matrices & (seen.numels >= LEAST_MATRIX_WEIGHTS)
        new = judged & seen.unrelated[:, k - before, k] & seen.related[:, after - k, after]
        most = 2 * np.count_nonzero(new) > np.count_nonzero(judged)
        return seen.named(new) if most else []

    def _shards_that_stand_still(
        self, before: int, k: int, left: Sequence[int]
    ) -> Iterable[list[int]]:
        """Yield the tensors of each file that is the same at two neighbours, while others moved.

        And which moves just before and just after, as a frozen one would not.
        """
        i, seen = left.index(k), self._tensors
        equal = seen.labels[:, before] == seen.labels[:, k]
        if i < 2 or i + 1 >= len(left) or not equal.any() or equal.all():
            return
        files = np.array([self._plan.tensors[tensor].files[k] for tensor in seen.tensors])
        for file in dict.fromkeys(files[equal].tolist()):
            shard = files == file
            labels = seen.labels[shard]
            moves = all(
                (labels[:, a] != labels[:, b]).any()
                for a, b in ((left[i - 2], before), (k, left[i + 1]))
            )
            large = seen.numels[shard].sum() >= LEAST_RECURRING_WEIGHTS
            if equal[shard].all() and moves and large:
                yield np.flatnonzero(shard).tolist()

    def _below_floor_before(self, k: int) -> bool:
        floors = self._model.noise_floors[:k]
        known = floors[~np.isnan(floors)]
        return bool(known.size) and bool(known[-1] >= SAYS_NOTHING_DEG)

    def _rightful(self, copies: Sequence[int]) -> int:
        """Return which of several equal checkpoints holds its own weights."""
        left = self._left()
        held = np.ix_(left, left)
        distances, labels = self._model.squared_distances[held], self._model.labels[left]
        misfits = misfit(distances[np.newaxis], labels[np.newaxis])[0]
        return min(copies, key=lambda k: misfits[left.index(k)])

    def _are_neighbours(self, copies: Sequence[int]) -> bool:
        left = self._left()
        first = left.index(copies[0])
        return left[first : first + len(copies)] == list(copies)

    def _left(self) -> list[int]:
        return [
            k
            for k in range(len(self._plan.checkpoints))
            if k not in self._explained and not self._model.absent[k]
        ]

    def _distance(self, a: int, b: int) -> float:
        return float(np.sqrt(self._model.squared_distances[a, b]))

    def _times(self) -> NDArray[np.float64]:
        elapsed = [checkpoint.elapsed for checkpoint in self._plan.checkpoints]
        known = all(value is not None for value in elapsed)
        return np.array(elapsed if known else range(len(elapsed)), float)

    def _name(self, k: int) -> str:
        return name(self._plan, k)

    def _names(self, ks: Sequence[int]) -> str:
        return some([self._name(k) for k in ks])

    def _label(self, k: int) -> dict[str, Any]:
        return label(self._plan, k)

    def _labels(self, ks: Iterable[int]) -> list[dict[str, Any]]:
        return labels(self._plan, ks)

    def _add(
        self,
        severity: str,
        kind: str,
        message: str,
        ks: Sequence[int],
        tensor: str | None,
        evidence: dict[str, Any],
    ) -> None:
        self.findings.append(Finding(severity, kind, message, ks[0], tensor, evidence))


def _recur(labels: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Return which rows of (T, K) hold a value again after another one."""
    stretches = np.count_nonzero(np.diff(labels, axis=1), axis=1) + 1
    distinct = np.count_nonzero(first_equal(labels) == np.arange(labels.shape[1]), axis=1)
    return stretches > distinct


def _recurrences(labels: NDArray[np.integer[Any]], left: Sequence[int]) -> Iterable[list[int]]:
    """Yield the checkpoints that hold the same values with others in between."""
    by_label: dict[int, list[int]] = defaultdict(list)
    for place, k in enumerate(left):
        by_label[int(labels[k])].append(place)
    for places in by_label.values():
        if places[-1] - places[0] + 1 > len(places):
            yield [left[place] for place in places]


def _stretches(ks: Sequence[int], joined: Callable[[int, int], bool]) -> Iterable[list[int]]:
    stretch: list[int] = []
    for k in ks:
        if stretch and not joined(stretch[-1], k):
            yield stretch
            stretch = []
        stretch.append(k)
    if stretch:
        yield stretch


def _hold(names: Sequence[str], many: str = "hold", one: str = "holds") -> str:
    return many if len(names) > 1 else one
