"""Objects found without labels from the similarity of keys: LOST (reference.md section 9.10).

Legend: N = h * w patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scholarch.evaluation.dense import grid_of, picture_of
from scholarch.evaluation.face import Evaluation, Given, Needs, Outcome, Tiles, means

SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class DiscoveryOptions:
    """Options of discovery.

    Attributes:
        data: name of the suite's data; empty: its first.
        considered: patches of lowest degree that the seed may be joined by (k in the paper).
        overlap: intersection over union with any object above which a box is right.
    """

    kind: Literal["discovery"] = "discovery"
    data: str = ""
    considered: int = 100
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if self.considered < 1 or not 0 < self.overlap <= 1:
            raise ValueError("considered must be 1 or more, overlap in (0, 1]")


class Discovery(Evaluation):
    """`corloc`: share of pictures whose one box lies on an object. Needs the keys of a ViT."""

    Options = DiscoveryOptions

    def needs(self) -> Needs:
        return Needs(known=frozenset({"boxes"}), outputs=frozenset({"keys"}), splits=("test",), view="whole")

    def run(self, given: Given) -> Outcome:
        seen, data = given.features("test"), given.data["test"]
        right, rows = list[float](), list[np.ndarray]()
        for row, index in enumerate(seen.samples):
            boxes: np.ndarray = data.annotation(int(index), "boxes")
            if not len(boxes):
                continue
            grid, shape = grid_of(seen.grids[row]), data.read(int(index)).shape[1:]
            there = lost(seen.one("keys", row), grid, self.options.considered)
            box = box_of(there) * np.tile((shape[1] / grid[1], shape[0] / grid[0]), 2)
            right.append(float(overlaps(box, boxes).max() >= self.options.overlap))
            if len(rows) < SHOWN:
                rows.append(_shown(picture_of(data, int(index)), box, boxes))
        metrics, samples = means({"corloc": np.array(right)})
        return Outcome(metrics=metrics, samples=samples, pictures={"boxes": Tiles([rows])} if rows else {})


def lost(keys: Tensor, grid: tuple[int, int], considered: int) -> np.ndarray:
    """[h, w] bool, the patches of the object (Simeoni et al., "Localizing Objects with Self-Supervised
    Transformers and no Labels", 2021, section 3).

    The seed is the patch that is similar (a positive product) to the fewest others; those of the lowest
    degrees that are similar to it join it, and the object is where the sum of products with them all is
    positive, as far as it is connected to the seed.

    Args:
        keys: [N, D], not normalised.
    """
    products = (keys.double() @ keys.double().T).numpy()  # [N, N]
    similar = products > 0
    np.fill_diagonal(similar, False)
    order = np.argsort(similar.sum(1), kind="stable")
    seed, near = int(order[0]), order[:considered]
    joined = near[products[seed, near] > 0]
    there = (products[:, joined].sum(1) > 0).reshape(grid)
    return connected(there, (seed // grid[1], seed % grid[1]))


def connected(there: np.ndarray, seed: tuple[int, int]) -> np.ndarray:
    """[h, w] bool: the part of `there` that 4-neighbours join to the seed, which is always of it."""
    found = np.zeros_like(there)
    found[seed] = True
    while True:
        grown = found.copy()
        grown[1:] |= found[:-1]
        grown[:-1] |= found[1:]
        grown[:, 1:] |= found[:, :-1]
        grown[:, :-1] |= found[:, 1:]
        grown = (grown & there) | found
        if np.array_equal(grown, found):
            return found
        found = grown


def box_of(there: np.ndarray) -> np.ndarray:
    """[4] left, top, right, bottom in patches, right and bottom outside."""
    rows, columns = np.nonzero(there)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=np.float64)


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[k] intersection over union of a box [4] with each of [k, 4]."""
    from torchvision.ops import box_iou

    one, several = torch.from_numpy(box)[None], torch.from_numpy(boxes.astype(np.float64))
    found: np.ndarray = box_iou(one, several)[0].numpy()
    return found


def _shown(picture: np.ndarray, box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The picture with objects framed in white and the box in red."""
    drawn = picture.copy()
    for edges, colour in (*((one, (1.0, 1.0, 1.0)) for one in boxes), (box, (1.0, 0.1, 0.1))):
        left, top, right, bottom = (round(float(edge)) for edge in edges)
        for rows, columns in (
            (slice(top, top + 1), slice(left, right)),
            (slice(bottom - 1, bottom), slice(left, right)),
            (slice(top, bottom), slice(left, left + 1)),
            (slice(top, bottom), slice(right - 1, right)),
        ):
            drawn[rows, columns] = colour
    return drawn
