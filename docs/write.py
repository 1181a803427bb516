"""Write what the pages hold that is made: generated pages, and what executed blocks print.   make pages"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from docs import blocks, examples, messages, schema, sources, sweeps

DOCS = Path(__file__).parent
GENERATED: dict[str, Callable[[], str]] = {
    "operations.md": messages.page,
    "schema.md": schema.page,
    "sources.md": sources.page,
    "sweeps.md": sweeps.page,
}
"""Pages that are made as a whole."""


def executed() -> list[Path]:
    """Return the pages that have blocks to execute, in a fixed order."""
    return [page for page in sorted(DOCS.glob("*.md")) if blocks.blocks(page.read_text("utf-8"))]


def workplace(examples: Path, target: Path) -> Path:
    """Return a folder for a page's blocks: the examples are in it, and what it adds is its alone."""
    target.mkdir()
    for entry in examples.iterdir():
        (target / entry.name).symlink_to(entry)
    return target


def main() -> None:
    """Write all pages, or those that are named."""
    wanted = [DOCS / name for name in sys.argv[1:]] or [*map(DOCS.joinpath, GENERATED), *executed()]
    for name in GENERATED:
        if DOCS / name in wanted:
            (DOCS / name).write_text(GENERATED[name](), "utf-8")
    if not (chosen := [page for page in executed() if page in wanted]):
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "examples")
        made.mkdir()
        examples.write(made)
        for page in chosen:
            session = blocks.Session(workplace(made, Path(folder, page.stem)))
            page.write_text(blocks.updated(page.read_text("utf-8"), session), "utf-8")


if __name__ == "__main__":
    main()
