"""`medpclip export`: a trained model as folders that other software loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medpclip.errors import MedpclipError

if TYPE_CHECKING:
    import numpy as np

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def add_parser(verbs: Any) -> None:
    """Add `export` and its formats to the command line."""
    parser = verbs.add_parser("export", help="write a model as a folder that other software loads")
    formats = parser.add_subparsers(title="formats", dest="format", required=True, metavar="FORMAT")
    clip_vision = formats.add_parser(
        "clip-vision",
        help="the image tower, for transformers.CLIPVisionModel (LLaVA, LLaVA-Med, vLLM)",
        description="Write the image tower as a folder that transformers.CLIPVisionModel and CLIPImageProcessor load, "
        "and compare it with its source. A folder whose outputs differ is not written.",
    )
    clip_vision.add_argument("model", metavar="MODEL", help="a run, a checkpoint folder, or an open_clip architecture")
    clip_vision.add_argument("--out", metavar="DIR", type=Path, required=True, help="the folder to write")
    clip_vision.add_argument("--ema", action="store_true", help="the moving average of the weights")
    clip_vision.add_argument(
        "--images",
        metavar="PATH",
        type=Path,
        nargs="+",
        default=[],
        help="image files or folders of them, to compare on too",
    )
    clip_vision.add_argument(
        "--tolerance",
        metavar="T",
        type=float,
        default=1e-4,
        help="largest difference allowed, relative to the largest value (default: %(default)g)",
    )
    clip_vision.set_defaults(run=run_clip_vision)


def run_clip_vision(args: argparse.Namespace) -> int:
    """Export, and print the differences."""
    images = [read_image(path) for given in args.images for path in _image_files(given)]

    from medpclip.export.clip_vision import export_clip_vision
    from medpclip.models.load import load_model

    model = load_model(args.model, args.ema)
    name = model.config.name
    report = export_clip_vision(
        model.clip, model.preprocess, args.out, images=images, name=name, tolerance=args.tolerance
    )
    print(f"exported: {report.out}")
    found = report.differences
    if found is None:
        print("not verified: transformers isn't installed; pip install 'medpclip[export]' and export again")
        return 0
    print(f"largest difference of hidden_states[-2] {found.hidden:.1e}, last_hidden_state {found.last:.1e}, ", end="")
    print(f"pooler_output {found.pooled:.1e} (values up to {found.scale:.1f})")
    print(
        f"pixels: square images {found.pixels_square:.1g}, padded images {found.pixels_padded:.1g} of 255 grey levels"
    )
    return 0


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 (height, width, 3)."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MedpclipError(f"{path}: can't be read as an image ({error}); leave it out of --images") from None


def _image_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _IMAGES)
        if not files:
            raise MedpclipError(f"{path}: no image in this folder; check --images")
        return files
    if not path.exists():
        raise MedpclipError(f"{path}: no such file or folder; check --images")
    return [path]
