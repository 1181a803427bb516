"""One word for one thing: what was given up does not come back (docs/architecture.md, "Words")."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

GIVEN_UP = {
    "fragment": "tensor range (TensorRange)",
    "fragments": "tensor ranges, `ranges`",
    "span": "byte range (ByteRange)",
    "spans": "byte ranges",
    "slice": "block, or its layout (BlockLayout)",
    "slices": "blocks, or their layouts",
    "placed": "PlacedRange, `ranges`",
    "cell": "segment",
    "cells": "segments",
    "card": "GPU",
    "cards": "GPUs",
    "addresses": "URLs",
    "desk": "UrlBroker",
    "front_desk": "UrlBroker",
    "errand": "request",
    "learnt": "plan cache (PlanCache)",
    "prove": "probe",
    "proof": "probe",
    "mark": "marker",
    "bury": "worker_died",
    "turn": "position",
    "strain": "misfit",
    "waits": "is_remote",
    "jackknife_groups": "JACKKNIFE_FOLDS",
    "found": "what it is that was found",
    "own": "whose it is",
    "mine": "whose it is",
    "here": "where that is",
    "there": "where that is",
}
"""Old word → what to say instead. Compared with whole names of variables, functions, classes, modules."""

OTHER_SUBJECTS = {
    # of a table that is printed
    ("cell", "jobs/tables.py"),
    ("cells", "jobs/tables.py"),
    ("cells", "jobs/analyze.py"),
    # of the machine that runs pickles
    ("mark", "pipeline/checkpoint/pickle_machine.py"),
    # of Arrow's
    ("fragments", "pipeline/store/remote.py"),
}

GIVEN_UP_IN_TEXTS = {
    r"\bfragments? of (?:a |the )?tensors?\b": "tensor ranges",
    r"\b(?:graphics|GPU) cards?\b|\b[Oo]n a card\b|\ba card(?:'s)? (?:gets|has)\b": "GPU",
    r"\bsigned address": "signed URL",
    r"\bleft alone for\b": "back-off",
    r"\bjackknife groups?\b": "jackknife fold",
    r"\bthe same command goes on\b": "rerun the same command to resume",
    r"\bdoes not go with\b": "cannot be combined with",
}
"""In pages and texts of the program, where a native reader stumbles; method.md and contract.md are fixed."""


def names(source: str) -> Iterator[tuple[str, int]]:
    """Yield every name that a module makes, with its line."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case _:
                pass


def snake(name: str) -> str:
    """`FrontDesk` as `front_desk`, `_found` as `found`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().strip("_")


def given_up(path: str, source: str) -> list[str]:
    """Return what a module says of words that were given up."""
    stem = Path(path).stem
    made = [(stem, 0), *names(source)]
    return [
        f"{path}:{line}: {name}: say {GIVEN_UP[word]}"
        for name, line in made
        if (word := snake(name)) in GIVEN_UP and (word, path) not in OTHER_SUBJECTS
    ]


def modules() -> list[str]:
    return [
        path.relative_to(ROOT).as_posix()
        for room in ("pipeline", "jobs")
        for path in sorted((ROOT / room).rglob("*.py"))
    ]


def test_names_are_words_of_the_glossary() -> None:
    wrong = [line for path in modules() for line in given_up(path, (ROOT / path).read_text())]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source",
    ["found = 1", "def prove(): ...", "class FrontDesk: ...", "for cell in (): pass", "x.card = 1"],
)
def test_a_word_that_was_given_up_is_noticed(source: str) -> None:
    assert len(given_up("pipeline/x.py", source)) == 1
    assert given_up("pipeline/learnt.py", "") and not given_up("pipeline/x.py", "x = 'found'")


def texts() -> list[Path]:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "infra" / "README.md"]
    fixed = {"method.md", "method-2.md", "contract.md"}
    return [page for page in pages if page.name not in fixed] + [ROOT / m for m in modules()]


def test_texts_say_what_the_field_says() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {match[0]}: say {instead}"
        for path in texts()
        for pattern, instead in GIVEN_UP_IN_TEXTS.items()
        for match in re.finditer(pattern, path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_pages_name_what_there_is() -> None:
    """Modules, tests and pages that the pages refer to; every decision is in the index."""
    folders = ("", "pipeline", "tests", "docs", "docs/decisions", "benchmarks", "pipeline/store")
    for page in (ROOT / "docs").rglob("*.md"):
        if page.name in ("method.md", "method-2.md", "contract.md"):
            continue
        text = page.read_text()
        for name in re.findall(r"`((?:[\w-]+/)+[\w-]+\.py|\w+\.py)[`:]", text):
            assert (
                any((ROOT / folder / name).exists() for folder in folders)
                or (page.name == "architecture.md" and list((ROOT / "pipeline").rglob(name)))
                or list((ROOT / "pipeline").rglob(name))
            ), (page.name, name)
        module = None
        for name, test in re.findall(r"`?((?:[\w-]+/)*test_\w+\.py)?::(test_\w+)`", text):
            module = name or module
            assert module is not None
            file = next(p for p in ROOT.glob(f"tests/**/{Path(module).name}"))
            assert f"def {test}(" in file.read_text(), (page.name, module, test)
        for link in re.findall(r"\]\(([\w./-]+\.md)\)", text):
            assert (page.parent / link).exists(), (page.name, link)
    decisions = ROOT / "docs" / "decisions"
    index = (decisions / "README.md").read_text()
    for page in decisions.glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name
