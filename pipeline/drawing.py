"""Pictures for slides and papers, drawn by matplotlib from plain arrays.

`TrajectoryMap.plot()` draws on axes of the user's; `hallmarks report --figures` on those of
report/figures.py. Checkpoints stand side by side at even distances and are labelled with their steps:
schedules that begin in powers of two would be one line on an even axis of steps.

Shapes: K = checkpoints, R = rows, C = columns, N = groups or runs.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PackageMissing, printable

try:
    from matplotlib import color_sequences, rc_context
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.ticker import FixedLocator, FuncFormatter
except ModuleNotFoundError:
    raise PackageMissing(
        "matplotlib is not installed, which draws figures", "pip install 'hallmarks[figures]'"
    ) from None

FloatArray = NDArray[np.float64]

SEQUENTIAL, DIVERGING = "inferno", "RdBu_r"
"""Of even lightness, light at zero; red and green never stand against each other. (matplotlib's choice of
colour maps; ColorBrewer's RdBu is marked safe for the colour-blind.)"""
COLOURS = color_sequences["petroff6"]
"""Told apart by the colour-blind (Petroff 2021, arXiv 2107.02270)."""
_INK, _NULL, _UNDEFINED = "0.15", "0.5", "0.85"
_TICKS = 6
_LEAST_TICKS = 3
_Z_95 = 1.96
_LONGEST_NAME = 24
_LEAST_SEEN_DEG = 0.5  # a line is as wide
_STYLE: dict[Any, Any] = {
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
    "svg.fonttype": "none",  # text stays text, and is found by a search
    "svg.hashsalt": "hallmarks",  # the same picture, the same file
    "savefig.dpi": 300,
}
"""For a column of a paper, 86 mm wide."""
COLUMN, PAGE = 3.39, 7.0
"""Widths in inches: of a column, and of a page."""


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of this size in inches that no window shows."""
    return Figure(figsize=(width, height), layout="constrained")


def style() -> AbstractContextManager[None]:
    """Return what has all figures made within it look alike."""
    return rc_context(_STYLE)


def files(figure: Figure) -> Iterator[tuple[str, bytes]]:
    """Yield a figure as a file of each form, with its ending; the same figure gives the same bytes."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # once, so that all forms are alike
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    for form, metadata in dates.items():
        data = io.BytesIO()
        with warnings.catch_warnings():
            # names may be in letters that matplotlib's font lacks: they are boxes then
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
            figure.savefig(
                data, format=form, metadata=metadata, bbox_inches="tight", pad_inches=0.03
            )
        yield form, data.getvalue()


def labels_of(steps: Sequence[int | None], names: Sequence[str]) -> list[str]:
    """Return what each checkpoint is called on an axis: its step, or its name where one is unknown."""
    if steps and None not in steps:
        return [short_step(step) for step in steps if step is not None]
    return list(map(plain, names))


def plain(name: str, longest: int = _LONGEST_NAME) -> str:
    """Return a name from outside as a label: a short line, in which no dollar sign begins a formula."""
    text = printable(name)
    short = text if len(text) <= longest else f"…{text[1 - longest :]}"
    return short.replace("$", r"\$")


def short_step(step: float) -> str:
    """Return a step in few letters: 143k, 1.5M; as it is below 10,000."""
    for size, letter in ((1_000_000, "M"), (1000, "k")):
        if abs(step) >= 10_000 and step >= size:
            return f"{step / size:.4g}{letter}"
    return f"{step:g}"


def draw_map(
    axes: Axes,
    square: FloatArray,
    labels: Sequence[str],
    meaning: str,
    *,
    axis: str = "step",
    about_zero: bool = False,
) -> None:
    """Draw a value for each pair of checkpoints, with its colour bar.

    Args:
        square: (K, K), NaN where undefined.
        labels: (K,), empty where unknown.
        meaning: of the values, for the colour bar.
        axis: what the labels are.
        about_zero: colours stand for values on both sides of 0, as those of increments and differences are;
            otherwise for those from the least to 1.
    """
    if about_zero:
        colours, norm = DIVERGING, _about_zero(square)
    else:
        colours, norm = SEQUENTIAL, _up_to_one([square])
    image = axes.imshow(square, cmap=colours, norm=norm, interpolation="nearest", origin="upper")
    axes.set_facecolor(_UNDEFINED)
    for each in (axes.xaxis, axes.yaxis):
        _label_checkpoints(each, labels or list(map(str, range(len(square)))))
    axes.set_xlabel(axis)
    axes.set_ylabel(axis)
    _colour_bar(axes, image, meaning)


def _up_to_one(squares: Iterable[FloatArray]) -> Normalize:
    least = min((float(each[np.isfinite(each)].min(initial=1.0)) for each in squares), default=1.0)
    return Normalize(min(least, 1.0 - 1e-12), 1.0)


def _about_zero(square: FloatArray) -> Normalize:
    """Return a scale as large as 98 % of the pairs of different checkpoints: others would hide them."""
    others = np.abs(square[~np.eye(len(square), dtype=bool)])
    others = others[np.isfinite(others)]
    bound = (float(np.quantile(others, 0.98)) if others.size else 0.0) or 1.0
    return Normalize(-bound, bound)


def draw_boundaries(axes: Axes, firsts: Sequence[int]) -> None:
    """Draw lines on a map where a source other than the one before begins."""
    for first in firsts:
        axes.axhline(first - 0.5, color="white", linewidth=0.8)
        axes.axvline(first - 0.5, color="white", linewidth=0.8)


def draw_map_grid(
    axes: Axes,
    maps: Mapping[tuple[int, int], FloatArray],
    rows: Sequence[str],
    columns: Sequence[str],
) -> None:
    """Draw a map for each of some rows and columns, all on one scale.

    Args:
        maps: (K, K) for each row and column that there is one of.
    """
    side = len(next(iter(maps.values())))
    pitch = side + max(1, side // 12)
    whole = np.full((len(rows) * pitch, len(columns) * pitch), np.nan)
    for (row, column), square in maps.items():
        whole[row * pitch : row * pitch + side, column * pitch : column * pitch + side] = square
    norm = _up_to_one(maps.values())
    image = axes.imshow(whole, cmap=SEQUENTIAL, norm=norm, interpolation="nearest")
    _label_grid(axes, rows, columns, pitch, (side - 1) / 2)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _colour_bar(axes, image, "cosine of displacements")


def draw_numbers(
    axes: Axes,
    values: FloatArray,
    differs: NDArray[np.bool_],
    rows: Sequence[str],
    columns: Sequence[str],
    name: str,
) -> None:
    """Draw a number for each row and column, in brackets where a random walk would show the same.

    Args:
        values: (R, C), NaN where there is none.
        differs: (R, C), from the random walk.
    """
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    norm = Normalize(low, high if high > low else low + 1e-12)
    image = axes.imshow(values, cmap=SEQUENTIAL, norm=norm, aspect="auto", interpolation="nearest")
    axes.set_facecolor(_UNDEFINED)
    _label_grid(axes, rows, columns, 1, 0.0)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = _digits(value)
            text = text if differs[row, column] else f"({text})"
            ink = (
                "black" if norm(value) > 0.6 else "white"
            )  # of a lightness of 0 to 1, with contrast
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=5.5)
    _colour_bar(axes, image, name)
    if not differs[np.isfinite(values)].all():
        axes.set_title("in brackets: no different from a random walk", fontsize=6.5, loc="left")


def draw_curve(
    axes: Axes,
    paths: Mapping[str, tuple[Sequence[int], FloatArray]],
    labels: Sequence[str],
    title: str,
    *,
    errors: FloatArray | None = None,
    null: tuple[str, FloatArray] | None = None,
    floor: FloatArray | None = None,
    axis: str = "step",
) -> None:
    """Draw a column of `path` over the checkpoints.

    Args:
        paths: of each source its checkpoints and their values.
        errors: (K,) standard errors, drawn as intervals of 1.96 of them.
        null: what a random walk of the same steps shows, (K,), and what that is called.
        floor: (K,) what rounding alone can make of a straight path.
    """
    for number, (name, (at, values)) in enumerate(paths.items()):
        bars = (
            None if errors is None or not np.any(errors[list(at)] > 0) else _Z_95 * errors[list(at)]
        )
        axes.errorbar(
            list(at), values, yerr=bars, label=name if len(paths) > 1 else None,
            color=COLOURS[number % len(COLOURS)], elinewidth=0.7, marker=".", markersize=2.5,
            linestyle=("-", "--", "-.", ":")[number // len(COLOURS) % 4],
        )  # fmt: skip
    if null is not None:
        name, values = null
        axes.plot(values, color=_NULL, linestyle=(0, (4, 2)), linewidth=0.9, label=name)
    if floor is not None and np.any(floor > _LEAST_SEEN_DEG):
        axes.fill_between(
            np.arange(len(floor)), 0, floor, color=_NULL, alpha=0.25, linewidth=0, label="rounding"
        )
    axes.set_title(title)
    _label_checkpoints(axes.xaxis, labels)
    axes.set_xlabel(axis)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25, linewidth=0.5)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=6)


