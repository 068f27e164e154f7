"""`medpclip data`: build shards from a source, check them, count them, look at them."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medpclip.data.inspection.overlap_command import add_overlap
from medpclip.errors import MedpclipError

if TYPE_CHECKING:
    from medpclip.data.building.recipe import Recipe

_MAX_PROBLEMS = 50


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add `data` and its sub-commands."""
    data = verbs.add_parser("data", help="build shards from annotated images, check them, look at them")
    leaves = data.add_subparsers(title="data commands", dest="leaf", required=True, metavar="COMMAND")
    _add_build(leaves)
    _add_merge(leaves)
    _add_check(leaves)
    _add_stats(leaves)
    _add_show(leaves)
    _add_phantom(leaves)
    add_overlap(leaves)
    _add_recipes(leaves)
    _add_readers(leaves)


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
    _add_weight(leaf)
    _add_workers(leaf)
    leaf.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        help="convert the I-th of N parts only, as one job of an array; medpclip data merge brings them together",
    )
    leaf.add_argument(
        "--salt-file",
        type=Path,
        metavar="FILE",
        help="the lab's secret (default: $MEDPCLIP_SALT, else ~/.config/medpclip/salt, made at first use)",
    )
    _add_shard_size(leaf)
    leaf.set_defaults(run=_build)


def _add_merge(leaves: Any) -> None:
    leaf = leaves.add_parser(
        "merge",
        help="make the shards of parts that several jobs converted",
        description="Make shards of the parts that medpclip data build --part has converted: the same bytes as of one "
        "build. Parts of another recipe or salt are refused.",
        epilog="example: medpclip data merge bccd_blood --out shards/bccd_blood",
    )
    leaf.add_argument("recipe", nargs="+", help="the recipes that the parts were converted by")
    leaf.add_argument("--out", type=Path, required=True, metavar="DIR", help="the --out that the jobs were given")
    leaf.add_argument(
        "--parts",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="other --out folders that jobs were given; for one recipe only",
    )
    _add_recipes_option(leaf)
    _add_weight(leaf)
    _add_shard_size(leaf)
    leaf.set_defaults(run=_merge)


def _add_weight(leaf: argparse.ArgumentParser) -> None:
    leaf.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="NAME=W",
        help="with several recipes: how many times an epoch draws each sample of one (default: 1); may be repeated",
    )


def _add_workers(leaf: argparse.ArgumentParser) -> None:
    leaf.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")


def _workers(args: argparse.Namespace) -> int:
    usable = getattr(os, "sched_getaffinity", None)  # macOS has none
    count = args.workers if args.workers is not None else len(usable(0)) if usable else os.cpu_count() or 1
    if count < 1:
        raise MedpclipError(f"--workers is {count}; give 1 or more")
    return count


def _add_shard_size(leaf: argparse.ArgumentParser) -> None:
    leaf.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="default: %(default)s")


def _part(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts):
        return int(part), int(parts)
    raise argparse.ArgumentTypeError(f"{text!r} is no part; give I/N with 1 <= I <= N, as 3/8")


def _add_check(leaves: Any) -> None:
    leaf = leaves.add_parser(
        "check",
        help="validate every byte of finished shards",
        description="Validate shards: hashes, indices, samples, images, masks, counts, and that no group is in two "
        "splits. Exit status 1 when anything is wrong.",
    )
    leaf.add_argument("folder", type=Path, help="a folder of shards, or a folder of such folders")
    _add_workers(leaf)
    leaf.set_defaults(run=_check)


def _add_stats(leaves: Any) -> None:
    leaf = leaves.add_parser("stats", help="count images, regions, categories and labels")
    leaf.add_argument("folder", type=Path, help="a folder of shards, or a folder of such folders")
    leaf.add_argument("--json", action="store_true", help="print JSON instead of tables")
    leaf.add_argument("--plots", type=Path, metavar="HTML", help="also draw plots, as one page of its own")
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
    _add_workers(leaf)
    leaf.set_defaults(run=_phantom)


