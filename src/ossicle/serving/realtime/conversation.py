"""The items of a conversation, as clients see them and as messages for an engine.

It knows OpenAI's items and messages, and neither events nor responses.
"""

import hashlib
import json
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from ossicle.audio.speech import check_speech
from ossicle.errors import AudioError
from ossicle.serving.engine import Sound
from ossicle.serving.errors import ApiError
from ossicle.serving.realtime.fields import Fields, invalid
from ossicle.serving.realtime.input_audio import AudioInput, decode_base64, encode_samples
from ossicle.serving.realtime.live_turn import LiveTranscript, LiveTurn
from ossicle.serving.request_body import MAX_SOUNDS, MAX_SOUNDS_PER_MESSAGE

MAX_ITEMS, MAX_CHARACTERS = 1_000, 1 << 20
"""Of a conversation; the oldest items are dropped."""
MAX_AUDIO_CHARACTERS = 32 << 20
_MAX_ID = 128
_MAX_PARTS = 64
_CHARACTERS_PER_S = 15.0
"""How fast a voice speaks: about 150 words a minute."""
ROOT = "root"
"""The id that stands for the begin of the conversation."""


@dataclass(eq=False)
class HeardSound:
    """The sound of a part."""

    sound: Sound
    is_speech: bool
    """Whether somebody can be heard in it; what is not speech is not sent to the LLM."""
    transcript: LiveTranscript = field(default_factory=LiveTranscript)
    """What the client was told of it."""
    is_checked: bool = False
    """Whether the ear itself has been asked, or only the level was measured."""


@dataclass(eq=False)
class Item:
    """An item of a conversation."""

    fields: dict[str, Any]
    """OpenAI's object, without sound."""
    sounds: dict[int, HeardSound] = field(default_factory=dict)
    """By the number of their part."""
    spoken: list[tuple[int, float]] = field(default_factory=list)
    """Of a message that was spoken to the client: characters, and seconds of sound, up to the end of each sentence."""
    is_truncated: bool = False
    """Whether the client has heard a part of it only."""

    @property
    def id(self) -> str:
        """Its id."""
        return str(self.fields["id"])

    @property
    def content(self) -> list[dict[str, Any]]:
        """The parts of a message; none of other items."""
        return self.fields.get("content", [])

    @property
    def n_characters(self) -> int:
        """Characters of all its texts."""
        texts = list(map(read_text, self.content))
        texts += [self.fields.get(name, "") for name in ("arguments", "output")]
        return sum(map(len, texts))

    @property
    def duration_s(self) -> float:
        """Seconds of its sounds."""
        return sum((heard.sound.duration_s for heard in self.sounds.values()), 0.0)

    @property
    def is_turn(self) -> bool:
        """Whether it is a message of somebody's who talks to the LLM, or of the system."""
        return self.fields.get("role") in ("user", "system")

    @property
    def has_speech(self) -> bool:
        """Whether somebody can be heard in one of its sounds."""
        return any(heard.is_speech for heard in self.sounds.values())

    def to_json(self, *, with_audio: bool = False) -> dict[str, Any]:
        """Returns a copy of OpenAI's object."""
        copy = dict(self.fields)
        if "content" in copy:
            copy["content"] = [dict(part) for part in self.content]
        for index, heard in self.sounds.items() if with_audio else ():
            copy["content"][index]["audio"] = encode_samples(heard.sound.samples)
        return copy


def new_id(prefix: str) -> str:
    """Returns an id that no other object has."""
    return f"{prefix}_{uuid.uuid4().hex[:24]}"


def read_text(part: Mapping[str, Any]) -> str:
    """Returns the text of a part, or the transcript of its sound; empty if there is none."""
    return part.get("text") or part.get("transcript") or ""


def build_item(kind: str, *, id: str | None = None, **fields: Any) -> dict[str, Any]:
    """Returns OpenAI's object of an item."""
    head = {"id": id or new_id("item"), "object": "realtime.item", "type": kind, "status": "completed"}
    return {**head, **fields}


def build_spoken_item(id: str, heard: HeardSound) -> Item:
    """Returns a message of the user's that is one sound."""
    content = [{"type": "input_audio", "transcript": None}]
    return Item(build_item("message", id=id, role="user", content=content), {0: heard})


