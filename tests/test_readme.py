"""README's commands as a newcomer types them: the demo through Ray, then the questions about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs import blocks

ROOT = Path(__file__).parent.parent


@pytest.mark.ray
@pytest.mark.slow
def test_the_readme_as_a_newcomer_meets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another processor, or with the language reference of another Python, figures differ a little."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    session = blocks.Session(tmp_path)
    for block in blocks.blocks((ROOT / "README.md").read_text("utf-8")):
        printed = session.printed(block)
        assert blocks.same(block.expected, printed, 0.15), f"README.md:{block.line}\n{printed}"
