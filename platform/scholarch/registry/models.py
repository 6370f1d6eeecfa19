"""Registers a trained backbone as a version of an MLflow model, once for each run and step."""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from torch import Tensor

from scholarch.errors import RunFailed, UserError
from scholarch.models import BackboneOptions
from scholarch.registry.backbone import Preprocessing, assemble, save_backbone
from scholarch.registry.card import DESCRIPTION_LENGTH, Card, card_text
from scholarch.registry.client import connect, missing, reason, refused, tracking_uri
from scholarch.registry.delivery import known_run
from scholarch.registry.pyfunc import COLUMN
from scholarch.registry.redaction import redact, redact_text
from scholarch.registry.timm_export import write_timm

_ATTEMPTS = 4
_DATA = "backbone"
TIMM = "timm"
"""Folder of a version's artifacts with its checkpoint for timm, where timm has the architecture."""
_ALIAS = "registered_for"
"""Tag of a version: the alias that it was registered for, written together with the version itself."""
_REQUIRED = (
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pydantic",
    "safetensors",
    "simplejpeg",
    "tifffile",
    "tokenizers",
    "torch",
    "torchvision",
)


@dataclass(frozen=True)
class Registered:
    """A version in the registry.

    Attributes:
        name: registered model.
        version: its number.
        created: False when this run and step had been registered before.
    """

    name: str
    version: str
    created: bool

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A backbone and where it comes from.

    Attributes:
        options: as the recipe resolved them.
        weights: whole tensors (not shards) by name.
        preprocessing: what pictures need before they reach the backbone.
        step: finished steps.
        card: what people should know.
        tags: of the version, such as recipe, data_fingerprint, code_version.
    """

    options: BackboneOptions
    weights: Mapping[str, Tensor]
    preprocessing: Preprocessing
    step: int
    card: Card
    tags: Mapping[str, str]


def register_backbone(
    run_folder: Path, name: str, trained: Trained, alias: str | None = "candidate"
) -> Registered:
    """Register a backbone under the MLflow run of a run folder; safe to repeat.

    A repeat finds the version of the same run and step and makes none. The alias moves forward only.

    Args:
        run_folder: of the run that trained it.
        name: registered model, made when it is missing.
        trained: the backbone.
        alias: that is set on the version; None: none.

    Raises:
        UserError: for a name that MLflow does not take, a run that was never tracked, or weights of
            another architecture.
        RunFailed: if MLflow cannot be reached after several attempts.
    """
    if not name or any(character in name for character in "/:'\""):
        raise UserError(f"{name!r} cannot name a registered model", fix="leave out / : and quotes")
    uri, run_id = tracking_uri(run_folder), known_run(run_folder)
    if run_id is None:
        raise UserError(
            "was never tracked in MLflow",
            where=str(run_folder),
            fix="`scholarch register` makes up for it when MLflow can be reached",
        )
    for attempt in range(_ATTEMPTS):
        try:
            return _Registration(connect(uri), run_id, name, trained).register(alias)
        except (UserError, OSError):
            raise
        except Exception as error:
            if refused(error) or attempt == _ATTEMPTS - 1:
                raise RunFailed(
                    f"MLflow at {redact_text(uri)} did not take the model: {reason(error)}"
                ) from error
            time.sleep(2**attempt)
    raise AssertionError("unreachable")


class Downloaded(NamedTuple):
    """A registered version's backbone: its folder, for `backbone.load_backbone`, and `models:/NAME/VERSION`."""

    folder: Path
    address: str


