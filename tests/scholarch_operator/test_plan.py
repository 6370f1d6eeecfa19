"""What the operator makes: golden manifests for every gang, and what never happens, whatever is lost.

`REGENERATE_GOLDEN=1 pytest tests/scholarch_operator/test_plan.py` writes the golden files anew.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from scholarch_operator.conditions import unreadable
from scholarch_operator.plan import Plan, plan
from scholarch_operator.settings import Settings
from training_runs import a_job, a_pod, a_run, after, seen

GOLDEN = Path(__file__).parent / "golden"
SETTINGS = Settings(
    s3_endpoint="http://scholarch-minio.scholarch:9000",
    tracking_uri="http://scholarch-mlflow.scholarch:5000",
    egress=({"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}], "ports": [{"port": 443, "protocol": "TCP"}]},),
)
ELASTIC: dict[str, Any] = {
    "nodes": {"min": 2, "max": 4},
    "resources": {"cpu": 16, "memory": "128Gi", "gpus": 8, "sharedMemory": "32Gi"},
    "secrets": {"storage": "s3-key", "tracking": "mlflow-user", "pull": ["registry"]},
    "priorityClass": "batch",
}
CASES: dict[str, dict[str, Any]] = {
    "one-node": {"stages": [{"recipe": "demo/digits"}, {"inline": "extends: demo/digits\n"}]},
    "none": ELASTIC
    | {
        "overrides": ["training.steps=10"],
        "data": "s3://data/digits",
        "mlflow": {"experiment": "digits"},
        "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
        "volumes": [{"claim": "pictures", "path": "/data", "readOnly": True}],
        "placement": {
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "near": "topology.kubernetes.io/rack",
        },
    },
    "kueue": ELASTIC | {"gang": {"backend": "kueue"}, "queue": "team"},
    "volcano": ELASTIC | {"gang": {"backend": "volcano"}, "queue": "team"},
    "native": ELASTIC | {"gang": {"backend": "native"}},
    "distill": ELASTIC | {"verb": "distill", "stages": [{"inline": "extends: dinov3/distill-vits\n"}]},
    "evaluate": {"verb": "evaluate", "model": "models:/digits@champion", "stages": [], "run": ""},
}


def first(**spec: Any) -> Plan:
    return plan(a_run(**spec), seen(), SETTINGS)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    done = first(**CASES[name])
    plain = json.loads(json.dumps([*done.apply, *done.create]))  # without shared parts, which YAML would mark
    text = yaml.safe_dump_all(plain, sort_keys=False, width=110)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("REGENERATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


@pytest.mark.parametrize("name", CASES)
def test_every_pod_is_restricted_and_owned(name: str) -> None:
    """Pod Security `restricted`, and what it leaves out: root file system, API token, size of what is in memory."""
    done = first(**CASES[name])
    for manifest in [*done.apply, *done.create]:
        assert len(manifest["metadata"]["name"]) <= 63
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert owner["uid"] == "0b5c"
        pod = manifest["spec"].get("template", {}).get("spec") if "spec" in manifest else None
        if pod is None:
            continue
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume)


@pytest.mark.parametrize("name", CASES)
def test_no_key_is_unknown_to_kubernetes(name: str) -> None:
    """Each manifest survives the client's own models, which drop what they do not know."""
    api = client.ApiClient()
    kinds = {"PodGroup": "V1beta1PodGroup", "NetworkPolicy": "V1NetworkPolicy"}
    done = first(**CASES[name])
    for manifest in [*done.apply, *done.create]:
        if "volcano" in manifest["apiVersion"]:
            continue
        kind = kinds.get(manifest["kind"], f"V1{manifest['kind']}")
        model = api.deserialize(json.dumps(manifest), kind, "application/json")
        assert api.sanitize_for_serialization(model) == manifest


@pytest.mark.parametrize("name", CASES)
def test_launcher_takes_its_arguments(name: str) -> None:
    from scholarch.training.launch import _parse

    (job,) = first(**CASES[name]).create
    (container,) = job["spec"]["template"]["spec"]["containers"]
    request = _parse(container["args"])
    assert request.grace < job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert request.nodes[1] >= job["spec"]["completions"]
    assert request.arguments[0] in ("pretrain", "distill", "evaluate")


def test_names_of_the_longest_run_fit() -> None:
    run = replace(a_run(nodes={"min": 1024, "max": 1024}), name="a" * 44)
    done = plan(replace(run, status=run.status.model_copy(update={"attempt": 9999})), seen(), SETTINGS)
    (job,) = done.create
    host = f"{job['metadata']['name']}-{job['spec']['completions'] - 1}"
    assert len(host) <= 63
    assert all(len(manifest["metadata"]["name"]) <= 63 for manifest in done.apply)


def test_a_new_attempt_is_written_down_before_anything_is_done() -> None:
    done = plan(a_run(), seen(a_job(ended="Failed")), SETTINGS)
    assert done.status.attempt == 2
    assert (done.apply, done.create, done.patch, done.delete) == ((), (), (), ())
    assert done.events[0][0] == "Crashed"


