"""Checkpoints of GPT-NeoX's pipeline: a PyTorch file for each layer.

Layer 0 embeds, 1 has no weights, 2 is the first transformer layer, and the last ones are the final norm
and the head. Within a file names do not say which layer it is.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from pipeline.checkpoint.stored import StoredTensor
from pipeline.checkpoint.weight_file import WeightFile
from pipeline.errors import FormatError, quoted

_LAYER_FILE = re.compile(r"layer_(?P<layer>\d{2,4})-model_(?P<rank>\d\d)-model_states\.pt")
_IN_A_LAYER = ("attention.", "mlp.", "input_layernorm.", "post_attention_layernorm.")


def layer_files(paths: Collection[str]) -> tuple[str, ...]:
    """Return the files of layers in a checkpoint, in order."""
    return tuple(sorted(path for path in paths if _LAYER_FILE.fullmatch(path.rpartition("/")[2])))


def named_by_layer(file: WeightFile, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return a layer file's tensors under names that say which layer they are of.

    Raises:
        FormatError: tensors are split by rank.
    """
    match = _LAYER_FILE.fullmatch(file.path.rpartition("/")[2])
    if match is None or match["rank"] != "00":
        raise FormatError(
            f"{file.where}: {quoted(file.path)} is one rank's part of tensors that are split by rank",
            "convert the checkpoint to one part: tensor-parallel shards cannot be told apart",
        )
    prefix = f"layers.{int(match['layer']) - 2}."
    return {
        prefix + name if name.startswith(_IN_A_LAYER) else name: tensor
        for name, tensor in tensors.items()
    }
