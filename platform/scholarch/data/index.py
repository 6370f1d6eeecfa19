"""The names of a packed data set's files and of a selection's, and the index of a packed one's samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

MANIFEST, INDEX, NAMES, CAPTIONS = "manifest.json", "index.npy", "names.bin", "captions.arrow"
SELECTION = "selection.json"

RECORD = np.dtype(
    [
        ("offset", "<u8"),  # of the picture file within its shard
        ("name_end", "<u8"),  # within names.bin
        ("shard", "<u4"),
        ("bytes", "<u4"),
        ("checksum", "<u4"),  # CRC-32
        ("label", "<i4"),  # -1 without labels
    ]
)
"""One sample."""


def is_packed(folder: Path) -> bool:
    """Whether a folder holds packed pictures."""
    return (folder / MANIFEST).is_file() and (folder / INDEX).is_file()


def is_selection(folder: Path) -> bool:
    """Whether a folder holds a selection of other data sets' pictures."""
    return (folder / SELECTION).is_file()
