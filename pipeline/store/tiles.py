"""Result files of tiles, kept until the run's tables are written: what resuming stands on.

They are safetensors files (no pickle) under `_tiles/run=<run>/<plan digest>/`, named by what the
tile is. A checksum over the arrays shows a file that the disk or a copy has damaged; such a tile
is done again.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.checkpoint.outside import counts
from pipeline.errors import FormatError, StoreFailed, StoreUnusable
from pipeline.statistics.partial import PartialGram, TileResult
from pipeline.store.folder import Folder

_ABOUT = "hallmarks"
_ARRAYS = ("increments", "digests", "non_finite", "exponent_sums", "represented")


class TileFolder:
    """The result files of one plan. Picklable: workers put their results themselves."""

    def __init__(self, folder: Folder, run: str, plan_digest: str) -> None:
        self._folder = folder
        self._prefix = f"_tiles/run={run}/{plan_digest}"
        self._markers = f"_tiles/run={run}/seen/"
        self._marker = ""

    def put(self, tile_name: str, result: TileResult) -> None:
        """Write a tile's result unless it is there: of two workers on one tile the first wins.

        Raises:
            StoreFailed: it cannot be written, and no other is likely to be.
        """
        try:
            self._folder.create(self._path(tile_name), encode(result))
        except StoreUnusable as error:
            raise StoreFailed(error.message, error.hint) from None

    def get(self, tile_name: str) -> TileResult | None:
        """Return a tile's result; a damaged file is removed and counts as absent."""
        data = self._folder.read(self._path(tile_name))
        if data is None:
            return None
        try:
            return decode(data)
        except FormatError:
            self._folder.delete([self._path(tile_name)])
            return None

    def leave_marker(self) -> None:
        """Leave a marker for workers to find, other than any before."""
        self._marker = uuid.uuid4().hex
        self._folder.replace(self._markers + "driver", self._marker.encode())

    def probe(self, node: str) -> None:
        """Find the driver's marker, and leave one from here.

        Raises:
            StoreUnusable: this is another place than the driver's store, or it cannot be written.
        """
        if self._folder.read(self._markers + "driver") != self._marker.encode():
            raise StoreUnusable(f"--store {self._folder.root} is not the driver's")
        self._folder.replace(self._markers + node, self._marker.encode())

    def remove_markers(self) -> None:
        """Remove all markers."""
        self._folder.delete(self._folder.list(self._markers.rstrip("/")))

    def finished(self) -> set[str]:
        """Return the names of the tiles that have a result."""
        paths = self._folder.list(self._prefix)
        return {path.rpartition("/")[2].removesuffix(".safetensors") for path in paths}

    def _path(self, tile_name: str) -> str:
        return f"{self._prefix}/{tile_name}.safetensors"


def discard(folder: Folder, run: str) -> None:
    """Remove the result files of a run, of whatever plan."""
    paths = folder.list(f"_tiles/run={run}")
    folder.delete([path for path in paths if path.endswith(".safetensors")])


def is_left(folder: Folder, run: str) -> bool:
    """Return True if there is anything of a run that a job needs only until it is complete."""
    return bool(folder.list(f"_tiles/run={run}"))


def discard_all(folder: Folder, run: str) -> None:
    """Remove all that a run needs only until it is complete: results, markers, and the record."""
    folder.delete(folder.list(f"_tiles/run={run}"))


def encode(result: TileResult) -> bytes:
    """Return a result as the bytes of a safetensors file; of the Gram matrix one triangle."""
    arrays: dict[str, NDArray[Any]] = {}
    parts: list[list[int]] = []
    for (tensor, part, group), partial in result.parts.items():
        upper = np.triu_indices(len(partial.increments))
        for name in _ARRAYS:
            array = getattr(partial, name)
            array = array[upper] if name == "increments" else array
            arrays[f"{tensor}.{part}.{group}.{name}"] = np.ascontiguousarray(array)
        parts.append([tensor, part, group, partial.numel, partial.sampled])
    about = {
        "parts": parts,
        "device": result.device,
        "checksum": _checksum(arrays, result.device),
    }
    # one entry: the library writes several in no fixed order, and equal results shall be equal files
    return save(arrays, {_ABOUT: json.dumps(about)})


def decode(data: bytes) -> TileResult:
    """Return the result that a file's bytes hold.

    Raises:
        FormatError: not such a file, or its checksum does not hold.
    """
    try:
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_ABOUT])
        if about["checksum"] != _checksum(arrays, about["device"]):
            raise ValueError("checksum")
        parts: dict[tuple[int, int, int], PartialGram] = {}
        for entry in about["parts"]:
            tensor, part, group, numel, sampled = counts(entry)
            key = f"{tensor}.{part}.{group}"
            parts[tensor, part, group] = _partial(arrays, key, numel, sampled)
        return TileResult(parts, about["device"])
    except (
        SafetensorError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise FormatError(f"damaged result of a tile: {type(error).__name__}") from None


def _partial(arrays: dict[str, NDArray[Any]], key: str, numel: int, sampled: int) -> PartialGram:
    found = {name: arrays[f"{key}.{name}"] for name in _ARRAYS}
    num_checkpoints = len(found["non_finite"])
    upper = found["increments"]
    if upper.shape != (num_checkpoints * (num_checkpoints + 1) // 2,):
        raise ValueError("increments of another number of checkpoints")
    increments = np.zeros((num_checkpoints, num_checkpoints), upper.dtype)
    increments[np.triu_indices(num_checkpoints)] = upper
    found["increments"] = np.triu(increments) + np.triu(increments, 1).T
    empty = PartialGram.empty(num_checkpoints)
    for name, array in found.items():
        expected = getattr(empty, name)
        if (array.shape, array.dtype) != (expected.shape, expected.dtype):
            raise ValueError(f"{name} of another form")
    return PartialGram(numel=numel, sampled=sampled, **found)


def _checksum(arrays: dict[str, NDArray[Any]], device: str) -> str:
    digest = hashlib.sha256(device.encode())
    for name in sorted(arrays):
        digest.update(f"\n{name} {arrays[name].shape} {arrays[name].dtype}\n".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()
