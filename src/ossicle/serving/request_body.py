"""Reads the body of a chat request and decodes its sounds; it opens no file and no URL.

Whatever a network sends ends in a request or an `ApiError`: JSON of any depth, numbers of any length, any sound.
"""

import base64
import hashlib
import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote, unquote_to_bytes

from jaxtyping import Float32
from numpy import ndarray

from ossicle.audio.decoding import FORMATS
from ossicle.audio.speech import load_speech
from ossicle.errors import AudioError
from ossicle.serving.engine import ChatRequest, Sound
from ossicle.serving.errors import ApiError

MAX_MESSAGES, MAX_PARTS = 1_000, 1_000
MAX_SOUNDS, MAX_SOUNDS_PER_MESSAGE = 256, 32
"""In a conversation and in one message: the cost of finding their positions in the prompt grows faster than n."""
MAX_JSON_DEPTH = 128
MAX_JSON_VALUES = 1 << 18
"""Estimated from the commas and brackets of the body; in memory a value takes up to fifty times its bytes."""
_SOUND_PARTS = ("input_audio", "audio_url")
"""OpenAI's part for a sound, and vLLM's, whose URL must hold the sound itself."""
_DATA_URL_HEAD = re.compile(r'\s*data:(?:"[^"]*"|[^,"]){0,200}?(?P<base64>;\s*base64\s*)?,', re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/")


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """The limits of one request."""

    audio_s: float = 600.0
    """Seconds of sound in a whole conversation."""
    body_bytes: int = 64 << 20
    body_s: float = 60.0
    """Seconds in which the body must arrive."""


def _check_depth(value: Any) -> None:
    """Raises RecursionError for JSON that is nested deeper than anything that people send."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise RecursionError


def read_json(body: bytes, expected: str = "an object with model and messages") -> dict[str, Any]:
    """Returns the JSON object of a body.

    Args:
        expected: what errors ask for

    Raises:
        ApiError: the body is not JSON, or not an object
    """

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a JSON number")

    def parse_float(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text[:40]} is too large a number")
        return value

    def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise ValueError(f"an object has a key twice: {reprlib.repr([key for key, _ in pairs])}")
        return result

    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise ApiError(
            f"the body has more than {MAX_JSON_VALUES} JSON values: send a shorter one", status=413
        )
    try:
        value = json.loads(
            body,
            parse_constant=refuse_constant,
            parse_float=parse_float,
            object_pairs_hook=build_object,
        )
        _check_depth(value)
    except (ValueError, RecursionError) as error:  # invalid UTF-8 is a ValueError too
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(f"the body cannot be read as JSON: {reason}; expected {expected}") from error
    if not isinstance(value, dict):
        raise ApiError(f"the body is a JSON {type(value).__name__}, expected {expected}")
    return value


LoadSpeech = Callable[[bytes, float], Float32[ndarray, " N"]]
"""Returns the samples of a file that has at most so many seconds; raises AudioError as `load_speech`."""


def load_in_process(data: bytes, max_duration_s: float) -> Float32[ndarray, " N"]:
    """Returns the samples of a file, decoded in this process."""
    return load_speech(data, max_duration_s=max_duration_s)


def read_chat_request(
    body: bytes, model: str, limits: RequestLimits, load: LoadSpeech = load_in_process
) -> ChatRequest:
    """Returns the chat request of a body; decoding its sounds takes most of the time.

    Args:
        model: the model name of this server
        load: decodes its sounds

    Raises:
        ApiError: a malformed request, another model, or sound that cannot be decoded
    """
    return build_chat_request(read_json(body), model, limits, load)


def build_chat_request(
    fields: Mapping[str, Any], model: str, limits: RequestLimits, load: LoadSpeech
) -> ChatRequest:
    """Returns the chat request of the fields of a body.

    Raises:
        ApiError: as `read_chat_request`
    """
    check_model(fields.get("model"), model)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise ApiError(
            f"messages is {reprlib.repr(messages)}, expected a list of 1 to {MAX_MESSAGES} messages",
            param="messages",
        )
    is_streamed = _read_flag(fields, "stream")
    options = fields.get("stream_options")
    if options is not None and not (is_streamed and isinstance(options, dict)):
        raise ApiError(
            f"stream_options is {reprlib.repr(options)}, expected an object, and only together with stream: true",
            param="stream_options",
        )
    decoder = _SoundDecoder(limits, load)
    decoded = [decoder.decode_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    return ChatRequest(
        body={**fields, "messages": decoded},
        is_streamed=is_streamed,
        include_usage=_read_flag(options or {}, "include_usage", "stream_options."),
    )


def check_model(name: Any, model: str) -> None:
    """Refuses a model name that is not this server's.

    Raises:
        ApiError: another name, or none
    """
    if not isinstance(name, str):
        raise ApiError(
            f"model is {reprlib.repr(name)}, expected {model!r}, the name of this server's model",
            param="model",
        )
    if name != model:
        raise ApiError(
            f"this server has no model {reprlib.repr(name)}, expected {model!r}",
            status=404,
            param="model",
            code="model_not_found",
        )


def decode_sound(data: bytes, max_duration_s: float, load: LoadSpeech = load_in_process) -> Sound:
    """Returns the sound of an audio file.

    Raises:
        AudioError: not audio, damaged, silent or too long
    """
    return Sound(samples=load(data, max_duration_s), key=hashlib.sha256(data).hexdigest())


def _read_flag(fields: Mapping[str, Any], name: str, where: str = "") -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(
            f"{where}{name} is {reprlib.repr(value)}, expected true or false", param=f"{where}{name}"
        )
    return bool(value)


class _SoundDecoder:
    """Decodes the sounds of one conversation within its limits."""

    def __init__(self, limits: RequestLimits, load: LoadSpeech) -> None:
        self._limits, self._load = limits, load
        self._remaining_s, self._n_remaining = limits.audio_s, MAX_SOUNDS

    def decode_message(self, message: Any, where: str) -> Any:
        """Returns the message with its sounds decoded and everything else unchanged."""
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            return message
        if len(content) > MAX_PARTS:
            raise ApiError(
                f"{where}.content has {len(content)} parts, expected at most {MAX_PARTS}", param=where
            )
        n_sounds = sum(isinstance(part, dict) and part.get("type") in _SOUND_PARTS for part in content)
        self._n_remaining -= n_sounds
        if n_sounds > MAX_SOUNDS_PER_MESSAGE or self._n_remaining < 0:
            raise ApiError(
                f"{where}.content has {n_sounds} sounds, expected at most {MAX_SOUNDS_PER_MESSAGE} in a message and"
                f" {MAX_SOUNDS} in a conversation",
                param=f"{where}.content",
            )
        parts = [self._decode_part(part, f"{where}.content[{j}]") for j, part in enumerate(content)]
        return {**message, "content": parts}

    def _decode_part(self, part: Any, where: str) -> Any:
        part_type = part.get("type") if isinstance(part, dict) else None
        if part_type in ("audio", "prompt_embeds"):
            raise ApiError(
                f"{where} is of type {part_type!r}; expected sound as"
                ' {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}',
                param=where,
            )
        if part_type not in _SOUND_PARTS:
            return part
        read = _read_input_audio if part_type == "input_audio" else _read_audio_url
        data = read(part.get(part_type), f"{where}.{part_type}")
        return {"type": "audio", "audio": self._decode(data, f"{where}.{part_type}")}

    def _decode(self, data: bytes, where: str) -> Sound:
        if self._remaining_s <= 0:
            raise ApiError(
                f"{where} comes after {self._limits.audio_s:g} s of sound, the most that a conversation may have on"
                " this server: leave out earlier sounds",
                param=where,
            )
        try:
            sound = decode_sound(data, self._remaining_s, self._load)
        except AudioError as error:
            raise ApiError(f"{where}: {error}", param=where, code="invalid_audio") from error
        self._remaining_s -= sound.duration_s
        return sound


def _read_input_audio(input_audio: Any, where: str) -> bytes:
    """Returns the file of an `input_audio` object; what the file is, its content says and not its label.

    Raises:
        ApiError: not an object, or not base64
    """
    if not isinstance(input_audio, dict) or not isinstance(input_audio.get("data"), str):
        raise ApiError(
            f"{where} is {reprlib.repr(input_audio)}, expected an object with data in base64 and a format",
            param=where,
        )
    data = input_audio["data"]
    return (_read_data_url if _is_data_url(data) else _decode_base64)(data, f"{where}.data")


def _read_audio_url(audio_url: Any, where: str) -> bytes:
    """Returns the file in an `audio_url` object.

    Raises:
        ApiError: not an object with a data: URL
    """
    url = audio_url.get("url") if isinstance(audio_url, dict) else None
    if not isinstance(url, str) or not _is_data_url(url):
        raise ApiError(
            f"{where}.url is {reprlib.repr(url)}, expected the sound itself as data:audio/wav;base64,...: this server"
            " opens no address",
            param=f"{where}.url",
        )
    return _read_data_url(url, f"{where}.url")


def _is_data_url(text: str) -> bool:
    return text[:16].lstrip()[:5].lower() == "data:"


def _read_data_url(url: str, where: str) -> bytes:
    """Returns the bytes of a data: URL.

    Raises:
        ApiError: a URL without data, or not base64
    """
    found = _DATA_URL_HEAD.match(url)
    if not found:
        raise ApiError(f"{where} is no data: URL, expected such as data:audio/wav;base64,...", param=where)
    data = url[found.end() :]
    if found["base64"]:
        return _decode_base64(unquote(data) if "%" in data else data, where)
    return unquote_to_bytes(data.encode("utf-8", "surrogatepass"))


def _decode_base64(data: str, where: str) -> bytes:
    """Returns the bytes of base64 with or without line breaks and padding, also in the alphabet of URLs.

    Raises:
        ApiError: not base64
    """
    try:
        return base64.b64decode(data, validate=True)
    except ValueError:  # binascii.Error is one
        pass
    data = "".join(data.split()).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except ValueError as error:
        raise ApiError(
            f"{where} is not base64 ({error}); expected the bytes of an audio file ({FORMATS})",
            param=where,
        ) from error
