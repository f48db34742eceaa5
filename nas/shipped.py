"""The TOML files that come with nas (search spaces, targets, studies) and the user's own.

It finds them in a checkout and inside the installed wheel, and decodes them into frozen structs
with errors that name the file, the key, what was found and what is allowed.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import inspect

from nas.errors import UserError, nearest
from nas.target import TargetProfile

Kind = Literal["spaces", "targets", "studies"]
T = TypeVar("T")

_PACKAGE = Path(__file__).resolve().parent
_WHEEL = _PACKAGE / "_shipped"
_ROOT = _WHEEL if _WHEEL.is_dir() else _PACKAGE.parent
_FOLDERS: dict[Kind, str] = {
    "spaces": "search_spaces",
    "targets": "targets",
    "studies": "studies",
}
_WORDS: dict[Kind, str] = {"spaces": "search space", "targets": "target", "studies": "study"}
# Lies among the search spaces but is a table of networks, not a space.
ARCHITECTURES = "architectures"


def names(kind: Kind) -> list[str]:
    """The built-in names of one kind, sorted."""
    found = sorted(path.stem for path in folder(kind).glob("*.toml"))
    return [name for name in found if name != ARCHITECTURES]


def folder(kind: Kind) -> Path:
    """Where the built-in files of one kind lie: in the checkout, or in the installed package."""
    return _ROOT / _FOLDERS[kind]


def read(kind: Kind, name_or_path: str) -> tuple[str, str]:
    """(name, TOML text) of a built-in name, or of the user's own file if it ends in `.toml`.

    Raises UserError for an unknown name (with the nearest one) and for a file that is missing,
    unreadable or not UTF-8 text.
    """
    if name_or_path.endswith(".toml"):
        return Path(name_or_path).stem, _text(Path(name_or_path))
    if name_or_path not in names(kind):
        raise UserError(
            f"unknown {_WORDS[kind]} '{name_or_path}': {nearest(name_or_path, names(kind))} "
            "(or give the path of a .toml file)"
        )
    return name_or_path, _text(folder(kind) / f"{name_or_path}.toml")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no such file '{path}'") from None
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not a UTF-8 text file (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None


def load_target(name_or_path: str) -> TargetProfile:
    """The target profile of a built-in name or of a `.toml` file; raises UserError."""
    name, text = read("targets", name_or_path)
    return decode(text, TargetProfile, f"{name}.toml" if name == name_or_path else name_or_path)


def decode(text: str, type: type[T], origin: str) -> T:
    """TOML `text` as a value of `type`; `origin` names the file in error messages.

    Raises UserError for a syntax error (with its line) and for a key that is unknown, missing or
    of the wrong type or value (with the key, what was found and what is allowed).
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{origin} is not valid TOML: {error}") from None
    try:
        return msgspec.convert(table, type=type)
    except msgspec.ValidationError as error:
        raise UserError(f"{origin}: {_explain(str(error), table, type)}") from None


def _explain(message: str, table: dict[str, Any], type: type[Any]) -> str:
    """msgspec's message made whole: the key without `$`, the value found, what is allowed."""
    problem, _, place = message.partition(" - at `$")
    key = place.strip(".`").replace("[...]", ".*")
    path = re.findall(r"[\w*-]+", key)
    node = _follow(inspect.type_info(type), path)
    if field := re.search(r"(unknown|missing required) field `(.+)`", problem):
        full, fields = f"{key}.{field[2]}".lstrip("."), _fields(node)
        if field[1] == "unknown":
            return f"unknown key '{full}': {nearest(field[2], list(fields))}"
        return f"missing key '{full}', expected {_words(fields.get(field[2]))}"
    if problem.startswith("Invalid enum value"):
        problem = f"Expected {_words(node)}, got another value"
    if not problem.startswith("Expected"):
        return f"key '{key}': {problem}" if key else problem
    problem = problem.replace(" | null", "").replace("`object`", "a table")
    wanted, _, got = problem.removeprefix("Expected ").partition(", got ")
    return f"key '{key}': expected {wanted}, found {_value(table, path) or got}"


def _follow(node: inspect.Type | None, path: list[str]) -> inspect.Type | None:
    """The type that the schema `node` has at `path`; None where it cannot be told."""
    for step in path:
        node = _step(node, step)
    return node


def _step(node: inspect.Type | None, step: str) -> inspect.Type | None:
    match node:
        case inspect.UnionType():
            inner = (_step(member, step) for member in node.types)
            return next((found for found in inner if found), None)
        case inspect.ListType() | inspect.VarTupleType():
            return node.item_type
        case inspect.TupleType():
            return node.item_types[int(step)]
        case inspect.DictType():
            return node.value_type
    return _fields(node).get(step)


def _fields(node: inspect.Type | None) -> dict[str, inspect.Type]:
    if isinstance(node, inspect.UnionType):
        return {key: field for member in node.types for key, field in _fields(member).items()}
    if not isinstance(node, inspect.StructType):
        return {}
    return {field.encode_name: field.type for field in node.fields}


def _words(node: inspect.Type | None) -> str:
    if isinstance(node, inspect.LiteralType):
        return "one of " + ", ".join(f"'{value}'" for value in node.values)
    return f"`{node.__class__.__name__.removesuffix('Type').lower()}`" if node else "a value"


def _value(table: Any, path: list[str]) -> str:
    """The offending value itself; empty where it is long or its place is not known."""
    for step in path:
        if isinstance(table, list) and step.isdigit():
            table = table[int(step)]
        elif isinstance(table, dict) and step in table:
            table = table[step]
        else:
            return ""
    return repr(table) if len(repr(table)) <= 60 else ""
