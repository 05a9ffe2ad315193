"""The text of one message, spoken sentence by sentence while it is being written.

It knows a synthesizer, and neither events nor items.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from ossicle.serving.errors import ApiError
from ossicle.serving.realtime.output_audio import AudioOutput
from ossicle.serving.synthesis.base import (
    MAX_SENTENCE_S,
    Synthesizer,
    build_synthesis_error,
    describe_failure,
    feed_wav,
)
from ossicle.serving.synthesis.sentences import SentenceSplitter, to_speech
from ossicle.serving.synthesis.wav_stream import WavStream
from ossicle.serving.worker import LOG

_PIECE_BYTES = 1 << 14
"""Of the synthesizer's file: at most a second of speech, so that nobody waits long behind it."""


@dataclass(frozen=True, kw_only=True)
class Voice:
    """How a response is spoken."""

    synthesizer: Synthesizer
    name: str | None
    """The client's choice."""
    speed: float
    format: str
    """Of the sound that the client gets."""
    wait_for_room: Callable[[], Awaitable[None]]
    """Waits until the client has most of the sound."""


class SpokenText:
    """Speaks what `write` is given, up to `finish` or `stop`.

    Args:
        put: takes the bytes of the sound, and the characters of the text that are spoken with them
    """

    def __init__(self, voice: Voice, put: Callable[[bytes, int], None]) -> None:
        self._voice, self._put = voice, put
        self._splitter = SentenceSplitter()
        self._sentences: asyncio.Queue[str | None] = asyncio.Queue()
        self._is_stopped = False
        self._speaking = asyncio.create_task(self._speak_all())
        self._speaking.add_done_callback(
            lambda task: task.cancelled() or task.exception()
        )  # `finish` raises it

    def write(self, text: str) -> None:
        """Adds text.

        Raises:
            ApiError: the synthesizer has failed
        """
        if self._speaking.done():
            self._speaking.result()
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
        """Ends the work soon; nothing more is put."""
        self._is_stopped = True
        self._speaking.cancel()

    async def _speak_all(self) -> None:
        while (sentence := await self._sentences.get()) is not None:
            text = to_speech(sentence)
            if text:
                try:
                    await self._speak(text, len(sentence))
                except ApiError as error:
                    LOG.warning("an answer could not be spoken: %s", describe_failure(error))
                    raise
            else:
                self._put_on(b"", len(sentence))

    async def _speak(self, text: str, n_characters: int) -> None:
        voice, wav, output, n_samples = self._voice, WavStream(), None, 0
        async with aclosing(voice.synthesizer.synthesize(text, voice.name, voice.speed)) as pieces:
            async for piece in pieces:
                for start in range(0, len(piece), _PIECE_BYTES):
                    samples = feed_wav(wav, piece[start : start + _PIECE_BYTES])
                    if wav.rate is None:
                        continue
                    n_samples += len(samples)
                    if n_samples > MAX_SENTENCE_S * wav.rate:
                        raise build_synthesis_error(
                            f"the speech synthesizer made more than {MAX_SENTENCE_S:.0f} s of a sentence"
                        )
                    output = output or AudioOutput(wav.rate, voice.format)
                    self._put_on(output.encode(samples), 0)
                    await voice.wait_for_room()
        if output is None or not n_samples:
            raise build_synthesis_error("the speech synthesizer made no sound of a sentence")
        self._put_on(output.encode(np.zeros(0, np.float32), is_last=True), n_characters)

    def _put_on(self, data: bytes, n_characters: int) -> None:
        if not self._is_stopped:
            self._put(data, n_characters)
