"""OpenAI's Responses requests as chat requests: nothing is stored, so each brings its whole conversation."""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ossicle.serving.engine import ChatRequest
from ossicle.serving.errors import ApiError
from ossicle.serving.request_body import (
    MAX_MESSAGES,
    LoadSpeech,
    RequestLimits,
    build_chat_request,
    load_in_process,
    read_json,
)

_LOGPROBS = "message.output_text.logprobs"
_INCLUDED = (_LOGPROBS, "reasoning.encrypted_content")
_OWN = {
    "background", "conversation", "include", "input", "instructions", "max_output_tokens", "max_tool_calls",
    "previous_response_id", "prompt", "reasoning", "stream_options", "text", "tool_choice", "tools", "truncation",
}  # fmt: skip
"""What a chat request does not have, or has in another form; all else is passed on."""
_CHAT_ONLY = {
    "audio", "function_call", "functions", "logprobs", "max_completion_tokens", "max_tokens", "messages", "modalities",
    "n", "reasoning_effort", "response_format",
}  # fmt: skip
_STORED = {
    "conversation": None,
    "previous_response_id": None,
    "prompt": None,
    "background": False,
    "truncation": "disabled",
}
"""What only a server that stores conversations can do, and the value that asks for nothing."""
_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""Fields of a chat request, and what they are called here."""


@dataclass(frozen=True, kw_only=True)
class ResponseRequest:
    """A request for a response."""

    chat: ChatRequest
    fields: Mapping[str, Any]
    """As they were sent, without what is null."""
    places: tuple[str, ...]
    """Where each message of the chat request was sent, such as "input[0]"."""

    def rename(self, error: ApiError) -> ApiError:
        """Returns an error about the chat request as one about this request."""
        return _rename(error, self.places)


def read_response_request(
    body: bytes, model: str, limits: RequestLimits, load: LoadSpeech = load_in_process
) -> ResponseRequest:
    """Returns the request for a response of a body; decoding its sounds takes most of the time.

    Args:
        model: the model name of this server
        load: decodes its sounds

    Raises:
        ApiError: a malformed request, another model, sound that cannot be decoded, or what needs a server that stores
            conversations
    """
    given = read_json(body, "an object with model and input")
    fields = {name: value for name, value in given.items() if value is not None}
    for name, neutral in _STORED.items():
        if name in fields and fields[name] != neutral:
            raise ApiError(
                f"Parameter '{name}' is not supported with this value, as this server stores nothing: send the whole"
                " conversation as input",
                param=name,
                code="unsupported_parameter",
            )
    if unknown := sorted(_CHAT_ONLY & fields.keys()):
        raise ApiError(
            f"Unknown parameter '{unknown[0]}' of a response; it belongs to /v1/chat/completions",
            param=unknown[0],
            code="unknown_parameter",
        )
    messages, places = _convert_input(fields)
    chat = {name: value for name, value in fields.items() if name not in _OWN}
    chat |= {"messages": messages, **_convert_options(fields)}
    try:
        request = build_chat_request(chat, model, limits, load)
    except ApiError as error:
        raise _rename(error, tuple(places)) from error
    return ResponseRequest(chat=request, fields=fields, places=tuple(places))


def _rename(error: ApiError, places: tuple[str, ...]) -> ApiError:
    def find_place(match: re.Match[str]) -> str:
        number = int(match[1])
        return places[number] if number < len(places) else match[0]

    def rename(text: str) -> str:
        text = re.sub(r"messages\[(\d+)\]", find_place, text)
        return re.sub("|".join(_NAMES), lambda match: _NAMES[match[0]], text)

    return ApiError(
        rename(str(error)),
        status=error.status,
        error_type=error.error_type,
        param=rename(error.param) if error.param else None,
        code=error.code,
        retry_after_s=error.retry_after_s,
    )


def _convert_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a chat request has in another form."""
    options: dict[str, Any] = {}
    if "max_output_tokens" in fields:
        options["max_completion_tokens"] = fields["max_output_tokens"]
    included = fields.get("include", [])
    if not isinstance(included, list) or any(name not in _INCLUDED for name in included):
        raise ApiError(
            f"include is {reprlib.repr(included)}, expected a list of {' and '.join(_INCLUDED)}",
            param="include",
        )
    if _LOGPROBS in included or fields.get("top_logprobs"):
        options["logprobs"] = True
    text, reasoning = (_read_table(fields, name) for name in ("text", "reasoning"))
    if text.get("format") is not None:
        options["response_format"] = _convert_format(text["format"])
    if text.get("verbosity") is not None:
        options["verbosity"] = text["verbosity"]
    if reasoning.get("effort") is not None:
        options["reasoning_effort"] = reasoning["effort"]
    if "tools" in fields:
        options["tools"] = _convert_tools(fields["tools"])
    if "tool_choice" in fields:
        choice = fields["tool_choice"]
        is_named = isinstance(choice, dict) and choice.get("type") == "function" and "name" in choice
        options["tool_choice"] = _nest(choice, ("name",)) if is_named else choice
    if fields.get("stream") is True:
        options["stream_options"] = {"include_usage": True}
    return options


