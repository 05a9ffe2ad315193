"""Calls of functions as LLMs write them: the forms of the families, and how they are read while they come.

It knows no template and no tokenizer. A form is recognized by what a chat template makes of a known call.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ossicle.chat.messages import ToolCall

_NAME = "qx7function7xq"
PROBE_DESCRIPTION = "qx7description7xq"
PROBE_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": PROBE_DESCRIPTION,
        "parameters": {"type": "object", "properties": {"x": {"type": "integer", "description": "x"}}},
    },
}
PROBE_CALL = ToolCall("qx7call7q", _NAME, {"x": 1})
_CALL_ID = re.compile("[A-Za-z0-9]{9}")
"""What Mistral's templates demand of the id of a call."""


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """The form in which a family of LLMs writes calls."""

    name: str
    start: str
    """What a call, or a list of calls, begins with."""
    end: str
    """What it ends with; nothing for a form whose calls end with the answer."""
    probe: str
    """A pattern of what a template makes of a known call."""


HERMES = ToolFormat(
    name="hermes",
    start="<tool_call>",
    end="</tool_call>",
    probe=rf'<tool_call>\s*\{{"name": "{_NAME}", "arguments": ',
)
MISTRAL = ToolFormat(
    name="mistral", start="[TOOL_CALLS]", end="", probe=rf'\[TOOL_CALLS\]\s*\[\{{"name": "{_NAME}"'
)
"""A list of calls behind one mark, as Mistral's older LLMs write them."""
MISTRAL_NAMED = ToolFormat(
    name="mistral-named", start="[TOOL_CALLS]", end="", probe=rf"\[TOOL_CALLS\]\s*{_NAME}\["
)
"""A mark and a name before the arguments of each call, as newer ones do."""
LLAMA = ToolFormat(name="llama", start="{", end="", probe=rf'\{{"name": "{_NAME}", "parameters": ')
_FORMATS = (HERMES, MISTRAL, MISTRAL_NAMED, LLAMA)
MARKERS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<|python_tag|>")
"""Tokens that may be special, and must yet be read as text."""


def find_tool_format(rendered: str) -> ToolFormat | None:
    """Returns the form in which a conversation with `PROBE_CALL` is rendered; None for a form that is not known."""
    return next((each for each in _FORMATS if re.search(each.probe, rendered)), None)


def build_template_call(call: ToolCall) -> dict[str, Any]:
    """Returns a call as chat templates read it."""
    function = {"name": call.name, "arguments": dict(call.arguments)}
    return {"id": shorten_call_id(call.id), "type": "function", "function": function}


def shorten_call_id(call_id: str) -> str:
    """Returns an id of nine letters and digits: the id itself, or one that stands for it."""
    return (
        call_id
        if _CALL_ID.fullmatch(call_id)
        else hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:9]
    )


@dataclass(frozen=True)
class WrittenCall:
    """A call that an LLM wrote."""

    name: str
    arguments: str
    """A JSON object."""


class ToolCallParser:
    """Splits an answer into text and calls while it comes; what looks like a call and is none stays text.

    Args:
        names: of the functions that may be called, by which bare JSON (of Llama's form) is told from a call
    """

    def __init__(self, format: ToolFormat, names: Collection[str] | None = None) -> None:
        self._format, self._names = format, names
        self._held = ""
        self._is_inside = False
        self._has_text = False

    def add(self, text: str) -> list[str | WrittenCall]:
        """Returns the text and the calls that are complete now."""
        self._held += text
        return [piece for piece in self._split() if piece != ""]

    def flush(self, *, is_cut: bool = False) -> list[str | WrittenCall]:
        """Returns what is left when nothing follows; half a call of an answer that was cut off is neither."""
        held, self._held = self._held, ""
        if not self._is_inside:
            return [held] if held else []
        pieces = list(self._read(held))
        is_half = is_cut and pieces == [held] and self._format is not LLAMA  # bare JSON may be the answer
        return [] if is_half else pieces

    def _split(self) -> Iterator[str | WrittenCall]:
        while True:
            if not self._is_inside:
                yield self._take_text()
            if not self._is_inside:
                return
            end = self._format.end
            body, found, rest = self._held.partition(end) if end else ("", "", self._held)
            if not found:
                return
            self._held, self._is_inside = rest, False
            yield from self._read(body + found)

    def _take_text(self) -> str:
        """Returns the text up to the start of a call, without white space that may only set it off."""
        if self._format is LLAMA:
            return self._take_unless_call()
        text, found, rest = self._held.partition(self._format.start)
        if found:
            self._held, self._is_inside = found + rest, True
            return text.rstrip()
        n_held = _count_begun(text, self._format.start)
        n_held = len(text) - len(text[: len(text) - n_held].rstrip())
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def _take_unless_call(self) -> str:
        """Returns the text, unless the answer as a whole begins as a call does."""
        begun = self._held.lstrip().removeprefix("<|python_tag|>").lstrip()
        is_open = not begun or "<|python_tag|>".startswith(begun)
        if not self._has_text and begun.startswith("{"):
            self._is_inside = True
            return ""
        if not self._has_text and is_open:
            return ""
        self._has_text = True
        text, self._held = self._held, ""
        return text

    def _read(self, written: str) -> Iterator[str | WrittenCall]:
        """Yields the calls in a stretch, or the stretch itself if it holds none."""
        try:
            calls = list(_read_calls(written, self._format))
            if self._format is LLAMA and self._names and not {call.name for call in calls} <= {*self._names}:
                calls = []
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            calls = []
        yield from calls or [written]


def _count_begun(text: str, marker: str) -> int:
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if text.endswith(marker[:n])), 0)


def _read_calls(written: str, format: ToolFormat) -> Iterator[WrittenCall]:
    if format is HERMES:
        yield _read_object(
            json.loads(written.removeprefix(format.start).removesuffix(format.end)), "arguments"
        )
    elif format is LLAMA:
        for value in _read_values(written.strip().removeprefix("<|python_tag|>")):
            if "parameters" not in value:  # any object may have a name
                raise ValueError("no call")
            yield _read_object(value, "parameters")
    else:
        for stretch in filter(None, map(str.strip, written.split(format.start))):
            if stretch.startswith("["):
                yield from (_read_object(value, "arguments") for value in json.loads(stretch))
            else:
                name, _, arguments = stretch.partition("[ARGS]")
                name = name.partition("[CALL_ID]")[0].strip()
                yield _read_object({"name": name, "arguments": json.loads(arguments)}, "arguments")


def _read_values(text: str) -> Iterator[Any]:
    """Yields JSON values that follow each other, with semicolons or white space between."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        yield value
        text = text[end:].lstrip(" ;\n\t")


def _read_object(value: Any, key: str) -> WrittenCall:
    arguments = value.get(key, {})
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(value["name"], str) or not value["name"] or not isinstance(arguments, dict):
        raise ValueError("no call")
    return WrittenCall(value["name"], json.dumps(arguments, ensure_ascii=False))
