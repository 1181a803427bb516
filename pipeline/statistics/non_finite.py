"""How many values are NaN or infinite: a checkpoint that holds one is absent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.statistics.statistic import ArraySpec

if TYPE_CHECKING:
    from pipeline.statistics.piece import Pieces


class NonFinite:
    """Counts, (K,). Asked after the Gram matrix, whose diagonal shows at no cost that there is none."""

    name = "non_finite"
    scratch = 0

    def arrays(self, num_checkpoints: int) -> tuple[ArraySpec, ...]:
        return (ArraySpec("non_finite.count", (num_checkpoints,), "i8"),)

    def of_pieces(self, pieces: Pieces) -> dict[str, Any]:
        return {"non_finite.count": pieces.non_finite}
