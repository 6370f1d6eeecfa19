"""What a `TrainingRun` asks for: one model for the scheduler plug-in, the operator, the chart and the CRD.

Plain data, without a Kubernetes client. Keys are written as in YAML for Kubernetes (`graceSeconds`),
attributes as in Python (`grace_seconds`). Each cross-field rule stands once, in CEL for the API server and
as a Python predicate, so that a mistake is refused with the same words before and after it is sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from scholarch.config.names import known_keys
from scholarch.config.nearest import nearest_keys
from scholarch.config.rules import Rule, bytes_of, unique
from scholarch.errors import UserError

GROUP, VERSION, KIND, PLURAL = "scholarch.dev", "v1alpha1", "TrainingRun", "trainingruns"
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_LENGTH = 44
"""Leaves room in the 63 characters of a pod's host name for the attempt and the index."""
MAX_NODES = 1024
RESERVED_PATHS = ("/tmp", "/dev/shm", "/etc/scholarch")
RULES = "x-kubernetes-validations"
SECRET_NAMES = "SECRET|PASSWORD|TOKEN|ACCESS_KEY"

FIXED: JsonDict = {"immutable": True}
"""Marks what a run keeps for life; the CRD turns it into a transition rule."""

Name = Annotated[str, Field(max_length=63, pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")]
Text = Annotated[str, Field(max_length=1024)]
Label = Annotated[str, Field(max_length=316, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?)?$")]
Archive = Annotated[
    str, Field(max_length=1024, pattern=r"^(s3://[a-z0-9][-a-z0-9.]+/([^\s/]+/)*[0-9a-f]{64}\.tar\.gz)?$")
]
Override = Annotated[str, Field(max_length=512, pattern=r"^[A-Za-z_][A-Za-z0-9_.\[\]-]*=[^\n]*$")]
Quantity = Annotated[str, Field(max_length=16, pattern=r"^[0-9]{1,9}(\.[0-9]{1,3})?(k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Cores = Annotated[
    str,
    Field(max_length=16, pattern=r"^([1-9][0-9]{0,5}(\.[0-9]{1,3})?|0\.[0-9]{1,3}|[1-9][0-9]{0,8}m)$"),
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    Field(json_schema_extra={"x-kubernetes-int-or-string": True, "minimum": 1}),
]


class Part(BaseModel):
    """Base of all sections: unknown keys and coercions are errors; instances do not change."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, alias_generator=to_camel, populate_by_name=True
    )
    rules: ClassVar[tuple[Rule, ...]] = ()
    transitions: ClassVar[tuple[tuple[str, str], ...]] = ()
    """CEL and message of rules between a section and what it was before; the API server alone knows that."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        rules = [*((rule.cel, rule.message) for rule in cls.rules), *cls.transitions]
        if rules:
            handler.resolve_ref_schema(schema)[RULES] = [
                {"rule": cel, "message": message} for cel, message in rules
            ]
        return schema

    @model_validator(mode="after")
    def _follows_rules(self) -> Part:
        broken = [rule.message for rule in self.rules if not rule.holds(self)]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    @classmethod
    def read(cls, spec: Mapping[str, Any], where: str) -> Self:
        """A section from plain data with camelCase keys.

        Args:
            where: what it stands in, for messages.

        Raises:
            UserError: naming every mistake and where it is.
        """
        try:
            return cls.model_validate_json(json.dumps(spec))
        except ValidationError as error:
            said = "; ".join(_said(cls, item) for item in error.errors(include_url=False))
        except TypeError as error:  # YAML has dates, which JSON has not
            said = str(error)
        raise UserError(said, where=where)

    def manifest(self) -> dict[str, Any]:
        """The section as in an object, without what is left at its default."""
        found: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return found


class Stage(Part):
    """One stage of a chain; each begins from the last checkpoint of the one before."""

    recipe: Annotated[str, Field(max_length=256)] = Field(
        "", description="name of a recipe, or path of its file in the image"
    )
    inline: Annotated[str, Field(max_length=65536)] = Field("", description="the recipe itself, as YAML")

    rules = (
        Rule(
            "(self.recipe == '') != (self.inline == '')",
            "a stage has either recipe (a name) or inline (YAML)",
            lambda stage: bool(stage.recipe) != bool(stage.inline),
        ),
    )


class Nodes(Part):
    """How many nodes; a run with min below max may lose and gain nodes while it runs."""

    min: int = Field(1, ge=1, le=MAX_NODES)
    max: int = Field(1, ge=1, le=MAX_NODES)
    sizes: list[Annotated[int, Field(ge=1, le=MAX_NODES)]] = Field(
        default_factory=list, max_length=64, description="the only values of min and max, when given"
    )

    rules = (
        Rule("self.min <= self.max", "nodes.min must not exceed nodes.max", lambda n: n.min <= n.max),
        Rule(
            "self.sizes.size() == 0 || (self.min in self.sizes && self.max in self.sizes)",
            "nodes.min and nodes.max must be among nodes.sizes",
            lambda n: not n.sizes or {n.min, n.max} <= set(n.sizes),
        ),
    )


class Resources(Part):
    """Of each node's pod; requests equal limits."""

    cpu: Cores = Field("2", description="cores: 4, '0.5' or 500m")
    memory: Quantity = "8Gi"
    gpus: int = Field(0, ge=0, le=64)
    gpu_resource: Annotated[str, Field(max_length=128, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")] = Field(
        "nvidia.com/gpu", description="name under which the cluster counts GPUs"
    )
    shared_memory: Quantity = Field("2Gi", description="size of /dev/shm; counts as memory")
    scratch: Quantity = Field("10Gi", description="size of /tmp")

    rules = (
        Rule(
            "quantity(self.sharedMemory).compareTo(quantity(self.memory)) <= 0",
            "resources.sharedMemory counts as memory and must not exceed it",
            lambda r: bytes_of(r.shared_memory) <= bytes_of(r.memory),
        ),
    )


class Gang(Part):
    """Who sees to it that the least number of nodes starts together."""

    backend: Literal["none", "kueue", "volcano", "native"] = "none"
    timeout_seconds: int = Field(
        900, ge=60, le=86400, description="below nodes.min for longer than this: suspended, tried again later"
    )


class Toleration(Part):
    """As in a pod."""

    key: Label = ""
    operator: Literal["Exists", "Equal"] = "Equal"
    value: Annotated[str, Field(max_length=63)] = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""

    rules = (
        Rule(
            "self.key != '' || self.operator == 'Exists'",
            "a toleration without a key needs operator Exists",
            lambda t: bool(t.key) or t.operator == "Exists",
        ),
    )


class Placement(Part):
    """Which nodes may be used."""

    node_selector: dict[str, Annotated[str, Field(max_length=63)]] = Field(
        default_factory=dict, max_length=16
    )
    tolerations: list[Toleration] = Field(default_factory=list, max_length=16)
    near: Label = Field("", description="topology key within which pods should stand, e.g. a rack's label")


class Variable(Part):
    """An environment variable of the workers; never a secret."""

    name: Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: Text = ""

    rules = (
        Rule(
            f"!self.name.matches('{SECRET_NAMES}')",
            "secrets do not stand in a run: name a Secret in secrets.storage or secrets.tracking",
            lambda v: not any(word in v.name for word in SECRET_NAMES.split("|")),
        ),
    )


class Volume(Part):
    """A persistent volume claim."""

    claim: Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")]
    path: Annotated[str, Field(max_length=256, pattern=r"^/[A-Za-z0-9][-A-Za-z0-9_./]*[A-Za-z0-9]$")]
    read_only: bool = False

    rules = (
        Rule(
            f"!{json.dumps(RESERVED_PATHS)}.exists(p, self.path == p || self.path.startsWith(p + '/'))",
            f"a volume cannot stand at {', '.join(RESERVED_PATHS)}",
            lambda v: not any(f"{v.path}/".startswith(f"{path}/") for path in RESERVED_PATHS),
        ),
    )


class Secrets(Part):
    """Names of Secrets in the run's namespace; their values never enter a run."""

    storage: Name = Field("", description="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    tracking: Name = Field("", description="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    pull: list[Name] = Field(default_factory=list, max_length=8, description="for the image")


class Tracking(Part):
    """Where MLflow is; the platform's own when empty."""

    uri: Annotated[str, Field(max_length=512, pattern=r"^(https?://[^\s@]+)?$")] = ""
    experiment: Annotated[str, Field(max_length=256)] = ""


class Retries(Part):
    """How often what is tried again."""

    in_place: int = Field(3, ge=0, le=100, description="faults after which a node starts its workers again")
    pods: int = Field(6, ge=0, le=1000, description="pods that end with a fault, for each attempt")
    attempts: int = Field(3, ge=1, le=20, description="attempts without a newer checkpoint")


def _kept(run: TrainingRunSpec) -> bool:
    if not run.run or run.run.startswith("s3://"):
        return True
    return any(not volume.read_only and run.run.startswith(f"{volume.path}/") for volume in run.volumes)


class TrainingRunSpec(Part):
    """A pretraining, in one or several stages; a distillation into several students; or an evaluation."""

    verb: Literal["pretrain", "distill", "evaluate"] = Field("pretrain", json_schema_extra=FIXED)
    image: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s]+$")] = Field(
        json_schema_extra=FIXED
    )
    code: Archive = Field(
        "",
        json_schema_extra=FIXED,
        description="packages that take the place of the image's: an archive whose name is its SHA-256",
    )
    stages: list[Stage] = Field(default_factory=list, max_length=8, json_schema_extra=FIXED)
    overrides: list[Override] = Field(
        default_factory=list,
        max_length=64,
        json_schema_extra=FIXED,
        description="key.path=value, of all stages, or of the suite",
    )
    data: Text = Field("", json_schema_extra=FIXED, description="replaces the recipe's data")
    run: Text = Field("", json_schema_extra=FIXED, description="where the run is kept: s3://BUCKET/PREFIX")
    model: Text = Field("", json_schema_extra=FIXED, description="what to evaluate")
    suite: Annotated[str, Field(max_length=128, pattern=r"^([A-Za-z0-9][A-Za-z0-9_./-]*)?$")] = Field(
        "", json_schema_extra=FIXED, description="of evaluations; empty: k-NN accuracy alone"
    )
    nodes: Nodes = Field(default_factory=Nodes)
    processes: int = Field(
        0, ge=0, le=64, json_schema_extra=FIXED, description="workers on a node; 0: one for each GPU, or one"
    )
    resources: Resources = Field(default_factory=Resources, json_schema_extra=FIXED)
    queue: Name = Field("", json_schema_extra=FIXED, description="of Kueue or Volcano")
    priority_class: Name = Field("", json_schema_extra=FIXED)
    gang: Gang = Field(default_factory=Gang, json_schema_extra=FIXED)
    placement: Placement = Field(default_factory=Placement, json_schema_extra=FIXED)
    env: list[Variable] = Field(
        default_factory=list, max_length=64, json_schema_extra={**FIXED, "keyed": "name"}
    )
    volumes: list[Volume] = Field(
        default_factory=list, max_length=16, json_schema_extra={**FIXED, "keyed": "path"}
    )
    secrets: Secrets = Field(default_factory=Secrets, json_schema_extra=FIXED)
    mlflow: Tracking = Field(default_factory=Tracking, json_schema_extra=FIXED)
    retries: Retries = Field(default_factory=Retries)
    stall_seconds: int = Field(
        300,
        ge=60,
        le=86400,
        description="no step for longer than this is a stall; five times as long before the first and after the "
        "last one; a change holds from the next attempt on",
    )
    grace_seconds: int = Field(
        180, ge=60, le=3600, json_schema_extra=FIXED, description="from SIGTERM to SIGKILL: to save in"
    )
    suspend: bool = Field(False, description="saves, frees the nodes and waits")
    cancel: bool = Field(False, description="saves and ends the run for good")
    ttl_seconds: int | None = Field(
        None, ge=0, le=31536000, description="after its end the run's objects are deleted, never its data"
    )

    rules = (
        Rule(
            "self.verb == 'evaluate' || (self.stages.size() > 0 && self.run != '')",
            "pretrain and distill need stages, e.g. [{recipe: demo/digits}], and run: where to keep it",
            lambda s: s.verb == "evaluate" or bool(s.stages and s.run),
        ),
        Rule(
            "self.verb != 'distill' || self.stages.size() <= 1",
            "distill has one stage: its students follow one recipe",
            lambda s: s.verb != "distill" or len(s.stages) <= 1,
        ),
        Rule(
            "(self.verb == 'evaluate') == (self.model != '')",
            "model belongs to evaluate, which needs it",
            lambda s: (s.verb == "evaluate") == bool(s.model),
        ),
        Rule(
            "self.suite == '' || (self.verb == 'evaluate' && self.data == '')",
            "suite belongs to evaluate, and names its own data",
            lambda s: not s.suite or (s.verb == "evaluate" and not s.data),
        ),
        Rule(
            "self.verb != 'evaluate' || (self.nodes.max == 1 && self.stages.size() == 0)",
            "evaluate runs on one node and has no stages",
            lambda s: s.verb != "evaluate" or (s.nodes.max == 1 and not s.stages),
        ),
        Rule(
            "self.run == '' || self.run.startsWith('s3://') || self.volumes.exists(v, !v.readOnly && "
            "self.run.startsWith(v.path + '/'))",
            "run must outlive its pods: s3://BUCKET/PREFIX, or a folder on one of volumes that is not readOnly",
            _kept,
        ),
        Rule(
            "(self.gang.backend != 'kueue' || self.queue != '') && "
            "(self.queue == '' || self.gang.backend in ['kueue', 'volcano'])",
            "queue and gang.backend kueue need one another; of the others only volcano knows queues",
            lambda s: (
                (s.gang.backend != "kueue" or bool(s.queue))
                and (not s.queue or s.gang.backend in ("kueue", "volcano"))
            ),
        ),
        Rule(
            "self.resources.gpus == 0 || self.processes <= self.resources.gpus",
            "processes must not exceed resources.gpus: a worker has a GPU of its own",
            lambda s: not s.resources.gpus or s.processes <= s.resources.gpus,
        ),
    )
    transitions = (("!oldSelf.cancel || self.cancel", "a cancelled run stays so; create another one"),)

    @field_validator("env", "volumes")
    @classmethod
    def _has_keys_once(cls, value: list[Any], info: ValidationInfo) -> list[Any]:
        key = "name" if info.field_name == "env" else "path"
        if not unique(getattr(item, key) for item in value):
            raise ValueError(f"each {key} once")
        return value

    @classmethod
    def parse(cls, spec: Mapping[str, Any]) -> TrainingRunSpec:
        """The spec of an object, with its camelCase keys.

        Raises:
            UserError: naming every mistake and where it is.
        """
        return cls.read(spec, KIND)

    @property
    def workers(self) -> int:
        """Processes on each node."""
        return self.processes or max(self.resources.gpus, 1)


def _said(kind: type[Part], error: Any) -> str:
    where = ".".join(["spec", *(str(part) for part in error["loc"])])
    if error["type"] == "extra_forbidden":
        known = known_keys(kind, error["loc"])[1]
        near = " or ".join(nearest_keys(str(error["loc"][-1]), known))
        hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    return f"{where}: {str(error['msg']).removeprefix('Value error, ')}"
