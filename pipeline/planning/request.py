"""What the user asked for: what decides the figures, and what does not."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import RequestError, quoted

_RUN_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class StepRange:
    """Steps from `first` to `last`, both included, that are multiples of `every`."""

    first: float
    last: float
    every: int = 1

    @staticmethod
    def parse(text: str) -> StepRange:
        """Return the range that `A:B[:EVERY]` states; A or B may be left out.

        Raises:
            RequestError: not of that form.
        """
        fields = text.split(":")
        try:
            if not 2 <= len(fields) <= 3:
                raise ValueError
            first = int(fields[0]) if fields[0] else 0
            last = int(fields[1]) if fields[1] else float("inf")
            every = int(fields[2]) if len(fields) == 3 else 1
            if every < 1 or first > last:
                raise ValueError
        except ValueError:
            raise RequestError(
                f"--steps: expected A:B or A:B:EVERY, found {quoted(text)}",
                "for example --steps 0:10000:1000",
            ) from None
        return StepRange(first, last, every)

    def __contains__(self, step: int) -> bool:
        return self.first <= step <= self.last and step % self.every == 0


@dataclass(frozen=True, slots=True)
class Request:
    """The part of the options that decides the figures."""

    source: str
    run: str | None = None
    """Name of the run in the store; default: made from the source."""
    revisions: tuple[str, ...] = ()
    """Globs; a checkpoint is kept if its name matches one of them, or if there is none."""
    steps: StepRange | None = None
    include: tuple[str, ...] = ()
    """Regular expressions searched in tensor names; all tensors are kept if there is none."""
    exclude: tuple[str, ...] = ()
    """Regular expressions too; they win over `include`."""
    by_head: bool = False
    """Also a Gram matrix for each attention head."""
    layout: str = "auto"
    """How a Hub repository exposes its checkpoints."""
    fraction: float | None = None
    """Share of the weights to read, a random sample; default: all."""
    budget: int | None = None
    """Bytes of weights to read at most, instead of a fraction."""
    seed: int = 0
    """Of the sample, and of the order in which tiles are taken."""

    def __post_init__(self) -> None:
        if self.fraction is not None and self.budget is not None:
            raise RequestError("--fraction and --budget exclude each other", "give one of them")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise RequestError(
                f"--fraction: expected more than 0 and at most 1, found {self.fraction:g}",
                "for example --fraction 0.01",
            )
        if self.budget is not None and self.budget < 1:
            raise RequestError(f"--budget: expected bytes, found {self.budget}")
        if self.run is not None:
            check_run_name(self.run)
        for option, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise RequestError(
                        f"{option} {quoted(pattern)} is not a regular expression: {error}"
                    ) from None


@dataclass(frozen=True, slots=True)
class Resources:
    """What the figures do not depend on: where and with how much they are computed."""

    memory: int | None = None
    """Budget of one worker in bytes; default: a share of the machine's."""
    device: str = "auto"
    executor: str = "ray"
    address: str | None = None
    max_workers: int | None = None
    pull: str = "auto"
    """Who pulls on a cluster: `actor`, `tasks` or `auto`."""
    threads: int | None = None
    """Tiles computed side by side in this process (`local`); default: one per core."""
    verify: bool = False
    """Check whole-file hashes, where a source publishes them."""
    cache: bool = False
    """Keep the files that are read in the Hub cache."""

    def __post_init__(self) -> None:
        if self.pull == "tasks" and (self.verify or self.executor == "local"):
            other = "--verify, which hashes where it reads" if self.verify else "--executor local"
            raise RequestError(f"--pull tasks does not go with {other}", "leave one out")


def check_run_name(name: str) -> str:
    """Return the name if it may name a run.

    Raises:
        RequestError: empty, other characters than [A-Za-z0-9._-], or only dots.
    """
    if not _RUN_NAME.fullmatch(name) or not name.strip(".") or len(name) > 200:
        raise RequestError(
            f"not a run name: {quoted(name)}", "use letters, digits, '.', '_' and '-': --run NAME"
        )
    return name


def run_name_from(text: str) -> str:
    """Return a run name made from a source's own name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:200] or "run"
