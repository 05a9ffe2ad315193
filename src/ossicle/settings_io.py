"""Frozen settings to and from TOML's plain values. Each value is checked against its field's type; no setting is known
here by name."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import tomli_w

from ossicle.errors import ConfigError

Settings = TypeVar("Settings")
Renamed = Mapping[str | tuple[str, str], str]
"""New names by old dotted keys, and new values by (dotted key, old value)."""

_TYPE_NAMES = {str: "a string in quotes", int: "an integer", float: "a number", bool: "true or false"}


def check(is_valid: bool, name: str, value: object, expected: str) -> None:
    """Raises ConfigError for an invalid setting, with its dotted name, its value and what is expected."""
    if not is_valid:
        raise ConfigError(f"{name} is {value!r}, expected {expected}")


def from_table(
    settings_type: type[Settings],
    table: Mapping[str, Any],
    prefix: str = "",
    renamed: Renamed | None = None,
    root: type | None = None,
) -> Settings:
    """Returns settings from a table of plain values. Keys that are missing keep their defaults.

    Args:
        prefix: of the table's keys in messages, such as "train."
        renamed: old keys and values, which get an error that says the new one
        root: settings whose tables are searched for the name of an unknown key; `settings_type` if left out

    Raises:
        ConfigError: an unknown or missing key, or a value of the wrong type, with its dotted name
    """
    renamed, root = renamed or {}, root or settings_type
    hints = typing.get_type_hints(settings_type)
    for key in sorted(set(table) - set(hints)):
        if (new_key := renamed.get(prefix + key)) is not None:
            raise ConfigError(f"{prefix}{key} has a new name: write {new_key}")
        raise ConfigError(
            f"unknown key {prefix}{key}; expected one of {', '.join(hints)}" + _suggest_key(prefix, key, root)
        )
    values = {
        key: _parse_value(hints[key], value, prefix + key, renamed, root) for key, value in table.items()
    }
    for field in dataclasses.fields(settings_type):  # ty: ignore[invalid-argument-type]
        has_default = (
            field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        )
        if field.name not in values and not has_default:
            raise ConfigError(
                f"{prefix}{field.name} is missing; expected {_describe_type(hints[field.name])}"
            )
    return settings_type(**values)


def _suggest_key(prefix: str, key: str, root: type) -> str:
    """Returns ", did you mean" with the most similar key, of the same table first; empty if there is none."""
    tables = _list_keys(root)
    own = difflib.get_close_matches(key, tables.get(prefix, ()), n=1)
    leaves = {name: table + name for table, names in tables.items() for name in names}
    other = difflib.get_close_matches(key, leaves, n=1)
    suggestions = [*(prefix + name for name in own), *(leaves[name] for name in other)]
    return f"; did you mean {suggestions[0]}?" if suggestions else ""


def _list_keys(settings_type: type, prefix: str = "") -> dict[str, list[str]]:
    """Returns the keys of each table of settings, by the table's prefix."""
    hints = typing.get_type_hints(settings_type)
    tables = {prefix: list(hints)}
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            tables |= _list_keys(hint, f"{prefix}{name}.")
    return tables


def _parse_value(hint: Any, value: Any, name: str, renamed: Renamed, root: type) -> Any:
    """Returns a plain value as the type of its field."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        check(isinstance(value, dict), name, value, f"a table: [{name}] and its keys below")
        return from_table(hint, value, name + ".", renamed, root)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return _parse_literal(args, value, name, renamed)
    if origin is tuple and args[-1] is ...:
        items = [value] if isinstance(value, str) else value  # a single item needs no list
        check(isinstance(items, list | tuple), name, value, "a string in quotes, or a list of them")
        return tuple(
            _parse_value(args[0], item, f"{name}[{n}]", renamed, root) for n, item in enumerate(items)
        )
    if origin is tuple:
        has_length = isinstance(value, list | tuple) and len(value) == len(args)
        check(has_length, name, value, f"a list of {len(args)} numbers")
        pairs = enumerate(zip(args, value, strict=True))
        return tuple(_parse_value(arg, item, f"{name}[{n}]", renamed, root) for n, (arg, item) in pairs)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(arg for arg in args if arg is not types.NoneType)
        return _parse_value(hint, value, name, renamed, root)
    if hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    check(type(value) is hint, name, value, _describe_type(hint))
    return value


def _parse_literal(choices: tuple[Any, ...], value: Any, name: str, renamed: Renamed) -> Any:
    """Returns a value that is one of the choices."""
    is_choice = value in choices
    if not is_choice and isinstance(value, str) and (new_value := renamed.get((name, value))) is not None:
        raise ConfigError(f"{name} is {value!r}, which has a new name: write {new_value!r}")
    check(is_choice, name, value, "one of " + ", ".join(map(repr, choices)))
    return value


def _describe_type(hint: Any) -> str:
    return _TYPE_NAMES.get(hint, "a value")


def to_table(settings: Any) -> dict[str, Any]:
    """Returns settings as a table of plain values. Values that are None are left out."""
    table = dataclasses.asdict(settings)

    def prune(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: prune(item) for key, item in value.items() if item is not None}
        return list(value) if isinstance(value, tuple) else value

    return prune(table)


def to_toml(settings: Any) -> str:
    """Returns settings as TOML. `from_table` reads the same settings from it."""
    return tomli_w.dumps(to_table(settings))
