"""Captions as COCO has them: one JSON file that names pictures, and what five people said of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scholarch.data.packing.listing import Listing, ObjectsInput, unique
from scholarch.errors import UserError
from scholarch.storage.objects import open_objects

FIX = "name a captions file of COCO, such as annotations/captions_train2017.json"


def coco_input(path: Path, pictures: str) -> ObjectsInput:
    """Pictures of a captions file, in order of their names; those of which nothing is said are left out.

    Args:
        path: of the file.
        pictures: the folder or s3:// prefix that its file names are within.

    Raises:
        UserError: if it is no such file.
    """
    where = str(path)
    if not pictures:
        raise UserError(
            "which pictures does it speak of?", where=where, fix="name their folder with --pictures FOLDER"
        )
    try:
        data: Any = json.loads(path.read_text())
        names = {int(image["id"]): str(image["file_name"]) for image in data["images"]}
        said: dict[str, list[str]] = {}
        for entry in sorted(data["annotations"], key=lambda entry: int(entry["id"])):
            said.setdefault(names[int(entry["image_id"])], []).append(str(entry["caption"]).strip())
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"is no captions file: {type(error).__name__}: {error}", where=where, fix=FIX
        ) from None
    said = {name: [text for text in texts if text] for name, texts in sorted(said.items())}
    said = {name: texts for name, texts in said.items() if texts}
    if not said:
        raise UserError("there is no caption in it", where=where, fix=FIX)
    objects = open_objects(pictures)
    objects.check()
    sizes = {entry.name: entry.bytes for entry in objects.entries()}
    listing = Listing(
        unique([name.encode() for name in said], where),
        [sizes.get(name, 0) for name in said],
        None,
        None,
        list(said.values()),
    )
    return ObjectsInput(listing, [(objects, name) for name in said])
