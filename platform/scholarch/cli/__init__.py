"""`scholarch VERB`: what a person types. Verbs are imported when they are called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from scholarch import __version__
from scholarch.errors import EXIT_DONE, EXIT_KILLED, RunFailed, UserError


@dataclass(frozen=True)
class Verb:
    """A verb: `scholarch.cli.NAME` (or `module`) has `add_arguments(parser)` and `run(arguments) -> exit code`."""

    name: str
    summary: str
    module: str = ""


VERBS = (
    Verb("pretrain", "train a backbone by a recipe, on a folder of pictures or a built-in set"),
    Verb("distill", "train several students side by side from one frozen teacher"),
    Verb("align", "train a text tower on a locked backbone, on pictures with captions"),
    Verb("plan", "say what a recipe takes on a cluster: parameters, memory, traffic", module="planning"),
    Verb("evaluate", "measure a trained backbone on labelled pictures"),
    Verb("inspect", "draw what a backbone makes of one picture: attention, similarity, features, outliers"),
    Verb("export", "write a trained backbone as safetensors and as a checkpoint for timm"),
    Verb("checkpoints", "list or verify a run's checkpoints, or export the backbone of one"),
    Verb("register", "bring a run to MLflow that ended while it was away: record, report, version"),
    Verb("promote", "make a registered version champion if it passes the gates of a policy, or go back"),
    Verb("pack", "put pictures into shards that any number of machines can stream, in S3 or in a folder"),
    Verb("curate", "make a training set of pools of pictures: deduplicated, balanced, like given ones"),
    Verb("recipes", "list the recipes, or show one resolved"),
    Verb("doctor", "say what this machine and configuration can do, and what is missing"),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scholarch",
        description="Trains, evaluates and exports self-supervised vision models of the DINO family.",
        epilog="first run: scholarch pretrain --recipe demo/digits    your pictures: scholarch pretrain data=FOLDER",
    )
    parser.add_argument("--version", action="version", version=f"scholarch {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        # Arguments are added when the verb is known: `scholarch --help` imports none of them.
        verbs.add_parser(verb.name, help=verb.summary, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code: 0 done, 1 failed, 2 wrong input, 75 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in {verb.name for verb in VERBS}:
        _parser().parse_args(words or ["--help"])
        return EXIT_DONE
    verb = next(verb for verb in VERBS if verb.name == words[0])
    module = importlib.import_module(f"scholarch.cli.{verb.module or verb.name}")
    parser = argparse.ArgumentParser(prog=f"scholarch {verb.name}", description=f"{verb.summary}.")
    module.add_arguments(parser)
    try:
        code: int = module.run(parser.parse_intermixed_args(words[1:]))
    except (UserError, RunFailed) as error:
        # Every process of a run meets the same mistake; the launcher shows one of them.
        print(f"scholarch: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("scholarch: stopped at once; the last checkpoint stands", file=sys.stderr)
        return EXIT_KILLED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    return code
