"""TorchX's scheduler `scholarch`: an app becomes a `TrainingRun`, and the operator does the rest.

`torchx run -s scholarch --dryrun scholarch_jobs.pretrain ...` prints what `kubectl apply` takes; it needs neither
a cluster nor Docker.
"""

# mypy: disallow-untyped-decorators=False, disallow-subclassing-any=False
# (TorchX tells no types.)
from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from scholarch.config.training_run import (
    GROUP,
    KIND,
    NAME_LENGTH,
    NAME_PATTERN,
    PLURAL,
    VERSION,
    TrainingRunSpec,
)
from scholarch.errors import RunFailed, UserError
from scholarch.storage.code import pack, send
from scholarch.storage.objects import is_s3, joined
from torchx.plugins import register
from torchx.schedulers.api import (
    DescribeAppResponse,
    ListAppResponse,
    Scheduler,
    Stream,
    StructuredOpts,
    filter_regex,
)
from torchx.schedulers.ids import make_unique
from torchx.specs import (
    NONE,
    AppDef,
    AppDryRunInfo,
    AppState,
    CfgVal,
    InvalidRunConfigException,
    ReplicaStatus,
    Role,
    RoleStatus,
    VolumeMount,
    runopts,
)
from torchx.specs.finder import ComponentValidationException

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

Manifest = dict[str, Any]
Manifests = list[Manifest]
Apps = list[ListAppResponse]
"""Names for lists, as the scheduler has a method of that name."""
METADATA = "scholarch"
"""Key of a role's metadata under which the components of Scholarch say what is to run."""
ATTEMPT_LABEL, RUN_LABEL = f"{GROUP}/attempt", f"{GROUP}/run"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
POLL_SECONDS = 2.0
_POD_STATES = {
    "Pending": AppState.PENDING,
    "Running": AppState.RUNNING,
    "Succeeded": AppState.SUCCEEDED,
    "Failed": AppState.FAILED,
}


@dataclass
class Options(StructuredOpts):
    """What `-cfg` and `[scholarch]` in .torchxconfig may say."""

    namespace: str = "default"
    """namespace of the run"""

    context: str = ""
    """context of the kubeconfig; the current one when empty"""

    runs: str = ""
    """where runs are kept that name no place of their own: s3://BUCKET/PREFIX"""

    code: str = ""
    """folder of packages that replace the image's, such as platform; kept beside the runs"""

    gang: str = "none"
    """who starts the nodes together: none, kueue, volcano or native"""

    queue: str = ""
    """queue of Kueue or Volcano"""

    priority: str = ""
    """priority class"""

    storage_secret: str = ""
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"""

    tracking_secret: str = ""
    """Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"""

    pull_secrets: list[str] = field(default_factory=list)
    """Secrets for the image"""

    tracking_uri: str = ""
    """MLflow; the platform's own when empty"""

    experiment: str = ""
    """MLflow experiment"""

    node_selector: dict[str, str] = field(default_factory=dict)
    """labels that nodes must have"""

    stall_seconds: int = 0
    """no step for longer than this is a stall; 0: the default of a TrainingRun"""

    grace_seconds: int = 0
    """from SIGTERM to SIGKILL; 0: the default of a TrainingRun"""

    ttl_seconds: int = -1
    """objects of a finished run are deleted after this; -1: never"""


