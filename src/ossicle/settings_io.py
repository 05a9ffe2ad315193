"""Frozen settings from TOML's plain values and back, every value checked by its field's type; it knows no setting."""

import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar

import tomli_w

from ossicle.errors import ConfigError

Settings = TypeVar("Settings")


def check(is_fine: bool, name: str, given: object, expected: str) -> None:
    """Raise ConfigError for a setting that cannot be, by its dotted name."""
    if not is_fine:
        raise ConfigError(f"{name} is {given!r}, expected {expected}")


_TYPE_NAMES = {str: "a text in quotes", int: "a whole number", float: "a number", bool: "true or false"}


def from_table(kind: type[Settings], table: dict[str, Any], at: str = "") -> Settings:
    """Settings from a table of plain values; keys that are missing keep their defaults.

    Raises:
        ConfigError: an unknown or missing key, or a value of the wrong type, by its dotted name
    """
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(table) - set(hints)):
        raise ConfigError(f"unknown key {at}{unknown[0]}; expected one of {', '.join(hints)}")
    values = {name: _value(hints[name], given, at + name) for name, given in table.items()}
    for setting in dataclasses.fields(kind):  # ty: ignore[invalid-argument-type]
        has_default = (
            setting.default is not dataclasses.MISSING or setting.default_factory is not dataclasses.MISSING
        )
        if setting.name not in values and not has_default:
            raise ConfigError(
                f"{at}{setting.name} is missing; {_expected(hints[setting.name])} is needed there"
            )
    return kind(**values)


def _value(hint: Any, given: Any, name: str) -> Any:
    """The given value as the type that its field wants."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        check(isinstance(given, dict), name, given, f"a table: [{name}] and its keys below")
        return from_table(hint, given, name + ".")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        check(given in args, name, given, "one of " + ", ".join(map(repr, args)))
        return given
    if origin is tuple and args[-1] is ...:
        items = [given] if isinstance(given, str) else given  # one needs no list
        check(isinstance(items, list | tuple), name, given, "a text in quotes, or a list of them")
        return tuple(_value(args[0], item, f"{name}[{n}]") for n, item in enumerate(items))
    if origin is tuple:
        is_of_length = isinstance(given, list | tuple) and len(given) == len(args)
        check(is_of_length, name, given, f"a list of {len(args)} numbers")
        return tuple(
            _value(arg, item, f"{name}[{n}]") for n, (arg, item) in enumerate(zip(args, given, strict=True))
        )
    if origin in (types.UnionType, typing.Union):
        if given is None:
            return None
        return _value(next(arg for arg in args if arg is not types.NoneType), given, name)
    if hint is float and type(given) is int and abs(given) < 2**53:
        return float(given)
    check(type(given) is hint, name, given, _expected(hint))
    return given


def _expected(hint: Any) -> str:
    return _TYPE_NAMES.get(hint, "a value")


def to_table(settings: Any) -> dict[str, Any]:
    """Settings as a table of plain values, what is None left out."""
    table = dataclasses.asdict(settings)

    def prune(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: prune(item) for name, item in value.items() if item is not None}
        return list(value) if isinstance(value, tuple) else value

    return prune(table)


def to_toml(settings: Any) -> str:
    """Settings as TOML that `from_table` reads back to the same settings."""
    return tomli_w.dumps(to_table(settings))