def draw_settling(
    axes: Axes,
    groups: Sequence[str],
    settled: FloatArray,
    saturated: FloatArray,
    walk: FloatArray,
    last: float,
) -> None:
    """Draw when each group stayed near its end: a bar up to that step; NaN where it is unknown.

    Args:
        settled, saturated, walk: (N,) steps: within 5 % of the end, direction final, and when a random walk
            is within 5 %.
        last: the run's last step.
    """
    at = np.arange(len(groups))
    axes.barh(at, settled, height=0.62, color=COLOURS[0], alpha=0.55, label="within 5 % of the end")
    axes.plot(saturated, at, "o", markersize=3.2, color=COLOURS[1], label="direction final (8°)")
    axes.plot(
        walk, at, "|", markersize=7, color=_INK, markeredgewidth=1.1, label="random walk, 5 %"
    )
    axes.set_yticks(at, groups)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(0, last * 1.02 or 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: short_step(step)))
    axes.set_xlabel("step")
    axes.grid(axis="x", alpha=0.25, linewidth=0.5)
    axes.legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def draw_spectrum(axes: Axes, shares: FloatArray, walk: FloatArray | None) -> None:
    """Draw shares of the variance by rank, (R,), and those of a random walk of the same steps."""
    ranks = np.arange(1, len(shares) + 1)
    if walk is not None:
        axes.plot(
            ranks,
            walk[: len(ranks)],
            color=_NULL,
            linestyle=(0, (4, 2)),
            marker=".",
            label="random walk",
        )
    axes.plot(ranks, shares, color=COLOURS[0], marker="o", markersize=3, label="this run")
    axes.set_yscale("log")
    axes.set_xticks(ranks)
    axes.set_xlabel("principal component")
    axes.set_ylabel("share of the variance")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.legend()


