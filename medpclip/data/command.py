"""`medpclip data`: build shards from a source, check them, count them, look at them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from medpclip.errors import MedpclipError

_MAX_PROBLEMS = 50


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add `data` and its sub-commands."""
    data = verbs.add_parser("data", help="build shards from annotated images, check them, look at them")
    leaves = data.add_subparsers(title="data commands", dest="leaf", required=True, metavar="COMMAND")
    _add_build(leaves)
    _add_check(leaves)
    _add_stats(leaves)
    _add_show(leaves)
    _add_phantom(leaves)
    _add_recipes(leaves)


def _add_build(leaves: Any) -> None:
    leaf = leaves.add_parser(
        "build",
        help="convert sources into shards",
        description="Convert annotated images into shards. Nothing is dropped silently: what can't be used is listed "
        "with its reason in the private folder OUT.private. OUT appears whole or not at all.",
        epilog="example: medpclip data build bccd_blood --source /data/BCCD --out shards/bccd_blood",
    )
    leaf.add_argument("recipe", nargs="+", help="recipe: a file, or a bare name in data_recipes/ or --recipes")
    leaf.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with the source's files; where it has a sub-folder of the recipe's name, that one is taken",
    )
    leaf.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to make; with several recipes, OUT/NAME for each"
    )
    _add_recipes_option(leaf)
    leaf.add_argument(
        "--salt-file",
        type=Path,
        metavar="FILE",
        help="the lab's secret (default: $MEDPCLIP_SALT, else ~/.config/medpclip/salt, made at first use)",
    )
    leaf.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="default: %(default)s")
    leaf.set_defaults(run=_build)


def _add_check(leaves: Any) -> None:
    leaf = leaves.add_parser(
        "check",
        help="validate every byte of finished shards",
        description="Validate shards: hashes, indices, samples, images, masks, counts, and that no group is in two "
        "splits. Exit status 1 when anything is wrong.",
    )
    leaf.add_argument("folder", type=Path, help="a folder of shards, or a folder of such folders")
    leaf.set_defaults(run=_check)


def _add_stats(leaves: Any) -> None:
    leaf = leaves.add_parser("stats", help="count images, regions, categories and labels")
    leaf.add_argument("folder", type=Path, help="a folder of shards, or a folder of such folders")
    leaf.add_argument("--json", action="store_true", help="print JSON instead of tables")
    leaf.set_defaults(run=_stats)


def _add_show(leaves: Any) -> None:
    leaf = leaves.add_parser(
        "show",
        help="draw regions and terms on images, to see that they lie right",
        description="Draw a contact sheet: images with boxes, masks, points and their terms.",
    )
    leaf.add_argument("folder", type=Path, help="a folder of shards, or a folder of such folders")
    leaf.add_argument("-o", "--out", type=Path, required=True, metavar="PNG", help="the sheet to write")
    leaf.add_argument("--split", choices=("train", "val", "test"), help="only this split")
    leaf.add_argument("--count", type=int, default=24, metavar="N", help="images on the sheet (default: %(default)s)")
    leaf.add_argument("--seed", type=int, default=0, metavar="N", help="another seed draws other images")
    leaf.set_defaults(run=_show)


def _add_phantom(leaves: Any) -> None:
    leaf = leaves.add_parser(
        "phantom",
        help="draw procedural images with regions, to try everything without data",
        description="Draw phantoms: procedural images of five looks with regions and captions.",
    )
    leaf.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    leaf.add_argument("--images", type=int, default=4000, metavar="N", help="training images (default: %(default)s)")
    leaf.add_argument("--seed", type=int, default=0, metavar="N", help="another seed draws other images")
    leaf.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    leaf.set_defaults(run=_phantom)


def _add_recipes(leaves: Any) -> None:
    leaf = leaves.add_parser("recipes", help="list the recipes that can be named")
    _add_recipes_option(leaf)
    leaf.set_defaults(run=_recipes)


def _add_recipes_option(leaf: argparse.ArgumentParser) -> None:
    leaf.add_argument("--recipes", type=Path, metavar="DIR", help="another folder of recipes, looked in first")


def _recipe_folders(args: argparse.Namespace) -> list[Path]:
    if args.recipes is not None and not args.recipes.is_dir():
        raise MedpclipError(f"{args.recipes}: no such folder; check --recipes")
    return [folder for folder in (args.recipes, Path("data_recipes")) if folder is not None]


def _build(args: argparse.Namespace) -> None:
    from medpclip.data.building.build import build
    from medpclip.data.building.privacy import Salt
    from medpclip.data.building.quarantine import private_folder
    from medpclip.data.building.recipe import Recipe, find_recipe

    folders = _recipe_folders(args)
    recipes = [Recipe.load(find_recipe(name, folders)) for name in args.recipe]
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):
        raise MedpclipError("two of the recipes have the same 'name'; give each its own")
    salt = Salt.load(args.salt_file)
    for recipe in recipes:
        out = args.out / recipe.name if len(recipes) > 1 else args.out
        below = args.source / recipe.name
        manifest = build(recipe, below if below.is_dir() else args.source, out, salt, args.samples_per_shard)
        for what in ("images", "regions"):
            count = manifest[what]
            print(
                f"{recipe.name}: {what}: {count['found']} found = {count['written']} written "
                f"+ {count['quarantined']} quarantined"
            )
        for reason, counts in manifest["quarantine"].items():
            print(f"  {reason}: {counts['images']} images, {counts['regions']} regions")
        if manifest["quarantine"]:
            print(f"  listed in {private_folder(out) / 'quarantine.jsonl'} (private)")


def _check(args: argparse.Namespace) -> int:
    from medpclip.data.inspection.check import check_folder
    from medpclip.data.shards import shard_folders

    total = 0
    for folder in shard_folders(args.folder):
        problems = 0
        for problem in check_folder(folder):
            problems += 1
            if total + problems <= _MAX_PROBLEMS:
                print(problem, file=sys.stderr)
        print(f"{folder}: {'good' if not problems else f'{problems} problems'}")
        total += problems
    if total > _MAX_PROBLEMS:
        print(f"... and {total - _MAX_PROBLEMS} more problems", file=sys.stderr)
    return 1 if total else 0


def _stats(args: argparse.Namespace) -> None:
    import json

    from medpclip.data.inspection.stats import folder_stats, format_stats
    from medpclip.data.shards import shard_folders

    stats = {folder.name: folder_stats(folder) for folder in shard_folders(args.folder)}
    print(json.dumps(stats, indent=1) if args.json else "\n\n\n".join(map(format_stats, stats.values())))


def _show(args: argparse.Namespace) -> None:
    from medpclip.data.inspection.sheet import write_sheet

    print(write_sheet(args.folder, args.out, args.split, args.count, args.seed))


def _phantom(args: argparse.Namespace) -> None:
    from medpclip.data.phantom import write_phantoms

    manifest = write_phantoms(args.out, args.images, args.seed, args.workers)
    for split, counts in manifest["splits"].items():
        print(f"{split}: {counts['samples']} images, {counts['regions']} regions")


def _recipes(args: argparse.Namespace) -> None:
    from medpclip.data.building.recipe import Recipe, list_recipes
    from medpclip.data.inspection.stats import table

    folders = _recipe_folders(args)
    recipes = [Recipe.load(path) for path in list_recipes(folders).values()]
    if not recipes:
        raise MedpclipError(f"no recipe in {', '.join(map(str, folders))}; give --recipes DIR")
    rows = [[r.name, r.modality, r.reader, r.licence, r.title] for r in recipes]
    print(table(["name", "modality", "reader", "licence", "title"], rows))
