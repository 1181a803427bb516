"""What options may be, whoever states them: text from a command line, or values from Python.

Each function returns an option's value, or raises RequestError with the one sentence that there is
for it.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

from pipeline.checkpoint.reading import GROUPS
from pipeline.checkpoint.stated_roles import StatedRoles, parse
from pipeline.errors import RequestError, quoted
from pipeline.numerics.windows import LEAST_WIDTH
from pipeline.training.logs import Log, read_logs
from pipeline.training.metrics import Training

Location = str | PathLike[str]
"""A path or a URL."""
Texts = str | Iterable[str]
"""Several, or one."""
Widths = str | int | Iterable[str | int]
"""Numbers of checkpoints, and scopes: several, or one."""
Stated = Mapping[str, Any] | Location
"""By name, or in a file."""

FURTHER_SCOPES = ("layer_component", "tensor", "head")
"""Scopes whose products of increments are kept, and the parts of whose paths are looked at, on request."""

_LONGEST_FILE = 1 << 20
_DIGITS = re.compile(r"[0-9]{1,9}")
_WIDEST = 10**6
Reader = Callable[[str, Any], Any]
"""From an option's name and what was stated to its value."""


@dataclass(frozen=True, slots=True)
class StepRange:
    """Steps from `first` to `last`, both included, that are multiples of `every`."""

    first: float
    last: float
    every: int = 1

    @staticmethod
    def parse(text: object) -> StepRange:
        """Return the range that `A:B[:EVERY]` states; A or B may be left out.

        Raises:
            RequestError: not of that form.
        """
        fields = text.split(":") if isinstance(text, str) else []
        try:
            if not 2 <= len(fields) <= 3:
                raise ValueError
            first = int(fields[0]) if fields[0] else 0
            last = int(fields[1]) if fields[1] else math.inf
            every = int(fields[2]) if len(fields) == 3 else 1
        except ValueError:
            raise RequestError(
                f"--steps: expected A:B or A:B:EVERY, found {quoted(text)}",
                "for example --steps 0:10000:1000",
            ) from None
        if every < 1:
            raise RequestError(f"--steps: EVERY must be at least 1, found {quoted(text)}")
        if first > last:
            raise RequestError(
                f"--steps: A must not exceed B, found {quoted(text)}",
                f"--steps {fields[1]}:{fields[0]}",
            )
        return StepRange(first, last, every)

    def __contains__(self, step: int) -> bool:
        return self.first <= step <= self.last and step % self.every == 0

    def __str__(self) -> str:
        last = "" if math.isinf(self.last) else str(self.last)
        return f"{self.first}:{last}" + (f":{self.every}" if self.every > 1 else "")


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of paths that are looked at, and of which groups."""

    widths: tuple[int, ...] = (8,)
    """Checkpoints of a window, ascending. The spread of 8 tells changes best (docs/method-2.md, 5.4)."""
    scopes: tuple[str, ...] = ()
    """Whose groups are looked at besides those that always are, in the order of `FURTHER_SCOPES`."""

    @staticmethod
    def of(words: Iterable[str]) -> Windows:
        """Return what a list of widths and scopes states; the default width, if there is none.

        Raises:
            ValueError: a word, as its argument, that is neither.
        """
        widths, scopes = set[int](), set[str]()
        for word in words:
            if word in FURTHER_SCOPES:
                scopes.add(word)
            elif _DIGITS.fullmatch(word) and LEAST_WIDTH <= int(word) <= _WIDEST:
                widths.add(int(word))
            else:
                raise ValueError(word)
        chosen = tuple(scope for scope in FURTHER_SCOPES if scope in scopes)
        return Windows(tuple(sorted(widths)) or Windows().widths, chosen)

    @property
    def words(self) -> list[str]:
        """The list that states them."""
        return [*map(str, self.widths), *self.scopes]


def windows(option: str, value: Any) -> Windows | None:
    """Return widths of windows, and scopes, of a list with commas or of several; None if empty."""
    if isinstance(value, Windows):
        return value
    several = [value] if isinstance(value, int | str) else value
    if not isinstance(several, Iterable) or isinstance(several, bytes):
        raise RequestError(f"{option}: expected a list such as 5,8,16, found {quoted(value)}")
    words = [word.strip() for each in several for word in str(each).split(",")]
    try:
        return Windows.of(words) if words else None
    except ValueError as error:
        raise RequestError(
            f"{option}: expected numbers of checkpoints from {LEAST_WIDTH} on,"
            f" {', '.join(FURTHER_SCOPES[:-1])} or {FURTHER_SCOPES[-1]}, found {quoted(error.args[0])}",
            f"for example {option} 5,8,16",
        ) from None


def steps(option: str, value: Any) -> StepRange:
    """Return a range of steps."""
    del option
    return value if isinstance(value, StepRange) else StepRange.parse(value)


def stated_roles(option: str, value: Any) -> StatedRoles:
    """Return what a file of roles states."""
    if isinstance(value, StatedRoles):
        return value
    name = text(option, value)
    try:
        with open(name, "rb") as file:
            data = file.read(_LONGEST_FILE + 1)
        if len(data) > _LONGEST_FILE:
            raise RequestError(f"{option} {quoted(name)}: expected at most 1 MiB")
        return parse(data.decode())
    except OSError as error:
        raise RequestError(f"{option} {quoted(name)}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"{option} {quoted(name)}: expected UTF-8") from None


def training(option: str, value: Any) -> Training:
    """Return the metrics by step that a file states."""
    if isinstance(value, Training):
        return value
    where = Path(text(option, value))

    def read(start: int, stop: int) -> bytes:
        with where.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    try:
        return read_logs([Log(where.name, where.stat().st_size, str(where), read)])
    except RequestError:
        raise
    except (OSError, ValueError) as error:  # a NUL in its name
        why = getattr(error, "strerror", error)
        raise RequestError(f"{option} {quoted(str(where))}: {why}") from None


def path(option: str, value: Any) -> str:
    """Return a path as text; whether it will do is for its user to say."""
    given = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(given, str):
        raise RequestError(f"{option}: expected text, found {quoted(value)}")
    return given


def text(option: str, value: Any) -> str:
    """Return a text that is not empty, or the path that a path object names."""
    read = path(option, value)
    if not read:
        raise RequestError(f"{option}: expected text, found {quoted(value)}")
    try:
        read.encode()
    except UnicodeEncodeError:  # no table could hold it
        raise RequestError(f"{option}: {quoted(read)} is not UTF-8", "rename it") from None
    return read


def texts(option: str, value: Any) -> tuple[str, ...]:
    """Return several texts; one that stands alone is one of them, as on the command line."""
    if isinstance(value, str | bytes | os.PathLike):
        return (text(option, value),)
    if not isinstance(value, Iterable):
        raise RequestError(f"{option}: expected text, or several, found {quoted(value)}")
    return tuple(text(option, each) for each in value)


def names(option: str, value: Any) -> str:
    """Return a regular expression that says where a checkpoint stands, by groups that have names."""
    pattern = text(option, value)
    try:
        groups = set(re.compile(pattern).groupindex)
    except (re.error, RecursionError, OverflowError) as error:
        raise RequestError(
            f"{option} {quoted(pattern)} is not a regular expression: {error}"
        ) from None
    if groups - set(GROUPS) or not groups & {"step", "tokens"}:
        raise RequestError(
            f"{option}: expected a group step or tokens, and no others than"
            f" {', '.join(GROUPS)}, found {quoted(pattern)}",
            f"for example {option} '(?P<step>\\d+)$'",
        )
    return pattern


def globs(option: str, value: Any) -> tuple[str, ...]:
    """Return patterns of paths inside a checkpoint."""
    patterns = texts(option, value)
    for pattern in patterns:
        if any(part in ("", ".", "..", "**") for part in pattern.split("/")):
            raise RequestError(
                f"{option}: expected a pattern of paths in a checkpoint, found {quoted(pattern)}",
                f"for example {option} 'unet_ema/*.safetensors'",
            )
    return patterns


def flag(option: str, value: Any) -> bool:
    """Return a truth value; a text such as "no" would count as true."""
    if not isinstance(value, bool):
        raise RequestError(f"{option}: expected True or False, found {quoted(value)}")
    return value


def whole(least: int | None = None) -> Reader:
    """Return the reader of a whole number that is not below `least`."""
    bound = "" if least is None else f" of at least {least}"

    def read(option: str, value: Any) -> int:
        try:
            if isinstance(value, bool):
                raise ValueError
            number = int(value) if isinstance(value, str) else operator.index(value)
            if least is not None and number < least:
                raise ValueError
        except (ValueError, TypeError):
            raise RequestError(
                f"{option}: expected a whole number{bound}, found {quoted(value)}"
            ) from None
        return number

    return read


def share(option: str, value: Any) -> float:
    """Return a number above 0, and at most 1."""
    try:
        if isinstance(value, bool) or not isinstance(value, str | Real):
            raise ValueError
        number = float(value)
        if not 0 < number <= 1:  # NaN is neither
            raise ValueError
    except (ValueError, OverflowError):
        raise RequestError(
            f"{option}: expected more than 0 and at most 1, found {quoted(value)}",
            f"for example {option} 0.01",
        ) from None
    return number


def seconds(option: str, value: Any) -> float:
    """Return a time, 0 or more."""
    try:
        if isinstance(value, bool) or not isinstance(value, str | Real):
            raise ValueError
        number = float(value)
        if not 0 <= number < math.inf:
            raise ValueError
    except (ValueError, OverflowError):
        raise RequestError(
            f"{option}: expected seconds, found {quoted(value)}", f"for example {option} 60"
        ) from None
    return number


def size(option: str, value: Any) -> int:
    """Return a number of bytes, written as people write them, or whole."""
    try:
        if isinstance(value, str):
            return parse_size(value)
        return whole(1)(option, value)
    except ValueError:
        raise RequestError(
            f"{option}: {quoted(value)} is not a size, such as 2GiB or 500MB"
        ) from None


def one_of(*allowed: str) -> Reader:
    """Return the reader of one of a few words."""

    def read(option: str, value: Any) -> str:
        if value not in allowed:
            *others, last = allowed
            raise RequestError(
                f"{option}: expected {', '.join(others)} or {last}, found {quoted(value)}"
            )
        return value

    return read


def several_of(allowed: Mapping[str, str]) -> Reader:
    """Return the reader of some of a few words, `all` or a list with commas; in their own order.

    Args:
        allowed: what each of the words means.
    """

    def read(option: str, value: Any) -> tuple[str, ...]:
        stated = [word.strip() for each in texts(option, value) for word in each.split(",")]
        for word in stated:
            if word not in (*allowed, "all"):
                raise RequestError(
                    f"{option}: expected {', '.join(allowed)} or all, found {quoted(word)}",
                    "; ".join(f"{name}: {meaning}" for name, meaning in allowed.items()),
                )
        return tuple(word for word in allowed if word in stated or "all" in stated)

    return read


def optional(read: Reader) -> Reader:
    """Return the reader of an option that may be left out."""
    return lambda option, value: None if value is None else read(option, value)


def settle(stated: Any, readers: Mapping[str, Reader]) -> None:
    """Replace what was stated in the fields of a frozen value by what it means."""
    for name, read in readers.items():
        option = "SOURCE" if name == "source" else f"--{name.replace('_', '-')}"
        object.__setattr__(stated, name, read(option, getattr(stated, name)))


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40,
}  # fmt: skip


def parse_size(text: str) -> int:
    """Return the bytes that a size such as `2GiB`, `500MB` or `1.5g` states: at least one.

    Raises:
        ValueError: not a size.
    """
    lowered = text.strip().lower()
    unit = lowered.lstrip("0123456789.").strip()
    number = float(lowered[: len(lowered) - len(lowered.lstrip("0123456789."))])
    key = unit.removesuffix("b")
    if key not in _UNITS or not 1 <= number * _UNITS[key] < 2**63:
        raise ValueError(text)
    return int(number * _UNITS[key])
