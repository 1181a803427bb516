"""Draw a trajectory map as a picture:  python docs/draw_map.py STORE RUN FILE.png

Left the cosines of all pairs of checkpoints, right those of their displacements from the first;
row and column 0 at the top left. Dark is the smallest value shown, light is 1.
"""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np

import pipeline

CELL = 8  # pixels
GAP = 24
# Dark to light with rising lightness, so that it reads in grey too.
COLOURS = np.array([[20, 16, 66], [85, 50, 130], [170, 70, 110], [235, 130, 75], [250, 235, 170]])


def coloured(square: np.ndarray) -> np.ndarray:
    """Return (rows, columns, 3) bytes; undefined values are white."""
    low = np.nanmin(square)
    place = (square - low) / max(1e-12, 1.0 - low) * (len(COLOURS) - 1)
    known = np.nan_to_num(place)
    channels = [np.interp(known, range(len(COLOURS)), COLOURS[:, c]) for c in range(3)]
    picture = np.stack(channels, axis=-1).astype(np.uint8)
    picture[np.isnan(square)] = 255
    return picture.repeat(CELL, axis=0).repeat(CELL, axis=1)


def png(picture: np.ndarray) -> bytes:
    """Return an RGB picture as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    height, width, _ = picture.shape
    lines = b"".join(b"\0" + line.tobytes() for line in picture)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def main() -> None:
    """Draw the whole model's two maps side by side."""
    store, run, target = sys.argv[1:]
    opened = pipeline.open_store(store)
    maps = [coloured(opened.trajectory_map(run, relative=relative)) for relative in (False, True)]
    gap = np.full((len(maps[0]), GAP, 3), 255, np.uint8)
    Path(target).write_bytes(png(np.concatenate([maps[0], gap, maps[1]], axis=1)))


if __name__ == "__main__":
    main()
