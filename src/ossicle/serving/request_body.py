"""The bytes of a request -> a checked chat request with its sounds decoded; it opens no file and no address.

Whatever a network sends ends in a request or a `ApiError`: JSON of any depth, numbers of any length, sound of any kind.
"""

import base64
import binascii
import hashlib
import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from ossicle.audio.decoding import FORMATS
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.errors import AudioError
from ossicle.serving.engine import ChatRequest, Sound
from ossicle.serving.errors import ApiError

MAX_MESSAGES, MAX_PARTS = 1_000, 1_000
MAX_SOUNDS, MAX_SOUNDS_AT_ONCE = 256, 32
"""In a conversation and in one message: where each begins in the prompt is found by trying, each beside all others."""
MAX_VALUES = 1 << 18
"""Of JSON, as far as its commas and brackets tell: each takes up to fifty times its bytes."""
_SOUND_FORMATS = ("wav", "flac", "mp3", "ogg", "opus", "webm", "m4a", "mp4", "aac")


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """How much one request may ask for."""

    audio_s: float = 600.0
    """Seconds of sound in all of a conversation."""
    body_bytes: int = 64 << 20
    body_s: float = 60.0
    """Seconds in which a request has to be here."""


def read_json(body: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        ApiError: not JSON, or another kind of value
    """

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number of JSON")

    def read_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            raise ValueError(f"a key comes twice among {reprlib.repr([key for key, _ in pairs])}")
        return made

    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ApiError(f"the body has more than {MAX_VALUES} values, expected a conversation", status=413)
    try:
        value = json.loads(body, parse_constant=refuse_constant, object_pairs_hook=read_once)
    except (ValueError, RecursionError) as error:  # what is no UTF-8 is a ValueError too
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(
            f"the body cannot be read as JSON: {reason}; expected an object with model and messages"
        ) from error
    if not isinstance(value, dict):
        raise ApiError(
            f"the body is a JSON {type(value).__name__}, expected an object with model and messages"
        )
    return value


def read_chat_request(body: bytes, model: str, limits: RequestLimits) -> ChatRequest:
    """A request for an answer; takes as long as its sounds take to decode.

    Args:
        model: the name that is served

    Raises:
        ApiError: malformed, of another model, or sound that cannot be heard
    """
    given = read_json(body)
    check_model(given.get("model"), model)
    messages = given.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise ApiError(
            f"messages is {reprlib.repr(messages)}, expected a list of 1 to {MAX_MESSAGES}", param="messages"
        )
    is_streamed = _flag(given, "stream")
    options = given.get("stream_options")
    if options is not None and not (is_streamed and isinstance(options, dict)):
        raise ApiError(
            "stream_options is for streams: expected an object, beside stream: true", param="stream_options"
        )
    sounds = _Sounds(limits)
    read = [sounds.read_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    return ChatRequest(
        body={**given, "messages": read},
        is_streamed=is_streamed,
        with_usage=_flag(options or {}, "include_usage", "stream_options."),
    )


def check_model(name: Any, model: str) -> None:
    """Refuses a model that is not served here.

    Raises:
        ApiError: it is another, or none
    """
    if not isinstance(name, str):
        raise ApiError(
            f"model is {reprlib.repr(name)}, expected a name: {model!r} is served here", param="model"
        )
    if name != model:
        raise ApiError(
            f"the model {reprlib.repr(name)} is not served here, expected {model!r}",
            status=404,
            param="model",
            code="model_not_found",
        )


def decode_sound(data: bytes, limit_s: float) -> Sound:
    """Decodes a file.

    Raises:
        AudioError: not audio, damaged, silent or too long
    """
    samples = load_audio(data, max_duration_s=limit_s)
    return Sound(samples=samples, key=hashlib.sha256(data).hexdigest())


def _flag(given: Mapping[str, Any], name: str, where: str = "") -> bool:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(
            f"{where}{name} is {reprlib.repr(value)}, expected true or false", param=f"{where}{name}"
        )
    return bool(value)


class _Sounds:
    """Decodes the sounds of one conversation, as long as there is room for them."""

    def __init__(self, limits: RequestLimits) -> None:
        self.limits = limits
        self.left_s, self.left = limits.audio_s, MAX_SOUNDS

    def read_message(self, message: Any, where: str) -> Any:
        """The message with its sounds decoded; all else is as it was."""
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            return message
        if len(content) > MAX_PARTS:
            raise ApiError(
                f"{where}.content has {len(content)} parts, expected at most {MAX_PARTS}", param=where
            )
        n_sounds = sum(isinstance(part, dict) and part.get("type") == "input_audio" for part in content)
        self.left -= n_sounds
        if n_sounds > MAX_SOUNDS_AT_ONCE or self.left < 0:
            raise ApiError(
                f"{where}.content has {n_sounds} sounds, expected at most {MAX_SOUNDS_AT_ONCE} in a message and"
                f" {MAX_SOUNDS} in a conversation",
                param=f"{where}.content",
            )
        parts = [self._read_part(part, f"{where}.content[{j}]") for j, part in enumerate(content)]
        return {**message, "content": parts}

    def _read_part(self, part: Any, where: str) -> Any:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("audio", "audio_url", "prompt_embeds"):
            raise ApiError(
                f"{where} is of type {kind!r}; expected sound as"
                ' {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}',
                param=where,
            )
        if kind != "input_audio":
            return part
        return {"type": "audio", "audio": self._decode(part.get("input_audio"), f"{where}.input_audio")}

    def _decode(self, given: Any, where: str) -> Sound:
        if not isinstance(given, dict) or not isinstance(given.get("data"), str):
            raise ApiError(
                f"{where} is {reprlib.repr(given)}, expected an object with data in base64 and a format",
                param=where,
            )
        if given.get("format") not in _SOUND_FORMATS:
            raise ApiError(
                f"{where}.format is {reprlib.repr(given.get('format'))}, expected one of"
                f" {', '.join(_SOUND_FORMATS)}",
                param=f"{where}.format",
            )
        try:
            data = base64.b64decode(given["data"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ApiError(
                f"{where}.data is not base64 ({error}); expected the bytes of a file ({FORMATS})",
                param=f"{where}.data",
            ) from error
        if self.left_s <= 0:
            raise ApiError(
                f"{where} comes after {self.limits.audio_s:g} s of sound, which is all that a conversation may have"
                " here: leave out earlier sounds",
                param=where,
            )
        try:
            sound = decode_sound(data, self.left_s)
        except AudioError as error:
            raise ApiError(f"{where}: {error}", param=where, code="invalid_audio") from error
        self.left_s -= len(sound.samples) / SAMPLE_RATE
        return sound