def download(address: str) -> Downloaded:
    """Fetch a registered version's backbone.

    Args:
        address: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, of the registry that
            `MLFLOW_TRACKING_URI` names.

    Raises:
        UserError: if there is no such version, or it holds no backbone of ours.
        RunFailed: if MLflow cannot be reached.
    """
    found = re.fullmatch(r"models:/([^/@]+)(?:@([\w-]+)|/(\d+))", address)
    if found is None:
        raise UserError(
            f"{address!r} names no version", fix="write models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            f"{address} is sought in the registry of MLFLOW_TRACKING_URI, which is not set",
            fix="set it (for a run that tracked itself: sqlite:///RUN/mlflow/mlflow.db), or name the run's folder",
        )
    uri = tracking_uri(Path())
    try:
        return _fetch(uri, *found.groups())
    except Exception as error:
        if missing(error) or refused(error) or isinstance(error, OSError):
            raise UserError(
                f"there is no such version with a backbone in {redact_text(uri)}: {reason(error)}",
                where=address,
                fix="look up the name, version and aliases on MLflow's page",
            ) from error
        raise RunFailed(f"MLflow at {redact_text(uri)} cannot be reached: {reason(error)}") from error


def _fetch(uri: str, name: str, alias: str | None, number: str | None) -> Downloaded:
    client = connect(uri)
    import mlflow.artifacts

    if alias is not None:
        number = client.get_model_version_by_alias(name, alias).version
    source = client.get_model_version_download_uri(name, str(number))
    folder = mlflow.artifacts.download_artifacts(f"{source}/data/{_DATA}", tracking_uri=uri)
    return Downloaded(Path(folder), f"models:/{name}/{number}")


class _Registration:
    """The requests, in an order in which each can be found again after a cut.

    Not `mlflow.pyfunc.log_model`: it reads the whole history of every metric of the run, and sets
    the version's tags in requests of their own, after which a repeat could not tell whose it is.
    """

    def __init__(self, client: Any, run_id: str, name: str, trained: Trained) -> None:
        self.client, self.run_id, self.name, self.trained = client, run_id, name, trained
        self.run = client.get_run(run_id)
        tags = {key: str(value) for key, value in redact(trained.tags).items()}
        self.tags = {**tags, "run_id": run_id, "step": str(trained.step)}

    def register(self, alias: str | None) -> Registered:
        found = self._version()
        version = found or self._create_version(alias)
        if alias:
            self._move_forward(alias, int(version.version))
        return Registered(self.name, str(version.version), created=found is None)

    def _move_forward(self, alias: str, version: int) -> None:
        """Whichever of several runs writes the alias last has looked, after it, for a newer version."""
        while self._aliased(alias) < version:
            self.client.set_registered_model_alias(self.name, alias, str(version))
            version = self._newest(alias)

    def _version(self) -> Any:
        versions = self.client.search_model_versions(f"name = '{self.name}' and run_id = '{self.run_id}'")
        return next((v for v in versions if v.tags.get("step") == self.tags["step"]), None)

    def _aliased(self, alias: str) -> int:
        aliases = self.client.get_registered_model(self.name).aliases
        return int(aliases.get(alias, 0))

    def _newest(self, alias: str) -> int:
        """Of the versions that were registered for the alias."""
        versions = self.client.search_model_versions(f"name = '{self.name}' and tags.{_ALIAS} = '{alias}'")
        return max((int(version.version) for version in versions), default=0)

    def _create_version(self, alias: str | None) -> Any:
        self._create_name()
        model = self._logged_model()
        card = self._card(alias)
        if str(model.status) != "READY":
            with TemporaryDirectory() as folder:
                self._save(model, Path(folder), card)
                self.client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
            self.client.finalize_logged_model(model.model_id, "READY")
        self._link_metrics(model.model_id)
        version = self.client.create_model_version(
            self.name,
            model.artifact_location,
            self.run_id,
            tags={**self.tags, "model_id": model.model_id} | ({_ALIAS: alias} if alias else {}),
            description=card[:DESCRIPTION_LENGTH],
            model_id=model.model_id,
        )
        link = json.dumps([{"name": self.name, "version": version.version}])
        self.client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})
        return version

    def _create_name(self) -> None:
        try:
            self.client.create_registered_model(self.name)
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                raise

    def _logged_model(self) -> Any:
        """The model of this run and step: one that an earlier attempt began, or a new one."""
        from mlflow.entities import LoggedModelOutput

        wanted = f"source_run_id = '{self.run_id}' AND tags.step = '{self.tags['step']}'"
        experiment = self.run.info.experiment_id
        found = self.client.search_logged_models([experiment], wanted, max_results=1)
        if found:
            return found[0]
        model = self.client.create_logged_model(
            experiment, name="backbone", source_run_id=self.run_id, tags=self.tags, model_type="backbone"
        )
        self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, self.trained.step)])
        return model

    def _card(self, alias: str | None) -> str:
        trained = self.trained
        width = assemble(trained.options, trained.weights).width
        return card_text(trained.card, self.name, alias, width, trained.preprocessing.size)

    def _save(self, model: Any, folder: Path, card: str) -> None:
        """Lay out `folder/model`: data, this package's code, signature, example, requirements, card."""
        import mlflow.pyfunc
        from mlflow.models import Model

        import scholarch

        trained, path, data = self.trained, folder / "model", folder / _DATA
        data.mkdir()
        width = save_backbone(data, trained.options, trained.weights, trained.preprocessing)
        face = _text_face() if trained.preprocessing.merges else _face(width)
        mlflow.pyfunc.save_model(
            path,
            loader_module=face.module,
            data_path=str(data),
            code_paths=[str(Path(scholarch.__file__).parent)],
            signature=face.signature,
            input_example=_example(trained.preprocessing),
            pip_requirements=requirements(),
            metadata={"run_id": self.run_id, "step": trained.step},
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                model_id=model.model_id,
                run_id=self.run_id,
            ),
        )
        # Found in the working directory by MLflow, and not what this model needs.
        for name in ("uv.lock", "pyproject.toml", ".python-version"):
            (path / name).unlink(missing_ok=True)
        (path / "README.md").write_text(card)
        (path / TIMM).mkdir()
        if not write_timm(path / TIMM, trained.options, trained.weights, trained.preprocessing):
            (path / TIMM).rmdir()

    def _link_metrics(self, model_id: str) -> None:
        """Show the run's latest evaluations on the model's own page too."""
        for metric in self.run.data.to_proto().metrics:
            if metric.key.startswith("evaluation/"):
                self.client.log_metric(
                    self.run_id, metric.key, metric.value, metric.timestamp, metric.step, model_id=model_id
                )


