"""The Job of an attempt: one pod for each node, whose main process is the launcher."""

from __future__ import annotations

from typing import Any

from scholarch.config.command import (
    LAUNCHER,
    distill_arguments,
    evaluate_arguments,
    launch_arguments,
    pretrain_arguments,
)
from scholarch.config.training_run import MAX_NODES, Nodes, TrainingRunSpec
from scholarch.errors import EXIT_INTERRUPTED, EXIT_WRONG_INPUT

from scholarch_operator import gang, names
from scholarch_operator.objects import (
    CONTAINER_SECURITY,
    POD_SECURITY,
    Manifest,
    has_rendezvous,
    lost_node_tolerations,
    metadata,
    pull_secrets,
)
from scholarch_operator.observed import Run
from scholarch_operator.settings import Settings

RECIPES = "/etc/scholarch/recipes"
TERMINATION_MESSAGE = "/dev/termination-log"
FILE_GROUP = 10001
SIGNAL_MARGIN = 30
"""Seconds between the workers' deadline and that of the pod."""
JOIN_MARGIN = 300
"""Seconds by which a pod waits longer for the others than the operator lets it, so that it is no fault."""


def job(run: Run, attempt: int, settings: Settings) -> Manifest:
    """The Job. Its pod template never changes: what needs another one needs another attempt."""
    nodes = run.spec.nodes
    labels = names.labels(run.name, names.WORKER, attempt)
    found = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            **metadata(run, names.job_name(run.name, attempt), labels),
            "annotations": {names.NODES_ANNOTATION: asked(nodes)},
        },
        "spec": {
            "completionMode": "Indexed",
            "parallelism": nodes.max,
            "completions": nodes.max,
            "backoffLimit": run.spec.retries.pods,
            "podReplacementPolicy": "Failed",
            # All workers meet after the last commit: the first pod that succeeds means that all is done, and
            # an index that never found a node does not hold it up.
            "successPolicy": {"rules": [{"succeededCount": 1}]},
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": {"metadata": {"labels": labels}, "spec": _pod(run, attempt, settings)},
        },
    }
    return gang.joined(found, run)


def asked(nodes: Nodes) -> str:
    """What a Job was asked to be, as its annotation says it."""
    return f"{nodes.min}:{nodes.max}"


def launch_nodes(nodes: Nodes) -> str:
    """The launcher's `--nodes`. A run that may grow leaves room for what it may grow to without a new attempt."""
    if nodes.min == nodes.max:
        return str(nodes.min)
    return f"{nodes.min}:{max(nodes.sizes, default=MAX_NODES)}"


def verb_arguments(spec: TrainingRunSpec) -> list[str]:
    """The command of each worker."""
    if spec.verb == "evaluate":
        return evaluate_arguments(spec.model, data=spec.data, suite=spec.suite, overrides=spec.overrides)
    recipes = [
        stage.recipe or f"{RECIPES}/stage-{number}.yaml" for number, stage in enumerate(spec.stages, 1)
    ]
    if spec.verb == "distill":
        return distill_arguments(recipes[0], run=spec.run, data=spec.data, overrides=spec.overrides)
    return pretrain_arguments(recipes, run=spec.run, data=spec.data, overrides=spec.overrides)


def _failure_rules() -> list[Manifest]:
    def ends_with(code: int, action: str) -> Manifest:
        codes = {"containerName": names.WORKER, "operator": "In", "values": [code]}
        return {"action": action, "onExitCodes": codes}

    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return [disrupted, ends_with(EXIT_WRONG_INPUT, "FailJob"), ends_with(EXIT_INTERRUPTED, "Ignore")]


