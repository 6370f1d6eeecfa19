"""The steps of a curation in their order; a step whose inputs are what they were is not carried out again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from scholarch.curation.duplicates import components, kept_of, pairs_of, same_hash, seen_in_evaluation
from scholarch.curation.embedding import Embedder, embed
from scholarch.curation.hierarchy import Level, Tree, hierarchical_kmeans, tree_of
from scholarch.curation.kmeans import KMeansOptions, assign, kmeans
from scholarch.curation.neighbours import Neighbours, neighbours
from scholarch.curation.pool import DataSet, Rows
from scholarch.curation.recipe import CurationRecipe, RetrieveSection, SetSection
from scholarch.curation.retrieval import by_cluster, by_sample
from scholarch.curation.sampling import sample, sample_by_source
from scholarch.curation.stages import Result, Stage
from scholarch.curation.vectors import Chosen, UnitVectors, Vectors
from scholarch.curation.workers import Engine
from scholarch.data.index import SELECTION
from scholarch.data.selection import Piece, SelectedPart, Selection, write_piece
from scholarch.data.source import Source
from scholarch.draws import generator
from scholarch.errors import UserError
from scholarch.storage.objects import Objects, is_s3, open_objects

GALLERY_PAIRS = 64
"""Pairs on either side of a threshold that are kept to be looked at."""
_BELOW = 0.1
KEPT, SAME_HASH, NEAR, EVALUATED = range(4)
"""Why a picture stays or goes."""


@dataclass
class Outcome:
    """What the steps came to.

    Attributes:
        rows: of the pool.
        results: by step, in order.
        reused: steps that were there.
        duplicates: arrays of the step deduplicate; empty without it.
        levels: of the tree; empty without one.
        chosen: rows by what the mixture can be made of.
        mixture: address that `data=` takes.
    """

    rows: Rows
    results: dict[str, Result]
    reused: list[str]
    duplicates: dict[str, np.ndarray] = field(default_factory=dict)
    levels: list[Level] = field(default_factory=list)
    chosen: dict[str, np.ndarray] = field(default_factory=dict)
    mixture: str = ""

    @property
    def tree(self) -> Tree:
        """Over the pictures that deduplication left."""
        return tree_of(self.levels)


class Curation:
    """Carries out a recipe.

    Args:
        run: where results go.
        open_set: opens a data set.
        embedders: by name of a model in the recipe.
        say: told what happens, a line each.
    """

    def __init__(
        self,
        recipe: CurationRecipe,
        run: Objects,
        engine: Engine,
        open_set: Callable[[SetSection], Source],
        embedders: Mapping[str, Embedder],
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.run, self.engine, self.embedders, self.say = recipe, run, engine, embedders, say
        self.results: dict[str, Result] = {}
        self.reused: list[str] = []
        self._stages: dict[tuple[str, str], Stage] = {}
        self.sets = {
            f"{group}/{name}": DataSet(name, section, open_set(section))
            for group in ("pool", "references", "evaluations")
            for name, section in sorted(getattr(recipe, group).items())
        }

    def carry_out(self) -> Outcome:
        """All steps.

        Raises:
            UserError: if a step cannot be done with these pictures.
            RunFailed: if workers cannot go on.
        """
        recipe = self.recipe
        told = Outcome(self._rows("pool"), self.results, self.reused)
        kept = np.arange(len(told.rows))
        inputs = dict(told.rows.keys)
        if recipe.deduplicate is not None:
            stage = self._deduplicate(told)
            kept, inputs = told.duplicates["kept"], {"deduplicate": stage.key}
        told.chosen["deduplicated"] = kept
        vectors = Chosen(UnitVectors(told.rows.vectors), kept)
        if recipe.cluster is not None:
            stage = self._cluster(vectors, inputs, told)
            inputs_of_sample = {"cluster": stage.key}
        else:
            inputs_of_sample = inputs
        if recipe.sample is not None:
            self._sample(kept, inputs_of_sample, told)
        for name, section in recipe.retrieve.items():
            self._retrieve(name, section, vectors, kept, inputs, told)
        self._mix(told)
        return told

    def _rows(self, group: str, model: str | None = None) -> Rows:
        names = [name for name in self.sets if name.startswith(f"{group}/")]
        stages = [self._embedded(name, model or self.recipe.embed.model) for name in names]
        return Rows.of(self.run, [self.sets[name] for name in names], stages)

    def _embedded(self, name: str, model: str) -> Stage:
        """The stage of a data set's vectors, which are made at the first call."""
        if (name, model) not in self._stages:
            embedder, source = self.embedders[model], self.sets[name].source
            step = "embed" if model == self.recipe.embed.model else "embed-copies"
            self.say(f"{step}/{name}: {len(source):,} pictures, by {embedder.name}")
            stage, reused = embed(
                self.run, f"{step}/{name}", source, embedder, self.recipe.embed.part, self.engine
            )
            self._note(stage, reused)
            self._stages[name, model] = stage
        return self._stages[name, model]

    def _note(self, stage: Stage, reused: bool) -> None:
        result = stage.finished()
        assert result is not None
        self.results[stage.step] = result
        if reused:
            self.reused.append(stage.step)
        counts = ", ".join(f"{value:,} {name}" for name, value in result.counts.items())
        self.say(f"{stage.step}: {counts}{' (as before)' if reused else f', {result.seconds:.0f} s'}")

    def _done(self, stage: Stage, work: Callable[[Stage], Mapping[str, int]]) -> None:
        """Carries out a step unless its result is there."""
        reused = stage.finished() is not None
        if not reused:
            stage.commit(work(stage))
        self._note(stage, reused)

    def _deduplicate(self, told: Outcome) -> Stage:
        section = self.recipe.deduplicate
        assert section is not None
        rows, model = told.rows, section.model or self.recipe.embed.model
        copies = rows if model == self.recipe.embed.model else self._rows("pool", model)
        seen = self._rows("evaluations", model) if self.recipe.evaluations else None
        if not np.array_equal(copies.numbers, rows.numbers):
            raise UserError("another model cannot read the same pictures", where="deduplicate.model")
        keys = {**copies.keys, **({f"evaluations/{n}": k for n, k in seen.keys.items()} if seen else {})}
        stage = Stage(
            self.run, "deduplicate", keys, {**section.model_dump(mode="json"), "seed": self.recipe.seed}
        )
        self._done(stage, partial(self._find_duplicates, copies, seen))
        told.duplicates = stage.load("duplicates")
        return stage

    def _find_duplicates(self, rows: Rows, seen: Rows | None, stage: Stage) -> dict[str, int]:
        section, total = self.recipe.deduplicate, len(rows)
        assert section is not None
        sizes = rows.bytes if section.keep == "largest" else None
        why = np.full(total, KEPT, np.int8)
        if section.hash_bits is not None:
            pairs = same_hash(rows.hashes, section.hash_bits)
            why[~kept_of(components(pairs.first, pairs.second, total), sizes)] = SAME_HASH
        left = np.flatnonzero(why == KEPT)
        vectors, count = Chosen(rows.vectors, left), len(left)
        search = partial(neighbours, options=section.neighbours, seed=self.recipe.seed)
        found = search(vectors, vectors, itself=True, mapper=stage.keeping(self.engine.map, "pool"))
        lowest = min(section.threshold, section.evaluation_threshold if seen else section.threshold)
        pairs = pairs_of(found, lowest - _BELOW)
        near = pairs.above(section.threshold)
        component = components(near.first, near.second, count)
        mine = None if sizes is None else sizes[left]
        why[left[~kept_of(component, mine)]] = NEAR
        if seen is not None:
            one = dataclasses.replace(section.neighbours, k=1)
            mapper = stage.keeping(self.engine.map, "evaluations")
            matches: Neighbours = search(vectors, seen.vectors, options=one, mapper=mapper)
            hit = seen_in_evaluation(pairs, matches, section.evaluation_threshold, count)
            why[left[hit]] = EVALUATED
        order = np.argsort(np.abs(pairs.similarities - section.threshold), kind="stable")[:GALLERY_PAIRS]
        stage.save(
            "duplicates",
            kept=np.flatnonzero(why == KEPT),
            why=why,
            first=left[near.first],
            second=left[near.second],
            similarities=near.similarities,
            around=np.stack([left[pairs.first[order]], left[pairs.second[order]]]),
            around_similarities=pairs.similarities[order],
        )
        counts = {"pictures in": total, "of the same hash": int((why == SAME_HASH).sum())}
        counts |= {"near-duplicates": int((why == NEAR).sum())}
        counts |= {"like an evaluation": int((why == EVALUATED).sum())} if seen is not None else {}
        return {**counts, "pictures out": int((why == KEPT).sum())}

    def _cluster(self, vectors: Vectors, inputs: Mapping[str, str], told: Outcome) -> Stage:
        section = self.recipe.cluster
        assert section is not None
        stage = Stage(
            self.run, "cluster", inputs, {**section.model_dump(mode="json"), "seed": self.recipe.seed}
        )
        self._done(stage, partial(self._find_clusters, vectors))
        told.levels = [Level(**stage.load(f"level-{number}")) for number in range(len(section.levels))]
        return stage

    def _find_clusters(self, vectors: Vectors, stage: Stage) -> dict[str, int]:
        section = self.recipe.cluster
        assert section is not None
        done: list[Level] = []
        while (kept := stage.kept(f"level-{len(done)}")) is not None:
            done.append(Level(**kept))
        begun = stage.kept(f"round-of-{len(done)}")
        check_clusters(section.levels[0], vectors, "cluster.levels.0")

        def after_round(level: int, turn: int, centroids: np.ndarray) -> None:
            self.say(f"  level {level}: {len(centroids):,} clusters, round {turn}")
            stage.keep(f"round-of-{level}", turn=turn, centroids=centroids)

        levels = hierarchical_kmeans(
            vectors,
            section.levels,
            self.recipe.seed,
            self.engine.map,
            done=done,
            begun=None if begun is None else (int(begun["turn"]), begun["centroids"]),
            after_round=after_round,
            after_level=lambda number, level: stage.keep(f"level-{number}", **vars(level)),
        )
        for number, level in enumerate(levels):
            stage.save(f"level-{number}", **vars(level))
        counts = {f"clusters of level {number}": len(level.centroids) for number, level in enumerate(levels)}
        return {"pictures in": vectors.shape[0], **counts}

    def _sample(self, kept: np.ndarray, inputs: Mapping[str, str], told: Outcome) -> None:
        section, recipe = self.recipe.sample, self.recipe
        assert section is not None
        stage = Stage(self.run, "sample", inputs, {**section.model_dump(mode="json"), "seed": recipe.seed})

        def work(stage: Stage) -> dict[str, int]:
            # Without a tree the pictures are one cluster.
            tree = told.tree if told.levels else Tree([np.zeros(len(kept), np.int32)], [1])
            closest = told.levels[0].distances if section.choose == "closest" and told.levels else None
            how = {"by": section.by, "copies": section.copies, "distances": closest}
            if section.quotas is not None:
                names = [one.name for one in told.rows.sets]
                quotas = {names.index(name): count for name, count in section.quotas.items()}
                chosen = sample_by_source(tree, quotas, told.rows.owners[kept], recipe.seed, **how)  # type: ignore[arg-type]
            else:
                assert section.pictures is not None
                chosen = sample(tree, section.pictures, recipe.seed, **how)  # type: ignore[arg-type]
            stage.save("sample", rows=kept[chosen])
            return {
                "pictures in": len(kept),
                "pictures out": len(chosen),
                "different": len(np.unique(chosen)),
            }

        self._done(stage, work)
        told.chosen["sample"] = stage.load("sample")["rows"]

    def _retrieve(
        self,
        name: str,
        section: RetrieveSection,
        vectors: Vectors,
        kept: np.ndarray,
        inputs: Mapping[str, str],
        told: Outcome,
    ) -> None:
        model, seed = self.recipe.embed.model, self.recipe.seed
        stages = [self._embedded(f"references/{other}", model) for other in section.like]
        like = [self.sets[f"references/{other}"] for other in section.like]
        asked = Rows.of(self.run, like, stages)
        keys = {**inputs, **{f"references/{key}": value for key, value in asked.keys.items()}}
        stage = Stage(self.run, f"retrieve/{name}", keys, {**section.model_dump(mode="json"), "seed": seed})

        def work(stage: Stage) -> dict[str, int]:
            queries = UnitVectors(asked.vectors)
            if section.form == "sample":
                options = section.neighbours
                if section.collisions == "share":
                    options = dataclasses.replace(options, k=section.each)
                found = neighbours(queries, vectors, options, seed, stage.keeping(self.engine.map, "queries"))
                chosen = by_sample(
                    found, section.each, collisions=section.collisions, sources=asked.owners, cap=section.cap
                )
            else:
                assert section.clusters is not None
                check_clusters(section.clusters, vectors, f"retrieve.{name}.clusters")
                own_seed = int(generator(seed, "retrieve", name).integers(1 << 62))
                centroids = kmeans(vectors, section.clusters, own_seed, self.engine.map)
                of_pool, of_queries = (
                    assign(v, centroids, self.engine.map).clusters for v in (vectors, queries)
                )
                chosen = by_cluster(
                    of_pool,
                    of_queries,
                    len(centroids),
                    section.each,
                    own_seed,
                    more_than=section.more_than,
                    sources=asked.owners,
                    cap=section.cap,
                )
            stage.save("retrieve", rows=kept[chosen])
            return {"queries": len(asked), "pictures in": len(kept), "pictures out": len(chosen)}

        self._done(stage, work)
        told.chosen[f"retrieve/{name}"] = stage.load("retrieve")["rows"]

    def _mix(self, told: Outcome) -> None:
        recipe = self.recipe
        lineage = {step: result.key for step, result in told.results.items()}
        places = {name: _place(one.section.source) for name, one in self.sets.items()}
        parameters = {name: part.model_dump(mode="json") for name, part in recipe.mix.items()}
        stage = Stage(self.run, "mix", lineage, {"parts": parameters, "places": places})

        def work(stage: Stage) -> dict[str, int]:
            parts, counts = [], {}
            for name, section in sorted(recipe.mix.items()):
                pieces = self._pieces(stage, name, section.of, told)
                counts[name] = sum(count for _, count in pieces)
                if not counts[name]:
                    raise UserError(
                        f"{section.of} gave no picture",
                        where=f"mix.{name}",
                        fix="leave it out, or ask for more",
                    )
                parts.append(
                    SelectedPart(
                        name=name,
                        weight=section.weight,
                        homogeneous=section.homogeneous,
                        pictures=counts[name],
                        pieces=tuple(piece for piece, _ in pieces),
                    )
                )
            stage.write(
                SELECTION,
                Selection(parts=tuple(parts), lineage=lineage).model_dump_json(indent=1).encode(),
            )
            return counts

        self._done(stage, work)
        told.mixture = stage.address

    def _pieces(self, stage: Stage, name: str, of: str, told: Outcome) -> list[tuple[Piece, int]]:
        """What a part of the mixture is made of, by data set, and how many pictures each gives."""
        if of in told.chosen:
            rows, chosen = told.rows, told.chosen[of]
        else:
            one = self.sets[of]
            rows = Rows.of(self.run, [one], [self._embedded(of, self.recipe.embed.model)])
            chosen = np.arange(len(rows))
        found = []
        for owner in np.unique(rows.owners[chosen]).tolist():
            data, mine = rows.sets[owner], chosen[rows.owners[chosen] == owner]
            piece = write_piece(
                open_objects(stage.address),
                f"{name}-{data.name}",
                _place(data.section.source),
                data.section.labels,
                data.source.fingerprint(),
                rows.numbers[mine],
            )
            stage.add(piece.numbers)
            found.append((piece, len(mine)))
        return found


def check_clusters(options: KMeansOptions, vectors: Vectors, where: str) -> None:
    """Raises UserError where there are fewer pictures than clusters."""
    if options.clusters > vectors.shape[0]:
        raise UserError(
            f"{vectors.shape[0]:,} pictures cannot have {options.clusters:,} clusters",
            where=where,
            fix="ask for fewer clusters",
        )


def _place(source: str) -> str:
    """A data set's address that does not depend on where the command was given."""
    from pathlib import Path

    from scholarch.data.catalog import BUILTIN

    if source in BUILTIN or is_s3(source):
        return source
    return str(Path(source.removeprefix("file://")).expanduser().absolute())
