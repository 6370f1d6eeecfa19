"""TorchX components of Scholarch: `torchx run -s SCHEDULER scholarch_jobs.pretrain --recipe NAME`."""

# No `from __future__ import annotations` here: TorchX reads the annotations and takes them for strings.
# For the same reason arguments have plain types; an `int | None` arrives as a string.

from scholarch.config.command import (
    ALIGN_RECIPE,
    align_arguments,
    backbone_override,
    curate_arguments,
    distill_arguments,
    evaluate_arguments,
    pretrain_arguments,
)
from torchx import specs

from scholarch_jobs.rendering import IMAGE, app, ray_app, resource_of, stages


def pretrain(
    *overrides: str,
    recipe: list[str] | None = None,
    data: str = "",
    run: str = "",
    resume: bool = False,
    name: str = "",
    nodes: str = "1",
    processes: int = 0,
    resource: str = "",
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 4096,
    image: str = IMAGE,
    env: dict[str, str] | None = None,
    mounts: list[str] | None = None,
    restarts: int = -1,
    retries: int = 0,
    store: str = "",
) -> specs.AppDef:
    """Pretrains a backbone: `scholarch pretrain` on the workers of one or more nodes.

    Args:
        overrides: changes to the recipe, as key.path=value
        recipe: name of a recipe or path of its file; several, with commas, are stages that follow one another
        data: folder, data set name or URL that replaces the recipe's data
        run: run folder or s3://BUCKET/PREFIX; chosen for you when empty
        resume: go on from the newest checkpoint in the run folder (True or False); a TrainingRun always does
        name: name of the TrainingRun; a new one when empty
        nodes: N, or MIN:MAX for a run that may lose and gain nodes
        processes: workers on each node; 0 is one for each GPU, and 1 without GPUs
        resource: a node by name, such as h100 or h100_4, in place of cpu, gpu and memory
        cpu: cores of each node
        gpu: GPUs of each node
        memory: megabytes of each node
        image: container image, where the scheduler runs containers
        env: environment of the workers, as KEY=VALUE,KEY=VALUE
        mounts: as type=bind,src=/host,dst=/job[,readonly] or type=volume,src=CLAIM,dst=/job
        restarts: faults after which a node starts its workers again; -1 is 3 with several nodes, 0 with one
        retries: times that the scheduler starts the job again
        store: HOST:PORT of a `python -m scholarch.training.store`, which MIN:MAX needs unless -s scholarch brings it

    Raises:
        ComponentValidationException: nodes is neither N nor MIN:MAX, or there is no such resource
    """
    recipes = recipe or []
    return app(
        pretrain_arguments(recipes, run=run, resume=resume, data=data, overrides=overrides),
        {"name": name, "stages": stages(recipes), "run": run, "data": data, "overrides": list(overrides)},
        image=image,
        resource=resource_of(resource, cpu, gpu, memory),
        nodes=nodes,
        processes=processes,
        env=env,
        mounts=mounts,
        restarts=restarts,
        retries=retries,
        store=store,
    )