def _pod(run: Run, attempt: int, settings: Settings) -> Manifest:
    spec = run.spec
    arguments = launch_arguments(
        verb_arguments(spec),
        nodes=launch_nodes(spec.nodes),
        processes=spec.workers,
        run_id=f"{run.uid}-{attempt}",
        rendezvous=names.rendezvous_address(run.name) if has_rendezvous(run) else "",
        max_restarts=spec.retries.in_place,
        grace=spec.grace_seconds - SIGNAL_MARGIN,
        stall=spec.stall_seconds,
        join=spec.gang.timeout_seconds + JOIN_MARGIN,
        termination_message=TERMINATION_MESSAGE,
        code=spec.code,
    )
    volumes, mounts = _volumes(run)
    container = {
        "name": names.WORKER,
        "image": spec.image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(LAUNCHER),
        "args": arguments,
        "env": [
            {"name": name, "value": value} for name, value in sorted(_environment(run, settings).items())
        ],
        "envFrom": [
            {"secretRef": {"name": name}} for name in (spec.secrets.storage, spec.secrets.tracking) if name
        ],
        "resources": _resources(spec),
        "securityContext": CONTAINER_SECURITY,
        "terminationMessagePath": TERMINATION_MESSAGE,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    return {
        "restartPolicy": "Never",
        "subdomain": run.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": spec.grace_seconds,
        "securityContext": {
            **POD_SECURITY,
            "fsGroup": FILE_GROUP,
            "fsGroupChangePolicy": "OnRootMismatch",
        },
        "containers": [container],
        "volumes": volumes,
        **pull_secrets(run),
        **_placement(run),
    }


def _environment(run: Run, settings: Settings) -> dict[str, str]:
    found = {
        "HOME": "/tmp",
        # While the meeting place starts, torch would show a stack of its own at every try.
        "TORCH_CPP_LOG_LEVEL": "FATAL",
        # Go on from the newest checkpoint, if there is one: a pod that comes back is not a new run.
        "SCHOLARCH_RESTART": "1",
        "AWS_ENDPOINT_URL": settings.s3_endpoint,
        "MLFLOW_TRACKING_URI": run.spec.mlflow.uri or settings.tracking_uri,
        "MLFLOW_EXPERIMENT_NAME": run.spec.mlflow.experiment,
    }
    return {name: value for name, value in found.items() if value} | {
        variable.name: variable.value for variable in run.spec.env
    }


def _resources(spec: TrainingRunSpec) -> Manifest:
    found = {"cpu": spec.resources.cpu, "memory": spec.resources.memory}
    if spec.resources.gpus:
        found[spec.resources.gpu_resource] = str(spec.resources.gpus)
    return {"requests": found, "limits": dict(found)}


def _volumes(run: Run) -> tuple[list[Manifest], list[Manifest]]:
    asked_for = run.spec.resources
    volumes: list[Manifest] = [
        {"name": "tmp", "emptyDir": {"sizeLimit": asked_for.scratch}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": asked_for.shared_memory}},
    ]
    mounts: list[Manifest] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    if any(stage.inline for stage in run.spec.stages):
        volumes.append({"name": "recipes", "configMap": {"name": names.recipes_name(run.name)}})
        mounts.append({"name": "recipes", "mountPath": RECIPES, "readOnly": True})
    for number, volume in enumerate(run.spec.volumes):
        claim = {"claimName": volume.claim, "readOnly": volume.read_only}
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": claim})
        mounts.append({"name": f"volume-{number}", "mountPath": volume.path, "readOnly": volume.read_only})
    return volumes, mounts


def _placement(run: Run) -> Manifest:
    placement = run.spec.placement
    affinity: Manifest = {}
    if run.status.avoided_nodes:
        terms: list[Any] = [
            {"key": "metadata.name", "operator": "NotIn", "values": [node]}
            for node in run.status.avoided_nodes
        ]
        affinity["nodeAffinity"] = {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": terms}]}
        }
    if placement.near:
        term = {
            "labelSelector": {"matchLabels": names.selector(run.name, names.WORKER)},
            "topologyKey": placement.near,
        }
        affinity["podAffinity"] = {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    tolerations = [
        {key: value for key, value in toleration.model_dump().items() if value}
        for toleration in placement.tolerations
    ]
    return {
        "tolerations": [*lost_node_tolerations(), *tolerations],
        **({"nodeSelector": placement.node_selector} if placement.node_selector else {}),
        **({"affinity": affinity} if affinity else {}),
    }
