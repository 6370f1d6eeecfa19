"""One training step's mathematics: teachers, targets, student, terms, gradients.

Needs torch and NumPy alone. The optimizer, data loading, checkpoints and logging are the trainer's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from scholarch.draws import Draws
from scholarch.models.features import Features, Views
from scholarch.models.heads import ProjectionHead
from scholarch.objectives.term import Output, Share, Term, Trained, pieces
from scholarch.training.grains import OrderedGradients
from scholarch.training.networks import Network


class Pictures(Protocol):
    """What the learner reads of a micro-batch (scholarch.data.loader.MicroBatch)."""

    views: dict[str, Tensor]  # [V, b, C, H, W]; "VIEW/teacher" where teachers are shown something else;
    # captions are a view too: token ids [1, b, L] int64; kept features of a locked backbone [1, b, T, D]
    masks: dict[str, Tensor]  # [V, b, N], by view; "VIEW/predicted" where fewer are predicted
    positions: Tensor  # [b], on the host
    places: dict[str, Tensor]  # by mask [M]: its True places in flattened [V, b, N]; may be empty
    bottlenecks: dict[str, dict[Output, Tensor]]  # by teacher, where it ran elsewhere; may be empty


@dataclass
class StepValues:
    """This rank's share of a step.

    Attributes:
        parts: weighted term parts by name ("dino/global"), scalars, before the sum over ranks.
        drawn: what terms give to the health report, summed over micro-batches.
        observed: features of the last micro-batch, for health: of the first teacher that moves, or of
            the student where no term reads one.
    """

    parts: dict[str, Tensor] = field(default_factory=dict)
    drawn: dict[str, Tensor] = field(default_factory=dict)
    observed: dict[str, Features] = field(default_factory=dict)


class Learner(nn.Module):
    """A student, its teachers and the terms between them.

    Args:
        student: trained network.
        teachers: networks by name, in eval mode whatever `train()` is called with.
        sees: views that each teacher is shown.
        frozen: names of teachers that never change, and so are in no checkpoint.
        shown: views whose masks hide nothing from the student; terms read what is there all the same.
        terms: by name; each reads one teacher (`options.teacher`) or none.
        seed: the run's seed.
        group: the ranks that share the global batch; None for one process.
    """

    def __init__(
        self,
        student: Network,
        teachers: Mapping[str, Network],
        sees: Mapping[str, Sequence[str]],
        terms: Mapping[str, Term],
        *,
        frozen: Collection[str] = (),
        shown: Collection[str] = (),
        seed: int,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.frozen, self.shown = frozenset(frozen), frozenset(shown)
        self.student = student
        self.teachers = nn.ModuleDict(dict(teachers))
        self.terms = nn.ModuleDict(dict(terms))
        self.sees = {name: tuple(views) for name, views in sees.items()}
        self.seed = seed
        self.group = group
        self._check_views()

    def _check_views(self) -> None:
        for name, term in self._terms():
            teacher = term.options.teacher
            for output in term.teacher_outputs() if teacher else ():
                if output.view not in self.sees[teacher]:
                    raise ValueError(
                        f"term {name} reads the {output.view} views of teacher {teacher}, which sees "
                        f"{', '.join(self.sees[teacher])}; add the view to teachers.{teacher}.sees"
                    )

    def train(self, mode: bool = True) -> Learner:
        """As nn.Module.train, but teachers stay in eval mode (reference.md 15.3)."""
        super().train(mode)
        self.teachers.eval()
        return self

    def _terms(self) -> Iterator[tuple[str, Term]]:
        for name, term in self.terms.items():
            assert isinstance(term, Term)
            yield name, term

    def trained_terms(self) -> dict[str, Trained]:
        """What terms train of their own, by name of the term."""
        return {name: trained for name, term in self._terms() if (trained := term.trained())}

    def accumulate(
        self,
        batches: Sequence[Pictures],
        bounds: Sequence[tuple[int, int]],
        global_batch: int,
        step: int,
        *,
        whole: bool = False,
    ) -> StepValues:
        """Adds the gradients of one step over this rank's micro-batches.

        Args:
            batches: this rank's share of each micro-batch, on the device, in the computing dtype.
            bounds: [start, stop) of the global positions of each micro-batch.
            global_batch: samples in the step over all ranks and micro-batches.
            step: from 0.
            whole: this rank holds the whole of its micro-batches, all of one size, and gradients are those
                of the global batch afterwards, summed over ranks in global order.
        """
        shares = [
            self._share(batch, bound, global_batch, step, whole=whole)
            for batch, bound in zip(batches, bounds, strict=True)
        ]
        trained = [*self.student.parameters(), *self.terms.parameters()]
        ordered = OrderedGradients(trained) if whole else None
        values = StepValues()
        active = {
            name: (term, float(term.options.weight(step)))
            for name, term in self._terms()
            if term.options.weight(step) != 0
        }
        targets = self._targets(active, batches, shares, values)
        for number, (batch, share) in enumerate(zip(batches, shares, strict=True)):
            wanted = _present([o for term, _ in active.values() for o in term.student_outputs()], batch)
            outputs = self._student(batch, share, wanted, values)
            total: Tensor | None = None
            for name, (term, weight) in active.items():
                value = term(outputs, targets[name][number], share)
                for part, tensor in value.parts.items():
                    key = f"{name}/{part}" if part else name
                    weighted = weight * tensor
                    total = weighted if total is None else total + weighted
                    _add_up(values.parts, {key: weighted.detach()})
                _add_up(values.drawn, {f"{name}/{k}": v for k, v in value.drawn.items()})
            if total is not None:
                total.backward()  # type: ignore[no-untyped-call]
            if ordered:
                ordered.take()
        if ordered:
            ordered.add_up(pieces(shares))
        return values

    def _share(
        self, batch: Pictures, bound: tuple[int, int], global_batch: int, step: int, *, whole: bool
    ) -> Share:
        return replace(
            share_of(batch, bound, global_batch, step),
            grids={
                name: _grid(self.student, images) for name, images in batch.views.items() if images.dim() == 5
            },
            teacher_grids={
                name: {
                    view: _grid(teacher, batch.views.get(f"{view}/teacher", batch.views[view]))
                    for view in self.sees[name]
                    if view in batch.views
                }
                for name, teacher in self.teachers.items()
                if isinstance(teacher, Network)
            },
            group=self.group,
            whole=whole,
        )

    @torch.no_grad()
    def _targets(
        self,
        active: Mapping[str, tuple[Term, float]],
        batches: Sequence[Pictures],
        shares: Sequence[Share],
        values: StepValues,
    ) -> dict[str, Sequence[Any]]:
        """Each teacher runs once over all micro-batches; then every term makes its targets."""
        outputs: dict[str, list[dict[Output, Tensor]]] = {}
        watched = next((name for name in self.teachers if name not in self.frozen), None)
        for name, teacher in self.teachers.items():
            read = [o for t, _ in active.values() if t.options.teacher == name for o in t.teacher_outputs()]
            wanted = _present(read, batches[0])
            if not wanted:
                continue
            assert isinstance(teacher, Network)
            outputs[name] = []
            for batch, share in zip(batches, shares, strict=True):
                if name in batch.bottlenecks:
                    outputs[name].append(_finished(teacher, batch.bottlenecks[name]))
                    continue
                features = teacher_features(teacher, batch, share, wanted)
                outputs[name].append(project(teacher, features, wanted, share))
                if name == watched:
                    values.observed = {f"{name}/{view}": f for view, f in features.items()}
        return {
            name: term.targets(outputs.get(term.options.teacher or "", [{} for _ in shares]), shares)
            for name, (term, _) in active.items()
        }

    def _student(
        self, batch: Pictures, share: Share, wanted: set[Output], values: StepValues
    ) -> dict[Output, Tensor]:
        seen = sorted({output.view for output in wanted})
        draws = Draws(self.seed, share.step)
        views = [self._view(batch, share, name) for name in seen]
        features = dict(zip(seen, self.student.backbone(views, draws), strict=True))
        if not any(name.partition("/")[0] in self.teachers for name in values.observed):
            pictures = {v: f for v, f in features.items() if batch.views[v].is_floating_point()}
            values.observed = {f"student/{view}": f.detached() for view, f in pictures.items()}
        return project(self.student, features, wanted, share)

    def _view(self, batch: Pictures, share: Share, name: str) -> Views:
        """A view as the student is shown it."""
        masks = batch.masks.get(name) if name not in self.shown else None
        predict = share.predicted.get(name) if masks is not None else None
        return _whole_view(batch.views[name], share, name)._replace(
            masks=None if masks is None else masks.flatten(0, 1),
            predict=None if predict is None else predict.flatten(0, 1),
        )


def _whole_view(images: Tensor, share: Share, name: str) -> Views:
    """A view, [V, b, C, H, W], with nothing hidden."""
    count = images.shape[0]
    offsets = torch.arange(count)[:, None] * share.global_batch
    return Views(
        images=images.flatten(0, 1),
        rows=(offsets + share.positions).flatten(),
        total=count * share.global_batch,
        name=name,
        local=name == "local",
    )


def teacher_features(
    teacher: Network, batch: Pictures, share: Share, wanted: Collection[Output]
) -> dict[str, Features]:
    """What a teacher's backbone makes of the views that the outputs are of, by view."""
    names = sorted({output.view for output in wanted})
    images = [batch.views.get(f"{name}/teacher", batch.views.get(name)) for name in names]
    views = [
        _whole_view(each, share, name) for name, each in zip(names, images, strict=True) if each is not None
    ]
    return dict(zip(names, teacher.backbone(views, None), strict=True))


