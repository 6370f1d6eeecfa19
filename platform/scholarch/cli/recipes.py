"""`scholarch recipes`: what there is, and what one says when everything is written out."""

from __future__ import annotations

import argparse

from scholarch.errors import EXIT_DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("action", nargs="?", choices=("list", "show"), default="list")
    parser.add_argument("name", nargs="?", help="a recipe, for `show`")
    parser.add_argument(
        "--scale", choices=("full", "tiny"), default="full", help="as of `scholarch pretrain`"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")


def run(arguments: argparse.Namespace) -> int:
    """Prints a table of all recipes, or one whole recipe as YAML."""
    from scholarch.config.load import read_recipe, recipe_names, to_yaml
    from scholarch.errors import UserError

    if arguments.action == "list":
        names = recipe_names()
        width = max(map(len, names))
        for name in names:
            print(f"{name:<{width}}  {read_recipe(name).get('about', '')}")
        return EXIT_DONE
    if arguments.name is None:
        raise UserError("which recipe?", fix="scholarch recipes show NAME; `scholarch recipes` lists them")
    from scholarch.training.recipe import load_recipe

    print(to_yaml(load_recipe(arguments.name, arguments.overrides, arguments.scale)), end="")
    return EXIT_DONE
