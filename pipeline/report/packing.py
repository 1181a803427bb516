"""Arrays of numbers as text in a page, in one or two bytes a value (docs/decisions/report.md).

A value becomes the number of one of 2^(8 width) - 1 levels between the least and the greatest of its
array; the last code stands for undefined. Each code is stored as its difference to the one before, the
high bytes of all before the low ones, compressed (zlib), in base64. What reads it: `unpack` in
`page/codec.js`.
"""

from __future__ import annotations

import zlib
from base64 import b64encode
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Packed(TypedDict):
    """An array in the page."""

    width: int
    """Bytes a value."""
    low: float
    high: float
    """The least and the greatest defined value; both 0 where none is."""
    data: str


def pack(values: FloatArray, width: int) -> Packed:
    """Return an array, (V,), as text; NaN is undefined.

    Args:
        width: bytes a value, 1 or 2; a defined value is off by at most half a level,
            (high - low) / (2^(8 width) - 2) / 2.
    """
    defined = np.isfinite(values)
    known = values[defined]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    undefined = 256**width - 1
    levels = (np.where(defined, values, low) - low) / ((high - low) or 1.0) * (undefined - 1)
    codes = np.where(defined, np.rint(levels), undefined).astype(f">u{width}")
    steps = np.diff(codes, prepend=codes.dtype.type(0)).astype(f">u{width}")  # modulo 2^(8 width)
    planes = steps.view(np.uint8).reshape(-1, width).T.tobytes()
    data = b64encode(zlib.compress(planes, 9)).decode()
    return {"width": width, "low": low, "high": high, "data": data}


def half_chords(cosines: FloatArray) -> FloatArray:
    """Return sqrt((1 - c) / 2), in [0, 1], of cosines: half the distance of the unit vectors.

    An even error e of it is one of 4 sqrt((1 - c) / 2) e of the cosine: the nearer to 1, where maps
    have their detail, the smaller.
    """
    return np.sqrt((1.0 - cosines) / 2.0)
