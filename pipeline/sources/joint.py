"""Several sources side by side, for one plan over all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.sources.base import Candidate, File, Source
from pipeline.sources.beside import Beside
from pipeline.transport.access import Access


class Joint:
    """Checkpoints of several sources; each keeps to the source that it was `adopted` from."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self.label = " + ".join(source.label for source in sources)
        self.uri = " + ".join(source.uri for source in sources)
        self.run_name = "--with--".join(source.run_name for source in sources)

    @property
    def requests(self) -> Mapping[str, int]:
        """The sum over the sources."""
        return sum((Counter(source.requests) for source in self._sources), Counter())

    @property
    def is_remote(self) -> bool:
        """True if any of the sources is."""
        return any(source.is_remote for source in self._sources)

    def adopted(self, number: int, candidate: Candidate) -> Candidate:
        """Return a candidate of the source of that number as one of this."""
        return replace(candidate, origin=f"{number} {candidate.origin}")

    def candidates(self) -> list[Candidate]:
        return [
            self.adopted(number, candidate)
            for number, source in enumerate(self._sources)
            for candidate in source.candidates()
        ]

    def whole(self) -> list[Candidate]:
        return []

    def beside(self) -> list[Beside]:
        return [each for source in self._sources for each in source.beside()]

    def logs(self) -> list[File]:
        return [
            replace(file, checkpoint=self.adopted(number, file.checkpoint))
            for number, source in enumerate(self._sources)
            for file in source.logs()
        ]

    def files(self, candidate: Candidate) -> list[File]:
        source, original = self._of(candidate)
        return [replace(file, checkpoint=candidate) for file in source.files(original)]

    def read(self, file: File, start: int, stop: int) -> bytes:
        source, original = self._of(file.checkpoint)
        return source.read(replace(file, checkpoint=original), start, stop)

    def access(self, file: File, after: int = 0, keep: bool = False) -> Access:
        source, original = self._of(file.checkpoint)
        return source.access(replace(file, checkpoint=original), after, keep)

    def _of(self, candidate: Candidate) -> tuple[Source, Candidate]:
        number, _, origin = candidate.origin.partition(" ")
        return self._sources[int(number)], replace(candidate, origin=origin)
