"""Data of evaluations: pictures with what is known of them, in one explicit registry of layouts."""

from __future__ import annotations

from collections.abc import Callable

from scholarch.data.annotated import generated, layouts, shapes
from scholarch.data.annotated.face import Annotated, SplitName

Layout = Callable[[str], dict[SplitName, Annotated]]
"""From an address to the splits that are there; raises UserError naming what is missing."""

DATA_SETS: dict[str, Layout] = {
    "scenes": generated.stills,
    "scenes-instances": generated.instances,
    "scenes-videos": generated.videos,
    "shapes": shapes.shapes,
    "folders": layouts.folders,
    "ade20k": layouts.ade20k,
    "voc": layouts.voc,
    "voc-boxes": layouts.voc_boxes,
    "nyu": layouts.nyu,
    "revisited": layouts.revisited,
    "davis": layouts.davis,
    "spair": layouts.spair,
}
"""Layout -> how it is read. Adding one is one function and one line here."""
