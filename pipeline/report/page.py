"""The page: content, styles and scripts in one file that asks for nothing else.

A policy in the page lets this very script and these styles run, no other ones, and nothing be loaded;
whatever names the content has stay text.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from importlib.resources import files
from string import Template
from typing import Any

_FOLDER = files("pipeline.report").joinpath("page")
SCRIPTS = (
    *("codec.js", "colours.js", "elements.js", "state.js", "queries.js", "figure.js", "axes.js"),
    *(
        "header.js",
        "map.js",
        "stacked.js",
        "curves.js",
        "turns.js",
        "windows.js",
        "training.js",
        "layers.js",
        "redundancy.js",
        "settling.js",
        "components.js",
        "settings.js",
        "runs.js",
        "main.js",
    ),
)
"""In this order they are one script: what a file names, an earlier one defines."""


def page(content: dict[str, Any]) -> str:
    """Return the page as HTML."""
    whole = script()
    style = _text("page.css")
    runs = ", ".join(run["run"] for run in content["runs"])
    return Template(_text("page.html")).substitute(
        policy=f"default-src 'none'; script-src {_hash(whole)}; style-src {_hash(style)};"
        " img-src data: blob:; base-uri 'none'; form-action 'none'",
        title=_escaped(f"hallmarks: {runs}"),
        style=style,
        content=in_script(content),
        script=whole,
    )


def script() -> str:
    """Return the page's script."""
    return "\n".join(_text(name) for name in SCRIPTS)


def in_script(value: Any) -> str:
    """Return JSON that may stand in a script element: no tag or comment begins or ends in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(name: str) -> str:
    return _FOLDER.joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return what a policy calls a script or a style by."""
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
