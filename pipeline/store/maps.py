"""A trajectory map in Python: the array, and which checkpoints its rows are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PackageMissing


class TrajectoryMap(np.ndarray[tuple[int, ...], np.dtype[np.float64]]):
    """Cosines of all pairs of checkpoints, (K, K); NaN where undefined.

    An array like any other; what is computed from it keeps the names while its shape stays.
    """

    run: str
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
    ) -> TrajectoryMap:
        """Return the array as a map of these checkpoints."""
        made = np.asarray(values, np.float64).view(cls)
        made.run, made.steps, made.names = run, tuple(steps), tuple(names)
        return made

    def __array_finalize__(self, obj: Any) -> None:
        same = isinstance(obj, TrajectoryMap) and obj.shape == self.shape
        self.run = getattr(obj, "run", "")
        self.steps = getattr(obj, "steps", ()) if same else ()
        self.names = getattr(obj, "names", ()) if same else ()

    def __reduce__(self) -> tuple[Any, ...]:
        return TrajectoryMap, (np.asarray(self), self.run, self.steps, self.names)

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
