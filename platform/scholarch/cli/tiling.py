"""Who trains which student: as the recipe has it, as measured steps have it, or as counted operations have it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from scholarch.cli.origins import of_teachers
from scholarch.config.schema import Recipe
from scholarch.distillation.costs import counted, together
from scholarch.distillation.groups import Tiling, tile
from scholarch.distillation.measured import Measured, Observed, better, hardware_name, idle
from scholarch.distillation.planner import plan_job
from scholarch.errors import UserError
from scholarch.storage.objects import open_objects
from scholarch.training.distributed import World
from scholarch.training.recipe import student_recipe


@dataclass
class Planning:
    """The plan of a job, and what its steps say of it; the same on all processes.

    Attributes:
        recipe: with its students.
        names: of those that take part.
        address: of the run, where measured costs are kept.
        measured: on this hardware.
        last: it stays, whatever its steps cost.
    """

    recipe: Recipe
    names: Sequence[str]
    address: str
    world: World
    measured: Measured
    last: bool

    def tiling(self) -> Tiling:
        """Of as many processes as there are.

        Raises:
            UserError: if there are fewer than students, or more than pictures.
        """
        recipe, size = self.recipe, self.world.size
        batch = recipe.training.global_batch
        if recipe.groups or size < len(self.names):
            shares = {name: float(recipe.groups.get(name, 1)) for name in self.names}
            return tile(self.names, shares, size, batch)
        costs = self.measured.costs(self.names)
        if costs is None:
            known, _ = of_teachers(recipe)
            costs = counted({name: student_recipe(known, name) for name in self.names})
        return plan_job(costs, size, batch).tiling

    def replanned(self, seen: Sequence[Observed]) -> bool:
        """Keeps what the steps cost; whether another plan is worth an end here and a start from the checkpoint."""
        self.measured = self.measured.with_seen(seen)
        if self.world.first:
            self.measured.write(open_objects(self.address))
        costs = self.measured.costs(self.names)
        if costs is None or self.recipe.groups or self.last:
            return False
        found = better(costs, seen, self.recipe.training.global_batch)
        if found is not None and self.world.first:
            waited = idle(seen, together=costs.together)
            print(
                f"{waited:.1%} of the processes' time is waiting: planned anew, for {found.idle:.1%}",
                file=sys.stderr,
                flush=True,
            )
        return found is not None


def planning(
    recipe: Recipe, names: Sequence[str], addresses: tuple[str, str], world: World, *, last: bool
) -> Planning:
    """With what is known of this hardware; all processes take part.

    Args:
        addresses: of the run, and of another that is asked where this one has not measured its steps yet ("": none).

    Raises:
        UserError: if nothing was measured in the other one.
    """
    nothing = Measured(
        hardware_name(world.device), together([student_recipe(recipe, name) for name in names])
    )
    found = world.from_first(world.agree(lambda: _known(*addresses) if world.first else None))
    usable = found is not None and (found.hardware, found.together) == (nothing.hardware, nothing.together)
    if found is not None and not usable and world.first:
        print(
            f"steps measured on {found.hardware}, or with the teacher spread otherwise, say nothing here: "
            "planned from counted operations",
            file=sys.stderr,
            flush=True,
        )
    return Planning(recipe, names, addresses[0], world, found if usable else nothing, last)


def _known(address: str, other: str) -> Measured | None:
    found = Measured.read(open_objects(address))
    if found is None and other and (found := Measured.read(open_objects(other))) is None:
        raise UserError(
            "no steps were measured in this run",
            where=f"--costs {other}",
            fix="name a run of scholarch distill that got beyond its first checkpoint",
        )
    return found