def _add_recipes(leaves: Any) -> None:
    leaf = leaves.add_parser("recipes", help="list the recipes that can be named, or all that one says")
    leaf.add_argument("name", nargs="?", help="a recipe, to see all that it says")
    _add_recipes_option(leaf)
    leaf.set_defaults(run=_recipes)


def _add_readers(leaves: Any) -> None:
    leaf = leaves.add_parser("readers", help="list the annotation formats, or the conventions and options of one")
    leaf.add_argument("name", nargs="?", help="a reader, to see its conventions and options")
    leaf.set_defaults(run=_readers)


def _add_recipes_option(leaf: argparse.ArgumentParser) -> None:
    leaf.add_argument("--recipes", type=Path, metavar="DIR", help="another folder of recipes, looked in first")


def _recipe_folders(args: argparse.Namespace) -> list[Path]:
    if args.recipes is not None and not args.recipes.is_dir():
        raise MedpclipError(f"{args.recipes}: no such folder; check --recipes")
    return [folder for folder in (args.recipes, Path("data_recipes")) if folder is not None]


def _load_recipes(args: argparse.Namespace) -> list[Recipe]:
    from medpclip.data.building.recipe import Recipe, find_recipe

    folders = _recipe_folders(args)
    recipes = [Recipe.load(find_recipe(name, folders)) for name in args.recipe]
    if len({recipe.name for recipe in recipes}) < len(recipes):
        raise MedpclipError("two of the recipes have the same 'name'; give each its own")
    return recipes


def _build(args: argparse.Namespace) -> None:
    from medpclip.data.building.build import build, convert_part
    from medpclip.data.building.privacy import Salt
    from medpclip.data.building.quarantine import private_folder

    recipes = _load_recipes(args)
    weights = _weights(args.weight, recipes)
    if args.weight and args.part is not None:
        raise MedpclipError(f"--weight {args.weight[0]}: a part has no weight; give it to medpclip data merge")
    workers = _workers(args)
    salt = Salt.load(args.salt_file)
    for recipe in recipes:
        # Of several recipes, all private folders lie beside the whole, so that the whole can be shared.
        several = len(recipes) > 1
        out = args.out / recipe.name if several else args.out
        private = private_folder(args.out) / recipe.name if several else private_folder(args.out)
        below = args.source / recipe.name
        source = below if below.is_dir() else args.source
        if args.part is None:
            manifest = build(recipe, source, out, salt, args.samples_per_shard, workers, private)
            _report(recipe, manifest, private)
        else:
            convert_part(recipe, source, private, salt, workers, *args.part)
            print(
                f"{recipe.name}: part {args.part[0]} of {args.part[1]} is converted; medpclip data merge makes the shards"
            )
    if args.part is None:
        _write_mixture(args.out, weights)


def _merge(args: argparse.Namespace) -> None:
    from medpclip.data.building.build import merge
    from medpclip.data.building.quarantine import private_folder

    recipes = _load_recipes(args)
    if len(recipes) > 1 and args.parts:
        raise MedpclipError("--parts is for one recipe; merge them one after the other")
    for recipe in recipes:
        out = args.out / recipe.name if len(recipes) > 1 else args.out
        private = [private_folder(folder) for folder in (args.out, *args.parts)]
        if len(recipes) > 1:
            private = [private[0] / recipe.name]
        _report(recipe, merge(recipe, private, out, args.samples_per_shard), private[0])
    _write_mixture(args.out, _weights(args.weight, recipes))


def _weights(given: list[str], recipes: list[Recipe]) -> dict[str, float]:
    """Recipe -> weight, from NAME=W."""
    if given and len(recipes) == 1:
        raise MedpclipError(f"--weight {given[0]}: one recipe makes no mixture; name several, or leave it out")
    weights = {recipe.name: 1.0 for recipe in recipes}
    for text in given:
        name, _, number = text.partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if name not in weights or not 0 < weight < math.inf:
            raise MedpclipError(f"--weight {text}: give NAME=W with one of {', '.join(weights)} and a number above 0")
        weights[name] = weight
    return weights


