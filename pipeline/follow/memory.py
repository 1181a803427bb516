"""A state dict as a source: one checkpoint, read like a safetensors file that it would be saved as.

So planning, reading, block by block, and every sum are those of saved checkpoints, to the bit.
"""

from __future__ import annotations

import bisect
import uuid
from collections.abc import Mapping
from typing import Any

from pipeline.checkpoint.safetensors import head_of
from pipeline.errors import RequestError, quoted
from pipeline.recorder.network import check_values, dtype_name
from pipeline.sources.base import IN_MEMORY, Candidate, File
from pipeline.sources.beside import Beside
from pipeline.transport.access import InMemory


class StateDict:
    """The tensors of one checkpoint, wherever they are. They must not change while they are read."""

    is_remote = False
    requests: Mapping[str, int] = {}

    def __init__(
        self, label: str, run: str, name: str, tensors: Mapping[str, Any], config: bytes | None
    ) -> None:
        """Look at the tensors; no value is read.

        Args:
            label: what the source is called for people.
            name: of the checkpoint.
            tensors: of a state dict; what is no tensor is left out.
            config: of the network, as `config.json` holds it.

        Raises:
            RequestError: a tensor's values are not all here, or not values.
        """
        self.label, self.run_name, self.uri = label, run, f"{IN_MEMORY}{run}"
        self._tensors = {
            each: tensor for each, tensor in tensors.items() if _is_whole(each, tensor)
        }
        sizes = [tensor.numel() * tensor.element_size() for tensor in self._tensors.values()]
        entries = [
            (each, str(dtype_name(tensor)), tensor.shape, size)
            for (each, tensor), size in zip(self._tensors.items(), sizes, strict=True)
        ]
        self._header, self._starts = head_of(entries, {})
        self._config = config
        self.candidate = Candidate(name, None, name)
        self._sizes = {"model.safetensors": len(self._header) + sum(sizes)}
        if config is not None:
            self._sizes["config.json"] = len(config)
        self._version = uuid.uuid4().hex  # of values nothing tells whether they are the same

    def candidates(self) -> list[Candidate]:
        return [self.candidate]

    def whole(self) -> list[Candidate]:
        return []

    def beside(self) -> list[Beside]:
        return []

    def logs(self) -> list[File]:
        return []

    def files(self, candidate: Candidate) -> list[File]:
        return [
            File(candidate, path, f"{self.label}/{candidate.name}/{path}", size, self._version)
            for path, size in self._sizes.items()
        ]

    def read(self, file: File, start: int, stop: int) -> bytes:
        buffer = bytearray(stop - start)
        self._fill(file.path, start, memoryview(buffer))
        return bytes(buffer)

    def access(self, file: File, after: int = 0, keep: bool = False) -> InMemory:
        del after, keep  # there is one way to it, and nothing to keep
        return InMemory(file.where, lambda start, buffer: self._fill(file.path, start, buffer))

    def _fill(self, path: str, start: int, buffer: memoryview) -> None:
        if path == "config.json":
            buffer[:] = (self._config or b"")[start : start + len(buffer)]
            return
        of_header = self._header[start : start + len(buffer)]
        buffer[: len(of_header)] = of_header
        done = len(of_header)
        place = start + done - len(self._header)
        number = bisect.bisect_right(self._starts, place) - 1
        tensors = list(self._tensors.values())
        while done < len(buffer):
            first = place - self._starts[number]
            done_before = done
            done += _copy(tensors[number], first, buffer[done:])
            place += done - done_before
            number += 1


def _is_whole(name: str, tensor: Any) -> bool:
    """Return whether this is a tensor, all of whose values are here; False for what is none.

    Raises:
        RequestError: it is a part of one, or has no values that can be read.
    """
    import torch

    if not isinstance(tensor, torch.Tensor):
        return False
    kind = type(tensor).__name__
    if kind in ("DTensor", "ShardedTensor"):
        raise RequestError(
            f"state dict: expected whole tensors, found {quoted(name)} to be a {kind}, of which this rank holds a part",
            "gather it, e.g. by torch.distributed.checkpoint.state_dict.get_model_state_dict with"
            " StateDictOptions(full_state_dict=True, cpu_offload=True), and give it to update() on rank 0",
        )
    check_values(name, tensor, "give update() a state dict of plain tensors")
    return True


def _copy(tensor: Any, start: int, buffer: memoryview) -> int:
    """Copy bytes of a tensor from `start` on, as many as there are and fit; return how many."""
    import torch

    size = tensor.element_size()
    count = min(len(buffer), tensor.numel() * size - start)
    if count <= 0:
        return 0
    first, stop = start // size, -(-(start + count) // size)
    flat = tensor.detach().reshape(-1)[first:stop]  # of what does not lie in order a copy is made
    values = flat.cpu().contiguous().view(torch.uint8)
    begin = start - first * size
    torch.frombuffer(buffer, dtype=torch.uint8, count=count).copy_(values[begin : begin + count])
    return count