def test_an_attempt_waits_for_the_end_of_the_one_before() -> None:
    run = a_run({"attempt": 2})
    old = a_job()
    for observed in (seen(old, a_pod()), seen(old)):  # its pods may only not be there yet
        done = plan(run, observed, SETTINGS)
        assert (done.create, done.delete) == ((), ("digits-1",))
    leaving = a_pod(gone_by=after(180))
    for observed in (seen(replace(old, deleting=True), leaving), seen(leaving, at=240)):
        done = plan(run, observed, SETTINGS)
        assert (done.create, done.delete) == ((), ())
    lost = plan(run, seen(leaving, at=241), SETTINGS)
    assert [job["metadata"]["name"] for job in lost.create] == ["digits-2"], (
        "a lost node's pod is not waited for"
    )


def test_avoided_nodes_reach_the_next_attempt() -> None:
    (job,) = plan(a_run({"attempt": 2, "avoidedNodes": ["node-7"]}), seen(), SETTINGS).create
    affinity = job["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["node-7"]}]}


def test_resize_in_place() -> None:
    run = a_run(nodes={"min": 1, "max": 4})
    done = plan(run, seen(a_job(nodes="1:2"), a_pod()), SETTINGS)
    patch = {
        "metadata": {"annotations": {"scholarch.dev/nodes": "1:4"}},
        "spec": {"parallelism": 4, "completions": 4},
    }
    assert done.patch == (("digits-1", patch),)
    assert done.create == ()


def test_resize_under_kueue_suspends_and_lets_kueue_resume() -> None:
    run = a_run(nodes={"min": 1, "max": 4}, gang={"backend": "kueue"}, queue="team")
    ((name, patch),) = plan(run, seen(a_job(nodes="1:2"), a_pod()), SETTINGS).patch
    assert name == "digits-1"
    assert patch["spec"] == {"parallelism": 4, "completions": 4, "suspend": True}
    assert patch["metadata"]["annotations"]["kueue.x-k8s.io/job-min-parallelism"] == "1"
    # Admitted with fewer nodes than asked for: nothing to change.
    admitted = a_job(nodes="1:4", parallelism=2)
    assert plan(run, seen(admitted, a_pod(), a_pod(index=1)), SETTINGS).patch == ()


def test_suspend_keeps_the_meeting_place_until_all_have_saved() -> None:
    run = a_run(nodes={"min": 2, "max": 2}, suspend=True)

    def replicas(done: Plan) -> list[int]:
        return [m["spec"]["replicas"] for m in done.apply if m["kind"] == "Deployment"]

    draining = plan(run, seen(a_job(nodes="2:2"), a_pod(gone_by=after(180))), SETTINGS)
    assert draining.patch == (("digits-1", {"spec": {"suspend": True}}),)
    assert replicas(draining) == [1]
    assert replicas(plan(run, seen(a_job(nodes="2:2", suspended=True)), SETTINGS)) == [0]


def test_end_frees_everything_but_the_last_jobs() -> None:
    ended = [a_job(attempt, ended="Failed") for attempt in (1, 2, 3, 4)]
    done = plan(a_run({"attempt": 5}), seen(*ended, a_job(5, ended="Complete")), SETTINGS)
    assert done.status.finished
    assert done.delete == ("digits-1", "digits-2")
    cancelled = plan(a_run(cancel=True), seen(a_job(), a_pod()), SETTINGS)
    assert cancelled.delete == ("digits-1",)


def test_time_to_live_begins_at_the_end() -> None:
    finished = plan(a_run(), seen(a_job(ended="Complete")), SETTINGS).status.manifest()
    kept = a_run(finished, ttlSeconds=60)
    assert not plan(kept, seen(at=60), SETTINGS).delete_run
    assert plan(kept, seen(at=61), SETTINGS).delete_run
    assert not plan(a_run(finished), seen(at=1e6), SETTINGS).delete_run


def test_what_the_operator_does_not_understand_is_said_once() -> None:
    said = unreadable(a_run().status, "spec.x: unknown", after(0))
    condition = said.condition("Scheduled")
    assert condition is not None
    assert (condition.reason, condition.message) == ("InvalidSpec", "spec.x: unknown")
    assert unreadable(said, "spec.x: unknown", after(9)) == said


def test_what_the_api_server_refuses_is_said() -> None:
    done = plan(a_run(), seen(refused="no quota"), SETTINGS)
    condition = done.status.condition("Scheduled")
    assert condition is not None
    assert (condition.status, condition.reason, condition.message) == ("False", "Refused", "no quota")
    assert done.create, "it is tried again"


def test_a_run_that_is_deleted_is_left_to_the_garbage_collector() -> None:
    done = plan(replace(a_run(), deleting=True), seen(a_job(), a_pod()), SETTINGS)
    assert (done.apply, done.create, done.patch, done.delete) == ((), (), (), ())
