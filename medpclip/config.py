"""Typed run configuration: YAML files with dotted overrides, checked against dataclasses.

Every component owns the dataclass that configures it (types and defaults, plain standard library); this module knows none
of them. A key that the dataclass doesn't have is an error that names the nearest one it has. Values are taken strictly:
`"5"` is no integer, `1` is no boolean; an integer serves as a number and a list as a tuple. A mapping for a nested dataclass
is completed from that dataclass's own defaults.

Checks beyond types go into the dataclass's `__post_init__`, as a `ValueError` whose message completes the line
"FILE: key 'train.optimizer': ...".
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from medpclip.errors import MedpclipError

T = TypeVar("T")
KeyPath = tuple[str, ...]

_UNKNOWN = "unexpected_keyword_argument"  # pydantic's name for it
_MISSING = ("missing", "missing_argument")
_EXPECTED = {
    "bool": "true or false",
    "dataclass": "a mapping",
    "dict": "a mapping",
    "float": "a number",
    "finite": "a finite number",
    "int": "an integer",
    "list": "a list",
    "none": "null",
    "path": "a path",
    "string": "text",
    "tuple": "a list",
}


def from_mapping(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass `cls` from plain data, as YAML or JSON give it.

    Args:
        cls: a standard dataclass; fields may be nested dataclasses, Optional, Literal, lists, tuples, dicts, paths.
        data: keys and values; keys that `cls` doesn't have are refused at every level.
        where: what the data came from, for messages; usually the file's name.

    Raises:
        MedpclipError: naming `where`, the dotted key and what was expected.
    """
    _require_plain(data, where)
    return _build(cls, data, lambda path: where)


