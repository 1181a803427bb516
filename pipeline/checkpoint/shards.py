"""Which files of a checkpoint hold its weights, and how to read the head of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

from pipeline.checkpoint.distributed import METADATA, SUFFIX
from pipeline.checkpoint.json_text import JsonText
from pipeline.checkpoint.safetensors import Read, read_header
from pipeline.checkpoint.stored import StoredTensor
from pipeline.checkpoint.torch_file import read_torch_file
from pipeline.errors import FormatError, quoted

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_PREFERRED = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_NUMBERED = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.safetensors|\.bin)"
)
# GPT-NeoX's pipeline: layer 0 embeds, 1 has no weights, 2 is the first transformer layer.
_OF_LAYER = re.compile(r"layer_(?P<layer>\d{2,4})-model_\d\d-model_states\.pt")
_IN_A_LAYER = ("attention.", "mlp.", "input_layernorm.", "post_attention_layernorm.")
# What trainers write beside the weights. Sources: transformers' Trainer (optimizer.pt, scheduler.pt,
# scaler.pt, rng_state.pth, training_args.bin), DeepSpeed (…_optim_states.pt).
_NOT_WEIGHTS = re.compile(
    r"(?:optimizer|scheduler|scaler|rng_state|training_args|trainer_state|random_states)[^/]*"
    r"|[^/]*_optim_states\.pt"
)


def holds_weights(paths: Iterable[str]) -> bool:
    """Return whether a listing has anything that may be a weight file, or an index of some."""
    return any(
        _may_be_weights(path) or path.endswith(".index.json") or _name(path) == METADATA
        for path in paths
    )


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _may_be_weights(path: str) -> bool:
    return "/" not in path and path.endswith(_SUFFIXES) and _NOT_WEIGHTS.fullmatch(path) is None


def weight_files(
    paths: Collection[str], read_text: Callable[[str], bytes], where: str
) -> tuple[str, ...]:
    """Return the paths of a checkpoint's weight files, sorted.

    The order of preference is that of transformers: `model.safetensors`, then the shards of its
    index, then the same of `pytorch_model.bin`; then one set of `…-00001-of-0000N.safetensors` or
    `.bin`; then NeoX's file for each layer; then a distributed checkpoint, its metadata first; then
    a weight file that stands alone. Files in sub-folders belong to something else.

    Args:
        paths: names of all files of the checkpoint, relative to it.
        read_text: gives the contents of one (small) file.
        where: the checkpoint's name for error messages.

    Raises:
        FormatError: a shard is absent, the index is malformed, or the choice is not clear.
    """
    for name in _PREFERRED:
        if name in paths and name.endswith(".json"):
            named = _shards_of_index(read_text(name), f"{where}/{name}")
            _require(named, paths, f"named in {name}", where)
            return named
        if name in paths:
            return (name,)
    files = sorted(path for path in paths if _may_be_weights(path))
    if any(path.endswith(".safetensors") for path in files):
        files = [path for path in files if path.endswith(".safetensors")]
    sets: dict[tuple[str, int, str], list[str]] = {}
    for path in files:
        if match := _NUMBERED.fullmatch(path):
            key = (match["stem"], int(match["total"]), match["suffix"])
            sets.setdefault(key, []).append(path)
    if len(sets) == 1:
        ((stem, total, suffix),) = sets
        named = tuple(f"{stem}-{i:05d}-of-{total:05d}{suffix}" for i in range(1, total + 1))
        _require(named, paths, f"one of {total}", where)
        return named
    if layers := [path for path in files if _OF_LAYER.fullmatch(path)]:
        split = next((path for path in layers if "-model_00-" not in path), None)
        if split is not None:
            raise FormatError(
                f"{where}: {quoted(split)} is one rank's part of tensors that are split by rank",
                "convert the checkpoint to one part: tensor-parallel shards cannot be told apart",
            )
        return tuple(layers)
    if metadata := [path for path in paths if _name(path) == METADATA]:
        folder = metadata[0].removesuffix(METADATA)
        chunks = (p for p in paths if p.startswith(folder) and p.endswith(SUFFIX))
        return (metadata[0], *sorted(chunks))
    if len(files) > 1:
        raise FormatError(
            f"{where}: expected one set of weights, found {len(files)} files with no index: "
            + ", ".join(quoted(path) for path in files[:4]),
            "add the index, or remove the files that are not this model's weights",
        )
    return tuple(files)


def _shards_of_index(data: bytes, where: str) -> tuple[str, ...]:
    shards: set[str] = set()
    try:
        text = JsonText(data)
        for key in text.members():
            if key == "weight_map":
                shards.update(text.string() for _ in text.members())
            else:
                text.skip()
        text.end()
    except ValueError:
        shards.clear()
    if not shards or "" in shards:
        raise FormatError(f"{where}: expected a JSON object with a weight_map of shard names")
    return tuple(sorted(shards))


def _require(named: tuple[str, ...], present: Collection[str], why: str, where: str) -> None:
    absent = sorted(set(named) - set(present))
    if absent:
        raise FormatError(
            f"{where}: shard {quoted(absent[0])} ({why}) is absent"
            + (f", and {len(absent) - 1} more" if len(absent) > 1 else ""),
            "the upload or download is incomplete: fetch it again, or leave the checkpoint out",
        )


def read_tensors(read: Read, size: int, path: str, where: str) -> dict[str, StoredTensor]:
    """Return the tensors of a weight file, by the format that its name states.

    Raises:
        FormatError: the file is not what its name says.
    """
    reader = read_header if path.endswith(".safetensors") else read_torch_file
    found = reader(read, size, where)
    if match := _OF_LAYER.fullmatch(path):
        prefix = f"layers.{int(match['layer']) - 2}."
        return {
            prefix + name if name.startswith(_IN_A_LAYER) else name: place
            for name, place in found.items()
        }
    return found
