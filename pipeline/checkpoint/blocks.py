"""Where a tensor lies in its network, by the names of all: the numbered block, the stack.

A block is what a network repeats: `layers.3`, `h.3`, `stages.1.blocks.2`. Blocks in stages are
numbered through. Lists of blocks that are numbered alike are stacks, told apart by the shortest
prefixes of their names that differ.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

Path = tuple[str, ...]
Order = tuple[tuple[int, str], ...]
_Key = tuple[Order, int, int]
"""Of a block: its list among those numbered together, its number there, that within a stage."""

WRAPPERS = frozenset(
    {
        "module",
        "_orig_mod",
        "_forward_module",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
    }
)
"""Parts of names that data parallelism, compilation, engines and checkpointing add."""

_MOST_PARTS = 64
"""Of a name that says something: what its prefixes take is bounded, whatever a header holds."""

# Nine digits fit the tables' 32-bit columns; a longer number is no index.
_INDEX = re.compile(r"[0-9]{1,9}")
_LIST = re.compile(
    r"layers?|h|(?:res)?blocks?|encoders|decoders|transformers|stages?|levels?|.+_(?:layers|blocks|layer_groups)"
)
# One list an operation, numbered alike: XLM and FlauBERT.
_OPERATIONS = re.compile(r"attentions|ffns|layer_norm\d+")
# The number in the name: `layer1.0`, `denseblock2.denselayer3`, `encoder_layer_4`, `Mixed_5b`.
_NUMBERED = re.compile(
    r"((?:.+_)?(?:(?:dense)?(?:layer|block)|stage|level|mixed|inception)_?)(\d{1,3})([a-z]?)",
    re.IGNORECASE | re.ASCII,
)
# Lists of blocks within a stage. Singular `layer` holds sublayers: of T5, or of a residual block.
_INNER_LIST = re.compile(r"(?:res)?blocks|layers|.+_(?:layers|blocks)")
# What a network is for, by a part of its prefix.
_KINDS = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("vision", r"vision|visual|image|img|vit\b|vpm|pixel"),
        ("audio", r"audio|speech|sound|whisper|wav2vec|apm\b"),
        ("mtp", r"(?:\b|_)mtp(?:\b|_)"),
        ("text", r"(?:\b|_)text|language|\bllm\b|\blm\b"),
        ("encoder", r"encoder\b"),
        ("decoder", r"decoder\b"),
    )
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in its network."""

    stack: str | None
    layer: int | None
    inside: Path
    """Parts of its name within the block; of the whole name, where it is in none."""


@dataclass(frozen=True, slots=True)
class _Block:
    blocks: Path
    """Path of the list; blocks of one path are numbered together."""
    order: Order
    """Of lists that are numbered together, by their names."""
    index: int
    inner: int | None
    """Index in a list within the block, which is a stage then."""
    inside: Path
    deeper: Path
    """Parts of the name within the block of a stage."""


def split(name: str) -> Path:
    """Return the parts of a name, without those that wrappers add."""
    parts = name.split(".", _MOST_PARTS)
    if len(parts) > _MOST_PARTS:
        return (name,)
    return tuple(part for part in parts if part not in WRAPPERS) or (name,)


def places(names: Iterable[str], is_end: Callable[[Path], bool]) -> dict[str, Place]:
    """Return where each tensor of a network lies.

    Args:
        is_end: whether a path is that of an embedding or an output head: it holds no blocks.
    """
    paths = {name: split(name) for name in names}
    in_blocks: dict[str, _Block] = {}
    for find in (_in_a_list, _in_a_numbered_part, lambda path: _at_the_first_index(path, is_end)):
        in_blocks = {name: block for name, path in paths.items() if (block := find(path))}
        if in_blocks:
            break
    in_blocks = _within_stages(in_blocks)
    numbers = _numbers(in_blocks)
    stacks = _stacks({(in_blocks[name].blocks, number) for name, number in numbers.items()})
    return {
        name: Place(
            _stack_of(in_blocks[name].blocks if name in in_blocks else path, stacks),
            numbers.get(name),
            in_blocks[name].inside if name in in_blocks else path,
        )
        for name, path in paths.items()
    }


def _in_a_list(path: Path) -> _Block | None:
    """Return the block by the name of its list; a parameter itself is none."""
    within = False
    for i, part in enumerate(path[:-1]):
        if i and _INDEX.fullmatch(part):
            if _LIST.fullmatch(path[i - 1]) and not (within and path[i - 1] == "block"):
                return _block(path[:i], int(part), path[i + 1 :])
            if _OPERATIONS.fullmatch(path[i - 1]):
                inside = path[i - 1 : i] + path[i + 1 :]
                return replace(_block((*path[: i - 1], "*"), int(part), inside), inner=None)
            within = True  # `features.1.0.block.2`: a block is what has an index already
        block = _numbered(path, i)
        if block and block.inner is not None:
            return block
    return None


def _in_a_numbered_part(path: Path) -> _Block | None:
    blocks = (_numbered(path, i) for i in range(len(path) - 1))
    return next((block for block in blocks if block), None)


def _at_the_first_index(path: Path, is_end: Callable[[Path], bool]) -> _Block | None:
    i = next((i for i, part in enumerate(path[:-1]) if _INDEX.fullmatch(part)), None)
    if i is None or is_end(path[:i]):
        return None
    return replace(_block((), int(path[i]), path[i + 1 :]), order=natural(".".join(path[:i])))


