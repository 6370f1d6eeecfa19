"""Teachers over time: moving average, snapshot, frozen (design.md section 3)."""

from __future__ import annotations

from collections.abc import Mapping

from scholarch.config.schema import RefreshSection, TeacherSection
from scholarch.training.learner import Learner
from scholarch.training.networks import Network, copy_weights, move_average


def due(refresh: RefreshSection, step: int) -> bool:
    """Whether a snapshot is taken after `step` (reference.md section 3.7).

    Counted in finished steps: at `first`, then at every multiple of `every`, `at_most` times. A
    function of the step alone, so a resumed run takes the same snapshots.
    """
    finished = step + 1
    if finished < refresh.first or finished % refresh.every:
        return False
    taken = finished // refresh.every - -(-refresh.first // refresh.every)
    return refresh.at_most is None or taken < refresh.at_most


class Teachers:
    """Moves the teachers of a learner after the optimizer's step.

    Args:
        learner: with the networks.
        options: the recipe's section by teacher name, schedules in steps.
    """

    def __init__(self, learner: Learner, options: Mapping[str, TeacherSection]) -> None:
        self.options = options
        self.student = learner.student
        self.networks: dict[str, Network] = {}
        for name, network in learner.teachers.items():
            assert isinstance(network, Network)
            self.networks[name] = network

    def rates(self, step: int) -> dict[str, float]:
        """The momentum of each moving average at `step`."""
        return {
            f"momentum/{name}": options.momentum(step)
            for name, options in self.options.items()
            if options.weights == "ema"
        }

    def step(self, step: int) -> None:
        """Moving averages first, from the updated student; then snapshots of them."""
        for name, options in self.options.items():
            if options.weights == "ema":
                move_average(self.networks[name], self.student, options.momentum(step))
        for name, options in self.options.items():
            if options.weights == "snapshot" and options.refresh and due(options.refresh, step):
                copy_weights(self.networks[name], self.networks[options.of])