def _write_mixture(out: Path, weights: dict[str, float]) -> None:
    from medpclip.data.mixture import write_mixture

    if len(weights) > 1:
        write_mixture(out, weights)


def _report(recipe: Recipe, manifest: dict[str, Any], private: Path) -> None:
    for what in ("images", "regions"):
        count = manifest[what]
        print(
            f"{recipe.name}: {what}: {count['found']} found = {count['written']} written "
            f"+ {count['quarantined']} quarantined"
        )
    for reason, counts in manifest["quarantine"].items():
        print(f"  {reason}: {counts['images']} images, {counts['regions']} regions, {counts['faults']} times")
    if manifest["deidentified"]:
        replaced = ", ".join(f"{kind} {count}" for kind, count in manifest["deidentified"].items())
        print(f"  replaced in captions: {replaced}")
    for rule in manifest["unused_rules"]:
        print(f"  the recipe's '{rule}' found nothing to look at in any image; is its key right?")
    _print_strange_words(recipe)
    if manifest["quarantine"]:
        print(f"  listed in {private / 'quarantine.jsonl'} (private)")


def _print_strange_words(recipe: Recipe) -> None:
    """Words that the lexicon lacks have no synonyms or relatives; some are typos. Labels may well be none of its terms."""
    from difflib import get_close_matches

    from medpclip.data.lexicon import Lexicon

    lexicon = Lexicon.load()
    for word in sorted(recipe.words() - lexicon.terms.keys()):
        near = get_close_matches(word, lexicon.terms, 1, 0.8)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        if near or word in recipe.terms.values():
            print(f"  '{word}' is not in the lexicon{hint}")


def _check(args: argparse.Namespace) -> int:
    from medpclip.data.inspection.check import check_folder
    from medpclip.data.shards import shard_folders

    total = 0
    for folder in shard_folders(args.folder):
        problems = 0
        for problem in check_folder(folder, _workers(args), progress=True):
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

    from medpclip.data.inspection.stats import format_stats, stats_json, tally_folder
    from medpclip.data.shards import shard_folders

    folders = shard_folders(args.folder)
    tallies = [tally_folder(folder, progress=True) for folder in folders]
    stats = {folder.name: stats_json(tally) for folder, tally in zip(folders, tallies, strict=True)}
    print(json.dumps(stats, indent=1) if args.json else "\n\n\n".join(map(format_stats, stats.values())))
    if args.plots is not None:
        from medpclip.data.inspection.plots import write_plots

        print(write_plots(tallies, args.plots), file=sys.stderr)


def _show(args: argparse.Namespace) -> None:
    from medpclip.data.inspection.sheet import write_sheet

    print(write_sheet(args.folder, args.out, args.split, args.count, args.seed))


def _phantom(args: argparse.Namespace) -> None:
    from medpclip.data.phantom import write_phantoms

    manifest = write_phantoms(args.out, args.images, args.seed, _workers(args))
    for split, counts in manifest["splits"].items():
        print(f"{split}: {counts['samples']} images, {counts['regions']} regions")


def _recipes(args: argparse.Namespace) -> None:
    from medpclip.config import dump_yaml
    from medpclip.data.building.recipe import Recipe, find_recipe, list_recipes
    from medpclip.data.inspection.stats import table

    folders = _recipe_folders(args)
    if args.name is not None:
        print(dump_yaml(Recipe.load(find_recipe(args.name, folders))), end="")
        return
    recipes = [Recipe.load(path) for path in list_recipes(folders).values()]
    if not recipes:
        raise MedpclipError(f"no recipe in {', '.join(map(str, folders))}; give --recipes DIR")
    rows = [[r.name, r.reader, r.layout or "-", r.licence, r.title] for r in recipes]
    print(table(["name", "reader", "layout", "licence", "title"], rows))
    print("\nlayout: real = tested on files of the source; documented = written from its public documentation alone")


def _readers(args: argparse.Namespace) -> None:
    from medpclip.data.inspection.stats import table
    from medpclip.data.readers.describe import describe, first_lines

    print(describe(args.name) if args.name is not None else table(["name", "reads"], first_lines()))
