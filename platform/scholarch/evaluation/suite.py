"""Suites: which evaluations are run on which data, as strict YAML files."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from importlib import resources
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, create_model, model_validator

from scholarch.config.load import parse_override, parse_yaml, validated
from scholarch.config.resolve import merge
from scholarch.config.schema import Section
from scholarch.data.annotated import DATA_SETS
from scholarch.errors import UserError
from scholarch.evaluation import EVALUATIONS
from scholarch.evaluation.face import Evaluation

SUITES = Path(str(resources.files("scholarch.evaluation") / "suites"))


class DataSection(Section):
    """Where samples and annotations come from."""

    kind: str = Field(description="a layout of `scholarch.data.annotated.DATA_SETS`")
    address: str = Field(
        "", description="a folder or s3://BUCKET/PREFIX; empty: the data has no place, or you name it"
    )
    train: int | None = Field(
        None, ge=1, description="at most so many training samples, by a fixed draw; null: all"
    )
    test: int | None = Field(
        None, ge=1, description="at most so many test samples, by a fixed draw; null: all"
    )

    size: int | None = Field(None, ge=1, description="pixels of the (shorter) side; null: the suite's")

    @model_validator(mode="after")
    def _known(self) -> DataSection:
        if self.kind not in DATA_SETS:
            near = difflib.get_close_matches(self.kind, DATA_SETS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(DATA_SETS)}"
            raise ValueError(f"no such kind: {self.kind!r}; {hint}")
        return self


class Suite(Section):
    """A suite; `evaluations` holds the options of each by its name."""

    about: str = ""
    size: int | Literal["auto"] = Field(
        "auto", description="pixels of the (shorter) side; auto: the model's own"
    )
    data: Annotated[dict[str, DataSection], Field(min_length=1)]
    evaluations: dict[str, Any]

    def data_of(self, name: str) -> str:
        """Name of the data that an evaluation is run on."""
        chosen: str = self.evaluations[name].data
        return chosen or next(iter(self.data))

    def size_of(self, name: str) -> int | None:
        """Pixels of the (shorter) side that an evaluation wants; None: the model's own."""
        own = self.data[self.data_of(name)].size
        return own or (None if self.size == "auto" else self.size)

    def built(self) -> dict[str, Evaluation]:
        """The evaluations by name."""
        return {name: EVALUATIONS[o.kind](o) for name, o in self.evaluations.items()}

    def plain_evaluations(self) -> dict[str, dict[str, Any]]:
        """Every option of every evaluation."""
        return {n: {**asdict(o), "data": self.data_of(n)} for n, o in self.evaluations.items()}

    @model_validator(mode="after")
    def _data_is_there(self) -> Suite:
        for name, options in self.evaluations.items():
            if options.data and options.data not in self.data:
                raise ValueError(
                    f"evaluation {name}: no such data: {options.data!r}; there is: {', '.join(self.data)}"
                )
        return self


def suite_names() -> list[str]:
    """Suites that come with the package, sorted."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load_suite(name: str, overrides: Sequence[str] = ()) -> Suite:
    """A suite of the package, or of a YAML file.

    Args:
        name: a name of `suite_names`, or a path that ends in .yaml.
        overrides: `key.path=value`, such as data.imagenet.address=/data/imagenet.

    Raises:
        UserError: with every mistake at once.
    """
    data: Any = _read(name)
    if not isinstance(data, dict):
        raise UserError(
            "a suite is a mapping of `data` and `evaluations`",
            where=name,
            fix="start from docs/evaluation.md",
        )
    for text in overrides:
        data = merge(data, parse_override(text))
    entries = data.get("evaluations")
    if isinstance(entries, Mapping):
        data["evaluations"] = {
            key: {"kind": key, **(entry or {})} if isinstance(entry, Mapping | None) else entry
            for key, entry in entries.items()
        }
    options = [evaluation.Options for evaluation in EVALUATIONS.values()]
    tagged: Any = Annotated[reduce(or_, options), Field(discriminator="kind")]
    kinds: Any = dict[str, tagged]
    schema = create_model("Suite", __base__=Suite, evaluations=(kinds, Field(min_length=1)))
    return validated(schema, data, where=f"suite {name}")


def _read(name: str) -> Any:
    path = Path(name) if name.endswith((".yaml", ".yml")) else SUITES / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, suite_names(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"unknown suite {name!r}",
            where="--suite",
            fix=f"{hint}there are: {', '.join(suite_names())}; or name a YAML file",
        )
    try:
        return parse_yaml(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"this is not YAML: {error}", where=name, fix="mend the file") from None
