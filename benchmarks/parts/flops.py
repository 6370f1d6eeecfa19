"""Floating-point operations of a training step, counted from shapes.

A product of [a, b] and [b, c] is 2 a b c operations; norms, GELU, softmax and rotations are left out,
as is usual for MFU. What activation checkpointing computes again is not work of the model's.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from scholarch.config.schema import Recipe
from scholarch.training.assemble import view_sets


def backbone(recipe: Recipe, tokens: int, pictures: float, kept: float = 1.0) -> tuple[float, float]:
    """Forward operations of (patch embedding, blocks) on pictures of `tokens` tokens.

    Args:
        kept: share of the pictures on which a branch runs (stochastic depth).
    """
    model = recipe.model
    width, depth, _, ffn, ratio = model.shape
    patches = tokens - 1 - model.registers
    embedding = 2 * patches * width * model.channels * model.patch**2
    hidden = int(width * ratio)
    if ffn != "mlp":
        align = int(ffn.removeprefix("swiglu") or 8)
        hidden = -(-int(hidden * 2 / 3) // align) * align
    products = 3 if ffn != "mlp" else 2
    linear = 2 * tokens * width * (4 * width + products * hidden)
    attention = 4 * tokens**2 * width
    return pictures * embedding, pictures * kept * depth * (linear + attention)


def head(recipe: Recipe, name: str, rows: float) -> float:
    """Forward operations of a projection head."""
    options = recipe.heads[name]
    hidden = [options.hidden] * (options.layers - 1)
    widths = [recipe.model.shape.embed_dim, *hidden, options.bottleneck, options.prototypes]
    return rows * sum(2 * a * b for a, b in itertools.pairwise(widths))


def step(recipe: Recipe, pictures: int, masked: float) -> dict[str, float]:
    """Operations of a step of DINO and iBOT with a teacher of the student's shape.

    Args:
        pictures: of the batch.
        masked: patches that are masked, in all.

    Returns:
        "student" (forward and backward), "teacher" (forward), "total".
    """
    (_, views), *_ = view_sets(recipe)
    tokens = {n: 1 + recipe.model.registers + (v.size // recipe.model.patch) ** 2 for n, v in views.items()}
    crops: Mapping[str, int] = {name: view.crops * pictures for name, view in views.items()}
    student = 0.0
    for name, length in tokens.items():
        embedding, blocks = backbone(recipe, length, crops[name], 1 - recipe.model.stochastic_depth)
        student += 2 * embedding + 3 * blocks  # pictures need no gradient
    student += 3 * (head(recipe, "dino", sum(crops.values())) + head(recipe, "ibot", masked))
    teacher = sum(backbone(recipe, tokens["global"], crops["global"]))
    teacher += head(recipe, "dino", crops["global"]) + head(recipe, "ibot", masked)
    return {"student": student, "teacher": teacher, "total": student + teacher}
