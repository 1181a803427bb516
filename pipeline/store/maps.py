"""A trajectory map in Python: the array, and which checkpoints its rows are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PackageMissing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class TrajectoryMap(np.ndarray[tuple[int, ...], np.dtype[np.float64]]):
    """Cosines of all pairs of checkpoints, (K, K); NaN where undefined.

    An array like any other; what is computed from it keeps the names while its shape stays.
    """

    run: str
    relative: bool
    """Of displacements from checkpoint 0."""
    steps: tuple[int | None, ...]
    """Step of each checkpoint, None where unknown; empty if the shape is another."""
    names: tuple[str, ...]
    """Name of each checkpoint; empty if the shape is another."""

    def __new__(
        cls,
        values: NDArray[np.float64],
        run: str,
        steps: Sequence[int | None],
        names: Sequence[str],
        relative: bool = False,
    ) -> TrajectoryMap:
        """Return the array as a map of these checkpoints."""
        made = np.asarray(values, np.float64).view(cls)
        made.run, made.steps, made.names, made.relative = run, tuple(steps), tuple(names), relative
        return made

    def __array_finalize__(self, obj: Any) -> None:
        same = isinstance(obj, TrajectoryMap) and obj.shape == self.shape
        self.run, self.relative = getattr(obj, "run", ""), getattr(obj, "relative", False)
        self.steps = getattr(obj, "steps", ()) if same else ()
        self.names = getattr(obj, "names", ()) if same else ()

    def __reduce__(self) -> tuple[Any, ...]:
        return TrajectoryMap, (np.asarray(self), self.run, self.steps, self.names, self.relative)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the map with matplotlib and return its axes; checkpoints are labelled with their steps.

        Args:
            ax: where it is drawn; default: pyplot's current axes, as its own functions do.

        Raises:
            PackageMissing: matplotlib is not installed.
            ValueError: it is no longer a square.
        """
        if self.ndim != 2 or self.shape[0] != self.shape[1]:
            raise ValueError(f"expected a square map, found an array of {self.shape}")
        from pipeline.drawing import draw_map, labels_of

        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.gca()
        known = bool(self.steps) and None not in self.steps
        square = np.asarray(self)
        diagonal = np.diagonal(square)
        draw_map(
            ax,
            square,
            labels_of(self.steps, self.names),
            f"cosine of {'displacements' if self.relative else 'weights'}",
            axis="step" if known else "checkpoint",
            about_zero=bool(np.any(diagonal[np.isfinite(diagonal)] != 1)),  # a difference of maps
        )
        ax.set_title(self.run)
        return ax

    def to_dataframe(self) -> Any:
        """Return it as a pandas DataFrame, with steps, or names where steps are unknown.

        Raises:
            PackageMissing: pandas is not installed.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise PackageMissing(
                "pandas is not installed",
                "pip install 'hallmarks[pandas]', or use the array itself",
            ) from None
        known = bool(self.steps) and None not in self.steps
        index = pandas.Index(
            self.steps if known else self.names or range(len(self)),
            name="step" if known else "checkpoint",
        )
        return pandas.DataFrame(np.asarray(self), index=index, columns=index)
