"""What shapes.py measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def markdown(found: dict[str, Any]) -> str:
    """Return everything that was measured."""
    return "\n".join(_sections(found))


def _sections(found: dict[str, Any]) -> Iterator[str]:
    share = "" if found["share"] == 1 else f", {found['share']:.0%} of the checkpoints: a trial"
    yield f"{found['machine']}, {found['date']}{share}\n"
    if found.get("shapes"):
        yield "Seconds, medians; in brackets the whole process.\n"
        yield _shapes(found["shapes"])
        yield "The bound's parts, and memory of the largest process.\n"
        yield _bounds(found["shapes"])
    if "memory" in found:
        yield "Memory of the largest process against the projection with the idle process.\n"
        yield table(
            ["shape", "--memory", "projected", "peak", "within"],
            [
                [e["title"], e["budget"], _mib(e["projected_bytes"]), _mib(e["peak_bytes"]),
                 "yes" if e["within"] else "**no**"]
                if e["fits"] else [e["title"], e["budget"], "refused: too small", "", ""]
                for e in found["memory"]
            ],
        )  # fmt: skip
    if "ray" in found:
        yield "Through Ray.\n"
        yield _ray(found["ray"])
    if "exponents" in found:
        yield "How time grows.\n"
        yield _exponents(found["exponents"])


def _shapes(entries: Sequence[dict[str, Any]]) -> str:
    def seconds(entry: dict[str, Any], name: str) -> str:
        if name in entry:
            return f"{entry[name]['seconds']:.2f} ({entry[name]['process_seconds']:.1f})"
        return "does not fit" if name == "script" and entry["script_does_not_fit"] else "–"

    return table(
        ["shape", "bound", "hallmarks", "efficiency", "before", "script", "× faster than the script"],
        [
            [
                entry["title"], f"{entry['bound']['seconds']:.2f}", seconds(entry, "hallmarks"),
                f"{entry['efficiency']:.2f}", seconds(entry, "before"), seconds(entry, "script"),
                f"{entry['times_faster_than_script']:.1f}" if "script" in entry else "–",
            ]
            for entry in entries
        ],
    )  # fmt: skip


def _bounds(entries: Sequence[dict[str, Any]]) -> str:
    return table(
        ["shape", "read", "product", "decompositions", "distinct groups", "hallmarks", "before", "script"],
        [
            [
                entry["title"], *(f"{entry['bound'][x]:.2f}" for x in ("read", "product", "decompositions")),
                f"{entry['distinct_groups']:,}",
                *(_mib(entry[x]["peak_bytes"]) if x in entry else "–" for x in ("hallmarks", "before", "script")),
            ]
            for entry in entries
        ],
    )  # fmt: skip


def _ray(entry: dict[str, Any]) -> str:
    peaks = ", ".join(f"{kind} {_mib(peak)}" for kind, peak in sorted(entry["peak_bytes"].items()))
    return table(
        ["", ""],
        [
            ["shape", entry["title"]],
            ["local", f"{entry['local_seconds']:.2f} s"],
            ["Ray", f"{entry['ray_seconds']:.2f} s"],
            ["Ray's own start, with a worker's imports", f"{entry['rays_own_start_seconds']:.2f} s"],
            ["Ray less that, over local", f"{entry['ray_less_its_start_over_local']:.2f}"],
            ["peak memory", peaks],
            ["projected for a worker, with the idle process", _mib(entry["projected_bytes"])],
        ],
    )  # fmt: skip


def _exponents(found: dict[str, Any]) -> str:
    rows = []
    for name, entry in found.items():
        for point in entry["points"]:
            rows.append(
                [name, f"{point[name]:,}", f"{point['seconds']:.2f}", _mib(point["peak_bytes"])]
            )
        rows.append([name, "exponent, of the last two", f"{entry['exponent']:.2f}, "
                     f"{entry['exponent_of_the_last_two']:.2f}", ""])  # fmt: skip
    return table(["of", "", "seconds", "peak memory"], rows)


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