def draw_projection(
    axes: Axes,
    points: FloatArray,
    walk: FloatArray | None,
    labels: Sequence[str],
    firsts: Sequence[int] = (),
) -> None:
    """Draw the path on its first two principal components, from dark to light, with a few steps.

    Args:
        points: (K, 2), NaN where a checkpoint is absent.
        walk: (K, 2), those of a random walk of the same steps.
        firsts: where a source other than the one before begins.
    """
    if walk is not None:
        axes.plot(*walk.T, color=_NULL, linestyle=(0, (4, 2)), linewidth=0.9, label="random walk")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
    for path in np.split(points, firsts):
        axes.plot(*path.T, color=_INK, linewidth=0.5, alpha=0.6)
    axes.scatter(
        *points.T, c=np.arange(len(points)), cmap=SEQUENTIAL, s=9, edgecolors=_INK,
        linewidths=0.3, zorder=3,
    )  # fmt: skip
    known = points[np.isfinite(points).all(axis=1)]
    apart = 0.08 * np.ptp(known, axis=0).max()
    labelled: list[FloatArray] = []
    for k in _rounds(labels):
        if all(np.linalg.norm(points[k] - other) > apart for other in labelled):
            labelled.append(points[k])
            axes.annotate(
                labels[k],
                points[k],
                textcoords="offset points",
                xytext=(4, 4),
                fontsize=6,
                color=_INK,
            )
    axes.set_xlabel("principal component 1")
    axes.set_ylabel("component 2")
    axes.set_aspect("equal")
    axes.grid(alpha=0.25, linewidth=0.5)


def draw_runs(
    axes: Axes,
    runs: Sequence[str],
    values: FloatArray,
    errors: FloatArray,
    nulls: FloatArray,
    name: str,
) -> None:
    """Draw one indicator of several runs, with 1.96 standard errors, and what random walks show.

    Args:
        values, errors, nulls: (N,), NaN where undefined.
    """
    at = np.arange(len(runs))
    axes.errorbar(
        values, at, xerr=_Z_95 * np.nan_to_num(errors), fmt="o", markersize=3.5, color=COLOURS[0],
        elinewidth=0.9, label="run",
    )  # fmt: skip
    axes.plot(nulls, at, "|", markersize=8, color=_NULL, markeredgewidth=1.2, label="random walk")
    axes.set_yticks(at, runs)
    axes.set_ylim(len(runs) - 0.4, -0.6)
    axes.set_title(name)
    axes.grid(axis="x", alpha=0.25, linewidth=0.5)


