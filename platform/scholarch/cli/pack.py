"""`scholarch pack`: pictures into shards with a manifest, which any number of machines can stream."""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from scholarch.cli.count_line import CountLine
from scholarch.errors import EXIT_DONE, EXIT_FAILED

SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "source",
        help="a folder or s3:// prefix of pictures, .tar or .parquet files, a .txt list of pictures, or a "
        "captions file of COCO",
    )
    parser.add_argument("target", nargs="?", help="an empty or new folder or s3://BUCKET/PREFIX")
    parser.add_argument("--verify", action="store_true", help="read everything back and check all checksums")
    parser.add_argument("--labels", choices=("auto", "folders", "none"), default="auto", help="default: auto")
    parser.add_argument(
        "--pictures", default="", metavar="FOLDER", help="where the pictures are that a captions file names"
    )
    parser.add_argument("--resize", type=int, metavar="PIXELS", help="make shorter sides at most this long")
    parser.add_argument("--shard-size", default="64 MB", metavar="SIZE", help="default: 64 MB")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")


def run(arguments: argparse.Namespace) -> int:
    """Packs, verifies or both; 1 if something is damaged."""
    from scholarch.errors import UserError
    from scholarch.storage.objects import open_objects

    if arguments.target is None:
        if not arguments.verify:
            raise UserError(
                "names no target",
                where="pack",
                fix="scholarch pack SOURCE s3://BUCKET/PREFIX, or --verify SOURCE",
            )
        return _verify(arguments.source)
    from scholarch.data.packing.pack import pack
    from scholarch.data.packing.places import open_input
    from scholarch.storage.local import parse_size, readable_size

    shard_bytes = parse_size(arguments.shard_size, "--shard-size")
    if arguments.resize is not None and arguments.resize < 1:
        raise UserError(f"{arguments.resize} is no number of pixels", where="--resize")
    target = open_objects(arguments.target)
    target.check()
    progress = CountLine("packed")
    _say(f"listing {arguments.source}")
    source = open_input(arguments.source, arguments.labels, arguments.pictures)
    _say(f"{len(source.listing.names):,} pictures, {readable_size(sum(source.listing.sizes))}")
    manifest = pack(
        source,
        target,
        address=arguments.source,
        command=shlex.join(["scholarch", *sys.argv[1:]]),
        shard_bytes=shard_bytes,
        workers=arguments.workers or len(os.sched_getaffinity(0)),
        resize=arguments.resize,
        progress=progress,
    )
    progress.end()
    for entry in manifest.broken[:SHOWN]:
        _say(f"left out: {entry}")
    if len(manifest.broken) > SHOWN:
        _say(f"left out: {len(manifest.broken) - SHOWN} more, all named in the manifest")
    labels = f", {len(manifest.classes)} classes" if manifest.classes else ""
    said = ", with captions" if manifest.captions else ""
    _say(
        f"{manifest.samples:,} pictures in {len(manifest.shards)} shards{labels}{said}, "
        f"{len(manifest.broken)} left out"
    )
    if arguments.verify and (code := _verify(arguments.target)):
        return code
    verb = "align --backbone MODEL" if manifest.captions else "pretrain"
    print(f"next: scholarch {verb} data={arguments.target}")
    return EXIT_DONE


def _verify(address: str) -> int:
    from scholarch.data.packing.verify import verify
    from scholarch.storage.objects import open_objects

    objects = open_objects(address)
    objects.check()
    progress = CountLine("verified")
    manifest, damaged = verify(objects, lambda done, total: progress(done, total, 0))
    progress.end()
    for entry in damaged:
        print(f"damaged: {entry}")
    if damaged:
        _say(f"{address} is damaged: restore these files, or pack the pictures again")
        return EXIT_FAILED
    print(f"{address}: {manifest.samples:,} pictures in {len(manifest.shards)} shards are what was packed")
    return EXIT_DONE


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
