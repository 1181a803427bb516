"""Checkpoints of DeepSpeed's pipeline: a PyTorch file for each layer, or for each rank's part of it.

In GPT-NeoX layer 0 embeds, 1 has no weights, 2 is the first transformer layer, and the last ones are the
final norm and the head; Megatron-DeepSpeed begins with a layer without weights. Within a file names do
not say which layer it is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from pipeline.checkpoint.stored import StoredTensor
from pipeline.checkpoint.tensor_parallel import Held
from pipeline.checkpoint.weight_file import WeightFile
from pipeline.errors import FormatError, quoted

_LAYER_FILE = re.compile(
    r"(?P<folder>(?:.*/)?)layer_(?P<layer>\d{2,4})-model_(?P<rank>\d\d)-model_states\.pt"
)
_FIRST_LAYER = 2
_EMBEDDING = "word_embeddings.weight"
_IN_A_LAYER = (
    "attention.", "self_attention.", "mlp.", "input_layernorm.", "post_attention_layernorm.",
)  # fmt: skip
_FINAL_NORM = {"weight": "final_layernorm.weight", "bias": "final_layernorm.bias"}
"""What Megatron-DeepSpeed calls nothing: a module that is one layer of the pipeline."""


def layer_files(paths: Collection[str]) -> tuple[str, ...]:
    """Return the files of layers in a checkpoint, in order: of every rank, those that are absent included."""
    matches = [match for path in paths if (match := _LAYER_FILE.fullmatch(path))]
    if not matches:
        return ()
    first = min(matches, key=lambda match: (match["folder"].count("/"), match[0]))
    matches = [match for match in matches if match["folder"] == first["folder"]]
    ranks = range(max(int(match["rank"]) for match in matches) + 1)
    layers = sorted({match["layer"] for match in matches}, key=int)
    return tuple(
        f"{first['folder']}layer_{layer}-model_{rank:02d}-model_states.pt"
        for layer in layers
        for rank in ranks
    )


def by_rank(
    files: Sequence[WeightFile], tensors: Sequence[Mapping[str, StoredTensor]]
) -> list[dict[str, Held]]:
    """Return what each rank holds of the network, under names that say which layer a tensor is of.

    Args:
        files: as `layer_files` returns their paths; `tensors` of each.

    Raises:
        FormatError: the file of a layer is absent, or two hold a tensor of one name.
    """
    where = files[0].where
    matches = (_LAYER_FILE.fullmatch(file.path) for file in files)
    places = [(int(match["layer"]), int(match["rank"])) for match in matches if match]
    first = _first_layer([layer for layer, _ in places], tensors, where)
    ranks: list[dict[str, Held]] = [{} for _ in {rank for _, rank in places}]
    for number, ((layer, rank), of_file) in enumerate(zip(places, tensors, strict=True)):
        for name, tensor in of_file.items():
            named = f"layers.{layer - first}.{name}" if name.startswith(_IN_A_LAYER) else name
            named = _FINAL_NORM.get(named, named)
            if named in ranks[rank]:
                raise FormatError(
                    f"{where}: expected {quoted(named)} in the file of one layer, found it in two"
                )
            ranks[rank][named] = number, tensor
    return ranks


def _first_layer(
    layers: Sequence[int], tensors: Sequence[Mapping[str, StoredTensor]], where: str
) -> int:
    """Return the number of the first transformer layer's file; all up to the last are there."""
    files = list(zip(layers, tensors, strict=True))
    inner = {n for n, names in files if any(name.startswith(_IN_A_LAYER) for name in names)}
    embeds = min((n for n, names in files if _EMBEDDING in names), default=0)
    first = min(inner, default=_FIRST_LAYER) if embeds else _FIRST_LAYER
    absent = sorted({*range(first, max(inner, default=0))} - inner)
    if absent:
        raise FormatError(
            f"{where}: the file of layer {absent[0]} is absent",
            "the upload or download is incomplete: fetch it again, or leave the checkpoint out",
        )
    return first
