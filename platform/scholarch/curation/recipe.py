"""The recipe of a curation: which pictures, and what is done with them; strict, as all recipes are."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from scholarch.config.load import parse_override, parse_yaml, validated
from scholarch.config.resolve import merge
from scholarch.config.schema import Section
from scholarch.curation.kmeans import KMeansOptions
from scholarch.curation.neighbours import NeighbourOptions
from scholarch.curation.retrieval import Collisions
from scholarch.curation.sampling import By
from scholarch.errors import UserError

Count = Annotated[int, Field(ge=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]


class SetSection(Section):
    """A data set: `NAME: PLACE` in short."""

    source: str = Field(min_length=1, description="as `data.source` of pretraining")
    labels: Literal["auto", "none", "folders"] = "auto"


class EmbedSection(Section):
    """How pictures become vectors."""

    model: str = Field(min_length=1, description="a run, an export, models:/NAME@ALIAS or a file of weights")
    batch: Count = 64
    part: Count = Field(8192, description="pictures of a file, which is what one worker does at a time")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU")
    stored: Literal["float32", "float16"] = "float32"


class DeduplicateSection(Section):
    """Which pictures are too alike (reference.md section 8.1)."""

    model: str | None = Field(None, description="for copy detection; null: that of `embed`")
    hash_bits: Annotated[int, Field(ge=0, le=7)] | None = Field(
        0, description="of 64, in which two pictures of one hash may differ; null: no hashes"
    )
    threshold: Cosine = 0.6
    evaluation_threshold: Cosine = 0.45
    neighbours: NeighbourOptions = NeighbourOptions()
    keep: Literal["largest", "first"] = Field("largest", description="of a component: file, or number")


class ClusterSection(Section):
    """Hierarchical k-means, the finest level first."""

    levels: tuple[KMeansOptions, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _coarser(self) -> ClusterSection:
        counts = [level.clusters for level in self.levels]
        if any(after >= before for before, after in pairwise(counts)):
            raise ValueError(f"levels: each needs fewer clusters than the one before, not {counts}")
        return self


class SampleSection(Section):
    """How many pictures the tree of clusters gives, and which."""

    pictures: Count | None = Field(None, description="or `quotas`")
    quotas: dict[str, Count] | None = Field(None, description="pictures by name of the pool's sets")
    by: By = "tree"
    copies: Count | None = Field(1, description="of a picture at most; 1: without replacement, null: any")
    choose: Literal["random", "closest"] = "random"

    @model_validator(mode="after")
    def _one_target(self) -> SampleSection:
        if (self.pictures is None) == (self.quotas is None):
            raise ValueError("give `pictures` or `quotas`")
        return self


class RetrieveSection(Section):
    """Pictures of the pool that are like those of some references (reference.md section 8.1)."""

    like: tuple[str, ...] = Field(min_length=1, description="names of `references`")
    form: Literal["sample", "cluster"] = "sample"
    each: Count = Field(4, description="pictures for a query, or from a cluster")
    cap: Count | None = Field(None, description="pictures for each reference set at most")
    collisions: Collisions = "share"
    neighbours: NeighbourOptions = NeighbourOptions()
    clusters: KMeansOptions | None = Field(None, description="of the pool, for form `cluster`")
    more_than: Annotated[int, Field(ge=0)] = Field(3, description="queries that a cluster needs to count")

    @model_validator(mode="after")
    def _has_clusters(self) -> RetrieveSection:
        if (self.form == "cluster") != (self.clusters is not None):
            raise ValueError("`clusters` is of form `cluster`, which needs it")
        return self


class MixSection(Section):
    """A data set of the mixture that comes out."""

    of: str = Field(description="sample, deduplicated, retrieve/NAME, pool/NAME or references/NAME")
    weight: float = Field(1.0, ge=0)
    homogeneous: float = Field(0.0, ge=0, le=1)


class CurationRecipe(Section):
    """From pools of pictures to a mixture."""

    name: str = ""
    about: str = ""
    seed: int = Field(0, ge=0)
    pool: dict[str, SetSection] = Field(min_length=1)
    references: dict[str, SetSection] = Field({})
    evaluations: dict[str, SetSection] = Field({}, description="sets that training must not see")
    embed: EmbedSection
    deduplicate: DeduplicateSection | None = None
    cluster: ClusterSection | None = None
    sample: SampleSection | None = None
    retrieve: dict[str, RetrieveSection] = Field({})
    mix: dict[str, MixSection] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_exist(self) -> CurationRecipe:
        problems = [
            *(
                f"{group}: names are letters, digits and _, not {name!r}"
                for group in ("pool", "references", "evaluations", "retrieve", "mix")
                for name in getattr(self, group)
                if not re.fullmatch(r"\w+", name)
            ),
            *(
                f"retrieve.{name}.like: no references {other!r}; there are: {_listed(self.references)}"
                for name, section in self.retrieve.items()
                for other in section.like
                if other not in self.references
            ),
            *(
                f"sample.quotas: no pool {name!r}; there are: {_listed(self.pool)}"
                for name in (self.sample.quotas or {} if self.sample else {})
                if name not in self.pool
            ),
            *(
                f"mix.{name}.of: nothing is called {part.of!r}; there are: {', '.join(self.results)}"
                for name, part in self.mix.items()
                if part.of not in self.results
            ),
        ]
        if self.sample is not None and self.sample.by != "pictures" and self.cluster is None:
            problems.append("sample needs `cluster`, or by: pictures")
        if self.evaluations and self.deduplicate is None:
            problems.append("evaluations are kept out by `deduplicate`, which is missing")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def results(self) -> list[str]:
        """What a mixture can be made of."""
        return [
            *(["sample"] if self.sample is not None else []),
            "deduplicated",
            *(f"retrieve/{name}" for name in self.retrieve),
            *(f"{group}/{name}" for group in ("pool", "references") for name in getattr(self, group)),
        ]


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"


def load_curation(path: str, overrides: list[str] | tuple[str, ...] = ()) -> CurationRecipe:
    """The recipe in a YAML file, with overrides laid over it.

    Raises:
        UserError: with every mistake at once.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError("there is no such file", where=path, fix="name a recipe: see docs/curation.md")
    try:
        data = parse_yaml(file.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"this is not YAML: {error}", where=path, fix="mend the file") from None
    if not isinstance(data, dict):
        raise UserError("a recipe is a mapping of sections", where=path, fix="see docs/curation.md")
    for text in overrides:
        data = merge(data, parse_override(text))
    for group in ("pool", "references", "evaluations"):
        if isinstance(data.get(group), dict):
            data[group] = {
                name: {"source": entry} if isinstance(entry, str) else entry
                for name, entry in data[group].items()
            }
    return validated(CurationRecipe, {"name": file.stem, **data}, where=f"recipe {path}")