class _Face(NamedTuple):
    """How a model is called.

    Attributes:
        module: that loads it.
        signature: MLflow's.
    """

    module: str
    signature: Any


def _face(width: int) -> _Face:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([ColSpec("binary", COLUMN)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, width))]),
        params=ParamSchema([ParamSpec("return", "string", "cls")]),
    )
    return _Face("scholarch.registry.pyfunc", signature)


def _text_face() -> _Face:
    """One model with three tasks; how many columns come out depends on the task."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    columns = [ColSpec("binary", COLUMN, required=False), ColSpec("string", "text", required=False)]
    signature = ModelSignature(
        inputs=Schema(columns),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]),
        params=ParamSchema(
            [
                ParamSpec("task", "string", "auto"),
                ParamSpec("classes", "string", [""], shape=(-1,)),
                ParamSpec("templates", "string", [""], shape=(-1,)),
            ]
        ),
    )
    return _Face("scholarch.registry.pyfunc_text", signature)


def requirements() -> list[str]:
    """What loading a model needs, pinned to what is installed; the package itself travels with it."""
    # "2.11.0+cpu" names a build that an index need not have.
    return [f"{name}=={version(name).partition('+')[0]}" for name in _REQUIRED]


def _example(preprocessing: Preprocessing) -> Any:
    """One picture as `predict` takes it: a PNG, or for channels that PNG has not a NumPy file."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    size, channels = preprocessing.size, len(preprocessing.mean)
    ramp = np.linspace(0, 255, size * size).reshape(size, size).astype(np.uint8)
    pixels = np.stack([np.rot90(ramp, channel) for channel in range(channels)], axis=-1)  # [H, W, C]
    file = io.BytesIO()
    if channels in (1, 3):
        Image.fromarray(pixels.squeeze()).save(file, format="PNG")
    else:
        np.save(file, pixels)
    return pd.DataFrame({COLUMN: [file.getvalue()]})