def draw_against(
    axes: Axes,
    places: Sequence[str],
    lines: Mapping[str, tuple[Sequence[int], FloatArray, FloatArray, FloatArray]],
    title: str,
) -> None:
    """Draw an indicator against a setting: means over seeds with 1.96 standard errors; dotted, random walks.

    Args:
        places: what the setting is, at even distances.
        lines: of each label at which places it has values, (V,) of those, and means, standard errors and null
            values, (V,) each; NaN where undefined.
    """
    for number, (label, (at, means, errors, nulls)) in enumerate(lines.items()):
        shifted = np.array(at) + 0.05 * (number - (len(lines) - 1) / 2) * min(1.0, 8 / len(lines))
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(
            shifted, means, yerr=_Z_95 * np.nan_to_num(errors), label=label or "runs", color=colour,
            elinewidth=0.9, marker="osD^vP"[number % 6], markersize=3,
            linestyle=("-", "--", "-.", ":")[number // 6 % 4],
        )  # fmt: skip
        axes.plot(shifted, nulls, color=colour, linestyle=(0, (1, 1.5)), linewidth=0.9)
    axes.set_xticks(range(len(places)), places)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_title(title)
    axes.grid(alpha=0.25, linewidth=0.5)


def _colour_bar(axes: Axes, image: AxesImage, label: str) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None  # axes are in one
    beside = axes.inset_axes(
        (1.03, 0.0, 0.045, 1.0)
    )  # as high as the axes are, whatever their shape
    bar = figure.colorbar(image, cax=beside, extend=_beyond(image))
    bar.set_label(label)
    bar.outline.set_linewidth(0.5)  # pyright: ignore[reportCallIssue, reportUnknownMemberType]


def _beyond(image: AxesImage) -> Literal["neither", "both", "min", "max"]:
    """Return at which ends of the scale there are values beyond it."""
    values = np.ma.masked_invalid(np.ma.asarray(image.get_array())).compressed()
    low, high = np.array(image.get_clim(), float)
    below, above = bool(np.any(values < low)), bool(np.any(values > high))
    return "both" if below and above else "min" if below else "max" if above else "neither"


def _label_checkpoints(axis: Any, labels: Sequence[str]) -> None:
    places = _rounds(labels)
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FuncFormatter(lambda at, _: labels[int(at)]))


def _rounds(labels: Sequence[str]) -> list[int]:
    """Return some checkpoints at about even distances: multiples of a round step, else short labels."""
    count = len(labels)
    if count <= _TICKS:
        return list(range(count))
    if places := _multiples(labels):
        return places
    ideals = np.linspace(0, count - 1, _TICKS)
    reach = (count - 1) / (_TICKS - 1) / 4
    inner = [
        min(
            (k for k in range(count) if abs(k - ideal) <= reach),
            key=lambda k, ideal=ideal: (len(labels[k].strip("k0")), abs(k - ideal)),
            default=round(ideal),
        )
        for ideal in ideals[1:-1].tolist()
    ]
    return [0, *inner, count - 1]


def _multiples(labels: Sequence[str]) -> list[int]:
    """Return the checkpoints at the multiples of a round step, or none if these are too few, or crowded somewhere."""
    units = {"k": 1000.0, "M": 1_000_000.0}
    try:
        steps = [float(label.rstrip("kM")) * units.get(label[-1:], 1.0) for label in labels]
    except ValueError:
        return []
    for size in (factor * 10.0**power for power in range(9) for factor in (1, 2, 2.5, 4, 5)):
        places = [k for k, step in enumerate(steps) if step % size == 0]
        gaps = np.diff(places)
        if _LEAST_TICKS <= len(places) <= _TICKS + 1 and gaps.max() <= 2 * gaps.min():
            return places
    return []


def _label_grid(
    axes: Axes, rows: Sequence[str], columns: Sequence[str], pitch: int, middle: float
) -> None:
    axes.set_xticks(
        [at * pitch + middle for at in range(len(columns))], columns, rotation=40, ha="right"
    )
    axes.set_yticks([at * pitch + middle for at in range(len(rows))], rows)
    axes.set_ylabel("layer")


def _digits(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else short_step(round(value))
