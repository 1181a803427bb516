"""Tensors that ranks have divided, each with a file of its own: verl's `model_world_size_8_rank_0.pt`.

Every file tells of each tensor which dimension is divided and how long it is as a whole; ranks hold its
slices in order, and those of the same slices again, which copies of the network have, are not needed.
Source: verl's `fsdp_checkpoint_manager.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from pipeline.checkpoint.chunks import Chunk, joined
from pipeline.checkpoint.stored import MAX_EXTENTS, StoredTensor
from pipeline.checkpoint.torch_file import StoredPart, zip_parts
from pipeline.checkpoint.weight_file import WeightFile
from pipeline.errors import FormatError, quoted

_RANK_FILE = re.compile(
    r"(?P<folder>(?:.*/)?)model_world_size_(?P<of>\d{1,5})_rank_(?P<rank>\d{1,5})\.pt"
)


def rank_files(paths: Collection[str]) -> tuple[str, ...]:
    """Return the files of all ranks, in order; none unless they are all there."""
    matches = [match for path in paths if (match := _RANK_FILE.fullmatch(path))]
    if not matches:
        return ()
    first = min(matches, key=lambda match: (match["folder"].count("/"), match[0]))
    of = int(first["of"])
    names = [f"{first['folder']}model_world_size_{of}_rank_{rank}.pt" for rank in range(of)]
    return tuple(names) if {*names} <= {*paths} else ()


def read_ranks(file: WeightFile) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint, of which `file` is that of rank 0.

    Raises:
        FormatError: a file is malformed, or parts do not make a whole.
    """
    parts = [zip_parts(each) for each in (file, *file.others)]
    left = MAX_EXTENTS
    tensors: dict[str, StoredTensor] = {}
    for name in parts[0]:
        held = [of_rank[name] for of_rank in parts if name in of_rank]
        tensors[name] = _whole(held, f"{file.where}: {quoted(name)}", left)
        left -= len(tensors[name].extents)
    return tensors


def _whole(parts: Sequence[StoredPart], where: str, most_extents: int) -> StoredTensor:
    """Return a tensor, given what each rank holds of it."""
    first, split = parts[0]
    if split is None or first.unreadable:
        return first
    chunks: list[Chunk] = []
    reached, length = 0, split.shape[split.dimension]
    for number, (stored, other) in enumerate(parts):
        if other != split or stored.dtype != first.dtype or stored.order:
            raise FormatError(
                f"{where}: expected parts of one tensor, found others on rank {number}"
            )
        if reached == length or not stored.numel:
            continue
        offsets = tuple(reached * (d == split.dimension) for d in range(len(split.shape)))
        if len(stored.extents) > 1:
            raise FormatError(f"{where}: expected a part that lies side by side, found several")
        chunks.append(Chunk(offsets, stored.shape, number, stored.start))
        reached += stored.shape[split.dimension]
    return joined(split.shape, first.dtype, chunks, where, most_extents)
