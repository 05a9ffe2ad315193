"""OpenAI's transcription requests, and the formats of their responses."""

from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ossicle.audio.decoding import FORMATS
from ossicle.backbones.transcription import Transcript
from ossicle.errors import AudioError
from ossicle.serving.engine import Sound
from ossicle.serving.errors import ApiError
from ossicle.serving.request_body import check_model, decode_sound

RESPONSE_FORMATS = ("json", "text", "verbose_json")
_MAX_FIELDS = 20
_NEUTRAL_VALUES = {"temperature": ("0", "0.0"), "stream": ("false",)}
"""Fields that are accepted only with the values that change nothing."""


@dataclass(frozen=True, kw_only=True)
class TranscriptionRequest:
    """An audio file to transcribe."""

    data: bytes
    response_format: str

    def decode(self, max_duration_s: float) -> Sound:
        """Returns the sound of the file.

        Raises:
            ApiError: sound that cannot be decoded
        """
        try:
            return decode_sound(self.data, max_duration_s)
        except AudioError as error:
            raise ApiError(f"file: {error}", param="file", code="invalid_audio") from error


async def read_transcription_request(request: Request, model: str) -> TranscriptionRequest:
    """Returns the transcription request of a form.

    Args:
        model: the model name of this server

    Raises:
        ApiError: a malformed form, another model, or an unknown field
    """
    fields, data = await _read_form(request)
    check_model(fields.pop("model", None), model)
    response_format = fields.pop("response_format", "json")
    if response_format not in RESPONSE_FORMATS:
        raise ApiError(
            f"response_format is {str(response_format)[:40]!r}, expected one of {', '.join(RESPONSE_FORMATS)}",
            param="response_format",
        )
    for name, value in fields.items():
        if value not in _NEUTRAL_VALUES.get(name, ()):
            raise ApiError(
                f"the field {name[:40]!r} has no effect on Whisper's decoder here: leave it out",
                param=name[:40],
                code="unknown_parameter",
            )
    return TranscriptionRequest(data=data, response_format=str(response_format))


async def _read_form(request: Request) -> tuple[dict[str, Any], bytes]:
    """Returns the fields of the form and the bytes of its file."""
    if "charset" in request.headers["content-type"].lower():  # some of Python's codecs never finish
        raise ApiError("the content type names a charset, expected none: form fields are UTF-8")
    try:
        form = await request.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=1 << 20)
    except HTTPException as error:
        raise ApiError(f"the form cannot be read: {error.detail} Expected multipart with a file") from error
    async with request.form():  # closes the file
        fields = dict(form.multi_items())
        if len(fields) != len(form.multi_items()):
            raise ApiError("the form has a field twice, expected each field once")
        file = fields.pop("file", None)
        if not isinstance(file, UploadFile):
            raise ApiError(f"the form has no file, expected one in the field 'file': {FORMATS}", param="file")
        return fields, await file.read()


def format_transcription(
    response_format: str, transcript: Transcript, duration_s: float
) -> str | dict[str, Any]:
    """Returns a transcript in the requested format: text, or an object to send as JSON."""
    text = transcript.text
    if response_format == "text":
        return text + "\n"
    if response_format == "json":
        return {"text": text}
    segment = {"id": 0, "seek": 0, "start": 0.0, "end": duration_s, "text": text, "tokens": []}
    return {
        "task": "transcribe",
        "language": transcript.language_name,
        "duration": duration_s,
        "text": text,
        "segments": [segment],
    }
