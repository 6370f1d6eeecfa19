"""Carries out a suite: checks what it needs, extracts what is shared, runs each evaluation on one rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch.distributed import ProcessGroup

from scholarch.collectives import rank, world_size
from scholarch.data.annotated import DATA_SETS
from scholarch.data.annotated.face import Annotated, SplitName
from scholarch.data.source import BrokenPicture
from scholarch.draws import generator
from scholarch.errors import UserError
from scholarch.evaluation import outputs
from scholarch.evaluation.face import Evaluation, Given, Needs, Outcome, Seen
from scholarch.evaluation.store import Request, Stored, Subject, extract
from scholarch.evaluation.suite import Suite
from scholarch.storage.objects import Objects


@dataclass(frozen=True)
class Chosen:
    """A split with the samples that are used, numbers rising."""

    split: Annotated
    indices: np.ndarray


Data = Mapping[str, Mapping[SplitName, Chosen]]
"""Splits by name of the suite's data."""


def open_data(suite: Suite) -> Data:
    """The suite's data, and the samples of each split that it wants.

    Raises:
        UserError: if something is not there, or lacks what an evaluation needs.
    """
    found = {}
    for name, section in suite.data.items():
        splits = DATA_SETS[section.kind](section.address)
        most = {"train": section.train, "test": section.test}
        found[name] = {split: _chosen(data, most[split]) for split, data in splits.items()}
    for name, evaluation in suite.built().items():
        _check(name, evaluation.needs(), suite.data_of(name), found[suite.data_of(name)])
    return found


def _chosen(data: Annotated, most: int | None) -> Chosen:
    count = len(data) if most is None else min(len(data), most)
    return Chosen(data, np.sort(generator(0, "evaluation").permutation(len(data))[:count]).astype(np.int64))


def _check(name: str, needs: Needs, data: str, splits: Mapping[SplitName, Chosen]) -> None:
    for split in needs.splits:
        if split not in splits:
            raise UserError(
                f"{data} has no {split} split",
                where=f"evaluations.{name}",
                fix=f"run it on other data: evaluations.{name}.data=NAME",
            )
        lacking = sorted(needs.known - splits[split].split.kinds)
        if lacking:
            raise UserError(
                f"{data} does not know {' and '.join(lacking)} of its samples",
                where=f"evaluations.{name}",
                fix=f"run it on other data: evaluations.{name}.data=NAME",
            )
        if len(splits[split].indices) == 0:
            raise UserError(f"the {split} split is empty", where=f"data.{data}", fix="name data with samples")


def fingerprint(splits: Mapping[SplitName, Chosen]) -> str:
    """Of both splits, and of the samples that are used."""
    from scholarch.data.source import listing_fingerprint

    return listing_fingerprint(
        (f"{split}:{chosen.split.fingerprint()}".encode() + chosen.indices.tobytes(), len(chosen.indices))
        for split, chosen in sorted(splits.items())
    )


@dataclass(frozen=True)
class Plan:
    """What a suite needs of the models, and who runs what.

    Attributes:
        suite: as it was read.
        data: opened.
        subject: the model.
        references: other models by the address that an evaluation names.
    """

    suite: Suite
    data: Data
    subject: Subject
    references: Mapping[str, Subject]

    def check(self) -> None:
        """Whether the models have all outputs that are needed.

        Raises:
            UserError: naming what one lacks.
        """
        for request in self.requests():
            outputs.check(request.subject.backbone, request.wanted)

    def requests(self) -> list[Request]:
        """One for each model, split and view, with the outputs of all evaluations together."""
        found: dict[str, Request] = {}
        for name, evaluation in self.suite.built().items():
            needs = evaluation.needs()
            for split in needs.splits:
                for size in needs.sizes:
                    for reference in {False, bool(needs.reference)}:
                        one = self._request(name, needs, split, size, reference)
                        known = found.get(one.key)
                        found[one.key] = replace(one, wanted=one.wanted | known.wanted) if known else one
        return list(found.values())

    def _request(self, name: str, needs: Needs, split: SplitName, size: float, reference: bool) -> Request:
        chosen = self.data[self.suite.data_of(name)][split]
        subject = self.references[needs.reference] if reference else self.subject
        base = self.suite.size_of(name) or self.subject.size
        return Request(subject, chosen.split, chosen.indices, needs.view, round(base * size), needs.outputs)

    def given(self, name: str, objects: Objects) -> Given:
        """What the evaluation `name` is given; shards are read when they are looked at."""
        needs = self.suite.built()[name].needs()
        opened: dict[tuple[SplitName, float, bool], Stored] = {}

        def seen(split: SplitName, size: float, reference: bool) -> Seen:
            key = (split, size, reference)
            if key not in opened:
                opened[key] = Stored(self._request(name, needs, *key), objects)
            return opened[key]

        splits = {split: chosen.split for split, chosen in self.data[self.suite.data_of(name)].items()}
        subject = self.subject
        return Given(
            data=splits,
            backbone=subject.backbone,
            seen=seen,
            patch=subject.backbone.patch,
            views=subject.view,
        )


def extract_all(
    plan: Plan,
    objects: Objects,
    *,
    batch: int,
    group: ProcessGroup | None = None,
    each: Callable[[], None] = lambda: None,
) -> int:
    """Makes all shards that are missing; every rank must call it, and wait for the others afterwards.

    Returns:
        how many of them this rank made.
    """
    return sum(extract(request, objects, batch=batch, group=group, each=each) for request in plan.requests())


def run_share(
    plan: Plan,
    objects: Objects,
    *,
    group: ProcessGroup | None = None,
    each: Callable[[str], None] = lambda _: None,
) -> dict[str, Outcome]:
    """This rank's evaluations, each of which is run by one rank.

    Args:
        each: is called with the name of each before it is run.

    Raises:
        UserError: if no sample of a split could be read, or an annotation cannot.
    """
    mine = list(plan.suite.built().items())[rank(group) :: world_size(group)]
    return {name: _run(name, evaluation, plan, objects, each) for name, evaluation in mine}


def _run(
    name: str, evaluation: Evaluation, plan: Plan, objects: Objects, each: Callable[[str], None]
) -> Outcome:
    each(name)
    given, data = plan.given(name, objects), plan.suite.data_of(name)
    for split in evaluation.needs().splits:
        if not len(given.features(split)):
            raise UserError(f"no picture of {split} can be read", where=f"data.{data}", fix="mend its files")
    try:
        return evaluation.run(given)
    except BrokenPicture as broken:
        raise UserError(
            f"the annotation of {broken.name} cannot be used: {broken.why}",
            where=f"data.{data}",
            fix="mend or remove the sample",
        ) from broken


def samples_read(plan: Plan, objects: Objects) -> dict[str, dict[SplitName, int]]:
    """How many samples of each split were read, by name of the data; 0 of those that no evaluation reads."""
    found: dict[str, dict[SplitName, int]] = {name: {} for name in plan.data}
    for name, evaluation in plan.suite.built().items():
        for split in evaluation.needs().splits:
            given = plan.given(name, objects)
            size = evaluation.needs().sizes[0]
            found[plan.suite.data_of(name)][split] = len(given.features(split, size))
    return found
