"""Do the intervals hold what they promise? Samples drawn over and over, against the exact figures.

    PYTHONPATH=. python benchmarks/coverage.py [--seeds 400]

Three kinds of trajectory: a smooth path and a random walk of made-up weights (tests/sampling.py),
and a really trained small language model. For every fraction: the share of intervals value ± 1.96
standard errors that hold the exact figure, and the mean error in standard deviations.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from jobs.language_model import Settings, Shape, train
from tests.sampling import Sampled, Weights, synthetic
from tests.suites import stored_weights

FRACTIONS = (0.01, 0.05, 0.2)


def trained() -> Weights:
    """Return the weights of a trained network of 3.4 million weights, 32 checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        shape = replace(Shape(), layers=4, width=256, hidden=704)
        train(Path(folder) / "run", settings=replace(Settings(), steps=300), shape=shape)
        return {
            name: rows.astype("float32")
            for name, rows in stored_weights(Path(folder) / "run").items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=400)
    seeds = range(parser.parse_args().seeds)
    print("| trajectory | asked | read | figure | coverage | mean error / std. deviation |")
    print("|---|---|---|---|---|---|")
    worst = []
    for kind in ("smooth", "walk", "trained"):
        weights = trained() if kind == "trained" else synthetic(kind, width=256)
        for fraction in FRACTIONS:
            started = time.perf_counter()
            sampled = Sampled(weights, fraction)
            for name, found in sampled.coverage(seeds).items():
                share = f"{fraction:.0%} | {sampled.fraction_read():.2%}"
                print(f"| {kind} | {share} | {name} | {found.coverage:.3f} | {found.bias:+.2f} |")
                worst.append((found.coverage, abs(found.bias)))
            print(f"{kind} {fraction}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(
        f"\ncoverage {min(c for c, _ in worst):.3f} to {max(c for c, _ in worst):.3f},"
        f" largest mean error {max(b for _, b in worst):.2f} standard deviations, {len(seeds)} seeds"
    )


if __name__ == "__main__":
    main()
