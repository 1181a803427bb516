"""The sums of every part, between tiles and groups: what figures can be made from again.

They lie under `_sums/run=<run>/<plan digest>/` in the form of result files, several parts in each, in
the order in which their last tile came; the file `complete` is written last. The reduction reads them
in the order of the groups' sums, by tensor and part.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pipeline.errors import FormatError, StoreUnusable
from pipeline.reduce.memory import FILE_OF_SUMS, MOST_HELD
from pipeline.statistics.parts import PartKey, Sums
from pipeline.statistics.rows import RowSums
from pipeline.statistics.statistic import ArraySpec
from pipeline.store.folder import Folder
from pipeline.store.tiles import decode, encode


class SumFolder:
    """The sums of one plan."""

    def __init__(
        self,
        folder: Folder,
        run: str,
        plan_digest: str,
        specs: Sequence[ArraySpec],
        held: int = MOST_HELD,
    ) -> None:
        """Of one plan.

        Args:
            specs: the arrays that are kept of each part.
            held: bytes of files that were read and may be asked for again.
        """
        self._folder, self._specs, self._held_bytes = folder, tuple(specs), held
        self._run_prefix = f"_sums/run={run}"
        self._prefix = f"{self._run_prefix}/{plan_digest}"
        self._files: dict[tuple[int, int], int] = {}
        """Which file holds a part."""
        self._held: OrderedDict[int, Sums] = OrderedDict()
        self._devices: set[str] = set()
        self._count = 0

    @property
    def complete(self) -> bool:
        """True if the sums of every part are there."""
        return self._number_of_files() > 0

    @property
    def device(self) -> str:
        """What computed them.

        Raises:
            StoreUnusable: their last file is damaged or gone.
        """
        return self._load(max(0, self._number_of_files() - 1)).device

    def write(self, stacks: Iterable[Sums]) -> None:
        """Write the sums of all parts, in place of what is there; a part must come in one stack."""
        self._forget()
        held: list[Sums] = []
        for stack in stacks:
            held.append(stack)
            if sum(map(_nbytes, held)) >= FILE_OF_SUMS:
                self._write(held)
                held = []
        if held:
            self._write(held)

    def read(self, parts: Sequence[tuple[int, int]]) -> Sums:
        """Return the sums of some parts, in their order; folds of a part follow each other.

        Raises:
            StoreUnusable: a file is damaged or gone, or a part was never written.
        """
        if not self._files:
            self._look_at_all()
        rows: list[tuple[int, int, PartKey]] = []
        by_file: dict[int, dict[tuple[int, int], None]] = defaultdict(dict)
        for part in parts:
            if part not in self._files:
                raise self._damaged(self._prefix)
            by_file[self._files[part]][part] = None
        places = {part: place for place, part in enumerate(parts)}
        for number, wanted in by_file.items():
            for row, key in enumerate(self._load(number).keys):
                if key[:2] in wanted:
                    rows.append((number, row, key))
        rows.sort(key=lambda entry: (places[entry[2][:2]], entry[2].fold))
        arrays = {spec.name: spec.empty(len(rows), packed=True) for spec in self._specs}
        of_file: dict[int, list[int]] = defaultdict(list)
        for place, (number, _, _) in enumerate(rows):
            of_file[number].append(place)
        for number, targets in of_file.items():
            taken = [rows[place][1] for place in targets]
            for name, array in self._load(number).arrays.items():
                arrays[name][targets] = array[taken]
        return Sums(tuple(key for _, _, key in rows), arrays, "")

    def rows(self) -> Iterator[RowSums]:
        """Yield the sums of rows, in the order in which their tiles came.

        Raises:
            StoreUnusable: a file is damaged or gone.
        """
        for number in range(self._count or self._number_of_files()):
            rows = self._load(number).rows
            if rows is not None:
                yield rows

    def seal(self) -> None:
        """Say that all are there."""
        self._folder.replace(f"{self._prefix}/complete", str(self._count).encode())

    def remove_others(self) -> None:
        """Remove the sums of other plans of this run."""
        paths = self._folder.list(self._run_prefix)
        self._folder.delete([path for path in paths if not path.startswith(self._prefix + "/")])

    def discard(self) -> None:
        """Remove the sums of this run, of whatever plan."""
        paths = self._folder.list(self._run_prefix)
        # what says that they are complete goes first
        complete = [path for path in paths if path.endswith("/complete")]
        self._folder.delete(complete)
        self._folder.delete([path for path in paths if path not in complete])
        self._forget()

    def _forget(self) -> None:
        self._files, self._held, self._devices = {}, OrderedDict(), set()
        self._count = 0

    def _write(self, stacks: Sequence[Sums]) -> None:
        number = self._count
        keys = tuple(key for stack in stacks for key in stack.keys)
        self._devices.update(device for stack in stacks for device in stack.device.split(" + "))
        arrays = {
            spec.name: np.concatenate([stack.arrays[spec.name] for stack in stacks])
            for spec in self._specs
        }
        device = " + ".join(sorted(self._devices))
        rows = [stack.rows for stack in stacks if stack.rows is not None]
        written = Sums(keys, arrays, device, RowSums.joined(rows) if rows else None)
        self._folder.replace(self._path(number), encode(written))
        self._files.update(dict.fromkeys((key[:2] for key in keys), number))
        self._count += 1
        self._hold(number, written)

    def _hold(self, number: int, sums: Sums) -> None:
        self._held[number] = sums
        self._held.move_to_end(number)
        while len(self._held) > 1 and sum(map(_nbytes, self._held.values())) > self._held_bytes:
            self._held.popitem(last=False)

    def _load(self, number: int) -> Sums:
        sums = self._held.get(number)
        if sums is None:
            path = self._path(number)
            try:
                sums = decode(self._folder.read(path) or b"", self._specs)
            except FormatError:
                raise self._damaged(path) from None
        self._hold(number, sums)
        return sums

    def _look_at_all(self) -> None:
        """Find out which file holds what."""
        for number in range(self._number_of_files()):
            self._files.update(dict.fromkeys((key[:2] for key in self._load(number).keys), number))

    def _number_of_files(self) -> int:
        """Return how many files hold all sums; 0 if not all are there."""
        text = self._folder.read(f"{self._prefix}/complete") or b""
        return int(text) if text.isdigit() and len(text) < 10 else 0

    def _damaged(self, path: str) -> StoreUnusable:
        return StoreUnusable(
            f"{path} is damaged or gone: figures cannot be recomputed from it",
            "--fresh reads the weights again",
        )

    def _path(self, number: int) -> str:
        return f"{self._prefix}/{number:06d}.safetensors"


def _nbytes(sums: Sums) -> int:
    rows = 0 if sums.rows is None else sums.rows.nbytes
    return rows + sum(array.nbytes for array in sums.arrays.values())
