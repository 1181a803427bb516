"""How large is a report, how long does it take to make, and when is its first map drawn?

    PYTHONPATH=. python benchmarks/report.py [--only NAME] [--keep DIR]

Made-up suites of tiny tensors: what a page shows depends on the number of checkpoints, layers and roles, not
on that of weights. The suites are written, analysed with `--executor local`, and shown by `hallmarks report` in a
process of its own, whose CPU time counts. Headless Chromium opens the page three times; the median is the time from the
beginning of the navigation to the first map on its canvas.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.markdown import table
from benchmarks.suites import Suite, llama
from tests.report.browser import CHROMIUM, Browser

SUITES = {
    "demo": Suite("43 × 4 layers, as the demo's", 43, llama(4, 16, 64)),
    "154": Suite("154 × 32 layers", 154, llama(32, 16, 64)),
    "935": Suite("935 × 16 layers", 935, llama(16, 16, 64)),
}
REPEATS = 3


def hallmarks(*arguments: object) -> float:
    """Run a command in a process of its own and return its seconds of CPU."""
    code = "from jobs.cli import main; main()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def made_store(folder: Path, suite: Suite) -> Path:
    """Return a store of the suite, which is made unless it is there."""
    store = folder / "store"
    if not (store / "views.sql").exists():
        suite.write(folder / "suite")
        hallmarks("analyze", folder / "suite", "--store", store, "--executor", "local")
    return store


def first_map(page: Path) -> float:
    """Return the milliseconds until the first map is drawn."""
    drawn = "document.documentElement?.dataset.drawn"
    times: list[float] = []
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        for _ in range(REPEATS):
            browser.open(page.as_uri())
            times.append(float(browser.evaluate(drawn)))
    return statistics.median(times)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SUITES)
    parser.add_argument("--keep", type=Path, help="where stores are made, and stay")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, suite in SUITES.items():
            if given.only in (None, name):
                store = made_store((given.keep or Path(temporary)) / name, suite)
                page = store / "report.html"
                seconds = hallmarks("report", "--store", store)
                first = f"{first_map(page):.0f} ms" if CHROMIUM else "no Chromium"
                rows.append(
                    [suite.title, f"{page.stat().st_size / 1e6:.2f} MB", f"{seconds:.1f} s", first]
                )
                print(rows[-1], file=sys.stderr)
    print(table(["run", "page", "made in (CPU)", "first map drawn after"], rows))


if __name__ == "__main__":
    main()
