"""Take the pictures of maps from the report of the examples, in Chromium.   python -m docs.pictures examples"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

from docs.blocks import STORE
from docs.examples import DRAWN
from pipeline.report.content import content
from pipeline.report.page import page
from pipeline.store.query import Store
from tests.report.browser import Browser

PICTURES = Path(__file__).with_name("pictures")
RUNS = [*DRAWN, "base"]
WIDTH = 420
"""Of the page, in pixels: a map fills it."""
_BOX = """(() => {
  const box = document.querySelector("#map .surface").getBoundingClientRect();
  return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height};
})()"""


def take(store: str, target: Path) -> None:
    """Take a picture of the map of each run: `target/map-RUN.png`."""
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.html")
        report.write_text(page(content(Store(store), store, RUNS)), "utf-8")
        with Browser(Path(folder, "profile")) as browser:
            for number, run in enumerate(RUNS):
                browser.open(f"{report.as_uri()}#run={number}", width=WIDTH, height=900)
                clip = {**browser.evaluate(_BOX), "scale": 1}
                taken = browser.call(
                    "Page.captureScreenshot", captureBeyondViewport=True, format="png", clip=clip
                )
                (target / f"map-{run}.png").write_bytes(base64.b64decode(taken["data"]))


if __name__ == "__main__":
    take(str(Path(sys.argv[1], STORE)), PICTURES)
