"""What a `config.json` says, wherever in it: some networks keep what concerns one part in a part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_DEEPEST = 4


def sections(config: Mapping[str, Any], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration and those within it (`text_config`, `llm_config`), outermost first."""
    yield config
    if depth < _DEEPEST:
        for value in config.values():
            if isinstance(value, dict):
                yield from sections(value, depth + 1)


def vocabularies(config: Mapping[str, Any]) -> list[int]:
    """Return the sizes of vocabularies that a configuration states."""
    values = (
        section.get(name)
        for section in sections(config)
        for name in ("vocab_size", "n_vocab", "padded_vocab_size")
    )
    return [value for value in values if type(value) is int and value > 0]
