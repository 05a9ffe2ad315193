"""Messages as users send them, parsed once into a `Conversation`; it knows nothing about templates."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ossicle.errors import RequestError

ROLES = ("system", "user", "assistant")
_IGNORED_KEYS = ("role", "content", "name", "refusal", "reasoning_content", "reasoning", "annotations")
"""What stock clients send with a message: the names of speakers, and what came with an answer of the LLM. A refusal is
read where there is no content."""


class Turn(NamedTuple):
    """One message: its role, and its content as text and numbers of sounds in order."""

    role: str
    content: tuple[str | int, ...]


@dataclass(frozen=True)
class Conversation:
    """Valid messages: the turns, and the sounds that the numbers in their content refer to."""

    turns: tuple[Turn, ...]
    sounds: tuple[Any, ...]


def parse_conversation(messages: Any) -> Conversation:
    """Returns messages in OpenAI's form as a `Conversation`.

    Content is a string or a list of {"type": "text", "text": ...} and {"type": "audio", "audio": ...}; the
    parts of a message are joined by one space, unless there is white space already. Messages of the system may stand
    anywhere; an assistant's may have no content.

    Raises:
        RequestError: malformed messages; the error names messages[i].content[j] and what is wrong there
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise RequestError(f"messages is {reprlib.repr(messages)}, expected a list of one message or more")
    sounds: list[Any] = []
    turns = [_parse_message(message, i, sounds) for i, message in enumerate(messages)]
    last = max((i for i, turn in enumerate(turns) if turn.role != "system"), default=0)
    if turns[last].role != "user":
        raise RequestError(f"messages[{last}], the last, has the role {turns[last].role!r}, expected 'user'")
    return Conversation(tuple(turns), tuple(sounds))


def _parse_message(message: Any, i: int, sounds: list[Any]) -> Turn:
    """Returns message number `i` as a turn, and appends its sounds to `sounds`."""
    where = f"messages[{i}]"
    role = message.get("role") if isinstance(message, Mapping) else None
    if role is None or not (role == "assistant" or "content" in message):
        raise RequestError(f"{where} is {reprlib.repr(message)}, expected a dict with 'role' and 'content'")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"{where}.role is {reprlib.repr(role)}, expected one of {', '.join(ROLES)}")
    content = message.get("content")
    if content is None and role == "assistant":
        content = message.get("refusal") or ""
    for key, value in message.items():
        is_unset = value is None or (isinstance(value, str | list | dict) and not value)
        if key not in _IGNORED_KEYS and not is_unset:
            raise RequestError(
                f"{where} has {reprlib.repr(key)}, which ossicle does not know: send role and content only"
            )
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        raise RequestError(
            f"{where}.content is {reprlib.repr(content)}, expected a string or a list of parts"
        )
    parts = [_parse_part(part, role, f"{where}.content[{j}]", sounds) for j, part in enumerate(content)]
    if role == "user" and not any(isinstance(part, int) or part.strip() for part in parts):
        raise RequestError(f"{where}.content is empty, expected text or sound from the user")
    return Turn(role, _join_parts(parts))


def _parse_part(part: Any, role: str, where: str, sounds: list[Any]) -> str | int:
    """Returns the text of a part, or the number of its sound, which is appended to `sounds`."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" or (kind == "refusal" and role == "assistant"):
        text = part.get(kind)
        if not isinstance(text, str):
            raise RequestError(f"{where}.{kind} is {reprlib.repr(text)}, expected a string")
        return text
    if kind != "audio":
        raise RequestError(f"{where} is {reprlib.repr(part)}, expected a dict with 'type': 'text' or 'audio'")
    if part.get("audio") is None:
        raise RequestError(f"{where} has no 'audio', expected a path, bytes or samples")
    if role != "user":
        raise RequestError(f"{where} is a sound, which only a user message can hold, not one of the {role}")
    sounds.append(part["audio"])
    return len(sounds) - 1


def _join_parts(parts: list[str | int]) -> tuple[str | int, ...]:
    """Returns the parts with a space between neighbors that have no white space between them."""
    joined: list[str | int] = []
    for part in parts:
        if part == "":
            continue
        needs_space = bool(joined) and not (isinstance(joined[-1], str) and joined[-1][-1].isspace())
        if needs_space and not (isinstance(part, str) and part[0].isspace()):
            joined.append(" ")
        joined.append(part)
    return tuple(joined)
