"""The formats of weight files: how each is recognised, what reads its header, which one is preferred.

A format is a row of the table: everything else asks the table. A row with `suffixes` is a format of
single files, which may be one of several shards; a row with `find` knows which files of a checkpoint
belong together. To add one, write a module that reads its header, and add its row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pipeline.checkpoint import megatron, neox, ranks
from pipeline.checkpoint.distributed import metadata_and_chunks, read_distributed
from pipeline.checkpoint.safetensors import read_safetensors
from pipeline.checkpoint.stored import StoredTensor
from pipeline.checkpoint.tensor_parallel import together
from pipeline.checkpoint.torch_file import read_legacy, read_zip
from pipeline.checkpoint.weight_file import WeightFile
from pipeline.errors import FormatError, quoted


@dataclass(frozen=True, slots=True)
class Format:
    """One format of weights."""

    name: str
    """For people."""
    read: Callable[[WeightFile], dict[str, StoredTensor]]
    """Returns the tensors of a file by name; raises FormatError. Extents give files by number: 0 for
    the file itself, then its `others`."""
    suffixes: tuple[str, ...] = ()
    """How the names of its files end; empty where `find` says which they are."""
    begins: bytes = b""
    """What its files begin with; empty where no other format has these suffixes."""
    whole: str = ""
    """What a file that holds all weights is usually called; an index of several is called this and
    `.index.json`."""
    find: Callable[[Collection[str]], tuple[str, ...]] | None = None
    """Returns its files among the paths of a checkpoint, none if it is not there."""
    is_nested: bool = False
    """Its tensors lie in dictionaries within dictionaries."""
    is_read_at_once: bool = False
    """The header is in the first of its files, and names the others."""
    without_weights: re.Pattern[str] | None = None
    """Paths of files that hold none beside these, and all of them elsewhere."""


def _read_layers(file: WeightFile) -> dict[str, StoredTensor]:
    files = (file, *file.others)
    return together(neox.by_rank(files, [*map(read_header, files)]), file.where)


def _read_ranks(file: WeightFile) -> dict[str, StoredTensor]:
    files = (file, *file.others)
    return together(megatron.by_rank(files, [*map(read_header, files)]), file.where)


_TORCH = (".bin", ".pt", ".pth", ".ckpt", ".pth.tar")
FORMATS: tuple[Format, ...] = (
    Format("safetensors", read_safetensors, (".safetensors",), whole="model.safetensors"),
    Format(
        "zip archive of torch.save", read_zip, _TORCH, b"PK", "pytorch_model.bin", is_nested=True
    ),
    Format("pickle of torch.save", read_legacy, _TORCH, b"\x80", is_nested=True),
    Format(
        "layers of a pipeline", _read_layers, find=neox.layer_files, is_read_at_once=True,
        without_weights=megatron.RANK_FILE,
    ),
    Format(
        "ranks of Megatron-LM", _read_ranks, find=megatron.rank_files,
        is_nested=True, is_read_at_once=True,
    ),
    Format(
        "parts of ranks", ranks.read_ranks, find=ranks.rank_files, is_nested=True,
        is_read_at_once=True,
    ),
    Format("torch distributed", read_distributed, find=metadata_and_chunks, is_read_at_once=True),
)  # fmt: skip
"""In order of preference. The order of the usual names is that of transformers."""
_POINTER = b"version https://git-lfs"
"""What stands in a working tree in place of a large file until it is fetched."""
_MOST_OF_POINTER = 1024
"""Bytes, by the specification of Git LFS."""


def read_header(file: WeightFile) -> dict[str, StoredTensor]:
    """Return the tensors of a file of any format that has single files.

    The name tells the format; where several have its suffix, or none, what the file begins with.

    Raises:
        FormatError: the file is not what its name says.
    """
    by_name = [f for f in FORMATS if f.suffixes and file.path.endswith(f.suffixes)]
    possible = by_name or [f for f in FORMATS if f.begins]
    head = file.at(0, max(len(f.begins) for f in possible))
    if file.size < _MOST_OF_POINTER and file.at(0, len(_POINTER)) == _POINTER:
        raise FormatError(
            f"{file.where}: expected weights, found a pointer of Git LFS: the contents are not there",
            "run `git lfs pull` in the clone",
        )
    for format in possible:
        if head.startswith(format.begins):
            if file.state and not format.is_nested:
                raise FormatError(
                    f"{file.where}: --state {quoted(file.state)} names what lies in a PyTorch file,"
                    f" found {format.name}",
                    "leave --state out; --include chooses tensors by their names",
                )
            return format.read(file)
    raise FormatError(
        f"{file.where}: expected a {' or '.join(f.name for f in possible)}, found a file that begins"
        f" with {quoted(head)}",
        "the file is damaged, or of another format",
    )
