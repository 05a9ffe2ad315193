"""What a speech synthesizer is to the server, whether a program of this machine or another server."""

from collections.abc import AsyncGenerator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from ossicle.serving.errors import SERVER_ERROR, ApiError
from ossicle.serving.synthesis.wav_stream import WavStream

MAX_SENTENCE_S = 120.0
"""A sentence takes a tenth of it."""


@runtime_checkable
class Synthesizer(Protocol):
    """Reads text aloud."""

    def synthesize(self, text: str, voice: str | None, speed: float) -> AsyncGenerator[bytes]:
        """Yields a WAV file as it is made; closing it ends the work.

        Args:
            voice: the one that a client asks for, which is used where this synthesizer has it
            speed: relative to the voice's own

        Raises:
            ApiError: the synthesizer is not there or failed
        """
        ...

    async def close(self) -> None:
        """Closes all connections."""
        ...


def build_synthesis_error(message: str, reason: str = "") -> ApiError:
    """Returns the error for an answer that could not be spoken.

    Args:
        reason: for whoever runs the server, and not for its clients
    """
    error = ApiError(message, status=502, error_type=SERVER_ERROR, code="speech_synthesis_failed")
    if reason:
        error.add_note(reason)
    return error


def describe_failure(error: ApiError) -> str:
    """Returns what whoever runs the server should know of an error."""
    return ": ".join([str(error), *getattr(error, "__notes__", ())])


def feed_wav(wav: WavStream, data: bytes) -> Float32[np.ndarray, " N"]:
    """Returns the samples that are complete with some bytes of a synthesizer's file.

    Raises:
        ApiError: not a WAV file that can be read
    """
    try:
        return wav.feed(data)
    except ValueError as error:
        raise build_synthesis_error(f"what the speech synthesizer made {error}") from error
