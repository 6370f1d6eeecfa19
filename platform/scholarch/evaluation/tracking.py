"""Objects followed through a video by the similarity of patches (reference.md section 9.7).

Legend: N = h * w patches, O objects and the background, H x W pixels, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scholarch.data.annotated.face import Frame
from scholarch.evaluation.dense import colours, grid_of, picture_of
from scholarch.evaluation.face import Evaluation, Given, Needs, Outcome, Seen, Tiles, means

SHOWN, COLUMNS = 3, 5
BOUNDARY = 0.008
"""Share of the diagonal by which a boundary may be off."""


@dataclass(frozen=True, kw_only=True)
class TrackingOptions:
    """Options of tracking (reference.md section 9.7).

    Attributes:
        data: name of the suite's data; empty: its first.
        context: frames before, besides the first, that objects are taken from.
        radius: patches around a patch that are looked at, a circle.
        kept: the most similar patches that vote; ties are all kept.
        temperature: a patch's vote is exp(cosine / temperature).
    """

    kind: Literal["tracking"] = "tracking"
    data: str = ""
    context: int = 7
    radius: float = 12.0
    kept: int = 5
    temperature: float = 0.2

    def __post_init__(self) -> None:
        if self.context < 0 or min(self.radius, self.kept, self.temperature) <= 0:
            raise ValueError("context must not be below 0; radius, kept and temperature must be above it")


class Tracking(Evaluation):
    """`j` (intersection over union), `f` (agreement of boundaries) and `jf` (their mean), each of an object over
    its frames, without the first, which is given, and the last, as the benchmark has it; averaged over objects."""

    Options = TrackingOptions

    def needs(self) -> Needs:
        return Needs(
            known=frozenset({"objects"}), outputs=frozenset({"patches"}), splits=("test",), view="whole"
        )

    def run(self, given: Given) -> Outcome:
        seen, data = given.features("test"), given.data["test"]
        found: dict[str, list[float]] = {"j": [], "f": [], "jf": []}
        tiles: list[list[np.ndarray]] = []
        for rows, frames in videos(given):
            first = frames[0].objects
            if first is None or not first.any():
                continue
            tracked = track(seen, rows, first, self.options)
            for number in np.unique(first[first > 0]):
                scores = [
                    (
                        region(a == number, frame.objects == number),
                        boundary(a == number, frame.objects == number),
                    )
                    for a, frame in zip(tracked[1:-1], frames[1:-1], strict=True)
                    if frame.objects is not None
                ]
                if scores:
                    j, f = np.mean(scores, axis=0)
                    for name, value in (("j", j), ("f", f), ("jf", (j + f) / 2)):
                        found[name].append(float(value))
            if len(tiles) < SHOWN:
                chosen = np.linspace(0, len(rows) - 1, COLUMNS).round().astype(int)
                pictures = [picture_of(data, int(seen.samples[rows[i]])) for i in chosen]
                tiles.append([_laid_over(p, tracked[i]) for p, i in zip(pictures, chosen, strict=True)])
        metrics, samples = means({name: np.array(values) for name, values in found.items()})
        return Outcome(metrics=metrics, samples=samples, pictures={"tracks": Tiles(tiles)} if tiles else {})


def videos(given: Given) -> Iterator[tuple[list[int], list[Frame]]]:
    """Rows and frames of each video that has three frames or more, whatever the order of the samples."""
    seen, data = given.features("test"), given.data["test"]
    frames = [(data.annotation(int(index), "objects"), row) for row, index in enumerate(seen.samples)]
    ordered = sorted(frames, key=lambda one: (one[0].video, data.name(int(seen.samples[one[1]]))))
    for _, group in itertools.groupby(ordered, key=lambda one: one[0].video):
        of_video = list(group)
        if len(of_video) >= 3:
            yield [row for _, row in of_video], [frame for frame, _ in of_video]


def track(seen: Seen, rows: list[int], first: np.ndarray, options: TrackingOptions) -> list[np.ndarray]:
    """[H, W] number of the object at each pixel, for each frame; of the first, what was given.

    Args:
        seen: features of frames of one size.
        rows: of the frames, in order.
        first: [H, W] objects of the first.
    """
    grid = grid_of(seen.grids[rows[0]])
    numbers = np.array([0, *np.unique(first[first > 0])])
    hot = torch.from_numpy((first[None] == numbers[:, None, None]).astype(np.float32))
    start = F.interpolate(hot[None], size=grid, mode="nearest-exact")[0].flatten(1).T  # [N, O]
    near = neighbourhood(grid, options.radius)
    known: list[tuple[Tensor, Tensor]] = [(_unit(seen, rows[0]), start)]
    tracked = [first.astype(np.int64)]
    for row in rows[1:]:
        features = _unit(seen, row)
        context = [known[0], *known[1:][-options.context :]] if options.context else [known[0]]
        shares = propagate(features, context, near, options.kept, options.temperature)
        known.append((features, shares))
        tracked.append(numbers[to_objects(shares, grid, (first.shape[0], first.shape[1]))])
        # Frames before the context are not looked at again.
        known = [known[0], *known[1:][-max(options.context, 1) :]]
    return tracked


def _unit(seen: Seen, row: int) -> Tensor:
    return F.normalize(seen.one("patches", row), dim=-1)


def neighbourhood(grid: tuple[int, int], radius: float) -> Tensor:
    """[N, N] bool: patches within `radius` of one another, from centre to centre."""
    places = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in grid))
    return torch.cdist(places, places) <= radius


def propagate(
    features: Tensor, context: list[tuple[Tensor, Tensor]], near: Tensor, kept: int, temperature: float
) -> Tensor:
    """[N, O] shares of objects, from frames whose shares are known.

    Args:
        features: [N, D], unit length.
        context: features [N, D] and shares [N, O] of each known frame.
        near: [N, N] bool, which patches of a frame are looked at for each patch.
    """
    cosines = torch.cat([features @ theirs.T for theirs, _ in context], dim=1)
    cosines = cosines.masked_fill(~near.repeat(1, len(context)), -torch.inf)
    least = cosines.topk(min(kept, cosines.shape[1]), dim=1).values[:, -1:]
    weights = (cosines / temperature).masked_fill(cosines < least, -torch.inf).softmax(dim=1)
    shares = weights @ torch.cat([of_frame for _, of_frame in context])
    return shares / shares.sum(dim=1, keepdim=True)


def to_objects(shares: Tensor, grid: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """[H, W] place of the object among O: shares enlarged, each object's spread over 0 to 1, the largest taken."""
    maps = F.interpolate(shares.T.reshape(1, -1, *grid), size=shape, mode="nearest")[0]
    low, high = maps.flatten(1).min(1).values[:, None, None], maps.flatten(1).max(1).values[:, None, None]
    spread = ((maps - low) / (high - low)).nan_to_num(0.0)
    found: np.ndarray = spread.argmax(0).numpy()
    return found


