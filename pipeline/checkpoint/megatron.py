"""Checkpoints of Megatron-LM and DeepSpeed: a PyTorch file for each rank, or a folder that holds it.

`mp_rank_01_002` is rank 1 of tensor parallelism at stage 2 of the pipeline. Sources: `checkpointing.py` of
Megatron-LM, `runtime/engine.py` of DeepSpeed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from pipeline.checkpoint.pickle_machine import Record
from pipeline.checkpoint.state_dict import entries_of
from pipeline.checkpoint.stored import StoredTensor
from pipeline.checkpoint.tensor_parallel import CONVERT, Held
from pipeline.checkpoint.torch_file import saved_value
from pipeline.checkpoint.weight_file import WeightFile
from pipeline.errors import FormatError, quoted

RANK_FILE = re.compile(
    r"(?P<folder>(?:.*/)?)mp_rank_(?P<rank>\d\d)(?P<stage>_\d{3})?"
    r"(?P<rest>_model_states\.pt|/model_optim_rng\.pt|/model_rng\.pt)"
)
_IN_A_LAYER = re.compile(r"(|.*?\.)layers\.(\d{1,9})\.(.+)")


def rank_files(paths: Collection[str]) -> tuple[str, ...]:
    """Return the files of all ranks, in order, those that are absent included; none if there are none.

    They are those of one rank after the other, of each in the order of the pipeline's stages.
    """
    matches = [match for path in paths if (match := RANK_FILE.fullmatch(path))]
    if not matches:
        return ()
    first = min(matches, key=lambda match: (match["folder"].count("/"), match[0]))
    folder, rest = first["folder"], first["rest"]
    numbers = [
        (int(match["rank"]), int((match["stage"] or "_0")[1:]))
        for match in matches
        if (match["folder"], match["rest"], not match["stage"])
        == (folder, rest, not first["stage"])
    ]
    last_rank, last_stage = (max(column) for column in zip(*numbers, strict=True))
    return tuple(
        f"{folder}mp_rank_{rank:02d}{f'_{stage:03d}' if first['stage'] else ''}{rest}"
        for rank in range(last_rank + 1)
        for stage in range(last_stage + 1)
    )


def by_rank(
    files: Sequence[WeightFile], tensors: Sequence[Mapping[str, StoredTensor]]
) -> list[dict[str, Held]]:
    """Return what each rank holds of the network: the layers of all stages of the pipeline.

    Each stage numbers its layers from 0.

    Args:
        files: as `rank_files` returns their paths; `tensors` of each.

    Raises:
        FormatError: the first file speaks of more ranks, or two stages hold a tensor of one name.
    """
    where = files[0].where
    ranks: dict[str, dict[str, Held]] = {}
    before: dict[str, Counter[str]] = {}
    for number, (file, of_file) in enumerate(zip(files, tensors, strict=True)):
        match = RANK_FILE.fullmatch(file.path)
        rank = match["rank"] if match else ""
        held, offsets = ranks.setdefault(rank, {}), before.setdefault(rank, Counter())
        layers: dict[str, set[int]] = {}
        for name, tensor in of_file.items():
            if match := _IN_A_LAYER.fullmatch(name):
                layers.setdefault(match[1], set()).add(int(match[2]))
                name = f"{match[1]}layers.{int(match[2]) + offsets[match[1]]}.{match[3]}"
            if name in held:
                raise FormatError(
                    f"{where}: expected {quoted(name)} on one stage of the pipeline, found it on two",
                    CONVERT,
                )
            held[name] = number, tensor
        for prefix, numbers in layers.items():
            offsets[prefix] += max(numbers) + 1
    _check_complete(files[0], len(ranks), len(files) // len(ranks))
    return list(ranks.values())


def _check_complete(file: WeightFile, ranks: int, stages: int) -> None:
    """Refuse a network that the file of its first rank says to have more ranks."""
    if file.at(0, 2) != b"PK":  # an older file; what it states is not looked at
        return
    saved = entries_of(saved_value(file))
    args = saved.get("args")
    sizes = args if isinstance(args, Record | Mapping) else {}
    of_engine = saved.get("mp_world_size")
    for what, count, stated in (
        ("ranks", ranks, sizes.get("tensor_model_parallel_size") or of_engine),
        ("stages of the pipeline", stages, sizes.get("pipeline_model_parallel_size")),
    ):
        if type(stated) is int and stated > count:
            raise FormatError(
                f"{file.where}: expected the files of {stated:,} {what}, found {count:,}",
                "the upload or download is incomplete: fetch it again, or leave the checkpoint out",
            )
