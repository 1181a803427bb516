"""What a `config.json` says, wherever in it: some networks keep what concerns one part in a part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_DEEPEST = 4
HEADS = ("num_attention_heads", "n_head", "n_heads")
_KINDS = {"vision": ("vision", "visual", "image", "vit"), "audio": ("audio", "speech")}


def sections(config: Mapping[str, Any], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration and those within it (`text_config`, `llm_config`), outermost first."""
    yield config
    if depth < _DEEPEST:
        for value in config.values():
            if isinstance(value, dict):
                yield from sections(value, depth + 1)


def of_part(config: Mapping[str, Any], stack: str | None) -> Mapping[str, Any]:
    """Return the section that speaks of a stack's attention: the whole one, if that does.

    Otherwise the first within it that states heads: of vision or audio for those stacks, and for all
    others one that is of neither.
    """
    if _states_heads(config):
        return config
    kind = stack if stack in _KINDS else "text"
    for key, value in _named_sections(config):
        named = next((k for k, words in _KINDS.items() if any(w in key for w in words)), "text")
        if named == kind and _states_heads(value):
            return value
    return config


def _named_sections(
    config: Mapping[str, Any], depth: int = 0
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, value in config.items():
        if isinstance(value, dict) and depth < _DEEPEST:
            yield key, value
            yield from _named_sections(value, depth + 1)


def _states_heads(config: Mapping[str, Any]) -> bool:
    return any(config.get(name) is not None for name in HEADS)


def vocabularies(config: Mapping[str, Any]) -> list[int]:
    """Return the sizes of vocabularies that a configuration states."""
    values = (
        section.get(name)
        for section in sections(config)
        for name in ("vocab_size", "n_vocab", "padded_vocab_size")
    )
    return [value for value in values if type(value) is int and value > 0]
