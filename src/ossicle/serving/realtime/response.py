"""One response while it is generated: the engine's chunks become OpenAI's events in OpenAI's order.

It knows no sockets, and nothing of turns.
"""

import base64
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ossicle.serving.errors import ApiError
from ossicle.serving.realtime.conversation import Conversation, Item, build_item, new_id
from ossicle.serving.realtime.input_audio import count_bytes_per_second
from ossicle.serving.realtime.settings import ResponseSettings, format_to_json
from ossicle.serving.realtime.spoken_text import SpokenText, Voice


@runtime_checkable
class PutEvent(Protocol):
    """Queues a server event."""

    def __call__(self, kind: str, **fields: Any) -> None:
        """Queues an event of a type, with its fields."""
        ...


class Response:
    """A response, from `start` to the first `finish`; later ones do nothing.

    Args:
        conversation: gets its items; None for a response that leaves no trace
        put: queues an event
        voice: speaks the text; None for a response in text
    """

    def __init__(
        self,
        settings: ResponseSettings,
        conversation: Conversation | None,
        put: PutEvent,
        voice: Voice | None = None,
    ) -> None:
        self.id = new_id("resp")
        self.settings, self.conversation, self.voice = settings, conversation, voice
        self.is_finished = False
        self._put = put
        self._speech: SpokenText | None = None
        """The voice of the message that is being generated."""
        self._output: list[Item] = []
        self._known = set() if conversation is None else set(conversation.items)
        """The items that it answers and its own, behind which its next one comes, whatever is said meanwhile."""
        self._open: Item | None = None
        """The item that is being generated, the last one of the output."""
        self._previous_id: str | None = None
        """The id of the item before it."""
        self._open_call: Any = None
        """The engine's number of the function call that is being generated."""
        self._text, self._spoken_s = "", 0.0
        """Of the open message, of which the client may have heard less."""
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] | None = None

    def start(self) -> None:
        """Announces the response."""
        self._put("response.created", response=self._to_json("in_progress"))

    async def add_chunk(self, chunk: Mapping[str, Any]) -> None:
        """Reads a `chat.completion.chunk`; before another item, waits until the message before it is spoken.

        Raises:
            ApiError: the text of a message cannot be spoken
        """
        if self.is_finished:
            return
        if chunk.get("usage"):
            self._usage = _convert_usage(chunk["usage"])
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or {}
            if delta.get("content"):
                await self._add_text(delta["content"])
            for call in delta.get("tool_calls") or ():
                await self._add_call(call)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason

    async def complete(self) -> None:
        """Ends the response as its last chunk says, when all of it is spoken.

        Raises:
            ApiError: as `add_chunk`
        """
        await self._finish_speech()
        match self._finish_reason:
            case "length":
                self._finish("incomplete", reason="max_output_tokens")
            case "content_filter":
                self._finish("incomplete", reason="content_filter")
            case _:
                self._finish("completed")

    def cancel(self, reason: str) -> None:
        """Ends the response before its time."""
        self._finish("cancelled", reason=reason)

    def fail(self, error: ApiError) -> None:
        """Ends the response with an error."""
        fields = {"type": error.error_type, "code": error.code, "message": str(error)}
        self._finish("failed", error=fields)

    async def _add_text(self, text: str) -> None:
        item = self._open
        if item is None or item.fields["type"] != "message":
            item = await self._open_item(Item(build_item("message", role="assistant", content=[])))
            item.content.append({"type": self._content_type, self._text_name: ""})
            self._text = ""
            self._put_of(item, "response.content_part.added", content_index=0, part=self._build_part(""))
            if self.voice is not None:
                self._speech = SpokenText(self.voice, self._add_sound)
        self._text += text
        if not item.is_truncated:
            item.content[0][self._text_name] = self._text
        self._put_of(item, f"response.{self._text_event}.delta", content_index=0, delta=text)
        if self._speech is not None:
            self._speech.write(text)

    def _add_sound(self, data: bytes, n_characters: int) -> None:
        """Queues sound of the open message, and notes the characters that are spoken with it."""
        item, voice = self._open, self.voice
        assert item is not None, "a message is open while it is spoken"
        assert voice is not None
        if data:
            sound = base64.b64encode(data).decode()
            self._put_of(item, "response.output_audio.delta", content_index=0, delta=sound)
        self._spoken_s += len(data) / count_bytes_per_second(voice.format)
        if n_characters:
            n_before = item.spoken[-1][0] if item.spoken else 0
            item.spoken.append((n_before + n_characters, self._spoken_s))

    async def _add_call(self, call: Mapping[str, Any]) -> None:
        function, number = call.get("function") or {}, call.get("index", 0)
        item = self._open
        if item is None or item.fields["type"] != "function_call" or number != self._open_call:
            call_id = call.get("id") or new_id("call")
            name = function.get("name") or ""
            item = await self._open_item(
                Item(build_item("function_call", call_id=call_id, name=name, arguments=""))
            )
            self._open_call = number
        arguments = function.get("arguments") or ""
        if arguments:
            item.fields["arguments"] += arguments
            fields = {"call_id": item.fields["call_id"], "delta": arguments}
            self._put_of(item, "response.function_call_arguments.delta", **fields)

    async def _open_item(self, item: Item) -> Item:
        await self._finish_speech()
        self._close_item("completed")
        item.fields["status"] = "in_progress"
        self._open, self._spoken_s = item, 0.0
        self._output.append(item)
        self._put_with_item("response.output_item.added", item)
        if self.conversation is not None:
            self._previous_id = self.conversation.insert_after(item, self._known)
            self._known.add(item)
            self._put("conversation.item.added", previous_item_id=self._previous_id, item=item.to_json())
        return item

    async def _finish_speech(self) -> None:
        """Waits until the open message is spoken."""
        if self._speech is not None:
            await self._speech.finish()

    def stop_speech(self) -> None:
        """Ends the voice, if it still speaks."""
        if self._speech is not None:
            self._speech.stop()

    def _close_item(self, status: str) -> None:
        self.stop_speech()
        item, self._open = self._open, None
        is_spoken, self._speech = self._speech is not None, None
        if item is None:
            return
        item.fields["status"] = status
        if item.fields["type"] == "message":
            text = self._text
            if is_spoken:
                self._put_of(item, "response.output_audio.done", content_index=0)
            written = {self._text_name: text}
            self._put_of(item, f"response.{self._text_event}.done", content_index=0, **written)
            self._put_of(item, "response.content_part.done", content_index=0, part=self._build_part(text))
        else:
            call = {name: item.fields[name] for name in ("call_id", "name", "arguments")}
            self._put_of(item, "response.function_call_arguments.done", **call)
        self._put_with_item("response.output_item.done", item)
        if self.conversation is not None:
            self._put("conversation.item.done", previous_item_id=self._previous_id, item=item.to_json())

    def _finish(self, status: str, **details: Any) -> None:
        if self.is_finished:
            return
        self._close_item("completed" if status == "completed" else "incomplete")
        self.is_finished = True
        self._put("response.done", response=self._to_json(status, {"type": status, **details}))

    def _put_of(self, item: Item, kind: str, **fields: Any) -> None:
        """Queues an event about an item of the response."""
        place = {"response_id": self.id, "item_id": item.id, "output_index": self._output.index(item)}
        self._put(kind, **place, **fields)

    def _put_with_item(self, kind: str, item: Item) -> None:
        place = {"response_id": self.id, "output_index": self._output.index(item)}
        self._put(kind, **place, item=item.to_json())

    def _to_json(self, status: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns OpenAI's response object."""
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": status,
            "status_details": details,
            "output": [item.to_json() for item in self._output],
            "conversation_id": self.conversation.id if self.conversation is not None else None,
            "output_modalities": ["text" if self.voice is None else "audio"],
            "max_output_tokens": self.settings.max_output_json,
            "usage": self._usage,
            "metadata": self.settings.metadata,
            **({} if self.voice is None else {"audio": {"output": _voice_to_json(self.voice)}}),
        }

    @property
    def _content_type(self) -> str:
        return "output_text" if self.voice is None else "output_audio"

    @property
    def _text_name(self) -> str:
        """The field of a message's part that has its text."""
        return "text" if self.voice is None else "transcript"

    @property
    def _text_event(self) -> str:
        """What the events of the text are called."""
        return "output_text" if self.voice is None else "output_audio_transcript"

    def _build_part(self, text: str) -> dict[str, str]:
        return {"type": "text" if self.voice is None else "audio", self._text_name: text}


def _voice_to_json(voice: Voice) -> dict[str, Any]:
    """Returns OpenAI's object of a response's output."""
    output = {"format": format_to_json(voice.format), "voice": voice.name}
    return {name: value for name, value in output.items() if value is not None}


def _convert_usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the token counts of a chat completion as those of a response."""
    n_input, n_output = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    details = usage.get("prompt_tokens_details") or {}
    n_audio, n_cached = details.get("audio_tokens") or 0, details.get("cached_tokens") or 0
    return {
        "total_tokens": n_input + n_output,
        "input_tokens": n_input,
        "output_tokens": n_output,
        "input_token_details": {
            "text_tokens": n_input - n_audio,
            "audio_tokens": n_audio,
            "cached_tokens": n_cached,
        },
        "output_token_details": {"text_tokens": n_output, "audio_tokens": 0},
    }
