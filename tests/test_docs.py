"""The pages: what they hold that is made is up to date, what they say that is executed prints that."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from docs import blocks, examples, write
from jobs import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("*.md")), ROOT / "infra" / "README.md"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples that the pages ask about."""
    folder = tmp_path_factory.mktemp("examples")
    examples.write(folder)
    return folder


@pytest.mark.parametrize("page", write.GENERATED)
def test_generated_pages_are_up_to_date(page: str) -> None:
    assert write.GENERATED[page]() == (DOCS / page).read_text("utf-8"), "make pages"


@pytest.mark.parametrize("page", write.executed(), ids=lambda page: page.stem)
def test_blocks_print_what_the_page_shows(page: Path, made: Path, tmp_path: Path) -> None:
    session = blocks.Session(write.workplace(made, tmp_path / "page"))
    for block in blocks.blocks(page.read_text("utf-8")):
        printed = session.printed(block)
        assert blocks.same(block.expected, printed), (
            f"{page.name}:{block.line} (make pages)\n{block.code}\n{printed}"
        )


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("mds 0.903", "mds 0.904"),
        ("mds  0.903  \n", "mds 0.903"),
        ("read in 4.2 s on cpu AVX512: 2.7 s", "read in 12.0 s on cpu AVX2: 9 s"),
        ("│ 13.515", "│ 13.5149"),
    ],
)
def test_what_counts_as_the_same(expected: str, printed: str) -> None:
    assert blocks.same(expected, printed)


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("mds 0.903", "mds 0.906"),
        ("step 92", "step 93"),
        ("mds 0.903", "mds 0.903 0.1"),
        ("mds 0.903", "omega 0.903"),
        ("base\nfast", "fast\nbase"),
        ("1 row", ""),
    ],
)
def test_what_does_not(expected: str, printed: str) -> None:
    assert not blocks.same(expected, printed)


def test_figures_that_differ_by_processor_may_change_the_order() -> None:
    expected, printed = "mlp_up 0.710\nmlp_gate 0.715", "mlp_gate 0.711\nmlp_up 0.712"
    assert blocks.same(expected, printed, 0.15) and not blocks.same(expected, printed)
    assert not blocks.same(expected, printed.replace("0.711", "0.911"), 0.15)


def test_a_page_is_brought_up_to_date(tmp_path: Path) -> None:
    page = '# Title\n\n```console\n$ echo "a\nb"\nwrong\n$ echo 0.5001\n0.5\n```\n\n```pycon\n>>> 1 + 1\n3\n```\n'
    new = blocks.updated(page, blocks.Session(tmp_path))
    assert new == page.replace("wrong", "a\nb").replace("\n0.5\n", "\n0.5001\n").replace(
        "\n3\n", "\n2\n"
    )
    assert blocks.updated(new, blocks.Session(tmp_path)) == new


def commands() -> list[tuple[str, list[str]]]:
    """Return every `hallmarks …` of a block that is not executed, with its page."""
    texts = ((page.name, page.read_text("utf-8")) for page in PAGES)
    return [
        (name, shlex.split(line, comments=True))
        for name, text in texts
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("hallmarks ")
    ]


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: str(value)[:60])
def test_commands_that_are_not_executed_have_their_options(page: str, words: list[str]) -> None:
    """What needs a cluster or the Hub is at least parsed."""
    del page
    command = cli.hallmarks.get_command(click.Context(cli.hallmarks), words[1])
    assert command is not None
    command.make_context(words[1], words[2:])
