"""Hyperparameters as flat JSON: numbers, texts, truth values and lists by name.

Tables within tables become names with dots, `optimizer.lr`: one form for options, files and
configurations, in which one setting overrides another and runs are compared.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date, time
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any

from pipeline.errors import RequestError, quoted

Settings = Mapping[str, Any]

SUFFIXES = (".json", ".toml", ".yaml", ".yml")
_LONGEST_FILE = 1 << 20
_MOST = 1000
"""Settings of one run. The arguments of transformers' Trainer are some 130."""
_LONGEST_NAME = 256
_LONGEST_VALUE = 4096
"""Characters of one value as JSON: a path, a list of 500 layers."""
_DEEPEST = 16
_SECRET_NAME = re.compile(
    r"(?:.*[._])?(?:api_?key|(?:hf|hub|auth|access|api)_?token|password|passwd|secret\w*|credentials?)",
    re.IGNORECASE,
)
"""Arguments of trainers and loggers that hold one, such as transformers' `hub_token`."""
_SECRET = re.compile(r"hf_\w{8,}|//[^\s/@]+@")
"""A token of the Hub; who asks, in a URL."""
_NUMBER = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?")
"""With a point: JSON knows neither `.5` nor `1.`"""


def read_settings(option: str, value: Any) -> Settings:
    """Return the settings that a file or a mapping states.

    Raises:
        RequestError: the file cannot be read, or holds what is no setting.
    """
    if isinstance(value, str | PathLike):
        content = _read(option, Path(value))
        option = f"{option} {quoted(str(value))}"
    else:
        content = value
    try:
        return flat(content)
    except ValueError as error:
        raise RequestError(f"{option}: {error}") from None


def assigned(option: str, texts: tuple[str, ...]) -> Settings:
    """Return what `KEY=VALUE` texts state: a value that is JSON is that, any other a text.

    Raises:
        RequestError: no key, or a value that is none.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise RequestError(
                f"{option}: expected KEY=VALUE, found {quoted(text)}",
                f"for example {option} lr=3e-4",
            )
        try:
            settings |= flat({key: _value(value)})
        except ValueError as error:
            raise RequestError(f"{option}: {error}") from None
    return settings


def flat(content: Any) -> Settings:
    """Return a mapping of anything as settings.

    Raises:
        ValueError: it is no mapping, or holds what JSON cannot, or more than any training has.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"expected settings by name, found {quoted(content)}")
    settings: dict[str, Any] = {}
    pending: list[tuple[str, Any, int]] = [("", content, 0)]
    while pending:
        name, value, depth = pending.pop()
        if isinstance(value, Mapping) and depth < _DEEPEST:
            above = f"{name}." if name else ""
            inner = [(f"{above}{_key(key)}", each, depth + 1) for key, each in value.items()]
            pending += reversed(inner)
        else:
            settings[name] = _plain(name, value)
        if len(settings) + len(pending) > _MOST:
            raise ValueError(f"more than {_MOST:,} settings")
    return settings


def shared(each: Sequence[Settings]) -> Settings:
    """Return the settings that several trainings have in common."""
    first, *others = each
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }


def as_text(settings: Settings) -> str | None:
    """Return settings as the JSON that a store holds; None where there are none."""
    return json.dumps(settings, allow_nan=False) if settings else None


def of_text(text: str | None) -> Settings:
    """Return the settings that a store holds: none, if it holds something else than was written."""
    try:
        return flat(json.loads(text or "{}"))
    except (ValueError, RecursionError):
        return {}


def _read(option: str, path: Path) -> Any:
    if path.suffix not in SUFFIXES:
        raise RequestError(
            f"{option}: expected {', '.join(SUFFIXES)}, found {quoted(str(path))}",
            "--set KEY=VALUE states single ones",
        )
    where = f"{option} {quoted(str(path))}"
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_FILE + 1)
        text = data.decode()
    except UnicodeDecodeError:
        raise RequestError(f"{where}: expected UTF-8") from None
    except (OSError, ValueError) as error:  # a NUL in its name
        raise RequestError(f"{where}: {getattr(error, 'strerror', error)}") from None
    if len(data) > _LONGEST_FILE:
        raise RequestError(f"{where}: expected at most 1 MiB")
    try:
        return _parsed(text, path.suffix)
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise RequestError(f"{where}: not valid {path.suffix[1:].upper()}: {quoted(why)}") from None


def _parsed(text: str, suffix: str) -> Any:
    if suffix == ".json":
        return json.loads(text)
    if suffix == ".toml":
        return tomllib.loads(text)
    from pipeline.training.yaml_text import parsed  # which few need

    return parsed(text)


def _value(text: str) -> Any:
    """Return what a text on a command line states."""
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _key(key: Any) -> str:
    text = str(key) if isinstance(key, int | float) else key
    if not isinstance(text, str) or not text or len(text) > _LONGEST_NAME:
        raise ValueError(f"expected the name of a setting, found {quoted(key)}")
    return text


def _plain(name: str, value: Any) -> Any:
    """Return a value as JSON holds it; infinities as texts, and dates and paths; secrets as an ellipsis."""
    plain = _as_json(value, 0)
    try:
        shown = json.dumps(plain, ensure_ascii=False)
        shown.encode()
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{quoted(name)} is not UTF-8") from None
    if len(name) > _LONGEST_NAME or len(shown) > _LONGEST_VALUE:
        raise ValueError(f"{quoted(name)} is longer than {_LONGEST_VALUE:,} characters")
    named = plain and isinstance(plain, str) and _SECRET_NAME.fullmatch(name)
    return "…" if named or _SECRET.search(shown) else plain


def _as_json(value: Any, depth: int) -> Any:
    match value:
        case None | bool() | str():
            return value
        case Integral():
            return int(value)
        case Real():
            return float(value) if math.isfinite(value) else str(float(value))
        case PathLike() | date() | time():
            return str(value)
        case Mapping() if depth < _DEEPEST and len(value) <= _LONGEST_VALUE:
            return {_key(key): _as_json(each, depth + 1) for key, each in value.items()}
        case list() | tuple() if depth < _DEEPEST and len(value) <= _LONGEST_VALUE:
            return [_as_json(each, depth + 1) for each in value]
    raise ValueError(f"expected a number, a text, a truth value or a list, found {quoted(value)}")
