"""The text of one message, spoken sentence by sentence while it is being written.

It knows a synthesizer, and neither events nor items.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from ossicle.serving.realtime.output_audio import AudioOutput
from ossicle.serving.synthesis.base import Synthesizer, build_synthesis_error
from ossicle.serving.synthesis.sentences import SentenceSplitter, to_speech
from ossicle.serving.synthesis.wav_stream import WavStream


@dataclass(frozen=True, kw_only=True)
class Voice:
    """How a response is spoken."""

    synthesizer: Synthesizer
    name: str | None
    """The client's choice."""
    speed: float
    format: str
    """Of the sound that the client gets."""


class SpokenText:
    """Speaks what `write` is given, up to `finish` or `stop`.

    Args:
        put: takes the bytes of the sound, and the characters of the text that are spoken with them
        wait_for_room: waits until the client has read most of what it was sent
    """

    def __init__(
        self, voice: Voice, put: Callable[[bytes, int], None], wait_for_room: Callable[[], Awaitable[None]]
    ) -> None:
        self._voice, self._put, self._wait_for_room = voice, put, wait_for_room
        self._splitter = SentenceSplitter()
        self._sentences: asyncio.Queue[str | None] = asyncio.Queue()
        self._speaking = asyncio.create_task(self._speak_all())
        self._speaking.add_done_callback(
            lambda task: task.cancelled() or task.exception()
        )  # `finish` raises it

    def write(self, text: str) -> None:
        """Adds text."""
        for sentence in self._splitter.feed(text):
            self._sentences.put_nowait(sentence)

    async def finish(self) -> None:
        """Speaks what is left and waits until all is spoken.

        Raises:
            ApiError: the synthesizer failed
        """
        self._sentences.put_nowait(self._splitter.finish())
        self._sentences.put_nowait(None)
        await self._speaking

    def stop(self) -> None:
        """Ends the work soon."""
        self._speaking.cancel()

    async def _speak_all(self) -> None:
        while (sentence := await self._sentences.get()) is not None:
            text = to_speech(sentence)
            if text:
                await self._speak(text, len(sentence))
            else:
                self._put(b"", len(sentence))

    async def _speak(self, text: str, n_characters: int) -> None:
        voice, wav, output = self._voice, WavStream(), None
        async with aclosing(voice.synthesizer.synthesize(text, voice.name, voice.speed)) as pieces:
            async for piece in pieces:
                try:
                    samples = wav.feed(piece)
                except ValueError as error:
                    raise build_synthesis_error(f"what the speech synthesizer made {error}") from error
                if wav.rate is None:
                    continue
                output = output or AudioOutput(wav.rate, voice.format)
                self._put(output.encode(samples), 0)
                await self._wait_for_room()
        if output is None:
            raise build_synthesis_error("the speech synthesizer made no sound of a sentence")
        self._put(output.encode(np.zeros(0, np.float32), is_last=True), n_characters)