def _grid(network: Network, images: Tensor) -> tuple[int, int]:
    patch = network.backbone.patch
    return images.shape[-2] // patch, images.shape[-1] // patch


def _present(outputs: Sequence[Output], batch: Pictures) -> set[Output]:
    """Those of views that the recipe has; a term may name local crops that a recipe leaves out."""
    return {output for output in outputs if output.view in batch.views}


def _tokens(features: Features, output: Output, share: Share) -> tuple[Tensor, tuple[int, ...]]:
    """The rows of an output, [rows, D], and the leading shape they go back to."""
    count = share.views[output.view]
    size = len(share.positions)
    if output.tokens == "cls":
        return features.cls, (count, size)
    if output.tokens == "patches":
        patches = features.patches  # [V * b, N, D]
        return patches.flatten(0, 1), (count, size, patches.shape[1])
    chosen = share.chosen(output.view, predicted=output.tokens == "predicted")
    rows = features.patches.flatten(0, 1).index_select(0, chosen)
    return rows, (rows.shape[0],)


def share_of(batch: Pictures, bound: tuple[int, int], global_batch: int, step: int) -> Share:
    """What a batch alone says of its share: arguments as of `Learner.accumulate`; no grids, no group."""
    return Share(
        step=step,
        global_batch=global_batch,
        positions=batch.positions,
        micro_batch=bound,
        views={name: images.shape[0] for name, images in batch.views.items()},
        masks=batch.masks,
        predicted={
            name: batch.masks[f"{name}/predicted"]
            for name in batch.views
            if f"{name}/predicted" in batch.masks
        },
        places=batch.places,
    )