def load(cls: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """The configuration `cls` from a YAML file and overrides like "train.optimizer.lr=1e-4", applied in their order.

    An override's value is YAML: `null`, `true`, `[1, 2]`, `{a: 1}`, `1e-4` mean what they would in the file. A number
    steps into a list, as in "data.0.weight=2".

    Raises:
        MedpclipError: if the file is missing, empty, no mapping, or states a key twice, and as `from_mapping`; a fault
            that an override brought in names the override.
    """
    data = read_yaml(path)
    origin: list[tuple[KeyPath, str]] = []
    for override in overrides:
        origin.append((_apply(data, override), f"override '{override}'"))

    def where(key: KeyPath) -> str:
        blamed = (name for given, name in reversed(origin) if key[: len(given)] == given or given[: len(key)] == key)
        return next(blamed, str(path))

    return _build(cls, data, where)


def to_mapping(config: Any) -> dict[str, Any]:
    """The configuration as plain data (dicts, lists, text, numbers), every default stated, in the dataclass's order."""
    return _adapter(type(config)).dump_python((config,), mode="json", warnings="error")[0]


def dump_yaml(config: Any) -> str:
    """The configuration as YAML that `load` turns into an equal one."""
    return yaml.dump(to_mapping(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Plain data only; a key stated twice is refused; `1e-4` is a number.

    Raises:
        MedpclipError: if there is no such file, it can't be read, is empty, or isn't a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MedpclipError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError:
        raise MedpclipError(f"{path}: is not UTF-8 text; expected a YAML file") from None
    except OSError as error:
        raise MedpclipError(f"{path}: can't be read ({error.strerror}); expected a YAML file") from None
    data = _parse_yaml(text, str(path))
    if data is None:
        raise MedpclipError(f"{path}: is empty; expected a mapping of keys to values")
    if not isinstance(data, dict):
        raise MedpclipError(f"{path}: holds {_shown(data)}; expected a mapping of keys to values")
    return data


# YAML


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, refusing repeated keys and reading 1e-4 as a number (YAML 1.2) instead of text (1.1)."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    problem = f"key '{key.value}' is stated twice; keep one"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, quoting text that `_Loader` would read as a number."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Unicode's own line ends are escaped in double quotes only; elsewhere they come back as blanks.
    style = '"' if any(end in text for end in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_EXPONENT_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT_FLOAT, list("-+0123456789"))


def _parse_yaml(text: str, where: str) -> Any:
    try:
        data = yaml.load(text, Loader=_Loader)  # a SafeLoader
        _require_plain(data, where)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        problem = re.sub(r"\s+", " ", error.problem or error.context or "")
        remedy = "" if ";" in problem else "; correct the YAML"  # our own say it already
        raise MedpclipError(f"{where}: {line}{problem}{remedy}") from None
    except yaml.YAMLError as error:
        raise MedpclipError(f"{where}: is no YAML: {' '.join(str(error).split())}; write it anew") from None
    except RecursionError:
        raise MedpclipError(f"{where}: an alias contains itself, or the nesting is too deep; write it out") from None
    except ValueError as error:  # PyYAML's constructors, as for the date 2020-99-99
        if isinstance(error, MedpclipError):
            raise
        raise MedpclipError(f"{where}: holds a value that isn't valid YAML ({error}); quote it") from None
    return data


def _require_plain(data: Any, where: str, path: KeyPath = ()) -> None:
    """Refuse what YAML can say and a configuration can't mean: keys that are no text (`no:`, `1:`), dates, sets, bytes."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            if not isinstance(key, str):
                raise MedpclipError(f"{where}: key {_dotted((*path, str(key)))} is {key!r}, which isn't text; quote it")
            _require_plain(value, where, (*path, key))
    elif isinstance(data, (list, tuple)):
        for index, value in enumerate(data):
            _require_plain(value, where, (*path, str(index)))
    elif data is not None and not isinstance(data, (str, int, float)):
        name = f"key {_dotted(path)}" if path else "the value"
        raise MedpclipError(f"{where}: {name} is a {type(data).__name__}; write text (quoted), a number or a list")


def _apply(data: dict[str, Any], override: str) -> KeyPath:
    """Set one override in the plain data; returns the path of keys that it sets."""
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    where = f"override '{override}'"
    if not equals or not all(path):
        raise MedpclipError(f"{where}: has another form than key=value; write it like train.optimizer.lr=1e-4")
    value = _parse_yaml(text, where)
    target: Any = data
    for depth, part in enumerate(path):
        slot: Any = part
        if isinstance(target, list):
            if not (part.isdecimal() and int(part) < len(target)):
                name = _dotted(path[:depth])
                raise MedpclipError(f"{where}: key {name} is a list of {len(target)}; '{part}' is no position in it")
            slot = int(part)
        elif not isinstance(target, dict):
            name = _dotted(path[:depth])
            raise MedpclipError(f"{where}: key {name} is {_shown(target)}, which has no keys inside; set {name} itself")
        if depth == len(path) - 1:
            target[slot] = value
        elif isinstance(target, dict) and target.get(slot) is None:
            target[slot] = {}
        target = target[slot]
    return path


# Validation and its messages


def _adapter(cls: type) -> TypeAdapter[Any]:
    """Pydantic's validator of a one-tuple of `cls`: the tuple, since pydantic takes no configuration for a bare dataclass."""
    config = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants")
    one_tuple: Any = types.GenericAlias(tuple, (cls,))
    return TypeAdapter(one_tuple, config=config)


def _build(cls: type[T], data: Mapping[str, Any], where: Callable[[KeyPath], str]) -> T:
    try:
        # Through JSON, since pydantic's strict mode takes lists for tuples and text for paths from JSON only.
        return _adapter(cls).validate_json(json.dumps([dict(data)]))[0]
    except ValidationError as error:
        raise _explain(cls, data, error, where) from None


def _explain(
    cls: type, data: Mapping[str, Any], error: ValidationError, where: Callable[[KeyPath], str]
) -> MedpclipError:
    """The first fault as one line. Unknown keys go first: a misspelt key also leaves the right one missing."""
    faults: dict[KeyPath, list[ErrorDetails]] = {}
    for fault in error.errors(include_url=False):
        faults.setdefault(_keys_of(fault, data), []).append(fault)
    path = min(faults, key=lambda path: faults[path][0]["type"] != _UNKNOWN)
    first = faults[path][0]
    key = f"key {_dotted(path)}" if path else "the whole"
    if first["type"] == _UNKNOWN:
        text = f"{key} is unknown; {_suggestion(cls, path)}"
    elif first["type"] in _MISSING:
        text = f"{key} is missing; add it"
    elif first["type"] == "value_error":  # raised by a __post_init__
        text = f"{key}: {first['ctx']['error']}" if path else str(first["ctx"]["error"])
    else:
        expected = " or ".join(dict.fromkeys(_expected(fault) for fault in faults[path]))
        text = f"{key} is {_shown(first['input'])}, expected {expected}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return MedpclipError(" ".join(f"{where(path)}: {text}{more}".split()))


def _keys_of(fault: ErrorDetails, data: Mapping[str, Any]) -> KeyPath:
    """The keys of a fault's location, without the names of union members that pydantic puts between them."""
    keys: list[str] = []
    here: Any = data
    for part in fault["loc"][1:]:  # the first is the position in the one-tuple
        known = part in here if isinstance(here, Mapping) else isinstance(here, list) and part in range(len(here))
        if known:
            here = here[part]
            keys.append(str(part))
    if fault["type"] in _MISSING:
        keys.append(str(fault["loc"][-1]))
    return tuple(keys)


def _expected(fault: ErrorDetails) -> str:
    """What was expected, in words that complete "expected ..."."""
    kind = fault["type"]
    if kind == "literal_error":
        return f"one of {fault['ctx']['expected'].replace(' or ', ', ')}"
    return _EXPECTED.get(kind.partition("_")[0]) or fault["msg"].removeprefix("Input should be ").lower()


def _suggestion(cls: type, path: KeyPath) -> str:
    """The nearest known key: a sibling, else one of nearly that name anywhere, else all siblings."""
    siblings = [name for owner in _owners(cls, path[:-1]) for name in _field_types(owner)]
    elsewhere = {known[-1]: known for known in reversed(list(_known_paths(cls)))}
    if near := difflib.get_close_matches(path[-1], siblings, n=1, cutoff=0.6):
        return f"did you mean {_dotted((*path[:-1], near[0]))}?"
    if near := difflib.get_close_matches(path[-1], elsewhere, n=1, cutoff=0.8):
        return f"did you mean {_dotted(elsewhere[near[0]])}?"
    return f"known here: {', '.join(siblings) or 'no keys'}"


def _owners(cls: type, path: KeyPath) -> list[Any]:
    """The dataclasses that may stand at a path below `cls`: several where the annotation is a union."""
    candidates: list[Any] = [cls]
    for part in path:
        below: list[Any] = []
        for candidate in candidates:
            if dataclasses.is_dataclass(candidate):
                below += _members(_field_types(candidate).get(part))
            else:  # a container, whose last argument is what it holds
                arguments = [argument for argument in typing.get_args(candidate) if argument is not Ellipsis]
                below += _members(arguments[-1]) if arguments else []
        candidates = below
    return [candidate for candidate in candidates if dataclasses.is_dataclass(candidate)]


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, nested ones too; anything else alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [part for member in typing.get_args(annotation) for part in _members(member)]
    return [annotation]


def _field_types(cls: Any) -> dict[str, Any]:
    """The annotations of the keys that a dataclass takes."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _known_paths(cls: Any, above: KeyPath = (), inside: tuple[Any, ...] = ()) -> Iterator[KeyPath]:
    """The paths of all keys of a dataclass and of those nested in it, outermost first."""
    nested = []
    for name, annotation in _field_types(cls).items():
        yield (*above, name)
        nested += [(name, member) for member in _members(annotation) if dataclasses.is_dataclass(member)]
    for name, member in nested:
        if member not in inside:  # a dataclass that holds itself would never end
            yield from _known_paths(member, (*above, name), (*inside, member))


def _dotted(path: Iterable[str]) -> str:
    return f"'{'.'.join(path)}'"


def _shown(value: Any) -> str:
    """A value as YAML writers know it, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, str):
        text = f"'{value}'"
    return text if len(text) <= 60 else f"{text[:57]}..."
