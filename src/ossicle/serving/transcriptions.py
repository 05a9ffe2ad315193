"""OpenAI's requests for a transcription or a translation, and the formats of their responses."""

import math
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from ossicle.audio.decoding import FORMATS
from ossicle.backbones.transcription import Transcript, TranscriptSegment
from ossicle.backbones.whisper_prompt import Task
from ossicle.errors import AudioError
from ossicle.serving.engine import Sound, TranscriptionOptions
from ossicle.serving.errors import ApiError
from ossicle.serving.request_body import LoadSpeech, check_model, decode_sound, load_in_process

RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_FORMATS_WITH_TIMES = ("srt", "verbose_json", "vtt")
PARAMETERS = (
    "file", "model", "language", "prompt", "response_format", "temperature", "timestamp_granularities", "stream",
)  # fmt: skip
_NEUTRAL_VALUES = {"chunking_strategy": ("auto",)}
"""Fields that are accepted only with the values that change nothing."""
_UNSUPPORTED = (
    "chunking_strategy",
    "include",
    "keywords",
    "known_speaker_names",
    "known_speaker_references",
    "languages",
)
"""OpenAI's other parameters."""
_MAX_FIELDS = 20
_MAX_PROMPT_CHARACTERS = 10_000


@dataclass(frozen=True, kw_only=True)
class TranscriptionRequest:
    """An audio file to transcribe."""

    data: bytes
    response_format: str
    options: TranscriptionOptions
    is_streamed: bool
    """Only where the response is JSON or text without times; elsewhere it is ignored, as for OpenAI's Whisper."""

    def decode(self, max_duration_s: float, load: LoadSpeech = load_in_process) -> Sound:
        """Returns the sound of the file.

        Args:
            load: decodes it

        Raises:
            ApiError: sound that cannot be decoded
        """
        try:
            return decode_sound(self.data, max_duration_s, load)
        except AudioError as error:
            raise ApiError(f"file: {error}", param="file", code="invalid_audio") from error


async def read_transcription_request(
    request: Request, model: str, task: Task = "transcribe"
) -> TranscriptionRequest:
    """Returns the transcription request of a form.

    Args:
        model: the model name of this server
        task: what its path asks for

    Raises:
        ApiError: a malformed form, another model, or a field that is unknown or not supported
    """
    lists, data = await _read_form(request)
    _check_names(lists)
    check_model(_get_single(lists, "model"), model)
    response_format = _get_single(lists, "response_format") or "json"
    if response_format not in RESPONSE_FORMATS:
        raise ApiError(
            f"response_format is {response_format[:40]!r}, expected one of {', '.join(RESPONSE_FORMATS)}",
            param="response_format",
        )
    _check_granularities(lists.get("timestamp_granularities", ()), response_format)
    prompt = _get_single(lists, "prompt") or ""
    if len(prompt) > _MAX_PROMPT_CHARACTERS:
        raise ApiError(
            f"prompt has {len(prompt)} characters, expected at most {_MAX_PROMPT_CHARACTERS}", param="prompt"
        )
    options = TranscriptionOptions(
        language=_get_single(lists, "language") or None,
        prompt=prompt.strip(),
        temperature=_read_temperature(_get_single(lists, "temperature") or "0"),
        task=task,
        has_timestamps=response_format in _FORMATS_WITH_TIMES,
    )
    return TranscriptionRequest(
        data=data,
        response_format=response_format,
        options=options,
        is_streamed=_read_flag(_get_single(lists, "stream") or "false")
        and response_format not in _FORMATS_WITH_TIMES,
    )


async def _read_form(request: Request) -> tuple[dict[str, list[str]], bytes]:
    """Returns the values of each field of the form, without [] behind the name of a list, and the bytes of its file."""
    if "charset" in request.headers["content-type"].lower():  # some of Python's codecs never finish
        raise ApiError("the content type names a charset, expected none: form fields are UTF-8")
    try:
        form = await request.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=1 << 20)
    except HTTPException as error:
        raise ApiError(f"the form cannot be read: {error.detail} Expected multipart with a file") from error
    async with request.form():  # closes the file
        lists: dict[str, list[str]] = {}
        data = None
        for name, value in form.multi_items():
            if isinstance(value, str):
                lists.setdefault(name.removesuffix("[]"), []).append(value)
            elif name == "file":
                data = await value.read()
        if data is None:
            raise ApiError(f"the form has no file, expected one in the field 'file': {FORMATS}", param="file")
        return lists, data


