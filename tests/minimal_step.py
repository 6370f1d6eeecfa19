"""One training step with torch and NumPy alone; run by test_minimal_environment.py, prints the loss."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from typing import Any

import scholarch
import torch
from scholarch.config.schedule import Schedule
from scholarch.models.heads import HeadOptions
from scholarch.models.vit import ViTOptions
from scholarch.objectives import TERMS
from scholarch.objectives.term import Output, Term
from scholarch.training.learner import Learner
from scholarch.training.networks import Execution, build_network, materialise, move_average

ABSENT = ("pydantic", "torchvision", "yaml", "PIL", "sklearn", "matplotlib", "mlflow", "torchx", "pandas")
GLOBAL_BATCH, SEED = 4, 7


@dataclass
class Batch:
    """What the learner reads of a micro-batch."""

    views: dict[str, torch.Tensor]
    masks: dict[str, torch.Tensor]
    positions: torch.Tensor
    places: dict[str, torch.Tensor] = field(default_factory=dict)
    bottlenecks: dict[str, dict[Output, torch.Tensor]] = field(default_factory=dict)


def options_of(term: type[Term]) -> Any:
    """The term's default options, its schedules cut to a run of ten steps."""
    options = term.Options()
    schedules = {each.name: getattr(options, each.name) for each in fields(options)}
    return replace(
        options,
        **{name: value.resolve(10) for name, value in schedules.items() if isinstance(value, Schedule)},
    )


def main() -> None:
    """Builds a student, a teacher and three terms, and moves both once."""
    model = ViTOptions(size=None, embed_dim=32, depth=2, heads=2, ffn="mlp", ffn_ratio=2, patch=4, channels=1)
    heads = {name: HeadOptions(prototypes=16, hidden=32, bottleneck=8) for name in ("dino", "ibot")}
    student, teacher = build_network(model, heads), build_network(model, heads)
    execution = Execution(device=torch.device("cpu"))
    materialise(student, execution, SEED, trained=True)
    materialise(teacher, execution, SEED, trained=False)
    terms = {name: TERMS[name](options_of(TERMS[name]), name) for name in ("dino", "ibot", "koleo")}
    for term in terms.values():
        outputs: list[Sequence[Output]] = [term.student_outputs(), term.teacher_outputs()]
        term.allocate(*({o: 16 if o.head else 32 for o in some} for some in outputs), SEED)
    learner = Learner(student, {"ema": teacher}, {"ema": ["global"]}, terms, seed=SEED).train()
    pictures = torch.Generator().manual_seed(SEED)
    batch = Batch(
        views={
            "global": torch.randn(2, GLOBAL_BATCH, 1, 16, 16, generator=pictures),
            "local": torch.randn(2, GLOBAL_BATCH, 1, 8, 8, generator=pictures),
        },
        masks={"global": torch.rand(2, GLOBAL_BATCH, 16, generator=pictures) < 0.3},
        positions=torch.arange(GLOBAL_BATCH),
    )
    adamw = torch.optim.AdamW(student.parameters(), lr=1e-3)
    values = learner.accumulate([batch], [(0, GLOBAL_BATCH)], GLOBAL_BATCH, step=0)
    before = student.backbone.blocks[0].attn.qkv.weight.detach().clone()
    adamw.step()
    moved = (student.backbone.blocks[0].attn.qkv.weight - before).abs().max()
    move_average(teacher, student, 0.99)
    loss = sum(value.item() for value in values.parts.values())
    assert moved > 0
    found = [name for name in ABSENT if find_spec(name)]
    sys.stdout.write(f"{scholarch.__version__} {loss:.6f} {len(values.parts)} parts, also here: {found}\n")


if __name__ == "__main__":
    main()