def align(
    *overrides: str,
    backbone: str = "",
    recipe: str = ALIGN_RECIPE,
    data: str = "",
    run: str = "",
    resume: bool = False,
    name: str = "",
    nodes: str = "1",
    processes: int = 0,
    resource: str = "",
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 4096,
    image: str = IMAGE,
    env: dict[str, str] | None = None,
    mounts: list[str] | None = None,
    restarts: int = -1,
    retries: int = 0,
    store: str = "",
) -> specs.AppDef:
    """Aligns a locked backbone with text: `scholarch align` on the workers of one or more nodes.

    Args:
        overrides: changes to the recipe, as key.path=value
        backbone: what is aligned: a run, an export, a file of weights, or models:/NAME@ALIAS
        recipe: name of a recipe or path of its file
        data: pictures with captions: a folder, data set name or URL that replaces the recipe's data
        run: run folder or s3://BUCKET/PREFIX; chosen for you when empty
        resume: go on from the newest checkpoint in the run folder (True or False); a TrainingRun always does
        name: name of the TrainingRun; a new one when empty
        nodes: N, or MIN:MAX for a run that may lose and gain nodes
        processes: workers on each node; 0 is one for each GPU, and 1 without GPUs
        resource: a node by name, such as h100 or h100_4, in place of cpu, gpu and memory
        cpu: cores of each node
        gpu: GPUs of each node
        memory: megabytes of each node
        image: container image, where the scheduler runs containers
        env: environment of the workers, as KEY=VALUE,KEY=VALUE
        mounts: as type=bind,src=/host,dst=/job[,readonly] or type=volume,src=CLAIM,dst=/job
        restarts: faults after which a node starts its workers again; -1 is 3 with several nodes, 0 with one
        retries: times that the scheduler starts the job again
        store: HOST:PORT of a `python -m scholarch.training.store`, which MIN:MAX needs unless -s scholarch brings it

    Raises:
        ComponentValidationException: nodes is neither N nor MIN:MAX, or there is no such resource
    """
    # For a TrainingRun it is a pretraining: by this recipe, from that backbone.
    changes = [*([backbone_override(backbone)] if backbone else []), *overrides]
    work = {"name": name, "stages": stages([recipe]), "run": run, "data": data, "overrides": changes}
    return app(
        align_arguments(backbone, recipe, run=run, resume=resume, data=data, overrides=overrides),
        {"verb": "pretrain", **work},
        image=image,
        resource=resource_of(resource, cpu, gpu, memory),
        nodes=nodes,
        processes=processes,
        env=env,
        mounts=mounts,
        restarts=restarts,
        retries=retries,
        store=store,
    )


def distill(
    *overrides: str,
    recipe: str,
    student: list[str] | None = None,
    data: str = "",
    run: str = "",
    resume: bool = False,
    name: str = "",
    nodes: str = "1",
    processes: int = 0,
    resource: str = "",
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 4096,
    image: str = IMAGE,
    env: dict[str, str] | None = None,
    mounts: list[str] | None = None,
    restarts: int = -1,
    retries: int = 0,
    store: str = "",
) -> specs.AppDef:
    """Distils one teacher into many students: `scholarch distill` on the workers of one or more nodes.

    Args:
        overrides: changes to the recipe, as key.path=value
        recipe: name of a recipe with students, or path of its file
        student: only these of the students, with commas; not with -s scholarch, where students.NAME=null leaves one out
        data: folder, data set name or URL that replaces the recipe's data
        run: run folder or s3://BUCKET/PREFIX; chosen for you when empty
        resume: go on from the newest checkpoints in the run folder (True or False); a TrainingRun always does
        name: name of the TrainingRun; a new one when empty
        nodes: N, or MIN:MAX for a run that may lose and gain nodes; each student needs a worker of its own
        processes: workers on each node; 0 is one for each GPU, and 1 without GPUs
        resource: a node by name, such as h100 or h100_4, in place of cpu, gpu and memory
        cpu: cores of each node
        gpu: GPUs of each node
        memory: megabytes of each node
        image: container image, where the scheduler runs containers
        env: environment of the workers, as KEY=VALUE,KEY=VALUE
        mounts: as type=bind,src=/host,dst=/job[,readonly] or type=volume,src=CLAIM,dst=/job
        restarts: faults after which a node starts its workers again; -1 is 3 with several nodes, 0 with one
        retries: times that the scheduler starts the job again
        store: HOST:PORT of a `python -m scholarch.training.store`, which MIN:MAX needs unless -s scholarch brings it

    Raises:
        ComponentValidationException: nodes is neither N nor MIN:MAX, or there is no such resource
    """
    work = {"name": name, "stages": stages([recipe]), "run": run, "data": data, "overrides": list(overrides)}
    return app(
        distill_arguments(recipe, student or [], run=run, resume=resume, data=data, overrides=overrides),
        work,
        image=image,
        resource=resource_of(resource, cpu, gpu, memory),
        nodes=nodes,
        processes=processes,
        env=env,
        mounts=mounts,
        restarts=restarts,
        retries=retries,
        store=store,
    )


