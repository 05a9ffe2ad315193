"""What a speech synthesizer is to the server, whether a program of this machine or another server."""

from collections.abc import AsyncGenerator
from typing import Protocol, runtime_checkable

from ossicle.serving.errors import SERVER_ERROR, ApiError


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


def build_synthesis_error(message: str) -> ApiError:
    """Returns the error for an answer that could not be spoken."""
    return ApiError(message, status=502, error_type=SERVER_ERROR, code="speech_synthesis_failed")