class ScholarchScheduler(Scheduler[Options]):
    """Speaks with the API server alone. An app's id is NAMESPACE:NAME.

    Args:
        session_name: TorchX's.
        api_client: of the API server; from the kubeconfig, at first use, when None.
    """

    def __init__(self, session_name: str, api_client: ApiClient | None = None) -> None:
        super().__init__("scholarch", session_name)
        self._client, self._context = api_client, ""

    def _run_opts(self) -> runopts:
        return Options.as_runopts()

    def _submit_dryrun(self, app: AppDef, cfg: Options) -> AppDryRunInfo[Manifest, Options]:
        return AppDryRunInfo(manifest(app, cfg), lambda request: yaml.safe_dump(request, sort_keys=False))

    def schedule(self, dryrun_info: AppDryRunInfo[Manifest, Options]) -> str:
        """Creates the run; gives its id.

        Raises:
            ComponentValidationException: with the API server's words, if it refuses.
        """
        from kubernetes.client.exceptions import ApiException

        self._context = dryrun_info.cfg.context
        meta = dryrun_info.request["metadata"]
        _send_code(dryrun_info.request, dryrun_info.cfg)
        try:
            self._custom().create_namespaced_custom_object(
                GROUP, VERSION, meta["namespace"], PLURAL, dryrun_info.request
            )
        except ApiException as error:
            raise ComponentValidationException(f"the API server refuses: {_said(error)}") from None
        return f"{meta['namespace']}:{meta['name']}"

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """State, message, link and nodes of a run; None if there is none."""
        run = self._get(app_id)
        if run is None:
            return None
        status, spec = run.get("status", {}), run["spec"]
        role = spec.get("verb", "pretrain")
        replicas = [self._replica(role, pod) for pod in self._pods(app_id, status.get("attempt", 1))]
        newest = {replica.id: replica for replica in replicas}
        nodes = spec.get("nodes", {}).get("max", 1)
        return DescribeAppResponse(
            app_id=app_id,
            state=state_of(status),
            num_restarts=status.get("restarts", 0),
            msg=message_of(status),
            ui_url=status.get("mlflowUrl") or None,
            roles=[Role(name=role, image=spec["image"], num_replicas=nodes)],
            roles_statuses=[RoleStatus(role, [newest[index] for index in sorted(newest)])],
        )

    def describe_native(self, app_id: str) -> AppDryRunInfo[Manifest, Options] | None:
        """The run as the API server has it."""
        run = self._get(app_id)
        return None if run is None else AppDryRunInfo(run, lambda r: yaml.safe_dump(r, sort_keys=False))

    def list(self, cfg: Mapping[str, CfgVal] | None = None) -> Apps:
        """All runs of the namespace."""
        namespace = str((cfg or {}).get("namespace") or "default")
        found = self._custom().list_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL)
        return [
            ListAppResponse(
                app_id=f"{namespace}:{run['metadata']['name']}",
                state=state_of(run.get("status", {})),
                name=run["metadata"]["name"],
            )
            for run in found["items"]
        ]

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        """Lines of node `k`, over all of its pods. `ROLE@2` is attempt 2, a role alone the current one.

        Raises:
            ValueError: for what Kubernetes cannot give: a stream alone, or an end.
        """
        if streams not in (None, Stream.COMBINED) or until is not None:
            raise ValueError("Kubernetes has one log for stdout and stderr, and no end of it")
        lines = self._lines(app_id, role_name.partition("@")[2], k, since, follow=should_tail)
        return filter_regex(regex, lines) if regex else lines

    def _lines(
        self, app_id: str, attempt: str, index: int, since: datetime | None, *, follow: bool
    ) -> Iterable[str]:
        shown: set[str] = set()
        while True:
            run = self._get(app_id)
            status = run.get("status", {}) if run else {}
            wanted = int(attempt or status.get("attempt", 1))
            for pod in self._pods(app_id, wanted, index):
                started = pod["status"].get("phase") in ("Running", "Succeeded", "Failed")
                if pod["metadata"]["name"] not in shown and started:
                    shown.add(pod["metadata"]["name"])
                    yield from self._log(pod, since, follow=follow)
            over = run is None or state_of(status) in (
                AppState.SUCCEEDED, AppState.FAILED, AppState.CANCELLED,
            )  # fmt: skip
            if not follow or over or (attempt and wanted < status.get("attempt", 1)):
                return
            time.sleep(POLL_SECONDS)

    def _log(self, pod: Manifest, since: datetime | None, *, follow: bool) -> Iterable[str]:
        from kubernetes.watch.watch import iter_resp_lines

        how: dict[str, Any] = {"follow": follow}
        if since is not None:
            how["since_seconds"] = max(1, int(time.time() - since.timestamp()))
        meta = pod["metadata"]
        # Not by Watch.stream: it asks again, from the beginning, when the log ends.
        answer = self._core().read_namespaced_pod_log(
            meta["name"], meta["namespace"], _preload_content=False, **how
        )
        for line in iter_resp_lines(answer):
            yield f"{line}\n"

    def _cancel_existing(self, app_id: str) -> None:
        namespace, name = _parts(app_id)
        change = {"spec": {"cancel": True}}
        self._custom().patch_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, name, change)

    def _delete_existing(self, app_id: str) -> None:
        namespace, name = _parts(app_id)
        self._custom().delete_namespaced_custom_object(
            GROUP, VERSION, namespace, PLURAL, name, propagation_policy="Background"
        )

    def _get(self, app_id: str) -> Manifest | None:
        from kubernetes.client.exceptions import ApiException

        namespace, name = _parts(app_id)
        try:
            found: Manifest = self._custom().get_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, name
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def _pods(self, app_id: str, attempt: int, index: int | None = None) -> Manifests:
        """Pods of an attempt, oldest first, as plain objects."""
        namespace, name = _parts(app_id)
        wanted = f"{RUN_LABEL}={name},{ATTEMPT_LABEL}={attempt}"
        wanted += f",{INDEX_LABEL}={index}" if index is not None else ""
        core = self._core()
        found = core.list_namespaced_pod(namespace, label_selector=wanted)
        pods: Manifests = [core.api_client.sanitize_for_serialization(pod) for pod in found.items]
        return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    @staticmethod
    def _replica(role: str, pod: Manifest) -> ReplicaStatus:
        state = _POD_STATES.get(pod["status"].get("phase", ""), AppState.UNKNOWN)
        containers = pod["status"].get("containerStatuses") or [{}]
        ended = containers[0].get("state", {}).get("terminated") or {}
        error = {"message": ended.get("message") or "", "errorCode": ended.get("exitCode")}
        return ReplicaStatus(
            id=int(pod["metadata"]["labels"].get(INDEX_LABEL, 0)),
            state=state,
            role=role,
            hostname=pod["spec"].get("nodeName", ""),
            structured_error_msg=json.dumps(error) if state == AppState.FAILED else NONE,
        )

    def _custom(self) -> Any:
        from kubernetes import client

        return client.CustomObjectsApi(self._api())

    def _core(self) -> Any:
        from kubernetes import client

        return client.CoreV1Api(self._api())

    def _api(self) -> ApiClient:
        from kubernetes import client, config

        if self._client is None:
            try:
                config.load_kube_config(context=self._context or None)  # type: ignore[no-untyped-call]
            except config.ConfigException:
                config.load_incluster_config()  # type: ignore[no-untyped-call]
            self._client = client.ApiClient()
        return self._client