class Conversation:
    """The items in order.

    Args:
        max_audio_s: seconds of sound of all items together
    """

    def __init__(self, max_audio_s: float) -> None:
        self.id = new_id("conv")
        self.items: list[Item] = []
        self._max_audio_s = max_audio_s

    @property
    def last_id(self) -> str | None:
        """The id of the last item."""
        return self.items[-1].id if self.items else None

    def find(self, item_id: str) -> Item | None:
        """Returns the item with an id."""
        return next((item for item in self.items if item.id == item_id), None)

    def get(self, item_id: str, *, param: str, code: str) -> Item:
        """Returns the item with an id.

        Raises:
            ApiError: there is none
        """
        item = self.find(item_id)
        if item is None:
            raise ApiError(f"the conversation has no item with the id {item_id!r}", param=param, code=code)
        return item

    def insert(self, item: Item, previous_id: str | None = None) -> str | None:
        """Inserts an item behind another, by default the last one; returns the id of the item before it.

        Raises:
            ApiError: there is no such item, or another one with the same id
        """
        if self.find(item.id):
            raise ApiError(
                f"the conversation already has an item with the id {item.id!r}",
                param="item.id",
                code="item_create_duplicate_item_id",
            )
        if previous_id == ROOT:
            self.items.insert(0, item)
            return None
        if previous_id is None:
            previous_id = self.last_id
            self.items.append(item)
            return previous_id
        previous = self.get(
            previous_id, param="previous_item_id", code="item_create_invalid_previous_item_id"
        )
        self.items.insert(self.items.index(previous) + 1, item)
        return previous.id

    def insert_after(self, item: Item, known: Collection[Item]) -> str | None:
        """Inserts an item behind the last of some others that is still there, else at the begin.

        Returns: the id of the item before it
        """
        index = max((number + 1 for number, each in enumerate(self.items) if each in known), default=0)
        self.items.insert(index, item)
        return self.items[index - 1].id if index else None

    def drop_oldest(self) -> list[Item]:
        """Drops the oldest items beyond what a conversation may hold, and returns them.

        What is kept begins with somebody's words: no answer or result of a call is left without what it belongs to.
        """
        kept, n_characters, n_sounds, duration_s = 0, 0, 0, 0.0
        for item in reversed(self.items):
            n_characters += item.n_characters
            n_sounds += len(item.sounds)
            duration_s += item.duration_s
            is_too_much = kept == MAX_ITEMS or n_characters > MAX_CHARACTERS or duration_s > self._max_audio_s
            if kept and (is_too_much or n_sounds > MAX_SOUNDS):
                break
            kept += 1
        return self._drop(len(self.items) - kept)

    def drop(self, dropped: Collection[Item]) -> list[Item]:
        """Drops items, and returns those that were there."""
        gone = [item for item in self.items if item in dropped]
        self.items = [item for item in self.items if item not in dropped]
        return gone

    def _drop(self, n_dropped: int) -> list[Item]:
        """Drops the oldest items, and those behind them up to a turn, if there is one."""
        if n_dropped:
            rest = range(n_dropped, len(self.items))
            n_dropped = next((index for index in rest if self.items[index].is_turn), n_dropped)
        dropped, self.items = self.items[:n_dropped], self.items[n_dropped:]
        return dropped


def count_oldest(context: Sequence[Item], n_dropped: int, truncation: Any) -> int:
    """Returns how many of the oldest items are to be dropped of a context that is too long; 0 if it is its last turn.

    Args:
        n_dropped: items that were dropped before, and were too few
        truncation: "auto", one turn after the other; or OpenAI's object with the ratio of the turns to keep
    """
    turns = [index for index, item in enumerate(context) if item.is_turn and index > n_dropped]
    if not turns:
        return 0
    ratio = 1.0 if truncation == "auto" else truncation["retention_ratio"]
    n_kept = min(len(turns), max(1, int(ratio * (len(turns) + 1))))
    return turns[-n_kept]


