"""Has it become slower? A short version of shapes.py against stored ratios, in three minutes.

    PYTHONPATH=. python benchmarks/ratios.py [--store]

Times depend on the machine, ratios of times taken side by side hardly: how near the job comes to the bound,
and how much faster it is than the script. The best of two runs each. Prints what is stored and what is now, and
exits with 1 if a ratio is worse than `TOLERANCE` allows; `--store` keeps those of now instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.markdown import table
from benchmarks.shapes import compared
from benchmarks.suites import SUITES, Suite, experts

STORED = Path(__file__).parent / "results" / "ratios.json"
TOLERANCE = 0.25
"""A ratio may be smaller by this share: what two runs on a shared machine differ by."""
REPEATS = 2
SHORT: dict[str, Suite] = {
    "large": SUITES["large"].at(checkpoints=24),
    "small": SUITES["small"].at(checkpoints=40),
    "heads": SUITES["heads"].at(checkpoints=40),
    "experts": SUITES["experts"].at(shapes=experts(4, 200, 32)),
    "many": SUITES["many"].at(checkpoints=240),
}
AGAINST_THE_SCRIPT = ("large", "small")


def ratios() -> dict[str, float]:
    """Return the ratios of now; more is better."""
    found = {}
    for name, suite in SHORT.items():
        entry = compared(
            suite, REPEATS, with_script=name in AGAINST_THE_SCRIPT, typical=min
        )  # fmt: skip
        found[f"{name}: bound / seconds"] = entry["efficiency"]
        if "script" in entry:
            found[f"{name}: the script's seconds / seconds"] = entry["times_faster_than_script"]
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    """Compare, or store."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args()
    now = ratios()
    if options.store:
        STORED.write_text(json.dumps({"date": time.strftime("%Y-%m-%d")} | now, indent=2) + "\n")
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    worse = {name for name in now if now[name] < stored.get(name, 0) * (1 - TOLERANCE)}
    rows = [
        [name, stored.get(name, "–"), value, "**worse**" if name in worse else ""]
        for name, value in now.items()
    ]
    print(table(["ratio", f"stored {stored.get('date', 'never')}", "now", ""], rows))
    if worse:
        sys.exit(f"{len(worse)} ratios are worse than stored by more than {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
