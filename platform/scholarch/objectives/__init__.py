"""Terms of the objective, centring and masks. A new term is one file and one line of `TERMS`."""

from __future__ import annotations

from scholarch.objectives.capi import Capi
from scholarch.objectives.clip import Clip
from scholarch.objectives.dino import Dino
from scholarch.objectives.gram import Gram
from scholarch.objectives.ibot import Ibot
from scholarch.objectives.koleo import KoLeo
from scholarch.objectives.masks import BlockMasks, InverseBlockMasks, MaskSampler
from scholarch.objectives.term import Term

TERMS: dict[str, type[Term]] = {
    "capi": Capi,
    "clip": Clip,
    "dino": Dino,
    "gram": Gram,
    "ibot": Ibot,
    "koleo": KoLeo,
}

MASKS: dict[str, type[MaskSampler]] = {
    "block": BlockMasks,
    "inverse_block": InverseBlockMasks,
}
