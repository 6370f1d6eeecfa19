"""Small pictures with copies among them, a recipe over them, and a backbone that was never trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from scholarch.curation.embedding import Embedder
from scholarch.curation.recipe import CurationRecipe
from scholarch.data.views import EvaluationView
from scholarch.models import build_backbone
from scholarch.models.features import Backbone
from scholarch.models.initialise import initialise
from scholarch.models.vit import ViTOptions
from scholarch.registry.backbone import Preprocessing, save_backbone

OPTIONS = ViTOptions(size=None, embed_dim=16, depth=1, heads=2, patch=8, ffn="mlp", ffn_ratio=2.0)
MEAN = STD = (0.5, 0.5, 0.5)

RECIPE: dict[str, Any] = {
    "pool": {"web": "web"},
    "references": {"known": "known"},
    "evaluations": {"test": "test"},
    "embed": {"model": "tiny", "part": 25, "batch": 16},
    "deduplicate": {
        "hash_bits": 1,
        "threshold": 0.9998,
        "evaluation_threshold": 0.9998,
        "neighbours": {"k": 6},
    },
    "cluster": {
        "levels": [
            {"clusters": 8, "iterations": 5, "rounds": 1, "sample": 3},
            {"clusters": 3, "iterations": 5, "rounds": 1, "sample": 2},
        ]
    },
    "sample": {"pictures": 12},
    "retrieve": {"like": {"like": ["known"], "each": 2}},
    "mix": {
        "chosen": {"of": "sample", "weight": 3.0},
        "found": {"of": "retrieve/like"},
        "references": {"of": "references/known", "homogeneous": 0.1},
    },
}


def picture(seed: int, side: int = 32) -> Image.Image:
    """Coloured patches of random sizes."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def write_pictures(folder: Path) -> None:
    """50 pictures of a pool, 10 copies of some and a broken one; 5 references; 2 evaluated, one of them in the pool."""
    for name in ("web", "known", "test"):
        (folder / name).mkdir()
    for number in range(50):
        picture(number).save(folder / "web" / f"{number:02d}.png")
    for number in range(10, 20):
        picture(number).save(folder / "web" / f"copy-{number:02d}.jpg", quality=95, subsampling=0)
    (folder / "web" / "broken.png").write_bytes(b"no picture")
    for number in range(5):
        picture(100 + number).save(folder / "known" / f"{number}.png")
    picture(0).save(folder / "test" / "same.png")
    picture(200).save(folder / "test" / "other.png")


def write_recipe(folder: Path) -> Path:
    """The recipe, its sets below the folder."""
    data = dict(RECIPE)
    for group in ("pool", "references", "evaluations"):
        data[group] = {name: str(folder / place) for name, place in RECIPE[group].items()}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def drawn_backbone() -> Backbone:
    """Initialised, then moved far enough that pictures differ in its features."""
    backbone = build_backbone(OPTIONS)
    initialise(backbone, 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return backbone


def embedders(recipe: CurationRecipe) -> dict[str, Embedder]:
    """The models of the recipe, which are one."""
    backbone, view = drawn_backbone().eval(), EvaluationView(32, MEAN, STD)
    other = recipe.deduplicate.model if recipe.deduplicate else None
    section = recipe.embed
    return {
        name: Embedder(name, name, backbone, view, "fp32", section.stored, section.batch)
        for name in (section.model, other)
        if name
    }


def write_model(folder: Path) -> Path:
    """The same kind of backbone as an export."""
    folder.mkdir()
    backbone = drawn_backbone()
    save_backbone(folder, OPTIONS, backbone.state_dict(), Preprocessing(size=32, mean=MEAN, std=STD))
    return folder
