"""What is measured while a run trains, beside the trainer's own health numbers."""

from __future__ import annotations

from collections.abc import Mapping

from scholarch.cli.plan import Plan
from scholarch.config.schema import settled
from scholarch.data.views import EvaluationView
from scholarch.evaluation import knn
from scholarch.evaluation.features import Pictures, extract
from scholarch.training.distributed import World
from scholarch.training.learner import Learner, StepValues
from scholarch.training.networks import Network

BATCH = 256


class KnnProbe:
    """k-NN accuracy of a network: labels of the training pictures, queries from the held-out one.

    Args:
        plan: with labelled, split data.
        learner: with the network.
        part: where in it that is, such as "teachers.ema".
        world: all ranks take part.
    """

    def __init__(self, plan: Plan, learner: Learner, part: str, world: World) -> None:
        assert plan.split.labelled is not None
        assert plan.split.held is not None
        network = learner.get_submodule(part)
        assert isinstance(network, Network)
        self.backbone, self.world, self.options = network.backbone, world, plan.recipe.evaluation
        data, size = plan.recipe.data, settled(self.options.size)
        view = EvaluationView(size, settled(data.mean), settled(data.std))
        most = self.options.at_most
        self.train = Pictures.read(plan.split.labelled, view, at_most=most, group=world.group)
        self.held = Pictures.read(plan.split.held, view, at_most=most, group=world.group)

    def __call__(self, finished: int, values: StepValues) -> Mapping[str, float]:  # noqa: ARG002 - a Probe
        train, held = (
            extract(self.backbone, split, device=self.world.device, batch=BATCH, group=self.world.group)
            for split in (self.train, self.held)
        )
        value = knn.accuracy(
            train, held, neighbours=self.options.neighbours, temperature=self.options.temperature
        )
        return {"evaluation/knn": value}