@register.scheduler(name="scholarch")
def create_scheduler(session_name: str, **_: Any) -> ScholarchScheduler:
    """For TorchX, which finds it by its place."""
    return ScholarchScheduler(session_name)


def manifest(app: AppDef, options: Options) -> Manifest:
    """The `TrainingRun` of an app.

    Raises:
        ComponentValidationException: if the app is none of Scholarch's, or not one that can be a run.
        InvalidRunConfigException: if nobody says where the run is to be kept.
    """
    if len(app.roles) != 1:
        roles = ", ".join(role.name for role in app.roles)
        raise ComponentValidationException(
            f"a TrainingRun has one role, this app has {len(app.roles)}: {roles}"
        )
    (role,) = app.roles
    asked: Manifest = dict(role.metadata.get(METADATA) or {})
    if not asked:
        raise ComponentValidationException(
            f"role {role.name!r} is none of scholarch_jobs; for other components use -s kubernetes"
        )
    name = asked.pop("name", "") or make_unique(app.name.lower(), 8)
    if len(name) > NAME_LENGTH or not re.fullmatch(NAME_PATTERN, name):
        raise ComponentValidationException(
            f"name: {name!r}; at most {NAME_LENGTH} characters of a-z, 0-9 and -, with a letter first"
        )
    if not asked.get("run") and asked["verb"] != "evaluate":
        if not options.runs:
            reason = (
                "Where is the run to be kept? Give --run s3://BUCKET/PREFIX, or -cfg runs=s3://BUCKET/PREFIX"
            )
            raise InvalidRunConfigException(reason, "runs", options)
        asked["run"] = f"{options.runs.rstrip('/')}/{name}"
    try:
        asked |= _code(options, asked.get("run", ""))
        spec = TrainingRunSpec.parse({**asked, **_of_role(role), **_of_options(options)})
    except UserError as error:
        raise ComponentValidationException(str(error)) from None
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {"name": name, "namespace": options.namespace},
        "spec": spec.manifest(),
    }


def _code(options: Options, run: str) -> Manifest:
    if not options.code:
        return {}
    place = options.runs or run
    if not is_s3(place):
        reason = "code needs a place in S3 that the pods reach: -cfg runs=s3://BUCKET/PREFIX"
        raise InvalidRunConfigException(reason, "code", options)
    return {"code": joined(place, "code", pack(Path(options.code))[0])}


