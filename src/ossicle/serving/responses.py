"""OpenAI's Responses: the engine's chunks as one response and its events, in OpenAI's order."""

import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from ossicle.errors import OssicleError
from ossicle.serving.errors import ApiError, build_internal_error, to_api_error
from ossicle.serving.responses_request import ResponseRequest
from ossicle.serving.worker import LOG

_Event = dict[str, Any]
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_DEFAULTS: Mapping[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
}
"""Fields of a request that its response repeats."""


def build_response(request: ResponseRequest, completion: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the response of a `chat.completion`."""
    response = Response(request)
    for choice in completion["choices"]:
        for _ in response.add_delta(choice["message"], choice.get("logprobs")):
            pass
        response.finish_reason = choice.get("finish_reason")
    response.usage = completion.get("usage")
    for _ in response.finish():
        pass
    return response.to_json()


async def stream_response(
    request: ResponseRequest, chunks: AsyncIterator[dict[str, Any]]
) -> AsyncIterator[_Event]:
    """Returns the events of the response whose chunks come; closing it closes them."""
    events = _build_events(request, chunks)
    await anext(events)
    return events


async def _build_events(
    request: ResponseRequest, chunks: AsyncIterator[dict[str, Any]]
) -> AsyncIterator[_Event]:
    response = Response(request)
    try:
        yield {}  # taken by `stream_response`: a generator must have started, or closing it would not run `finally`
        for event in response.start():
            yield event
        async for chunk in chunks:
            for event in response.add_chunk(chunk):
                yield event
        for event in response.finish():
            yield event
    except OssicleError as error:
        for event in response.fail(request.rename(to_api_error(error))):
            yield event
    except Exception:
        LOG.exception("a response failed")
        for event in response.fail(build_internal_error()):
            yield event
    finally:
        await chunks.aclose()  # ty: ignore[missing-attribute]


class Response:
    """A response while it is generated."""

    def __init__(self, request: ResponseRequest) -> None:
        self.request = request
        self.id = _new_id("resp")
        self.created_at = int(time.time())
        self.finish_reason: str | None = None
        self.usage: Mapping[str, Any] | None = None
        self._status = "in_progress"
        self._error: dict[str, Any] | None = None
        self._output: list[dict[str, Any]] = []
        self._is_open = False
        """Whether the last item of the output is being generated."""
        self._open_call: Any = None
        """The engine's number of the function call that is being generated."""
        self._n_events = 0

    def start(self) -> Iterator[_Event]:
        """Yields the events of the begin."""
        for kind in ("response.created", "response.in_progress"):
            yield self._build_event(kind, response=self.to_json())

    def add_chunk(self, chunk: Mapping[str, Any]) -> Iterator[_Event]:
        """Yields the events of a `chat.completion.chunk`."""
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", ()):
            yield from self.add_delta(choice.get("delta") or {}, choice.get("logprobs"))
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def add_delta(
        self, delta: Mapping[str, Any], logprobs: Mapping[str, Any] | None = None
    ) -> Iterator[_Event]:
        """Yields the events of what a chunk adds, or of a whole message."""
        probabilities = (logprobs or {}).get("content") or []
        is_writing = self._is_open and self._output[-1]["type"] == "message"
        if delta.get("content") or (probabilities and is_writing):
            yield from self._add_text(delta.get("content") or "", probabilities)
        for number, call in enumerate(delta.get("tool_calls") or ()):
            yield from self._add_call(call, call.get("index", number))

    def finish(self) -> Iterator[_Event]:
        """Yields the events of the end."""
        is_whole = self.finish_reason not in _INCOMPLETE
        self._status = "completed" if is_whole else "incomplete"
        yield from self._close_item()
        yield self._build_event(f"response.{self._status}", response=self.to_json())

    def fail(self, error: ApiError) -> Iterator[_Event]:
        """Yields the event of an error that came after the begin."""
        self._status = "failed"
        self._error = {"code": error.code or error.error_type, "message": str(error)}
        yield self._build_event("response.failed", response=self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Returns OpenAI's response object."""
        reason = _INCOMPLETE.get(self.finish_reason or "") if self._status == "incomplete" else None
        fields = self.request.fields
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "completed_at": int(time.time()) if self._status == "completed" else None,
            "status": self._status,
            "error": self._error,
            "incomplete_details": {"reason": reason} if reason else None,
            "model": self.request.chat.model,
            "output": [dict(item) for item in self._output],
            "store": False,
            "usage": _convert_usage(self.usage) if self.usage else None,
            **{name: fields.get(name, default) for name, default in _DEFAULTS.items()},
        }

    def _add_text(self, text: str, logprobs: list[dict[str, Any]]) -> Iterator[_Event]:
        if not self._is_open or self._output[-1]["type"] != "message":
            yield from self._open_item(
                {"id": _new_id("msg"), "type": "message", "role": "assistant", "content": []}
            )
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._output[-1]["content"].append(part)
            yield self._build_item_event("response.content_part.added", content_index=0, part=dict(part))
        part = self._output[-1]["content"][0]
        part["text"] += text
        part["logprobs"] = part["logprobs"] + logprobs
        yield self._build_item_event(
            "response.output_text.delta", content_index=0, delta=text, logprobs=logprobs
        )

    def _add_call(self, call: Mapping[str, Any], number: int) -> Iterator[_Event]:
        function = call.get("function") or {}
        is_new = not self._is_open or self._output[-1]["type"] != "function_call" or number != self._open_call
        if is_new:
            self._open_call = number
            yield from self._open_item(
                {
                    "id": _new_id("fc"),
                    "type": "function_call",
                    "call_id": call.get("id") or _new_id("call"),
                    "name": function.get("name") or "",
                    "arguments": "",
                }
            )
        if arguments := function.get("arguments"):
            self._output[-1]["arguments"] += arguments
            yield self._build_item_event("response.function_call_arguments.delta", delta=arguments)

    def _open_item(self, item: dict[str, Any]) -> Iterator[_Event]:
        yield from self._close_item()
        self._output.append({**item, "status": "in_progress"})
        self._is_open = True
        yield self._build_event(
            "response.output_item.added", output_index=len(self._output) - 1, item=self._copy_item()
        )

    def _close_item(self) -> Iterator[_Event]:
        if not self._is_open:
            return
        self._is_open, item = False, self._output[-1]
        item["status"] = "incomplete" if self._status == "incomplete" else "completed"
        if item["type"] == "message":
            part = dict(item["content"][0])
            text = {name: part[name] for name in ("text", "logprobs")}
            yield self._build_item_event("response.output_text.done", content_index=0, **text)
            yield self._build_item_event("response.content_part.done", content_index=0, part=part)
        else:
            call = {name: item[name] for name in ("name", "arguments")}
            yield self._build_item_event("response.function_call_arguments.done", **call)
        yield self._build_event(
            "response.output_item.done", output_index=len(self._output) - 1, item=self._copy_item()
        )

    def _copy_item(self) -> dict[str, Any]:
        item = dict(self._output[-1])
        if "content" in item:
            item["content"] = [dict(part) for part in item["content"]]
        return item

    def _build_item_event(self, kind: str, **fields: Any) -> _Event:
        """Returns an event about the last item."""
        place = {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}
        return self._build_event(kind, **place, **fields)

    def _build_event(self, kind: str, **fields: Any) -> _Event:
        self._n_events += 1
        return {"type": kind, "sequence_number": self._n_events - 1, **fields}


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def _convert_usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the token counts of a chat completion as those of a response."""
    n_input, n_output = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    details = usage.get("prompt_tokens_details") or {}
    return {
        "input_tokens": n_input,
        "input_tokens_details": {
            "audio_tokens": details.get("audio_tokens") or 0,
            "cached_tokens": details.get("cached_tokens") or 0,
            "cache_write_tokens": 0,
        },
        "output_tokens": n_output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": n_input + n_output,
    }
