"""Scalars of TensorBoard's event files, read by `tensorboard` itself, which is optional."""

from __future__ import annotations

import struct
from collections.abc import Callable
from importlib.util import find_spec
from tempfile import NamedTemporaryFile
from typing import Any

from pipeline.errors import PackageMissing
from pipeline.training.metrics import Collector
from pipeline.training.rows import metric_of

_HEADER, _FOOTER = 12, 4
"""Bytes of a record before its event (its length, and a checksum of that) and behind it."""


def need_tensorboard(where: str) -> None:
    """Check that there is what reads event files, before one is fetched.

    Raises:
        PackageMissing: tensorboard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise PackageMissing(
            f"{where}: event files are read by a package that is not installed",
            "pip install tensorboard",
        )


def take_events(name: str, data: bytes, collector: Collector) -> None:
    """Take all scalars; events of other kinds are no metrics.

    Raises:
        ValueError: it is no event file.
    """
    # a second, and few need them
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_file_loader import (  # pyright: ignore[reportMissingImports]
        LegacyEventFileLoader,
    )
    from tensorboard.util.tensor_util import (  # pyright: ignore[reportMissingImports]
        make_ndarray,
    )

    whole, records = _records(data)
    if whole < len(data):  # a record that is being written, or was cut off
        collector.trouble("a record at the end that breaks off", name)
    read = 0
    with NamedTemporaryFile(prefix="hallmarks-", suffix=".tfevents") as file:
        file.write(data[:whole])
        file.flush()
        try:
            for event in LegacyEventFileLoader(file.name).Load():
                read += 1
                for value in event.summary.value:
                    number = _scalar(value, make_ndarray)
                    if number is not None:
                        collector.add(metric_of(value.tag), event.step, number)
        except DecodeError as error:
            raise ValueError(f"record {read:,}: {error}") from None
    if read < records:
        collector.trouble(f"records behind a damaged one, of {records:,}", f"number {read:,}")


def _records(data: bytes) -> tuple[int, int]:
    """Return where the last whole record ends, and how many there are.

    Lengths are looked at before tensorboard reads as many bytes as they state.
    """
    end = count = 0
    while len(data) - end >= _HEADER + _FOOTER:
        (length,) = struct.unpack_from("<Q", data, end)
        if length > len(data) - end - _HEADER - _FOOTER:
            break
        end += _HEADER + length + _FOOTER
        count += 1
    if not count:
        raise ValueError("no whole record in it")
    return end, count


def _scalar(value: Any, array_of: Callable[[Any], Any]) -> float | None:
    """Return the number that a summary holds: as torch writes it, or as a tensor without dimensions."""
    if value.WhichOneof("value") == "simple_value":
        return value.simple_value
    if value.WhichOneof("value") != "tensor" or value.tensor.tensor_shape.dim:
        return None
    try:
        return float(array_of(value.tensor))
    except (TypeError, ValueError):
        return None  # a text
