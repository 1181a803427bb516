"""A linter finds nothing in the page's script, as a whole: each file uses names of those before it.

Needs Biome, which .ci/run installs with npm; the test skips without it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.report.page import script

ROOT = Path(__file__).parent.parent.parent
BIOME = ROOT / ".venv" / "npm" / "node_modules" / ".bin" / "biome"
CONFIGURATION = Path(__file__).with_name("biome.json")


def linted(text: str, folder: Path) -> str:
    """Return what Biome says of a script; nothing if there is nothing to say."""
    file = folder / "page.js"
    file.write_text(text)
    done = subprocess.run(
        [BIOME, "lint", "--error-on-warnings", f"--config-path={CONFIGURATION}", file],
        capture_output=True,
        text=True,
    )
    return done.stderr if done.returncode else ""


@pytest.mark.skipif(not BIOME.exists(), reason="no Biome (npm install, as in .ci/run)")
def test_the_script_is_sound(tmp_path: Path) -> None:
    assert linted(script(), tmp_path) == ""
    assert "noUndeclaredVariables" in linted(script() + "\nunknown();\n", tmp_path)
    assert "noUnusedVariables" in linted(script() + "\n(() => { const left = 1; })();\n", tmp_path)
