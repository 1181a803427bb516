"""Tensors that are one under two names: output heads and embeddings above all.

Two names of one place in a file are one tensor. That two places hold one tensor is said by
`config.json`, or by a checkpoint that stores only one of them, but not believed: both are read, and
the digests of their values decide (`Plan.settled`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.checkpoint.config import sections
from pipeline.checkpoint.roles import Role
from pipeline.planning.bridge import Stored

_ENDS = frozenset({"embed", "unembed"})


@dataclass(frozen=True, slots=True)
class Twin:
    """What a tensor may be under a second name."""

    name: str
    """The first name."""
    stated: bool
    """`config.json` says so."""
    filled: tuple[int, ...] = ()
    """Checkpoints that store it under the first name only."""
    is_partial: bool = False
    """There are such, of this path or another one of the same plan."""

    @property
    def is_drawn_alike(self) -> bool:
        """True if a sample holds the same elements of both, so that they can be compared."""
        return self.stated or self.is_partial

    def seen_from(self, first: int, stop: int) -> Twin:
        """Return the same for the checkpoints from `first` on; one that is missing stays missing."""
        return replace(self, filled=tuple(k - first for k in self.filled if first <= k < stop))


def one_place(contents: Sequence[Stored], names: Sequence[str]) -> dict[str, str]:
    """Return the tensors that all checkpoints store at the place of another one, and its name."""
    tied: dict[str, str] = {}
    firsts: dict[tuple[Any, ...], str] = {}
    shared = Counter(contents[0].values())
    for name in names:
        place = contents[0].get(name)
        if place is None or shared[place] < 2:  # so are nearly all: no others need be looked at
            continue
        places = tuple(stored.get(name) for stored in contents)
        if None not in places and (first := firsts.setdefault(places, name)) != name:
            tied[name] = first
    return tied


def twins(
    contents: Sequence[Stored],
    names: Sequence[str],
    known: Mapping[str, Role],
    configs: Sequence[Mapping[str, Any]],
) -> dict[str, Twin]:
    """Return which embeddings and output heads may be another tensor under a second name.

    The first is an embedding that all checkpoints store; the second is stored by some, in its shape.
    """
    stated = all(_tied(config) for config in configs)
    matrices = [
        name
        for name in names
        if known[name].component in _ENDS and name.endswith("weight") and _is_matrix(name, contents)
    ]
    firsts = [
        name
        for name in matrices
        if known[name].component == "embed" and all(name in stored for stored in contents)
    ]
    made: dict[str, Twin] = {}
    for name in matrices:
        first = next((each for each in firsts if _alike(each, name, contents)), name)
        if first != name:
            absent = tuple(k for k, stored in enumerate(contents) if name not in stored)
            made[name] = Twin(first, stated, absent, is_partial=bool(absent))
    return made


def _is_matrix(name: str, contents: Sequence[Stored]) -> bool:
    return all(len(stored[name][1].shape) == 2 for stored in contents if name in stored)


def _alike(first: str, second: str, contents: Sequence[Stored]) -> bool:
    """Return whether two tensors have one shape wherever both are stored."""
    return all(
        stored[first][1].shape == stored[second][1].shape for stored in contents if second in stored
    )


def _tied(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration says so: its outermost word counts."""
    words = (section.get("tie_word_embeddings") for section in sections(config))
    return next((word for word in words if isinstance(word, bool)), False)
