"""A file of weights as the readers of headers see it: bytes by range, little of it, some of it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.errors import FormatError

MAX_HEADER_BYTES = 100_000_000
"""Of whatever says where tensors lie: a header, a pickle, the directory of an archive, an index. It is
the limit of the safetensors library; a tensor takes 100 to 300 bytes."""
_BLOCK_BYTES = 1 << 16  # a tail of 64 KiB holds the directory of some 600 storages

Read = Callable[[int, int], bytes]
"""Gives the bytes [start, stop) of a file."""


@dataclass(slots=True)
class WeightFile:
    """One weight file of a checkpoint."""

    path: str
    """Relative to the checkpoint."""
    size: int
    """In bytes."""
    where: str
    """Its name for error messages."""
    read: Read
    others: tuple[WeightFile, ...] = ()
    """The files that its header may name, where it does not speak of itself alone."""
    state: str = ""
    """Where in nested dictionaries its weights lie: keys joined by dots. Empty: where is usual."""
    _blocks: dict[int, bytes] = field(default_factory=dict, init=False, repr=False)

    def whole(self) -> bytes:
        """Return all of it.

        Raises:
            FormatError: it is longer than any header may be.
        """
        if self.size > MAX_HEADER_BYTES:
            raise FormatError(
                f"{self.where}: expected at most {MAX_HEADER_BYTES:,} bytes, found {self.size:,}"
            )
        return self.read(0, self.size)

    def at(self, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop), as far as the file goes.

        It is read in blocks, which are kept: those that are missing are read in one go.

        Raises:
            ValueError: they are more than any header may have.
        """
        stop = min(stop, self.size)
        if stop <= start:
            return b""
        if stop - start > MAX_HEADER_BYTES:
            raise ValueError(f"asked for {stop - start:,} bytes at once")
        first, last = start // _BLOCK_BYTES, (stop - 1) // _BLOCK_BYTES
        missing = [number for number in range(first, last + 1) if number not in self._blocks]
        if missing:
            begin = missing[0] * _BLOCK_BYTES
            data = self.read(begin, min(self.size, (missing[-1] + 1) * _BLOCK_BYTES))
            for number in range(missing[0], missing[-1] + 1):
                offset = number * _BLOCK_BYTES - begin
                self._blocks[number] = data[offset : offset + _BLOCK_BYTES]
        joined = b"".join(self._blocks[number] for number in range(first, last + 1))
        return joined[start - first * _BLOCK_BYTES : stop - first * _BLOCK_BYTES]
