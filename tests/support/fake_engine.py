"""An engine without models, for tests of what stands in front of one."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Any

from ossicle.backbones.transcription import Transcript, TranscriptSegment
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.engine import Answer, ChatRequest, ChatResponse, Sound, TranscriptionOptions, Usage
from ossicle.serving.metrics import Metrics
from support.serve_app import serve_app

MODEL = "pocket/ear"


class FakeEngine:
    """Answers "yes" to everything.

    Args:
        failure: raised in place of an answer
    """

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.options: list[TranscriptionOptions] = []

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """Returns the answer."""
        if self.failure:
            raise self.failure
        usage = Usage(prompt_tokens=3, audio_tokens=0, completion_tokens=1)
        return ChatResponse(model=request.model).build_completion(
            [Answer(text="yes", finish_reason="stop")], usage
        )

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """Returns the answer in one chunk."""

        async def build_chunks() -> AsyncIterator[dict[str, Any]]:
            yield ChatResponse(model=request.model).build_chunk(0, {"content": "yes"}, "stop")

        return build_chunks()

    async def transcribe(self, sound: Sound, options: TranscriptionOptions) -> Transcript:
        """Returns a transcript of two windows, and keeps the options."""
        self.options.append(options)
        segments = (TranscriptSegment("yes, --> and", 0.0, 28.35), TranscriptSegment("no", 28.35, 3_725.5))
        return Transcript("yes, --> and no", "de", segments)

    async def transcribe_audio_tokens(self, sound: Sound) -> str:
        """Returns what was heard."""
        return "yes"

    def listen(self, publish: Callable[[str], None]) -> None:
        """Hears nothing before the end."""

    async def has_speech(self, sound: Sound) -> bool:
        """Hears somebody in everything."""
        return True

    async def close(self) -> None:
        """Does nothing."""


def serve_fake_engine(
    failure: Exception | None = None, *, engine: FakeEngine | None = None, **settings: Any
) -> AbstractContextManager[str]:
    """Serves the engine, and yields its URL."""
    app = create_app(engine or FakeEngine(failure), ServerSettings(model=MODEL, **settings), Metrics())
    return serve_app(app)
