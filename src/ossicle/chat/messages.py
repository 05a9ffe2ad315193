"""Messages as users send them, parsed once into a `Conversation`; it knows nothing about templates."""

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ossicle.errors import RequestError

ROLES = ("system", "user", "assistant", "tool")
_IGNORED_KEYS = (
    "role", "content", "name", "refusal", "reasoning_content", "reasoning", "reasoning_details", "thinking",
    "thinking_blocks", "provider_specific_fields", "annotations",
)  # fmt: skip
"""What stock clients send with a message: the names of speakers, and what came with an answer of the LLM. A refusal is
read where there is no content."""

_ROLE_KEYS = {"assistant": ("tool_calls",), "tool": ("tool_call_id",)}
"""What messages of these roles have further."""


class ToolCall(NamedTuple):
    """A call of a function, as an LLM asks for it."""

    id: str
    name: str
    arguments: Mapping[str, Any]


class Turn(NamedTuple):
    """One message: its role, and its content as text and numbers of sounds in order."""

    role: str
    content: tuple[str | int, ...]
    calls: tuple[ToolCall, ...] = ()
    """Functions that an assistant called."""
    call_id: str = ""
    """The call that a tool's message is the result of."""


@dataclass(frozen=True)
class Conversation:
    """Valid messages: the turns, and the sounds that the numbers in their content refer to."""

    turns: tuple[Turn, ...]
    sounds: tuple[Any, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions that the LLM may call, in OpenAI's form."""


def parse_conversation(messages: Any, tools: Sequence[Mapping[str, Any]] = ()) -> Conversation:
    """Returns messages in OpenAI's form as a `Conversation`.

    Content is a string or a list of {"type": "text", "text": ...} and {"type": "audio", "audio": ...}; the
    parts of a message are joined by one space, unless there is white space already. Messages of the system may stand
    anywhere; an assistant's may have no content.

    Args:
        tools: functions that the LLM may call

    Raises:
        RequestError: malformed messages; the error names messages[i].content[j] and what is wrong there
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise RequestError(f"messages is {reprlib.repr(messages)}, expected a list of one message or more")
    sounds: list[Any] = []
    turns = [_parse_message(message, i, sounds) for i, message in enumerate(messages)]
    last = max((i for i, turn in enumerate(turns) if turn.role != "system"), default=0)
    if turns[last].role not in ("user", "tool"):
        raise RequestError(f"messages[{last}], the last, has the role {turns[last].role!r}, expected 'user'")
    return Conversation(tuple(turns), tuple(sounds), tuple(tools))


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
        if key not in (*_IGNORED_KEYS, *_ROLE_KEYS.get(role, ())) and not is_unset:
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
    calls = _parse_calls(message.get("tool_calls") or [], where) if role == "assistant" else ()
    call_id = message.get("tool_call_id", "") if role == "tool" else ""
    if not isinstance(call_id, str):
        raise RequestError(f"{where}.tool_call_id is {reprlib.repr(call_id)}, expected a string")
    return Turn(role, _join_parts(parts), calls, call_id)


def _parse_calls(calls: Any, where: str) -> tuple[ToolCall, ...]:
    """Returns the function calls of an assistant's message."""
    if not isinstance(calls, list | tuple):
        raise RequestError(f"{where}.tool_calls is {reprlib.repr(calls)}, expected a list")
    return tuple(_parse_call(call, f"{where}.tool_calls[{j}]") for j, call in enumerate(calls))


def _parse_call(call: Any, where: str) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise RequestError(
            f"{where} is {reprlib.repr(call)}, expected a dict with 'function': 'name', 'arguments'"
        )
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        raise RequestError(f"{where}.function.arguments is not a JSON object, expected such as '{{}}'")
    return ToolCall(str(call.get("id") or ""), name, arguments)


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
