"""`scholarch checkpoints`: what a run has committed, whether it is whole, and weights out of it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scholarch.errors import EXIT_DONE, EXIT_FAILED

if TYPE_CHECKING:
    from scholarch.training.checkpoint import Checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "action",
        choices=("list", "verify", "export"),
        help="list: what there is, by names and sizes; verify: read all of it and compare checksums; "
        "export: write a checkpoint's backbone, as `scholarch export` does with the newest",
    )
    parser.add_argument("run", help="a run's folder or s3:// address")
    parser.add_argument(
        "--step", type=int, help="only this checkpoint (default: all; for export: the newest)"
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="for export: an empty or new folder")


def run(arguments: argparse.Namespace) -> int:
    """Prints a table; 1 where something is damaged."""
    from scholarch.cli.sources import run_address
    from scholarch.errors import UserError
    from scholarch.storage.objects import joined
    from scholarch.training.checkpoint import committed

    address = run_address(arguments.run)
    found = committed(joined(address, "checkpoints"))
    if arguments.step is not None:
        steps = [checkpoint.step for checkpoint in found]
        found = [checkpoint for checkpoint in found if checkpoint.step == arguments.step]
        if not found:
            raise UserError(
                f"there is no checkpoint of step {arguments.step}",
                where="--step",
                fix=f"choose one of {', '.join(map(str, steps))}" if steps else "let the run train on",
            )
    if arguments.action == "export":
        return _export(address, found if arguments.step is not None else None, arguments.to)
    return _table(found, thorough=arguments.action == "verify")


def _table(found: list[Checkpoint], thorough: bool) -> int:
    from scholarch.storage.local import readable_size

    if not found:
        print("no checkpoint was committed yet")
        return EXIT_DONE
    print(f"{'step':>9}  {'written':<19}  {'size':>10}  {'processes':>9}  state")
    code = EXIT_DONE
    for checkpoint in found:
        damage = checkpoint.damage() if thorough else checkpoint.loss()
        code = EXIT_FAILED if damage else code
        try:
            manifest = checkpoint.manifest()
        except (ValueError, KeyError):
            print(f"{checkpoint.step:>9}  {'':<19}  {'':>10}  {'':>9}  damaged: {damage}")
            continue
        written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest["written"]))
        size = readable_size(sum(entry["bytes"] for entry in manifest["files"].values()))
        state = f"damaged: {damage}" if damage else "verified" if thorough else "whole"
        print(f"{checkpoint.step:>9}  {written}  {size:>10}  {manifest['world_size']:>9}  {state}")
    return code


def _export(address: str, chosen: list[Checkpoint] | None, folder: Path | None) -> int:
    from scholarch.cli.handover import export_to
    from scholarch.cli.sources import open_run, opened_at
    from scholarch.errors import UserError

    if folder is None:
        raise UserError("where to?", where="--to", fix="name a new folder with --to")
    opened = opened_at(chosen[0]) if chosen else open_run(address)
    print(export_to(opened.model, folder))
    return EXIT_DONE
