"""The functions of a chat request that the local engine lets its LLM call, and the calls in its answers."""

import reprlib
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ossicle.chat.grammar import AnswerGrammar, build_call_grammar
from ossicle.chat.token_logprobs import TokenLogprob
from ossicle.chat.tool_calls import ToolCallParser, ToolFormat, WrittenCall
from ossicle.serving.engine import Answer
from ossicle.serving.errors import ApiError
from ossicle.serving.generation import TextDelta

TOOL_FIELDS = ("tools", "tool_choice", "parallel_tool_calls")
MAX_TOOLS = 128
_MAX_CALLS = 128


@dataclass(frozen=True, kw_only=True)
class ToolParams:
    """The functions of a request."""

    tools: tuple[Mapping[str, Any], ...] = ()
    format: ToolFormat | None = None
    """How the LLM writes calls; None where it is to call nothing."""
    max_calls: int = _MAX_CALLS
    grammar: AnswerGrammar | None = None
    """The shape of an answer that must be a call."""

    def build_grammar(self, answer: AnswerGrammar | None) -> AnswerGrammar | None:
        """Returns the shape of an answer that may be a call or what the request asks for; None if it may be any text.

        Raises:
            RequestError: functions whose schemas are too long
        """
        if self.grammar is not None or answer is None or self.format is None:
            return self.grammar or answer
        return build_call_grammar(self.format, self.tools, answer)


def read_tool_params(body: Mapping[str, Any], format: ToolFormat | None) -> ToolParams:
    """Returns the functions of a request.

    Args:
        format: how the LLM writes calls; None for one that cannot

    Raises:
        ApiError: malformed functions, a choice that cannot be honored, or an LLM that takes none
    """
    tools = body.get("tools") or []
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise ApiError(
            f"tools is {reprlib.repr(tools)}, expected a list of at most {MAX_TOOLS}", param="tools"
        )
    for index, tool in enumerate(tools):
        _check_tool(tool, f"tools[{index}]")
    is_parallel = body.get("parallel_tool_calls")
    if not isinstance(is_parallel, bool | None):
        raise ApiError(
            f"parallel_tool_calls is {reprlib.repr(is_parallel)}, expected true or false",
            param="parallel_tool_calls",
        )
    choice = body.get("tool_choice")
    forced = _find_forced(choice, tools)
    if not tools or choice == "none":
        return ToolParams()
    if format is None:
        raise ApiError(
            "tools: the LLM's chat template has no functions, or writes their calls in a form that is not known: leave"
            " them out, or serve an LLM that was trained to call functions",
            param="tools",
            code="unsupported_parameter",
        )
    grammar = build_call_grammar(format, forced) if forced else None
    return ToolParams(
        tools=tuple(tools),
        format=format,
        max_calls=1 if is_parallel is False else _MAX_CALLS,
        grammar=grammar,
    )


def _find_forced(choice: Any, tools: list[Any]) -> list[Any]:
    """Returns the functions of which one must be called; none where the LLM is free.

    Raises:
        ApiError: not a choice, or a function that the request does not have
    """
    if choice in (None, "none", "auto"):
        return []
    if choice == "required" and tools:
        return tools
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        raise ApiError(
            "tool_choice names none of the tools, expected auto, none, required, or"
            ' {"type": "function", "function": {"name": ...}} with the name of one of them',
            param="tool_choice",
        )
    return named


def _check_tool(tool: Any, where: str) -> None:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not 0 < len(name) <= 128:
        raise ApiError(
            f'{where} is {reprlib.repr(tool)}, expected {{"type": "function", "function": {{"name": ..., "parameters":'
            " {...}}}",
            param=where,
        )
    if not isinstance(function.get("parameters"), dict | None):
        raise ApiError(
            f"{where}.function.parameters is {reprlib.repr(function['parameters'])}, expected a JSON schema",
            param=f"{where}.function.parameters",
        )


class AnswerReader:
    """Reads an answer while it comes: text, and calls of functions.

    Args:
        format: how the LLM writes calls; None for an answer that is only text
        max_calls: further calls are dropped
        names: of the functions that may be called
        has_logprobs: whether the probabilities of its tokens are asked for
    """

    def __init__(
        self,
        format: ToolFormat | None,
        max_calls: int,
        names: Collection[str] | None = None,
        *,
        has_logprobs: bool = False,
    ) -> None:
        self._parser = ToolCallParser(format, names) if format else None
        self._max_calls = max_calls
        self._text = ""
        self._calls: list[dict[str, Any]] = []
        self._finish_reason = "stop"
        self._logprobs: list[TokenLogprob] | None = [] if has_logprobs else None
        self._n_taken = 0

    @property
    def answer(self) -> Answer:
        """The answer as far as it was read."""
        is_call = self._calls and self._finish_reason == "stop"
        finish_reason = "tool_calls" if is_call else self._finish_reason
        return Answer(
            text=self._text,
            tool_calls=tuple(self._calls),
            finish_reason=finish_reason,
            logprobs=self._logprobs,
        )

    def take_logprobs(self) -> Sequence[TokenLogprob] | None:
        """Returns the probabilities of the tokens since the last call, if they are asked for."""
        if self._logprobs is None:
            return None
        taken = self._logprobs[self._n_taken :]
        self._n_taken = len(self._logprobs)
        return taken

    def add(self, delta: TextDelta) -> Iterator[dict[str, Any]]:
        """Yields OpenAI's deltas for what a token adds."""
        if self._logprobs is not None:
            self._logprobs += delta.logprobs
        pieces: list[str | WrittenCall] = [delta.text] if delta.text else []
        if self._parser:
            pieces = self._parser.add(delta.text)
            if delta.finish_reason:
                pieces += self._parser.flush(is_cut=delta.finish_reason == "length")
        for piece in pieces:
            if isinstance(piece, str):
                self._text += piece
                yield {"content": piece}
            elif len(self._calls) < self._max_calls:
                call = {
                    "id": secrets.token_hex(5)[:9],
                    "type": "function",
                    "function": {"name": piece.name, "arguments": piece.arguments},
                }
                self._calls.append(call)
                yield {"tool_calls": [{"index": len(self._calls) - 1, **call}]}
        if delta.finish_reason:
            self._finish_reason = delta.finish_reason
