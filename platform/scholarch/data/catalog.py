"""From what the user writes after `data=` to a source."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scholarch.data.builtin import DigitsSource, PhotosSource
from scholarch.data.folder import FolderSource
from scholarch.data.index import is_packed, is_selection
from scholarch.data.shapes import ShapesSource
from scholarch.data.source import Labels, Source
from scholarch.errors import UserError
from scholarch.storage.objects import is_s3, open_objects

BUILTIN: dict[str, Callable[[Labels], Source]] = {
    "digits": DigitsSource,
    "photos": PhotosSource,
    "shapes": ShapesSource,
    "shapes-unseen": partial(ShapesSource, kept_apart=True),
}
"""Sources with a name of their own; a folder that is called so is written `./digits`."""


def open_source(url: str, labels: Labels = "auto") -> Source:
    """The pictures that `url` names: a built-in set, a folder, packed pictures or a selection (both also in S3).

    Raises:
        UserError: if there is nothing there, or nothing that holds a picture.
        Unreachable: if the store does not answer.
    """
    if url in BUILTIN:
        return BUILTIN[url](labels)
    if is_s3(url):
        return _packed(url, labels)
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "file":
        raise UserError(
            f"{scheme}:// is not supported",
            where=f"data={url}",
            fix=f"a folder, s3://BUCKET/PREFIX, or {' or '.join(sorted(BUILTIN))}",
        )
    path = Path(rest if separator else url).expanduser()
    if not url.strip():
        raise UserError(
            "no data is named", where="data", fix=f"data=FOLDER, or data={' or data='.join(sorted(BUILTIN))}"
        )
    near = difflib.get_close_matches(url.lower(), sorted(BUILTIN), n=1, cutoff=0.7)
    if near and not path.exists():
        raise UserError("there is no such folder", where=f"data={url}", fix=f"did you mean {near[0]}?")
    if is_packed(path) or is_selection(path):
        return _packed(str(path), labels)
    return FolderSource(path, labels)


def _packed(address: str, labels: Labels) -> Source:
    # Loaded when needed: training on a folder works without pydantic and MinIO's client.
    from scholarch.data.selection import open_selection, read_selection
    from scholarch.data.shards import ShardSource

    objects = open_objects(address)
    objects.check()
    if (selection := read_selection(objects)) is not None:
        return open_selection(objects, selection, open_source)
    return ShardSource(objects, labels)
