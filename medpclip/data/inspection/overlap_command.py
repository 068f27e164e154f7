"""`medpclip data overlap A B`: is what a model is tested on already in what it was trained on?"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medpclip.errors import MedpclipError
from medpclip.files import dump_json, write_atomically

if TYPE_CHECKING:
    from medpclip.data.inspection.overlap import Overlap, Pair, Place

_CELL, _GAP, _FOOTER, _COLUMNS = 256, 8, 36, 3
_MOST_PAIRS = 60


def add_overlap(leaves: Any) -> None:
    """Add the sub-command; it returns exit status 1 when B shares more with A than allowed."""
    leaf = leaves.add_parser(
        "overlap",
        help="find images, keys and patients of one corpus in another",
        description="Find images of B that are in A: near-duplicates of pictures (encoded anew, scaled, lit otherwise, "
        "cropped a little, mirrored), the same keys, the same patients. Exit status 1 when their share of B is larger "
        "than --max-share.",
        epilog="example: medpclip data overlap shards/train shards/test --sheet pairs.png",
    )
    leaf.add_argument("a", type=Path, metavar="A", help="folder of shards, or of such folders: what was trained on")
    leaf.add_argument("b", type=Path, metavar="B", help="likewise: what is evaluated on; may be A again")
    leaf.add_argument("--split-a", choices=("train", "val", "test"), help="only this split of A")
    leaf.add_argument("--split-b", choices=("train", "val", "test"), help="only this split of B")
    leaf.add_argument(
        "--no-groups", action="store_true", help="compare no patients; needed where A and B have different salts"
    )
    leaf.add_argument(
        "--max-share", type=float, default=0.0, metavar="X", help="share of B that may be known (default: %(default)s)"
    )
    leaf.add_argument("--coarse", type=int, default=10, metavar="BITS", help="of 64, first hash (default: %(default)s)")
    leaf.add_argument("--fine", type=int, default=48, metavar="BITS", help="of 256, second hash (default: %(default)s)")
    leaf.add_argument(
        "--similarity", type=float, default=0.7, metavar="X", help="of the fine structure (default: %(default)s)"
    )
    leaf.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file")
    leaf.add_argument("--sheet", type=Path, metavar="PNG", help="draw the pairs, to see whether they are the same")
    leaf.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)")
    leaf.set_defaults(run=_overlap)


def _overlap(args: argparse.Namespace) -> int:
    from medpclip.data.inspection.overlap import Thresholds, overlap

    if not 0 <= args.max_share <= 1:
        raise MedpclipError(f"--max-share is {args.max_share}; give a share of 0 to 1")
    for path, suffix in ((args.json, ".json"), (args.sheet, ".png")):
        if path is not None and (path.suffix.lower() != suffix or path.is_dir()):
            raise MedpclipError(f"{path}: give a file name that ends in {suffix}")
    result = overlap(
        args.a,
        args.b,
        split_a=args.split_a,
        split_b=args.split_b,
        groups=not args.no_groups,
        thresholds=Thresholds(args.coarse, args.fine, args.similarity),
        workers=args.workers,
        progress=True,
    )
    print(format_overlap(result))
    try:
        if args.json is not None:
            write_atomically(args.json, dump_json(result.to_json()))
        if args.sheet is not None and result.pairs:
            write_atomically(args.sheet, draw_pairs(result))
            print(f"pairs: {args.sheet}")
    except OSError as error:
        raise MedpclipError(f"{error.filename}: can't be written ({error.strerror}); choose another place") from None
    return 1 if result.share > args.max_share else 0


def format_overlap(result: Overlap) -> str:
    """The numbers as plain tables."""
    from medpclip.data.inspection.stats import table

    groups = "not compared" if result.shared_groups is None else result.images_in_shared_groups
    rows: list[list[Any]] = [
        ["near-duplicates of pictures", result.near_duplicates],
        ["the same key", result.shared_keys],
        ["the same patient or study", groups],
        ["any of these", result.touched],
    ]
    head = f"A: {result.images_a} images, B: {result.images_b} images, {100 * result.share:.2f} % of B known from A"
    across = [[a, b, count] for (a, b), count in sorted(result.across.items())]
    parts = [
        table(["found in A", "images of B"], rows),
        table(["source in A", "source in B", "near-duplicates"], across),
    ]
    return "\n\n".join([head, *filter(None, parts)])


def draw_pairs(result: Overlap) -> bytes:
    """A PNG of the pairs side by side, the most similar first, without keys or names of files."""
    from PIL import Image, ImageDraw

    from medpclip.data.inspection.sheet import font

    once: dict[tuple[Place, ...], Pair] = {}
    for pair in result.pairs:
        places = (result.places_a[pair.a], result.places_b[pair.b])
        once.setdefault(tuple(sorted(places, key=lambda p: (str(p.folder), p.split or "", p.index))), pair)
    pairs = list(once.values())[:_MOST_PAIRS]
    columns = min(_COLUMNS, len(pairs))
    width, height = 2 * _CELL + _GAP, _CELL + _FOOTER
    page = Image.new("RGB", (columns * (width + 2 * _GAP), -(-len(pairs) // columns) * (height + _GAP)), "white")
    pen = ImageDraw.Draw(page)
    for number, pair in enumerate(pairs):
        x, y = (number % columns) * (width + 2 * _GAP) + _GAP, (number // columns) * (height + _GAP)
        for offset, place in ((0, result.places_a[pair.a]), (_CELL + _GAP, result.places_b[pair.b])):
            picture, split = _load(place)
            picture.thumbnail((_CELL, _CELL))
            page.paste(picture, (x + offset, y))
            pen.text((x + offset, y + _CELL + 1), split, font=font(12), fill="black")
        words = f"similarity {pair.similarity:.2f}, distances {pair.coarse} and {pair.fine}"
        pen.text((x, y + _CELL + 17), words + (", mirrored" if pair.flipped else ""), font=font(12), fill="black")
    stream = io.BytesIO()
    page.save(stream, "PNG")
    return stream.getvalue()


def _load(place: Place) -> tuple[Any, str]:
    from PIL import Image

    from medpclip.data.shards import ShardFolder

    shards = ShardFolder(place.folder, place.split)
    sample = shards.sample(place.index)
    return Image.fromarray(shards.image(place.index)), f"{sample.source}, {sample.split}"