def _read_table(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name, {})
    if not isinstance(value, dict):
        raise ApiError(f"{name} is {reprlib.repr(value)}, expected an object", param=name)
    return value


def _convert_format(given: Any) -> Any:
    """Returns the `response_format` of a text's format."""
    if not isinstance(given, dict) or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {name: given[name] for name in given if name != "type"}}


def _convert_tools(tools: Any) -> list[dict[str, Any]]:
    if not isinstance(tools, list):
        raise ApiError(f"tools is {reprlib.repr(tools)}, expected a list of functions", param="tools")
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise ApiError(
                f"tools[{index}] is no function, expected"
                ' {"type": "function", "name": ..., "parameters": {...}}: this server has no tools of its own',
                param=f"tools[{index}]",
                code="unsupported_parameter",
            )
    return [_nest(tool, ("name", "description", "parameters", "strict")) for tool in tools]


def _nest(function: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Returns a function, or the choice of one, in the form of a chat request."""
    return {"type": "function", "function": {name: function[name] for name in names if name in function}}


# Input


def _convert_input(fields: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the messages of the instructions and of all items, and where each was sent."""
    instructions, given = fields.get("instructions", ""), fields.get("input")
    if not isinstance(instructions, str):
        raise ApiError(
            f"instructions is {reprlib.repr(instructions)}, expected a string", param="instructions"
        )
    messages: list[dict[str, Any]] = []
    places: list[str] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
        places.append("instructions")
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}], [*places, "input"]
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_MESSAGES:
        raise ApiError(
            f"input is {reprlib.repr(given)}, expected a text or a list of 1 to {MAX_MESSAGES} items",
            param="input",
        )
    last_kind = None
    for index, item in enumerate(given):
        place = f"input[{index}]"
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "reasoning":
            continue
        message = _convert_item(item, kind, place)
        follows_answer = kind == "function_call" and last_kind in ("function_call", "answer")
        if follows_answer:
            messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            messages.append(message)
            places.append(place)
        last_kind = "answer" if message["role"] == "assistant" and kind == "message" else kind
    return messages, places


def _convert_item(item: Any, kind: Any, place: str) -> dict[str, Any]:
    """Returns an item as a message.

    Raises:
        ApiError: an item of another kind, or a malformed one
    """
    match kind:
        case "message":
            return {
                "role": item.get("role"),
                "content": _convert_content(item.get("content"), f"{place}.content"),
            }
        case "function_call":
            function = {name: item.get(name) for name in ("name", "arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        case "function_call_output":
            content = _convert_content(item.get("output"), f"{place}.output")
            return {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}
        case "item_reference":
            raise ApiError(
                f"{place} refers to an item, but this server stores none: send the item", param=place
            )
    raise ApiError(
        f"{place} is {reprlib.repr(item)}, expected an item of type message, function_call or function_call_output",
        param=place,
    )


def _convert_content(content: Any, place: str) -> Any:
    if not isinstance(content, list):
        return content
    return [_convert_part(part, f"{place}[{index}]") for index, part in enumerate(content)]


def _convert_part(part: Any, place: str) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": part.get("text")}
    if kind in ("input_audio", "refusal"):
        return part
    raise ApiError(
        f"{place} is {reprlib.repr(part)}, expected a part of type input_text, output_text or input_audio",
        param=place,
    )