def read_item(value: Any, audio_format: str, max_audio_s: float, where: str = "item") -> Item:
    """Returns the item that a client sent.

    Args:
        audio_format: of its sounds
        max_audio_s: longest sound

    Raises:
        ApiError: an item that is malformed or of a kind that this server does not know
    """
    fields = Fields(value, where)
    for name in ("object", "status", "phase"):
        fields.any(name)
    kind = fields.choice("type", "", ("message", "function_call", "function_call_output"))
    item_id = fields.text("id", None, max_characters=_MAX_ID)
    if item_id == ROOT or item_id == "":
        raise invalid(fields.name("id"), item_id, "another id")
    if kind == "message":
        item = _read_message(fields, item_id, audio_format, max_audio_s)
    elif kind == "function_call":
        call = {
            name: fields.require_text(name, max_characters=MAX_CHARACTERS) for name in ("name", "arguments")
        }
        call["arguments"] = call["arguments"].strip() or "{}"  # some write nothing where there is none
        _check_arguments(call["arguments"], fields.name("arguments"))
        call_id = fields.text("call_id", new_id("call"), max_characters=_MAX_ID)
        item = Item(build_item(kind, id=item_id, call_id=call_id, **call))
    elif kind == "function_call_output":
        call_id = fields.require_text("call_id", max_characters=_MAX_ID)
        output = fields.require_text("output", max_characters=MAX_CHARACTERS)
        item = Item(build_item(kind, id=item_id, call_id=call_id, output=output))
    else:
        raise invalid(fields.name("type"), kind, "message, function_call or function_call_output")
    fields.finish()
    return item


def _check_arguments(text: str, where: str) -> None:
    """Checks the arguments of a call, which would make every later request fail.

    Raises:
        ApiError: they are no JSON object
    """
    try:
        is_object = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise invalid(where, text[:100], "a JSON object")


def _read_message(fields: Fields, item_id: str | None, audio_format: str, max_audio_s: float) -> Item:
    role = fields.choice("role", "", ("user", "assistant", "system"))
    content, sounds = [], {}
    for index, value in enumerate(fields.items("content", max_items=_MAX_PARTS)):
        part = Fields(value, f"{fields.name('content')}[{index}]")
        kind = part.any("type")
        if role == "user" and kind == "input_audio":
            data = part.require_text("audio", max_characters=MAX_AUDIO_CHARACTERS)
            samples = AudioInput(audio_format).decode(decode_base64(data, part.name("audio")), is_last=True)
            transcript = part.text("transcript", None, max_characters=MAX_CHARACTERS)
            content.append({"type": "input_audio", "transcript": transcript})
            sounds[index] = hear(samples, max_audio_s, part.name("audio"))
            if len(sounds) > MAX_SOUNDS_PER_MESSAGE:
                raise invalid(fields.name("content"), "more", f"at most {MAX_SOUNDS_PER_MESSAGE} sounds")
        else:
            content.append(_read_text_part(part, role, kind))
        part.finish()
    return Item(build_item("message", id=item_id, role=role, content=content), sounds)


def _read_text_part(part: Fields, role: str, kind: Any) -> dict[str, Any]:
    """Returns a part of text; what an assistant said aloud is its transcript."""
    own = "output_text" if role == "assistant" else "input_text"
    if role == "assistant" and kind in ("output_audio", "audio"):
        part.any("audio")
        return {"type": own, "text": part.require_text("transcript", max_characters=MAX_CHARACTERS)}
    if kind not in (own, "text"):
        raise invalid(part.name("type"), kind, f"{own}{' or input_audio' if role == 'user' else ''}")
    return {"type": own, "text": part.require_text("text", max_characters=MAX_CHARACTERS)}


def hear(
    samples: Float32[np.ndarray, " N"],
    max_audio_s: float,
    where: str,
    live: LiveTurn | None = None,
) -> HeardSound:
    """Returns samples at 16 kHz as a sound.

    Args:
        live: what was heard of it while it was spoken

    Raises:
        ApiError: too long
    """
    key = hashlib.sha256(samples.tobytes()).hexdigest()
    sound = Sound(samples=samples, key=key)
    transcript = live.transcript if live else LiveTranscript()
    if sound.duration_s > max_audio_s:
        raise ApiError(
            f"{where} has {sound.duration_s:.1f} s of sound, expected at most {max_audio_s:g} s",
            param=where,
            code="invalid_value",
        )
    try:
        check_speech(samples, where)
    except AudioError:
        return HeardSound(sound, is_speech=False, transcript=transcript)
    sound = replace(sound, listener=live.listener if live else None)
    return HeardSound(sound, is_speech=True, transcript=transcript)