def _send_code(request: Manifest, options: Options) -> None:
    address = request["spec"].get("code", "")
    if not (address and options.code):
        return
    try:
        name, data = pack(Path(options.code))
        if not address.endswith(f"/{name}"):
            raise UserError("the files have changed since", where=f"code: {options.code}", fix="submit again")
        send(address, data)
    except (UserError, RunFailed) as error:
        raise ComponentValidationException(str(error)) from None


def _of_role(role: Role) -> Manifest:
    resource = role.resource
    others = [mount for mount in role.mounts if not isinstance(mount, VolumeMount)]
    if others:
        raise ComponentValidationException(
            "mounts: a TrainingRun takes type=volume only, with a claim as src"
        )
    memory = resource.memMB
    return {
        "image": role.image,
        "nodes": {"min": role.min_replicas or role.num_replicas, "max": role.num_replicas},
        "resources": {
            "cpu": str(resource.cpu),
            "gpus": resource.gpu,
            "memory": f"{memory}Mi",
            "sharedMemory": f"{memory // 2}Mi",
        },
        "env": [
            {"name": name, "value": value}
            for name, value in sorted(role.env.items())
            if not name.startswith("TORCHX_")  # TorchX's own: they hold macros that nobody fills in here
        ],
        "volumes": [
            {"claim": mount.src, "path": mount.dst_path, "readOnly": mount.read_only}
            for mount in role.mounts
            if isinstance(mount, VolumeMount)
        ],
    }


def _of_options(options: Options) -> Manifest:
    found: Manifest = {
        "gang": {"backend": options.gang},
        "queue": options.queue,
        "priorityClass": options.priority,
        "placement": {"nodeSelector": dict(options.node_selector or {})},
        "secrets": {
            "storage": options.storage_secret,
            "tracking": options.tracking_secret,
            "pull": list(options.pull_secrets or []),
        },
        "mlflow": {"uri": options.tracking_uri, "experiment": options.experiment},
    }
    found |= {"stallSeconds": options.stall_seconds} if options.stall_seconds else {}
    found |= {"graceSeconds": options.grace_seconds} if options.grace_seconds else {}
    return found | ({"ttlSeconds": options.ttl_seconds} if options.ttl_seconds >= 0 else {})


def state_of(status: Manifest) -> AppState:
    """TorchX's word for what a run's conditions say."""
    conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
    true = {kind for kind, condition in conditions.items() if condition["status"] == "True"}
    if "Complete" in true:
        return AppState.SUCCEEDED
    if "Failed" in true:
        cancelled = conditions["Failed"].get("reason") == "Cancelled"
        return AppState.CANCELLED if cancelled else AppState.FAILED
    if "Running" in true:
        return AppState.RUNNING
    return AppState.PENDING if conditions else AppState.SUBMITTED


def message_of(status: Manifest) -> str:
    """How far a run is, and what is out of the ordinary, in one line."""
    said = []
    progress = status.get("progress") or {}
    if progress:
        said.append(f"step {progress.get('step', 0)} of {progress.get('total', 0)}")
        said += [f"loss {progress['loss']:.4g}"] if "loss" in progress else []
        said += [f"{progress['imagesPerSecond']:.4g} images/s"] if "imagesPerSecond" in progress else []
        said += [f"{progress['etaSeconds']:.0f} s left"] if "etaSeconds" in progress else []
    if status.get("attempt", 1) > 1:
        last = (status.get("attempts") or [{}])[-1]
        said.append(
            f"attempt {status['attempt']}, the one before: {last.get('reason')} {last.get('message', '')}"
        )
    for condition in status.get("conditions", ()):
        waits = condition["type"] == "Scheduled" and condition["reason"] not in ("Placed", "Finished")
        if waits or (
            condition["status"] == "True" and condition["type"] in ("Suspended", "Stalled", "Failed")
        ):
            said.append(f"{condition['reason']}: {condition.get('message', '')}")
    return "; ".join(part.strip() for part in said)


def _parts(app_id: str) -> tuple[str, str]:
    namespace, _, name = app_id.rpartition(":")
    return namespace or "default", name


def _said(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, KeyError, json.JSONDecodeError):
        return str(error.reason)
