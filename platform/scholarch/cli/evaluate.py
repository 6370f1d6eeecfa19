"""`scholarch evaluate`: what a frozen backbone's features are worth."""

from __future__ import annotations

import argparse
import json

from scholarch.errors import EXIT_DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "model",
        help="a run, a checkpoint, an export folder (all also under s3://), a file of released weights, "
        "models:/NAME@ALIAS; with --suite also timm:NAME or timm:NAME:FILE",
    )
    parser.add_argument(
        "--suite", default="", metavar="NAME", help="run a suite of evaluations: its name, or a YAML file"
    )
    parser.add_argument(
        "--to",
        default="",
        metavar="FOLDER",
        help="where the result of a suite goes, also s3:// (default: evaluations/SUITE/MODEL)",
    )
    parser.add_argument(
        "--features",
        default="",
        metavar="FOLDER",
        help="keep what is extracted for a suite there, also s3://; processes on several machines need it",
    )
    parser.add_argument(
        "--batch", type=int, default=64, help="pictures that go through the backbone together (default: 64)"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.path=value",
        help="changes to the suite, such as data.imagenet.address=FOLDER",
    )
    parser.add_argument(
        "--evaluation", choices=("knn",), default="knn", help="what to measure (default: knn)"
    )
    parser.add_argument(
        "--data",
        help="labelled pictures: a built-in set or a folder of class folders "
        "(default: the run's own, its held-out part)",
    )
    parser.add_argument(
        "--test", help="labelled pictures to classify (default: a fifth of --data, kept apart)"
    )
    parser.add_argument("--neighbours", type=int, default=20, help="k of the vote (default: 20)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints a table of metrics."""
    from scholarch.errors import UserError

    if arguments.suite:
        return _suite(arguments)
    if arguments.overrides:
        raise UserError(
            "changes a suite, and none is named", where=arguments.overrides[0], fix="name it: --suite NAME"
        )
    return _knn(arguments)


def _suite(arguments: argparse.Namespace) -> int:
    from scholarch.cli.suites import Asked, run_suite
    from scholarch.errors import UserError
    from scholarch.training.distributed import world

    if arguments.data or arguments.test:
        raise UserError(
            "a suite names its own data",
            where="--data" if arguments.data else "--test",
            fix="data.NAME.address=FOLDER",
        )
    if arguments.batch < 1:
        raise UserError(f"a batch of {arguments.batch} holds no picture", where="--batch", fix="1 or more")
    asked = Asked(
        model=arguments.model,
        suite=arguments.suite,
        overrides=arguments.overrides,
        to=arguments.to,
        features=arguments.features,
        batch=arguments.batch,
        as_json=arguments.json,
    )
    with world() as processes:
        return run_suite(asked, processes)


def _knn(arguments: argparse.Namespace) -> int:
    import torch

    from scholarch.cli.sources import open_model
    from scholarch.data.catalog import open_source
    from scholarch.data.split import Subset, holdout
    from scholarch.data.views import EvaluationView
    from scholarch.errors import UserError
    from scholarch.evaluation import knn
    from scholarch.evaluation.features import Pictures, extract
    from scholarch.registry.backbone import assemble

    if arguments.neighbours < 1:
        raise UserError(
            f"{arguments.neighbours} neighbours cannot vote", where="--neighbours", fix="1 or more"
        )
    model = open_model(arguments.model)
    name = arguments.data or model.data
    if name is None:
        raise UserError(
            "which pictures?", where="--data", fix="name labelled pictures, such as --data digits"
        )
    source = open_source(name)
    if source.classes is None:
        raise UserError(
            "has no labels", where=f"--data {name}", fix="put each class into a folder of its own"
        )
    if arguments.test:
        train, test = source, open_source(arguments.test, "folders")
        if test.classes != train.classes:
            raise UserError(
                "has other classes than --data",
                where=f"--test {arguments.test}",
                fix="use the same class folders",
            )
    else:
        first, second = holdout(source, 0.2, 0)
        train, test = Subset(source, first), Subset(source, second)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = assemble(model.options, model.weights).float().to(device)
    view = EvaluationView(model.preprocessing.size, model.preprocessing.mean, model.preprocessing.std)
    parts = [
        extract(
            backbone,
            Pictures.read(part, view, at_most=len(part), group=None),
            device=device,
            batch=256,
            group=None,
        )
        for part in (train, test)
    ]
    value = knn.accuracy(parts[0], parts[1], neighbours=arguments.neighbours, temperature=0.07)
    result = {
        "model": model.origin,
        "data": name,
        "train": len(parts[0].labels),
        "test": len(parts[1].labels),
        "broken": parts[0].broken + parts[1].broken,
        f"knn/{arguments.neighbours}": round(value, 4),
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        width = max(map(len, result))
        print("\n".join(f"  {key:<{width}}  {value}" for key, value in result.items()))
    return EXIT_DONE
