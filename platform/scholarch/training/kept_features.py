"""What a locked backbone makes of every picture, computed once by all processes of a run and kept in shards.

The shards lie under ADDRESS/KEY, where the key tells of pictures, view, backbone and precision: another
backbone finds nothing there and computes its own. What a killed run has finished is not done again.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method

from scholarch.config.schema import Recipe, settled
from scholarch.data.evaluation import viewed
from scholarch.data.kept_features import KeptFeatures, to_bytes
from scholarch.data.manifest import FeaturesPart, read_manifest
from scholarch.data.options import ViewOptions
from scholarch.data.packing.listing import File, Listing
from scholarch.data.packing.pack import Job, borders, finish, finished_shards, pack_shard
from scholarch.data.source import BrokenPicture, Source
from scholarch.data.views import MultiCrop
from scholarch.errors import RunFailed, UserError
from scholarch.models.alignment import AlignedBackbone
from scholarch.models.features import Backbone
from scholarch.storage.local import check_free, readable_size
from scholarch.storage.objects import FolderObjects, Objects, joined, open_objects
from scholarch.training.assemble import view_sets
from scholarch.training.distributed import World
from scholarch.training.networks import DTYPES

BATCH = 64
"""Pictures that go through the backbone at once."""
SHARD_BYTES = 64_000_000
BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}
"""Of a number, by precision of the run."""
_TOLD_EVERY_SECONDS = 10.0


def view_of(recipe: Recipe) -> tuple[str, ViewOptions]:
    """The one view of a recipe whose pictures' features can be kept, and its name.

    Raises:
        UserError: naming what keeps them from being the same in every step.
    """
    if recipe.model.kind != "aligned":
        raise UserError(
            f"the backbone of a {recipe.model.kind} is trained, and its features change with every step",
            where="data.features",
            fix="leave it out; features are kept of the locked backbone of an aligned model",
        )
    sets = view_sets(recipe)
    (_, views), *others = sets
    if others or len(views) != 1 or recipe.masks:
        raise UserError(
            "features are kept of one view at one resolution, without masks",
            where="data.features",
            fix="leave it out, or give the recipe a single view",
        )
    ((name, options),) = views.items()
    if not options.fixed:
        raise UserError(
            f"the view {name!r} is cut or changed anew in every step, and features are kept of what stays the same",
            where="data.features",
            fix=f"set views.{name}.scale=[1,1] views.{name}.ratio=[1,1] views.{name}.flip=0 "
            f"views.{name}.distortions=none, or leave data.features out",
        )
    return name, options


def check_features(recipe: Recipe, source: Source, backbone: Backbone) -> str:
    """What will be kept and where, in words.

    Args:
        backbone: the aligned one, on any device.

    Raises:
        UserError: if features cannot be kept for this recipe, or the place cannot be reached or is full.
    """
    _, options = view_of(recipe)
    assert isinstance(backbone, AlignedBackbone)
    address = settled_address(recipe)
    objects = open_objects(address)
    objects.check()
    if read_manifest(open_objects(joined(address, key_of(recipe, source)))) is not None:
        return f"are in {address}"
    numbers = backbone.locked_count(options.size) * backbone.vision.width
    needed = len(source) * numbers * BYTES[recipe.training.precision]
    if isinstance(objects, FolderObjects):
        check_free(objects.folder, needed)
    return f"are computed first: about {readable_size(needed)} into {address}"


def settled_address(recipe: Recipe) -> str:
    """`data.features`, which is there."""
    address = recipe.data.features
    assert address is not None
    return address


def key_of(recipe: Recipe, source: Source) -> str:
    """Equal where the same features come out: of pictures, view, normalisation, backbone and precision."""
    name, options = view_of(recipe)
    init = recipe.init_from
    told: dict[str, Any] = {
        "pictures": source.fingerprint(),
        "view": {name: asdict(options)},
        "mean": settled(recipe.data.mean),
        "std": settled(recipe.data.std),
        "backbone": asdict(recipe.model.vision),
        "weights": f"drawn {recipe.seed}"
        if init is None or init.found is None
        else f"{init.found.sha256} {init.student} {init.resize_positions}",
        "precision": recipe.training.precision,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def keep_features(
    recipe: Recipe, source: Source, backbone: AlignedBackbone, world: World, say: Callable[[str], None]
) -> KeptFeatures:
    """Computes what is missing of the features, and opens them; all ranks take part.

    The backbone may be sharded: every rank runs it equally often, with nothing to show where it has no more.

    Args:
        source: the training pictures.
        say: tells a line, on rank 0.

    Raises:
        UserError: if no picture can be read, or the place holds something else.
        Unreachable: if the store does not answer.
    """
    name, _ = view_of(recipe)
    target = open_objects(joined(settled_address(recipe), key_of(recipe, source)))
    if not world.from_first(world.first and read_manifest(target) is not None):
        _compute(recipe, source, backbone, world, target, say)
    world.barrier()
    return KeptFeatures(target, name)


def _compute(
    recipe: Recipe,
    source: Source,
    backbone: AlignedBackbone,
    world: World,
    target: Objects,
    say: Callable[[str], None],
) -> None:
    look = _Look(recipe, source, backbone, world)
    job = look.job(target)
    done = world.from_first(world.agree(lambda: list(finished_shards(job)) if world.first else []))
    todo = [number for number in range(len(job.borders) - 1) if number not in done]
    told = time.monotonic()
    say(
        f"features of {len(source):,} pictures into {target.address}: {len(todo)} of {len(job.borders) - 1} shards"
    )
    for first in range(0, len(todo), world.size):
        mine = todo[first : first + world.size]
        if world.rank < len(mine):
            pack_shard(job, mine[world.rank])
        largest = max(job.borders[number + 1] - job.borders[number] for number in mine)
        look.idle(math.ceil(largest / BATCH))
        world.heartbeat.alive()
        if time.monotonic() - told > _TOLD_EVERY_SECONDS:
            told = time.monotonic()
            say(f"features: {first + len(mine)} of {len(todo)} shards")
    world.barrier()
    world.agree(lambda: _finish(job, recipe) if world.first else None)


def _finish(job: Job, recipe: Recipe) -> None:
    if read_manifest(job.target) is not None:  # another run with the same backbone was first
        return
    parts = finished_shards(job)
    if len(parts) != len(job.borders) - 1:  # numbers would no longer be those of the pictures
        raise RunFailed(f"{job.target.address} lost shards while they were written; resume the run")
    packed = [parts[number] for number in sorted(parts)]
    broken = [entry for part in packed for entry in part.broken]
    if len(broken) == sum(len(part.records) for part in packed):
        raise UserError(
            f"none of the {len(broken)} pictures can be used: {'; '.join(broken[:3])}",
            where=recipe.data.where,
        )
    finish(job, packed, recipe.data.where, f"data.features={recipe.data.features} of {_origin(recipe)}")


def _origin(recipe: Recipe) -> str:
    init = recipe.init_from
    return init.found.name if init and init.found else "drawn weights"


class _Look:
    """Pictures as the backbone sees them: an input that shards are made of.

    Attributes:
        passes: times that the backbone has run since all ranks had run it equally often.
    """

    def __init__(self, recipe: Recipe, source: Source, backbone: AlignedBackbone, world: World) -> None:
        self.source, self.backbone, self.device = source, backbone, world.device
        register_fsdp_forward_method(backbone, "locked_tokens")
        self.dtype = DTYPES[recipe.training.precision]
        self.view, self.options = view_of(recipe)
        self.crops = MultiCrop(
            {self.view: self.options}, settled(recipe.data.mean), settled(recipe.data.std), recipe.model.patch
        )
        self.channels = self.crops.channels
        self.passes = 0
        nothing = self._tokens(self._nothing())
        self.passes = 0
        self.what = FeaturesPart(
            tokens=nothing.shape[1], width=nothing.shape[2], dtype=str(nothing.dtype).removeprefix("torch.")
        )
        each = nothing[0].numel() * nothing.element_size()
        count = len(source)
        self.listing = Listing(
            [f"{number:09d}".encode() for number in range(count)], [each] * count, None, None
        )

    def job(self, target: Objects) -> Job:
        """What is to be written."""
        return Job(self, target, borders(self.listing.sizes, SHARD_BYTES), None, self.what)

    def __call__(self, picture: Tensor) -> Tensor:
        """The view of a picture, [C, S, S]."""
        return self.crops(picture, 0, 0, 0)[self.view][0]

    def read(self, start: int, stop: int) -> Iterator[File]:
        """Features of the pictures numbered start..stop-1."""
        numbers = torch.arange(start, stop).numpy()
        for part, loaded in viewed(self.source, numbers, self, BATCH):
            good = [item for item in loaded if isinstance(item, Tensor)]
            tokens = iter(self._tokens(torch.stack(good) if good else self._nothing()))
            for number, item in zip(part, loaded, strict=True):
                file = item if isinstance(item, BrokenPicture) else to_bytes(next(tokens))
                yield self.listing.names[number], file

    def idle(self, passes: int) -> None:
        """Runs the backbone as often as is left of so many times, and begins to count anew."""
        for _ in range(self.passes, passes):
            self._tokens(self._nothing())
        self.passes = 0

    def _nothing(self) -> Tensor:
        return torch.zeros(1, self.channels, self.options.size, self.options.size)

    def _tokens(self, pictures: Tensor) -> Tensor:
        self.passes += 1
        found: Tensor = self.backbone.locked_tokens(pictures.to(self.device, self.dtype))
        return found
