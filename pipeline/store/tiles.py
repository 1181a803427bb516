"""Result files of tiles, kept until the run's tables are written: what resuming stands on.

They are safetensors files (no pickle) under `_tiles/run=<run>/<plan digest>/`, named by what the
tile is. A checksum over the arrays shows a file that the disk or a copy has damaged; such a tile
is done again.
"""

from __future__ import annotations

import json
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.errors import FormatError, StoreFailed, StoreUnusable
from pipeline.planning.tiles import Tile
from pipeline.statistics.parts import PartKey, Sums
from pipeline.statistics.rows import PRODUCTS, RowSums
from pipeline.statistics.statistic import ArraySpec
from pipeline.store.folder import Folder

ABOUT = "hallmarks"
"""The entry of a file's header that says what it holds."""
_ROWS = "rows."
SPECTRA = "_spectra"
"""The folder of the results of matrices: tables are made from them again."""


class TileFolder:
    """The result files of one plan. Picklable: workers put their results themselves."""

    def __init__(
        self,
        folder: Folder,
        run: str,
        plan_digest: str,
        specs: Sequence[ArraySpec],
        kept_in: str = "_tiles",
    ) -> None:
        """Of one plan.

        Args:
            specs: the arrays that every result holds.
            kept_in: the folder of the store for them; what is in `_tiles` goes once the run is complete.
        """
        self._folder, self._specs = folder, tuple(specs)
        self._of_run = f"{kept_in}/run={run}"
        self._prefix = f"{self._of_run}/{plan_digest}"
        self._markers = f"_tiles/run={run}/seen/"
        self._marker = ""

    def put(self, tile_name: str, result: Sums) -> None:
        """Write a tile's result unless it is there: of two workers on one tile the first wins.

        Raises:
            StoreFailed: it cannot be written, and no other is likely to be.
        """
        try:
            self._folder.create(self._path(tile_name), encode(result))
        except StoreUnusable as error:
            raise StoreFailed(error.message, error.hint) from None

    def get(self, tile_name: str) -> Sums | None:
        """Return a tile's result; a damaged file is removed and counts as absent."""
        data = self._folder.read(self._path(tile_name))
        if data is None:
            return None
        try:
            return decode(data, self._specs)
        except FormatError:
            self._folder.delete([self._path(tile_name)])
            return None

    def results(self, tiles: Iterable[Tile], ahead: int) -> Iterator[tuple[int, Sums | None]]:
        """Yield the number of each tile, in order, and its result as `get` does.

        Args:
            ahead: results that are read before they are asked for, at once.
        """
        with ThreadPoolExecutor(ahead, thread_name_prefix="results") as pool:
            under_way: deque[tuple[int, Future[Sums | None]]] = deque()
            for tile in tiles:
                under_way.append((tile.index, pool.submit(self.get, tile.name)))
                if len(under_way) > ahead:
                    number, result = under_way.popleft()
                    yield number, result.result()
            for number, result in under_way:
                yield number, result.result()

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

    def remove_others(self) -> None:
        """Remove the results of other plans of this run."""
        paths = self._folder.list(self._of_run)
        self._folder.delete([path for path in paths if not path.startswith(self._prefix + "/")])

    def remove(self) -> None:
        """Remove the results of this plan, and no others."""
        self._folder.delete(self._folder.list(self._prefix))

    def _path(self, tile_name: str) -> str:
        return f"{self._prefix}/{tile_name}.safetensors"


def discard_spectra(folder: Folder, run: str) -> None:
    """Remove the results of spectra of a run, of whatever plan."""
    folder.delete(folder.list(f"{SPECTRA}/run={run}"))


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


def encode(sums: Sums, text: str = "") -> bytes:
    """Return sums, and a text about them, as the bytes of a safetensors file."""
    arrays: dict[str, NDArray[Any]] = {"keys": np.array(sums.keys, np.int64).reshape(-1, 3)}
    if sums.rows is not None:
        of_rows = {name: getattr(sums.rows, name) for name in RowSums.__slots__}
        arrays |= {f"{_ROWS}{name}": array for name, array in of_rows.items()}
    arrays |= {name: np.ascontiguousarray(array) for name, array in sums.arrays.items()}
    about = {"device": sums.device, "checksum": _checksum(arrays, sums.device + text)}
    if text:
        about["text"] = text
    # one entry: the library writes several in no fixed order, and equal results shall be equal files
    return save(arrays, {ABOUT: json.dumps(about)})


def decode(data: bytes, specs: Sequence[ArraySpec]) -> Sums:
    """Return the sums that a file's bytes hold.

    Args:
        specs: the arrays that it must hold.

    Raises:
        FormatError: not such a file, or its checksum does not hold.
    """
    try:
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][ABOUT])
        device = about["device"]
        if about["checksum"] != _checksum(arrays, device + about.get("text", "")):
            raise ValueError("checksum")
        numbers = arrays.pop("keys")
        if numbers.dtype != np.int64 or numbers.ndim != 2 or numbers.shape[1] != 3:
            raise ValueError("keys of another form")
        rows = _row_sums(arrays)
        if arrays.keys() != {spec.name for spec in specs}:
            raise ValueError("other arrays")
        for spec in specs:
            array = arrays[spec.name]
            if array.shape != (len(numbers), *spec.packed_shape) or array.dtype != spec.dtype:
                raise ValueError(f"{spec.name} of another form")
        return Sums(tuple(PartKey(*row) for row in numbers.tolist()), arrays, device, rows)
    except (
        SafetensorError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise FormatError(f"damaged result of a tile: {type(error).__name__}") from None


def _row_sums(arrays: dict[str, NDArray[Any]]) -> RowSums | None:
    """Take the sums of rows out of a file's arrays, if it has some.

    Raises:
        ValueError: they are of another form.
    """
    names = [f"{_ROWS}{name}" for name in RowSums.__slots__]
    if names[0] not in arrays:
        return None
    keys, products, last_moved = (arrays.pop(name) for name in names)
    count, paths = last_moved.shape
    if (
        (keys.shape, keys.dtype) != ((count, 2), np.int64)
        or (products.shape, products.dtype) != ((count, paths, PRODUCTS), np.float64)
        or last_moved.dtype != np.int32
    ):
        raise ValueError("rows of another form")
    return RowSums(keys, products, last_moved)


def _checksum(arrays: dict[str, NDArray[Any]], texts: str) -> str:
    """Return what tells damage: nothing here is defended against who can write to the store."""
    digest = xxhash.xxh3_128(texts.encode())
    for name in sorted(arrays):
        digest.update(f"\n{name} {arrays[name].shape} {arrays[name].dtype}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
