"""The sums of a finished run, per tensor: what its figures can be made from again.

They lie under `_sums/run=<run>/<plan digest>/` in the form of result files, several parts in each, in
the order in which the reduction takes them; the file `complete` is written last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pipeline.errors import FormatError, StoreUnusable
from pipeline.reduce.groups import Member
from pipeline.reduce.reduce import PartSums
from pipeline.statistics.partial import PartialGram, TileResult
from pipeline.store.folder import Folder
from pipeline.store.tiles import decode, encode

FILE_BYTES = 16 << 20
"""Of matrices in one file, unless one part has more: few files, little held."""


class SumFolder:
    """The sums of one plan."""

    def __init__(self, folder: Folder, run: str, plan_digest: str) -> None:
        self._folder = folder
        self._run_prefix = f"_sums/run={run}"
        self._prefix = f"{self._run_prefix}/{plan_digest}"

    @property
    def complete(self) -> bool:
        """True if the sums of every part are there."""
        return self._folder.read(f"{self._prefix}/complete") is not None

    @property
    def device(self) -> str:
        """What computed them.

        Raises:
            StoreUnusable: their first file is damaged or gone.
        """
        return self._load(0).device

    def kept(self, parts: Iterable[PartSums], device: str) -> Iterator[PartSums]:
        """Pass the sums of every part on, and write them; `device` is what computed them."""
        held: dict[tuple[int, int, int], PartialGram] = {}
        num_bytes = number = 0

        def write() -> None:
            nonlocal held, num_bytes, number
            data = encode(TileResult(held, device))
            self._folder.replace(self._path(number), data)
            held, num_bytes, number = {}, 0, number + 1

        for member, by_group in parts:
            for group, partial in (by_group or {}).items():
                held[member.tensor, member.part, group] = partial
                num_bytes += partial.increments.nbytes // 2
            if num_bytes >= FILE_BYTES:
                write()
            yield member, by_group
        write()

    def seal(self) -> None:
        """Say that all are there."""
        self._folder.replace(f"{self._prefix}/complete", b"")

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

    def read(self, everything: Sequence[Member]) -> Iterator[PartSums]:
        """Yield the sums of every part, in the order in which they were written.

        Raises:
            StoreUnusable: a file is damaged or gone.
        """
        held: dict[tuple[int, int, int], PartialGram] = {}
        number = 0
        for member in everything:
            own = (member.tensor, member.part)
            while not any(key[:2] == own for key in held):
                found = self._load(number)
                held, number = found.parts, number + 1
            yield member, {key[2]: held[key] for key in sorted(held) if key[:2] == own}

    def _load(self, number: int) -> TileResult:
        data = self._folder.read(self._path(number))
        try:
            return decode(data or b"")
        except FormatError:
            raise StoreUnusable(
                f"{self._path(number)} is damaged or gone: the figures cannot be made again from it",
                "--fresh reads the weights again",
            ) from None

    def _path(self, number: int) -> str:
        return f"{self._prefix}/{number:06d}.safetensors"