def region(found: np.ndarray, truth: np.ndarray) -> float:
    """J: intersection over union [H, W]; 1 where both are empty (Perazzi et al., CVPR 2016, section 4.1)."""
    union = (found | truth).sum()
    return float((found & truth).sum() / union) if union else 1.0


def boundary(found: np.ndarray, truth: np.ndarray) -> float:
    """F: harmonic mean of the shares of each boundary that lie near the other (ibid.)."""
    near = int(np.ceil(BOUNDARY * np.hypot(*found.shape)))
    edges = [_edges(found), _edges(truth)]
    wide = [_widened(one, near) for one in edges]
    counts = [int(one.sum()) for one in edges]
    if not all(counts):
        return float(not any(counts))
    precision, recall = (float((edges[i] & wide[1 - i]).sum() / counts[i]) for i in (0, 1))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _edges(there: np.ndarray) -> np.ndarray:
    """[H, W] bool: pixels that differ from the one to the right, below, or both."""
    padded = np.pad(there, ((0, 1), (0, 1)), mode="edge")
    others = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    found: np.ndarray = np.logical_or.reduce([there != other for other in others])
    return found


def _widened(there: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel within `radius` of one of them."""
    height, width = there.shape
    padded, found = np.pad(there, radius), np.zeros_like(there)
    for down, right in itertools.product(range(2 * radius + 1), repeat=2):
        if (down - radius) ** 2 + (right - radius) ** 2 <= radius**2:
            found |= padded[down : down + height, right : right + width]
    return found


def _laid_over(picture: np.ndarray, objects: np.ndarray) -> np.ndarray:
    there = (objects > 0)[..., None]
    found: np.ndarray = np.where(there, 0.4 * picture + 0.6 * colours(objects), picture)
    return found