def project(
    network: Network,
    features: Mapping[str, Features],
    wanted: Collection[Output],
    share: Share,
    until: Literal["prototypes", "bottleneck"] = "prototypes",
) -> dict[Output, Tensor]:
    """The wanted outputs; each head runs once, on all its rows together, whole or up to its bottleneck."""
    results: dict[Output, Tensor] = {}
    by_head: dict[str, list[tuple[Output, Tensor, tuple[int, ...]]]] = {}
    for output in sorted(wanted, key=str):
        if output.tokens == "scale":
            scale = features[output.view].scale
            assert scale is not None
            results[output] = scale
            continue
        rows, shape = _tokens(features[output.view], output, share)
        if output.head is None:
            results[output] = rows.reshape(*shape, rows.shape[-1])
        else:
            by_head.setdefault(output.head, []).append((output, rows, shape))
    for name, entries in by_head.items():
        results |= _together(partial(network.heads[name], until=until), entries)
    return results


def _finished(teacher: Network, bottlenecks: Mapping[Output, Tensor]) -> dict[Output, Tensor]:
    """The outputs of a teacher from what its heads gave before the prototypes."""
    results: dict[Output, Tensor] = {}
    by_head: dict[str, list[tuple[Output, Tensor, tuple[int, ...]]]] = {}
    for output, rows in bottlenecks.items():
        if output.head is None:
            results[output] = rows
        else:
            entry = output, rows.flatten(0, -2), tuple(rows.shape[:-1])
            by_head.setdefault(output.head, []).append(entry)
    for name, entries in by_head.items():
        head = teacher.heads[name]
        assert isinstance(head, ProjectionHead)
        results |= _together(head.of_prototypes, entries)
    return results


def _together(
    head: Callable[..., Tensor], entries: list[tuple[Output, Tensor, tuple[int, ...]]]
) -> dict[Output, Tensor]:
    """Runs a head once on the rows of all outputs, which then go back to their shapes."""
    entries.sort(key=lambda entry: entry[0].tokens != "cls")
    patches = sum(rows.shape[0] for output, rows, _ in entries if output.tokens != "cls")
    projected = head(torch.cat([rows for _, rows, _ in entries]), patches=patches)
    pieces = torch.split(projected, [rows.shape[0] for _, rows, _ in entries])
    return {
        output: piece.reshape(*shape, piece.shape[-1])
        for (output, _, shape), piece in zip(entries, pieces, strict=True)
    }


def _add_up(total: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    for name, tensor in more.items():
        total[name] = total[name] + tensor if name in total else tensor