def _check_names(lists: Mapping[str, Sequence[str]]) -> None:
    for name, values in lists.items():
        if name in PARAMETERS or all(value in ("", *_NEUTRAL_VALUES.get(name, ())) for value in values):
            continue
        if name.partition("[")[0] in _UNSUPPORTED:
            raise ApiError(
                f"Parameter '{name[:40]}' is not supported: leave it out",
                param=name[:40],
                code="unsupported_parameter",
            )
        raise ApiError(
            f"Unknown parameter {name[:40]!r}; supported: {', '.join(PARAMETERS)}",
            param=name[:40],
            code="unknown_parameter",
        )


def _get_single(lists: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = lists.get(name, ())
    if len(values) > 1:
        raise ApiError(f"the form has {name} {len(values)} times, expected it once", param=name)
    return values[0] if values else None


def _check_granularities(values: Sequence[str], response_format: str) -> None:
    if values and response_format != "verbose_json":
        raise ApiError(
            f"timestamp_granularities needs response_format verbose_json, but it is {response_format}",
            param="timestamp_granularities",
        )
    for value in values:
        if value != "segment":
            raise ApiError(
                f"timestamp_granularities is {value[:40]!r}, expected segment: this server knows no times of words",
                param="timestamp_granularities",
            )


def _read_temperature(text: str) -> float:
    try:
        temperature = float(text)
    except ValueError:
        temperature = math.nan
    if not 0 <= temperature <= 1:
        raise ApiError(f"temperature is {text[:40]!r}, expected a number from 0 to 1", param="temperature")
    return temperature


def _read_flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ApiError(f"stream is {text[:40]!r}, expected true or false", param="stream")
    return text.lower() in ("true", "1")


def format_transcription(
    request: TranscriptionRequest, transcript: Transcript, duration_s: float
) -> str | dict[str, Any]:
    """Returns a transcript in the requested format: text, or an object to send as JSON.

    The times of segments are Whisper's own timestamps; where it has none, those of the windows that it transcribed.
    """
    text, segments = transcript.text, transcript.segments
    match request.response_format:
        case "text":
            return text + "\n"
        case "srt":
            return "".join(f"{i}\n{_format_cue(segment, ',')}" for i, segment in enumerate(segments, 1))
        case "vtt":
            return "WEBVTT\n\n" + "".join(_format_cue(segment, ".") for segment in segments)
    usage = {"type": "duration", "seconds": math.ceil(duration_s)}
    if request.response_format == "json":
        return {"text": text, "usage": usage}
    temperature, is_translated = request.options.temperature, request.options.task == "translate"
    return {
        "task": request.options.task,
        "language": "english" if is_translated else transcript.language_name,
        "duration": duration_s,
        "text": text,
        "segments": [_format_segment(i, segment, temperature) for i, segment in enumerate(segments)],
        "usage": usage,
    }


def _format_segment(number: int, segment: TranscriptSegment, temperature: float) -> dict[str, Any]:
    """Returns a segment of verbose_json, without what this server does not know of it: probabilities."""
    text = segment.text.encode()
    return {
        "id": number,
        "seek": round(100 * segment.start_s),
        "start": segment.start_s,
        "end": segment.end_s,
        "text": segment.text,
        "tokens": [],
        "temperature": temperature,
        "compression_ratio": len(text) / len(zlib.compress(text)),
    }


def _format_cue(segment: TranscriptSegment, decimal_sign: str) -> str:
    start, end = (_format_time(seconds, decimal_sign) for seconds in (segment.start_s, segment.end_s))
    return f"{start} --> {end}\n{segment.text.replace('-->', '->')}\n\n"


def _format_time(seconds: float, decimal_sign: str) -> str:
    ms = round(1000 * seconds)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{decimal_sign}{ms % 1000:03}"


async def stream_transcription(transcript: Transcript) -> AsyncIterator[dict[str, Any]]:
    """Yields OpenAI's events for a transcript: its text, and its end."""
    yield {"type": "transcript.text.delta", "delta": transcript.text}
    yield {"type": "transcript.text.done", "text": transcript.text}