def _numbered(path: Path, i: int) -> _Block | None:
    match = _NUMBERED.fullmatch(path[i])
    if match is None:
        return None
    block = _block((*path[:i], "*"), int(match[2]), path[i + 1 :])
    return replace(block, inner=ord(match[3]), deeper=block.inside) if match[3] else block


def _block(blocks: Path, index: int, inside: Path) -> _Block:
    inner, deeper = None, inside
    if len(inside) > 1 and _INDEX.fullmatch(inside[0]):
        inner, deeper = int(inside[0]), inside[1:]
    elif len(inside) > 2 and _INNER_LIST.fullmatch(inside[0]) and _INDEX.fullmatch(inside[1]):
        inner, deeper = int(inside[1]), inside[2:]
    elif len(inside) > 1 and (match := _NUMBERED.fullmatch(inside[0])):
        inner, deeper = int(match[2]), inside[1:]
    return _Block(blocks, (), index, inner, inside, deeper)


def _within_stages(in_blocks: Mapping[str, _Block]) -> dict[str, _Block]:
    """Return the blocks; those of stages, where lists of blocks hold lists of blocks.

    That is where an inner list holds the same modules again and again. Its entries are no mere
    parameters: `features.0.0` is a convolution, `features.1.0` a block.
    """
    held: dict[tuple[Path, Order, int], dict[int, set[Path]]] = defaultdict(dict)
    for block in in_blocks.values():
        if block.inner is not None:
            stage = held[block.blocks, block.order, block.index]
            stage.setdefault(block.inner, set()).add(block.deeper)
    stages = {
        stage
        for stage, blocks in held.items()
        if any(len(path) > 1 for paths in blocks.values() for path in paths)
    }
    staged = {stage[:2] for stage in stages if _repeat(list(held[stage].values()))}
    return {
        name: replace(block, inside=block.deeper)
        if block.inner is not None
        and (block.blocks, block.order) in staged
        and (block.blocks, block.order, block.index) in stages
        else replace(block, inner=None)
        for name, block in in_blocks.items()
    }


def _repeat(blocks: Sequence[set[Path]]) -> bool:
    """Return whether blocks hold mostly the same."""
    sizes = [len(paths) for paths in blocks]
    return 2 * len(set[Path]().union(*blocks)) < sum(sizes) + max(sizes)


def _numbers(in_blocks: Mapping[str, _Block]) -> dict[str, int]:
    """Return the number of each tensor's block: as it is written, or through all stages."""
    lists: dict[Path, set[_Key]] = defaultdict(set)
    for block in in_blocks.values():
        lists[block.blocks].add(_key(block))
    numbers: dict[tuple[Path, _Key], int] = {}
    for blocks, keys in lists.items():
        written = blocks and all(inner < 0 for _, _, inner in keys)
        number, before = -1, None
        for order, index, inner in sorted(keys):
            if before != (order, index, -1):  # else beside a stage's blocks: with the first of them
                number += 1
            before = order, index, inner
            numbers[blocks, before] = index if written else number
    return {name: numbers[block.blocks, _key(block)] for name, block in in_blocks.items()}


def _key(block: _Block) -> _Key:
    return block.order, block.index, -1 if block.inner is None else block.inner


def _stacks(held: Collection[tuple[Path, int]]) -> dict[Path, str]:
    """Return what each stack is called, by the path of its blocks and by its prefix.

    Nothing where no two lists are numbered alike: that is one network.
    """
    size = Counter(blocks for blocks, _ in held)
    if len(held) == len({number for _, number in held}):
        return {}
    shared = Counter(path[:n] for path in size for n in range(1, len(path) + 1))
    prefixes = {
        path: next((path[:n] for n in range(1, len(path)) if shared[path[:n]] == 1), path)
        for path in size
    }
    kinds = {path: _kind(prefix) or _kind(path) for path, prefix in prefixes.items()}
    if {"vision", "audio"} & {*kinds.values()} and "text" not in kinds.values():
        unknown = [path for path in size if kinds[path] is None]
        if unknown:
            kinds[max(unknown, key=lambda path: (size[path], path))] = "text"
    often = Counter(kinds.values())
    called: dict[Path, str] = {}
    for path, kind in kinds.items():
        prefix = prefixes[path]
        called[path] = called[prefix] = kind if kind and often[kind] == 1 else _called(prefix)
    return called


def _kind(path: Path) -> str | None:
    text = ".".join(path)
    return next((kind for kind, pattern in _KINDS if pattern.search(text)), None)


def _called(prefix: Path) -> str:
    """Return a prefix without the name of the list itself."""
    named = [part for part in prefix if part != "*" and not _LIST.fullmatch(part)]
    return ".".join(named or prefix)


def _stack_of(path: Path, stacks: Mapping[Path, str]) -> str | None:
    longest = range(len(path), 0, -1) if stacks else ()
    return next((stacks[path[:n]] for n in longest if path[:n] in stacks), None)


def natural(text: str) -> Order:
    """Sort key: numbers by their size, which is first their length, whatever that is."""
    return tuple(
        (len(number := word.lstrip("0")), number) if word.isdecimal() else (0, word)
        for word in re.split(r"(\d+)", text)
    )