def check_sounds(items: Sequence[Item], max_audio_s: float, where: str) -> None:
    """Checks that the sounds of items together are no more than a conversation may have.

    Raises:
        ApiError: too many, or too long
    """
    n_sounds, duration_s = sum(len(item.sounds) for item in items), sum(item.duration_s for item in items)
    if n_sounds > MAX_SOUNDS or duration_s > max_audio_s:
        raise ApiError(
            f"{where} has {n_sounds} sounds of {duration_s:.1f} s, expected at most {MAX_SOUNDS} of {max_audio_s:g} s",
            param=where,
            code="invalid_value",
        )


def truncate(item: Item, audio_end_ms: int) -> None:
    """Cuts an assistant's text to what a voice has spoken after some time, in whole words."""
    item.is_truncated = True
    n_left = _count_spoken(item, audio_end_ms / 1_000)
    for part in item.content:
        text = read_text(part)
        if len(text) > n_left:
            is_inside_word = not (text[n_left].isspace() or text[:n_left][-1:].isspace())
            kept = text[:n_left]
            name = "transcript" if part["type"] == "output_audio" else "text"
            part[name] = (kept.rpartition(" ")[0] if is_inside_word else kept).rstrip()
        n_left = max(0, n_left - len(text))


def _count_spoken(item: Item, after_s: float) -> int:
    """Returns the characters of an item that were spoken after some seconds."""
    n_before, before_s = 0, 0.0
    for n_characters, end_s in item.spoken:
        if after_s < end_s:
            return n_before + int((n_characters - n_before) * (after_s - before_s) / (end_s - before_s))
        n_before, before_s = n_characters, end_s
    return n_before + int((after_s - before_s) * _CHARACTERS_PER_S)


def to_messages(items: Iterable[Item], instructions: str) -> list[dict[str, Any]]:
    """Returns the items as the messages of a chat request; neighbors with the same role are one message.

    A conversation that begins with an answer, a greeting, has the instructions as the user's message before it, which
    is what it answered: many chat templates take no answer to nobody.
    """
    messages: list[dict[str, Any]] = []
    for message in filter(None, map(_to_message, items)):
        last = messages[-1] if messages else {"role": None}
        if message["role"] == "tool" or last["role"] != message["role"] or _has_most_sounds(last, message):
            messages.append(message)
            continue
        if message["content"] is not None:
            last["content"] = [*_to_parts(last["content"] or ()), *_to_parts(message["content"])]
        if message.get("tool_calls"):
            last["tool_calls"] = [*last.get("tool_calls", []), *message["tool_calls"]]
    if instructions.strip():
        is_greeted = bool(messages) and messages[0]["role"] == "assistant"
        messages.insert(0, {"role": "user" if is_greeted else "system", "content": instructions})
        if len(messages) > 1 and messages[1]["role"] == "system":
            messages[1]["content"] = [*_to_parts(instructions), *_to_parts(messages[1]["content"])]
            del messages[0]
    return messages


def _has_most_sounds(*messages: Mapping[str, Any]) -> bool:
    """Whether messages have more sounds together than one may have."""
    parts = [part for message in messages for part in _to_parts(message["content"] or ())]
    return sum(part["type"] == "audio" for part in parts) > MAX_SOUNDS_PER_MESSAGE


def _to_message(item: Item) -> dict[str, Any] | None:
    """Returns an item as a message; None for one in which there is nothing to hear or read, and for half a call."""
    fields = item.fields
    if fields["type"] == "function_call":
        if fields["status"] != "completed":
            return None
        function = {"name": fields["name"], "arguments": fields["arguments"]}
        call = {"id": fields["call_id"], "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if fields["type"] == "function_call_output":
        return {"role": "tool", "tool_call_id": fields["call_id"], "content": fields["output"]}
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(item.content):
        heard = item.sounds.get(index)
        if heard is not None and heard.is_speech:
            parts.append({"type": "audio", "audio": heard.sound})
        elif heard is None and (text := read_text(part)).strip():
            parts.append({"type": "text", "text": text})
    return {"role": fields["role"], "content": parts} if parts else None


def _to_parts(content: str | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
