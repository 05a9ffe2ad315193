"""Reads the fields of a client's JSON objects one by one, and refuses those that nobody asked for.

It knows types and ranges, and no event.
"""

import reprlib
from collections.abc import Collection
from typing import Any, TypeVar

from ossicle.serving.errors import ApiError

_Default = TypeVar("_Default")


class Fields:
    """The fields of one object; a field that is null counts as absent.

    Args:
        where: the object's own name in errors, such as "session.audio"

    Raises:
        ApiError: not an object
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise invalid(where, value, "an object")
        self._value, self._where = value, where
        self._is_read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether the client named the field, with null too."""
        return name in self._value

    def name(self, field: str) -> str:
        """Returns the full name of a field."""
        return f"{self._where}.{field}" if self._where else field

    def any(self, name: str) -> Any:
        """Returns a field as it is."""
        self._is_read.add(name)
        return self._value.get(name)

    def text(self, name: str, default: _Default, *, max_characters: int) -> str | _Default:
        """Returns a string."""
        value = self.any(name)
        if value is None:
            return default
        if not isinstance(value, str) or len(value) > max_characters:
            raise invalid(self.name(name), value, f"a string of at most {max_characters} characters")
        return value

    def require_text(self, name: str, *, max_characters: int) -> str:
        """Returns a string that must be there."""
        value = self.text(name, None, max_characters=max_characters)
        if value is None:
            raise ApiError(
                f"Missing required parameter: '{self.name(name)}'",
                param=self.name(name),
                code="missing_required_parameter",
            )
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Returns a boolean."""
        value = self.any(name)
        if value is not None and not isinstance(value, bool):
            raise invalid(self.name(name), value, "true or false")
        return default if value is None else value

    def number(self, name: str, default: float, minimum: float, maximum: float) -> float:
        """Returns a number of a range."""
        value = self.any(name)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not minimum <= value <= maximum:
            raise invalid(self.name(name), value, f"a number from {minimum:g} to {maximum:g}")
        return float(value)

    def integer(self, name: str, default: int, minimum: int, maximum: int) -> int:
        """Returns a whole number of a range."""
        value = self.any(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise invalid(self.name(name), value, f"a whole number from {minimum} to {maximum}")
        return value

    def choice(self, name: str, default: str, choices: Collection[str]) -> str:
        """Returns one of some words."""
        value = self.any(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in choices:
            raise invalid(self.name(name), value, " or ".join(map(repr, choices)))
        return value

    def items(self, name: str, *, max_items: int) -> list[Any]:
        """Returns a list; an absent one is empty."""
        value = self.any(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > max_items:
            raise invalid(self.name(name), value, f"a list of at most {max_items}")
        return value

    def object(self, name: str) -> "Fields":
        """Returns the fields of an object; an absent one is empty."""
        value = self.any(name)
        return Fields({} if value is None else value, self.name(name))

    def refuse(self, name: str, instead: str) -> None:
        """Refuses a field that OpenAI has and this server cannot honor, unless it is null or empty."""
        value = self.any(name)
        if value not in (None, [], {}):
            raise ApiError(
                f"Parameter '{self.name(name)}' is not supported: {instead}",
                param=self.name(name),
                code="unsupported_parameter",
            )

    def finish(self) -> None:
        """Refuses fields that were not read.

        Raises:
            ApiError: there is one
        """
        unknown = [name for name in self._value if name not in self._is_read]
        if unknown:
            name = self.name(unknown[0][:64])
            raise ApiError(
                f"Unknown parameter: '{name}'; known here: {', '.join(sorted(self._is_read))}",
                param=name,
                code="unknown_parameter",
            )


def invalid(name: str, value: Any, expected: str) -> ApiError:
    """Returns the error for a field with a wrong value."""
    return ApiError(f"{name} is {reprlib.repr(value)}, expected {expected}", param=name, code="invalid_value")
