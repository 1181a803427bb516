"""What a worker gives back for a tile. Plain data: who only counts tiles does without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Receipt:
    """A finished tile: its result is in the store."""

    tile: int
    bytes: int
    pull_seconds: float
    gram_seconds: float
    device: str
