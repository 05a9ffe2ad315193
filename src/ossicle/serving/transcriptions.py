"""OpenAI's transcriptions: the form that asks for one, and the ways it is answered in."""

from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ossicle.audio.decoding import FORMATS
from ossicle.errors import AudioError
from ossicle.serving.engine import Sound
from ossicle.serving.errors import ApiError
from ossicle.serving.request_body import check_model, decode_sound

FORMATS_OF_ANSWERS = ("json", "text", "verbose_json")
_MAX_FIELDS = 20
_NEUTRAL = {"temperature": ("0", "0.0"), "stream": ("false",)}
"""Fields of which there is no other value than the one that changes nothing."""


@dataclass(frozen=True, kw_only=True)
class TranscriptionRequest:
    """A file whose words are asked for."""

    data: bytes
    response_format: str

    def decode(self, limit_s: float) -> Sound:
        """Its sound.

        Raises:
            ApiError: sound that cannot be heard
        """
        try:
            return decode_sound(self.data, limit_s)
        except AudioError as error:
            raise ApiError(f"file: {error}", param="file", code="invalid_audio") from error


async def read_transcription_request(request: Request, model: str) -> TranscriptionRequest:
    """The form of a request.

    Raises:
        ApiError: malformed, of another model, or with a field that is not known
    """
    if "charset" in request.headers["content-type"].lower():  # Python's codecs are many, and some never end
        raise ApiError("the content type names a charset, expected none: the texts of a form are UTF-8")
    try:
        form = await request.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=1 << 20)
    except HTTPException as error:
        raise ApiError(f"the form cannot be read: {error.detail} Expected multipart with a file") from error
    async with request.form():  # closes the file
        fields = dict(form.multi_items())
        if len(fields) != len(form.multi_items()):
            raise ApiError("a field of the form comes twice, expected each once")
        file = fields.pop("file", None)
        if not isinstance(file, UploadFile):
            raise ApiError(f"the form has no file, expected one named 'file': {FORMATS}", param="file")
        data = await file.read()
    check_model(fields.pop("model", None), model)
    response_format = fields.pop("response_format", "json")
    if response_format not in FORMATS_OF_ANSWERS:
        raise ApiError(
            f"response_format is {str(response_format)[:40]!r}, expected one of {', '.join(FORMATS_OF_ANSWERS)}",
            param="response_format",
        )
    for name, value in fields.items():
        if value not in _NEUTRAL.get(name, ()):
            raise ApiError(
                f"{name[:40]!r} is no field that the encoder's own decoder has a use for: leave it out",
                param=name[:40],
                code="unknown_parameter",
            )
    return TranscriptionRequest(data=data, response_format=str(response_format))


def format_transcription(
    asked: TranscriptionRequest, text: str, duration_s: float, language: str
) -> str | dict[str, Any]:
    """The transcript in the form that was asked for."""
    if asked.response_format == "text":
        return text + "\n"
    if asked.response_format == "json":
        return {"text": text}
    segment = {"id": 0, "seek": 0, "start": 0.0, "end": duration_s, "text": text, "tokens": []}
    return {
        "task": "transcribe",
        "language": language,
        "duration": duration_s,
        "text": text,
        "segments": [segment],
    }
