"""What the readers of text files beside images share: decoding, names of classes, and keys of parallel trees."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medpclip.data.readers.base import Fault, UnusableError
from medpclip.data.readers.files import is_pattern, stem_below, without_suffix
from medpclip.errors import MedpclipError

Suffix = str | Sequence[str]  # what names have at their end beyond what both sides have, or several such
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def decode(data: bytes, encoding: str = "utf-8") -> str:
    """Text of a file; a byte order mark, as Windows programs write it, overrides `encoding`.

    Raises:
        UnicodeDecodeError: the bytes are not in that encoding.
    """
    return data.decode(next((name for mark, name in _MARKS if data.startswith(mark)), encoding))


def read_lines(path: Path, file: str) -> list[tuple[str, str]]:
    """The lines of an annotation file that aren't blank, stripped, each behind its key: ("line 3", "0 .5 .5 .1 .1").

    Raises:
        UnusableError: the file can't be read, or isn't text.
    """
    try:
        text = decode(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableError(Fault(file, "", "annotation file can't be read as text", str(error), images=1)) from None
    if "\0" in text:
        raise UnusableError(Fault(file, "", "annotation file can't be read as text", "NUL characters", images=1))
    # Not str.splitlines, which also splits at form feeds and their like.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(f"line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def whole_number(text: str) -> str | None:
    """An id in its plain form, "1" for "1.0" and "01", or None where the text isn't a whole number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return str(int(value)) if value.is_integer() and "_" not in text else None


def check_classes(classes: Mapping[str, str]) -> None:
    """Raise `ValueError` unless the keys of an option "classes" are whole numbers."""
    for number in classes:
        if whole_number(number) != number:
            raise ValueError(f"'classes' has the key '{number}'; expected the numbers of the annotation files")


def class_names(source: Path, classes: Mapping[str, str], names: str | None) -> dict[str, str]:
    """Number -> name, from the option "classes", or from the file that the option "names" gives.

    A YAML file has the names as YOLO's data.yaml does: a list or a mapping under "names". In any other file each line
    is a name, counted from 0, or, where all lines begin with different whole numbers, a number and its name.

    Raises:
        MedpclipError: there is no such file, or it holds no names.
    """
    if names is None:
        return dict(classes)
    path = source / names
    if Path(names).is_absolute() or ".." in Path(names).parts:
        raise MedpclipError(f"key 'options.names' is '{names}', which leads out of the source; give a path inside it")
    try:
        text = decode(path.read_bytes())
    except OSError as error:
        raise MedpclipError(f"{path}: {error.strerror}; check --source, or the recipe's key 'options.names'") from None
    except UnicodeDecodeError:
        raise MedpclipError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    found = _yaml_names(text, path) if path.suffix.lower() in (".yaml", ".yml") else _line_names(text)
    if not found:
        raise MedpclipError(f"{path}: holds no class names; check the recipe's key 'options.names'")
    return found


def tree_key(source: Path, where: str, suffix: Suffix = "") -> Callable[[Path], str]:
    """A key for `pair` that brings files of parallel trees together.

    Below a folder it is the path without extension, as in "images/a/1.jpg" and "labels/a/1.txt". Below a pattern it is
    the path from the source without the folders that the pattern names in full, so that "*/images/*" and "*/labels/*"
    bring "train/images/1.jpg" and "train/labels/1.txt" together, and "test/labels/1.txt" stays apart.

    Args:
        source: the source's folder.
        where: the option that found the files: a folder or a pattern.
        suffix: what the name has at its end, before the extension, beyond what both have.
    """
    if not is_pattern(source, where):
        return stem_below(source, where, suffix)
    named = {part for part in Path(where).parts if not any(character in part for character in "*?[")}

    def key(path: Path) -> str:
        below = path.relative_to(source).with_suffix("")
        return "/".join([*(part for part in below.parts[:-1] if part not in named), without_suffix(below.name, suffix)])

    return key


def parallel_keys(
    source: Path, left: tuple[str, Iterable[Path], Suffix], right: tuple[str, Iterable[Path], Suffix]
) -> tuple[Callable[[Path], str], Callable[[Path], str]]:
    """Keys for `pair`, for images and their annotations: names alone, and `tree_key` where names alone don't do.

    Below patterns "train/images/1.png" and "test/images/1.png" share their name: then folders must tell whose
    "train/masks/1.png" is.

    Args:
        source: the source's folder.
        left: the option that found the images, the images, and their suffix.
        right: the same of the annotations.
    """
    sides = [(stem_below(source, where, suffix), tree_key(source, where, suffix)) for where, _, suffix in (left, right)]
    shared: set[str] = set()
    for (stem, _), (_, paths, _) in zip(sides, (left, right), strict=True):
        shared |= {name for name, times in Counter(map(stem, paths)).items() if times > 1}

    def key(stem: Callable[[Path], str], tree: Callable[[Path], str]) -> Callable[[Path], str]:
        return lambda path: tree(path) if stem(path) in shared else stem(path)

    return key(*sides[0]), key(*sides[1])


def _yaml_names(text: str, path: Path) -> dict[str, str]:
    import yaml

    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise MedpclipError(f"{path}: is no YAML ({problem}); correct it, or give the recipe's 'classes'") from None
    names: Any = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        raise MedpclipError(f"{path}: has no list or mapping 'names'; add it, or give the recipe's 'options.classes'")
    return {str(number): str(name).strip() for number, name in names.items()}


def _line_names(text: str) -> dict[str, str]:
    lines = [line.strip() for line in text.strip("\r\n").splitlines()]
    parts = [line.split(None, 1) for line in lines if line]
    numbers = [whole_number(part[0]) for part in parts if len(part) == 2]
    if len(numbers) == len(parts) and None not in numbers and len(set(numbers)) == len(numbers):
        return {str(number): part[1].strip() for number, part in zip(numbers, parts, strict=True)}
    return {str(number): line for number, line in enumerate(lines) if line}
