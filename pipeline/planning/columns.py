"""Matrices that ranks divide by columns, in a run whose checkpoints are of other numbers of ranks.

Columns are read as they lie, rank by rank, where that is one order in all checkpoints; else row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.checkpoint.chunks import by_rows
from pipeline.checkpoint.stored import MAX_EXTENTS
from pipeline.planning.bridge import Stored


def in_one_order(contents: Sequence[Stored]) -> list[Stored]:
    """Return the tensors of all checkpoints; those of unlike numbers of ranks in order, row by row.

    As many of them as that makes no more than `MAX_EXTENTS` extents of, in all checkpoints together.
    """
    if not any(tensor.ranks > 1 for stored in contents for _, tensor in stored.values()):
        return list(contents)
    counts: dict[str, set[int]] = {}
    for stored in contents:
        for name, (_, tensor) in stored.items():
            counts.setdefault(name, set()).add(tensor.ranks)
    unlike = [name for name, of_name in counts.items() if len(of_name) > 1]
    made, left = [dict(stored) for stored in contents] if unlike else list(contents), MAX_EXTENTS
    for name in unlike:
        divided = [
            (stored, *stored[name])
            for stored in made
            if name in stored and stored[name][1].ranks > 1
        ]
        needed = sum(tensor.shape[0] * tensor.ranks for _, _, tensor in divided)
        if needed <= left:
            left -= needed
            for stored, file, tensor in divided:
                stored[name] = file, by_rows(tensor, name, needed)
    return made
