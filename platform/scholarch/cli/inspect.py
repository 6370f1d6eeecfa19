"""`scholarch inspect`: what a backbone makes of one picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from scholarch.errors import EXIT_DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "model",
        help="a run, an export folder or a file of released weights (each also under s3://), or models:/NAME@ALIAS",
    )
    parser.add_argument("picture", type=Path, help="a picture file")
    parser.add_argument(
        "--point",
        metavar="X,Y",
        help="pixel of the picture that all patches are compared with (default: its centre)",
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="PHRASE",
        help="draw where the picture shows it; may be given several times (aligned models only)",
    )
    parser.add_argument(
        "--window",
        type=int,
        metavar="PIXELS",
        help="look for phrases in a window around each patch, by itself, and not in patch tokens: truer where tokens "
        "hold much of what is beside them, and one pass of the model for each patch; pixels of the first size",
    )
    parser.add_argument(
        "--sizes",
        metavar="A,B,...",
        help="pixels of the shorter side, multiples of the patch (default: the model's size, twice and three "
        "times it); maps other than the features are of the first",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="norm above which a token is an outlier, such as 150 for DINOv2 g/14 (default: 6 robust standard "
        "deviations above the median)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where the pictures and the page go (default: inspect-PICTURE)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes PNG files and index.html, and prints where."""
    import torch

    from scholarch.cli.count_line import CountLine
    from scholarch.cli.sources import open_model
    from scholarch.data.decode import decode, to_channels
    from scholarch.data.source import BrokenPicture
    from scholarch.errors import UserError
    from scholarch.registry.backbone import assemble
    from scholarch.report.inspection import facts, inspect_picture, write_inspection
    from scholarch.report.page import Content

    path: Path = arguments.picture
    if not path.is_file():
        raise UserError("there is no such picture", where=str(path), fix="name a picture file")
    model = open_model(arguments.model)
    seen = model.preprocessing
    try:
        picture = to_channels(decode(path.read_bytes(), str(path)), len(seen.mean), str(path))
    except BrokenPicture as broken:
        raise UserError(str(broken), fix="give another picture") from None
    height, width = picture.shape[1:]
    point = _point(arguments.point, width, height)
    sizes = _sizes(arguments.sizes, model.options.patch, seen.size)
    _check_window(arguments.window, sizes[0], arguments.text)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = assemble(model.options, model.weights, seen.merges).float().to(device)
    line = CountLine("seen", "windows")
    found = inspect_picture(
        backbone,
        picture,
        sizes=sizes,
        mean=seen.mean,
        std=seen.std,
        point=point,
        threshold=arguments.threshold,
        texts=list(dict.fromkeys(arguments.text)),
        window=arguments.window,
        progress=line,
    )
    line.end()
    content = Content(
        title=path.name,
        subtitle=f"seen by {model.origin}",
        state="",
        facts=(
            ("Model", model.origin),
            ("Picture", f"{path}, {width} x {height} pixels"),
            *facts(found),
        ),
        mean=seen.mean,
        std=seen.std,
    )
    written = write_inspection(arguments.out or Path(f"inspect-{path.stem}"), found, content)
    print("\n".join(str(file) for file in (*written.pictures, written.page)))
    return EXIT_DONE


def _numbers(text: str, where: str, fix: str) -> list[int]:
    from scholarch.errors import UserError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{text!r} are no whole numbers", where=where, fix=fix) from None


def _point(text: str | None, width: int, height: int) -> tuple[float, float]:
    """(x, y) as shares of the picture."""
    from scholarch.errors import UserError

    if text is None:
        return 0.5, 0.5
    fix = f"X,Y with X below {width} and Y below {height}"
    numbers = _numbers(text, "--point", fix)
    if len(numbers) != 2 or not (0 <= numbers[0] < width and 0 <= numbers[1] < height):
        raise UserError(f"{text} is no pixel of this picture", where="--point", fix=fix)
    return numbers[0] / width, numbers[1] / height


def _check_window(window: int | None, size: int, texts: list[str]) -> None:
    from scholarch.errors import UserError

    if window is None:
        return
    if not texts:
        raise UserError("nothing is looked for in the windows", where="--window", fix="add --text PHRASE")
    if not 1 <= window <= size:
        raise UserError(
            f"a window of {window} pixels in a picture of {size}", where="--window", fix=f"give 1 to {size}"
        )


def _sizes(text: str | None, patch: int, size: int) -> list[int]:
    from scholarch.errors import UserError
    from scholarch.report.inspection import default_sizes

    if text is None:
        return default_sizes(patch, size)
    fix = f"multiples of the patch, {patch}"
    sizes = _numbers(text, "--sizes", fix)
    for one in sizes:
        if one < patch or one % patch:
            raise UserError(f"{one} pixels do not divide into patches of {patch}", where="--sizes", fix=fix)
    return sizes
