r"""Patterns with placeholders, that find files and say what their names mean: which case, which sequence, which label.

A pattern is a path below the source, with

    {name}         one or more characters except "/"; a name that comes twice stands for the same text both times
    {name:REGEX}   what the regular expression matches, as {sequence:flair|t1|t1ce|t2} or {case:\d+}
    *              any characters except "/", also none
    **/            any number of folders, also none

All else stands for itself. Hidden files and folders (a dot in front) are never found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class FilePattern:
    """One pattern, ready to match.

    Args:
        text: as above.
        suffixes: endings that the pattern may have, all of which stand for any of them, the longest first.

    Attributes:
        names: of its placeholders, in their order.

    Raises:
        ValueError: the pattern is broken; the message completes "'images' ...".
    """

    def __init__(self, text: str, suffixes: tuple[str, ...]) -> None:
        ending = next((suffix for suffix in suffixes if text.endswith(suffix)), None)
        if ending is None:
            raise ValueError(f"'{text}' must end in {' or '.join(suffixes)}")
        if text.startswith("/") or ".." in text.split("/"):
            raise ValueError(f"'{text}' leads out of the source; give a path inside it")
        self.names: list[str] = []
        endings = "|".join(map(re.escape, suffixes))
        body = self._translate(text.removesuffix(ending), text)
        try:
            self._regex = re.compile(f"{body}(?:{endings})", re.DOTALL)
        except re.error as error:
            raise ValueError(f"'{text}' has a broken regular expression ({error})") from None
        if self._regex.groups != len(self.names):
            raise ValueError(f"'{text}' has a group in a regular expression; write (?:...) instead of (...)")

    def match(self, path: str) -> dict[str, str] | None:
        """What the placeholders stand for in a path (relative, forward slashes), or None where it doesn't fit."""
        found = self._regex.fullmatch(path)
        return found.groupdict() if found else None

    def _translate(self, body: str, text: str) -> str:
        out, at = "", 0
        while at < len(body):
            if body[at] == "{":
                end = _closing(body, at)
                if end is None:
                    raise ValueError(f"'{text}' has a brace that isn't closed")
                out += self._placeholder(body[at + 1 : end], text)
                at = end + 1
            elif body.startswith("**/", at):
                out += "(?:.+/)?"
                at += 3
            else:
                out += "[^/]*" if body[at] == "*" else re.escape(body[at])
                at += 1
        return out

    def _placeholder(self, inside: str, text: str) -> str:
        name, colon, regex = inside.partition(":")
        if not _NAME.fullmatch(name):
            raise ValueError(f"'{text}' has the placeholder '{name}'; use small letters, digits and _")
        if name in self.names:
            if colon:
                raise ValueError(f"'{text}' has two regular expressions for '{name}'; keep the first")
            return f"(?P={name})"
        self.names.append(name)
        return f"(?P<{name}>{regex if colon else '[^/]+'})"


def find_files(source: Path, suffixes: tuple[str, ...]) -> list[str]:
    """All files below a folder that end so, relative to it, with forward slashes, sorted; hidden ones are left out."""
    found = (path.relative_to(source) for path in source.rglob("*") if path.name.endswith(suffixes) and path.is_file())
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def match_all(pattern: FilePattern, files: Iterable[str]) -> dict[str, dict[str, str]]:
    """The files that fit a pattern, with what its placeholders stand for."""
    matches = ((file, pattern.match(file)) for file in files)
    return {file: found for file, found in matches if found is not None}


def _closing(text: str, at: int) -> int | None:
    """Where the brace at `at` is closed; braces inside it (as in \\d{4}) come in pairs."""
    depth = 0
    for i in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return i
    return None