def evaluate(
    model: str,
    data: str = "",
    name: str = "",
    resource: str = "",
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 4096,
    image: str = IMAGE,
    env: dict[str, str] | None = None,
    mounts: list[str] | None = None,
    retries: int = 0,
) -> specs.AppDef:
    """Measures a frozen backbone: `scholarch evaluate` on one node; the result is JSON in the log.

    Args:
        model: a run's folder, an export folder, or models:/NAME@ALIAS
        data: labelled pictures; the run's own when empty
        name: name of the TrainingRun; a new one when empty
        resource: a node by name, such as h100_1, in place of cpu, gpu and memory
        cpu: cores of the node
        gpu: GPUs of the node
        memory: megabytes of the node
        image: container image, where the scheduler runs containers
        env: environment, as KEY=VALUE,KEY=VALUE
        mounts: as type=bind,src=/host,dst=/job[,readonly] or type=volume,src=CLAIM,dst=/job
        retries: times that the scheduler starts the job again

    Raises:
        ComponentValidationException: there is no such resource
    """
    return app(
        evaluate_arguments(model, data=data),
        {"name": name, "model": model, "data": data},
        image=image,
        resource=resource_of(resource, cpu, gpu, memory),
        processes=1,
        env=env,
        mounts=mounts,
        retries=retries,
    )


def ray(
    *overrides: str,
    recipe: list[str] | None = None,
    data: str = "",
    run: str = "",
    resume: bool = False,
    workers: str = "1",
    address: str = "",
    gpus: bool = False,
    failures: int = 3,
    cpu: int = 2,
    memory: int = 4096,
    image: str = IMAGE,
    env: dict[str, str] | None = None,
) -> specs.AppDef:
    """Pretrains a backbone on the workers of Ray Train: `pretrain` for teams that have a Ray cluster.

    Args:
        overrides: changes to the recipe, as key.path=value
        recipe: name of a recipe or path of its file; several, with commas, are stages that follow one another
        data: folder, data set name or URL that replaces the recipe's data
        run: run folder or s3://BUCKET/PREFIX that all workers reach
        resume: go on from the newest checkpoint in the run folder (True or False)
        workers: N, or MIN:MAX for a run that may lose and gain workers
        address: of the Ray cluster; one begins here when empty
        gpus: each worker has a GPU (True or False)
        failures: faults after which workers are started again
        cpu: cores of the node that starts the run
        memory: megabytes of that node
        image: container image, where the scheduler runs containers
        env: environment, as KEY=VALUE,KEY=VALUE
    """
    verb = pretrain_arguments(recipe or [], run=run, resume=resume, data=data, overrides=overrides)
    return ray_app(
        verb, workers, address, gpus, failures, image=image, resource=resource_of("", cpu, 0, memory), env=env
    )


def curate(
    *overrides: str,
    recipe: str,
    run: str = "",
    ray: str = "",
    name: str = "",
    resource: str = "",
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 8192,
    image: str = IMAGE,
    env: dict[str, str] | None = None,
    mounts: list[str] | None = None,
    retries: int = 0,
) -> specs.AppDef:
    """Makes a training set of pools of pictures: `scholarch curate` on one node, or on a Ray cluster that runs.

    Args:
        overrides: changes to the recipe, as key.path=value
        recipe: path of the recipe's file
        run: folder or s3://BUCKET/PREFIX for the results; chosen for you when empty
        ray: address of a Ray cluster; one begins on the node when empty
        name: name of the app; a new one when empty
        resource: a node by name, such as cpu_16, in place of cpu, gpu and memory
        cpu: cores of the node
        gpu: GPUs of the node
        memory: megabytes of the node
        image: container image, where the scheduler runs containers
        env: environment, as KEY=VALUE,KEY=VALUE
        mounts: as type=bind,src=/host,dst=/job[,readonly] or type=volume,src=CLAIM,dst=/job
        retries: times that the scheduler starts the job again; it goes on where it was

    Raises:
        ComponentValidationException: there is no such resource
    """
    return app(
        curate_arguments(recipe, run=run, ray=ray, overrides=overrides),
        {"name": name, "run": run},
        image=image,
        resource=resource_of(resource, cpu, gpu, memory),
        processes=1,
        env=env,
        mounts=mounts,
        retries=retries,
    )
