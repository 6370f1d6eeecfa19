"""Points of one picture found again in another by their features (reference.md section 9.8).

Legend: k points, N = h * w patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scholarch.data.annotated.face import Match
from scholarch.evaluation.dense import grid_of
from scholarch.evaluation.face import Evaluation, Given, Needs, Outcome, Seen, means


@dataclass(frozen=True, kw_only=True)
class CorrespondenceOptions:
    """Options of correspondence.

    Attributes:
        data: name of the suite's data; empty: its first.
        thresholds: how far a point may be off, as shares of the extent of the object.
    """

    kind: Literal["correspondence"] = "correspondence"
    data: str = ""
    thresholds: tuple[float, ...] = (0.05, 0.1, 0.2)

    def __post_init__(self) -> None:
        if not self.thresholds or min(self.thresholds) <= 0:
            raise ValueError("thresholds must not be empty, and above 0")


class Correspondence(Evaluation):
    """`pck_THRESHOLD`: share of points found near enough, of each pair of objects, averaged over pairs.

    A point has the feature of its picture there, bilinear between patches; it is found at the centre of the
    patch of the other picture whose cosine with it is largest.
    """

    Options = CorrespondenceOptions

    def needs(self) -> Needs:
        return Needs(
            known=frozenset({"matches"}), outputs=frozenset({"patches"}), splits=("test",), view="whole"
        )

    def run(self, given: Given) -> Outcome:
        seen, data = given.features("test"), given.data["test"]
        row_of = {int(index): row for row, index in enumerate(seen.samples)}
        found: dict[str, list[float]] = {f"pck_{t:g}": [] for t in self.options.thresholds}
        for row, index in enumerate(seen.samples):
            matches: list[Match] = data.annotation(int(index), "matches")
            for match in matches:
                if match.other not in row_of or not len(match.here):
                    continue
                sides = [tuple(data.read(i).shape[1:]) for i in (int(index), match.other)]
                guess = found_again(seen, (row, row_of[match.other]), match, sides)
                off = np.linalg.norm(guess - match.there, axis=1) / match.extent
                for threshold in self.options.thresholds:
                    found[f"pck_{threshold:g}"].append(float((off <= threshold).mean()))
        metrics, samples = means({name: np.array(values) for name, values in found.items()})
        return Outcome(metrics=metrics, samples=samples)


def found_again(seen: Seen, rows: tuple[int, int], match: Match, sides: list[tuple[int, ...]]) -> np.ndarray:
    """[k, 2] x and y in the second picture's pixels of the points of the first.

    Args:
        seen: features.
        rows: of the two pictures.
        match: whose points `here` are sought.
        sides: height and width of both in pixels.
    """
    grids = [grid_of(seen.grids[row]) for row in rows]
    queries = at_points(seen.one("patches", rows[0]), grids[0], match.here, sides[0])
    keys = F.normalize(seen.one("patches", rows[1]), dim=-1)
    best = (F.normalize(queries, dim=-1) @ keys.T).argmax(1).numpy()
    height, width = grids[1]
    x = (best % width + 0.5) / width * sides[1][1]
    y = (best // width + 0.5) / height * sides[1][0]
    return np.stack([x, y], axis=1)


def at_points(patches: Tensor, grid: tuple[int, int], points: np.ndarray, sides: tuple[int, ...]) -> Tensor:
    """[k, D]: features at points [k, 2] (x and y in pixels), bilinear between the centres of patches [N, D]."""
    maps = patches.T.reshape(1, -1, *grid)
    scaled = torch.from_numpy(points.astype(np.float32)) / torch.tensor([sides[1], sides[0]]) * 2 - 1
    sampled = F.grid_sample(
        maps, scaled[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0, :, 0].T
