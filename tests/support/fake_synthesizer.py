"""A synthesizer that hums, at a rate of its own."""

import asyncio
import io
from collections.abc import AsyncGenerator

import numpy as np
import soundfile

from ossicle.serving.synthesis.base import build_synthesis_error

RATE = 16_000
S_PER_CHARACTER = 0.01


def build_wav(text: str, rate: int = RATE, s_per_character: float = S_PER_CHARACTER) -> bytes:
    """Returns the hum of a text as a WAV file."""
    n_samples = round(rate * s_per_character * len(text))
    hum = 0.5 * np.sin(2 * np.pi * 200 * np.arange(n_samples) / rate)
    file = io.BytesIO()
    soundfile.write(file, hum, rate, "PCM_16", format="WAV")
    return file.getvalue()


class FakeSynthesizer:
    """Hums, and remembers what it was asked for.

    Args:
        fails: whether it fails at each text
        waits: whether it hums the begin of a text only and waits for ever
        s_per_character: how slowly it hums
    """

    def __init__(
        self, *, fails: bool = False, waits: bool = False, s_per_character: float = S_PER_CHARACTER
    ) -> None:
        self.fails, self.waits, self.s_per_character = fails, waits, s_per_character
        self.asked: list[tuple[str, str | None, float]] = []
        self.n_closed = 0
        self.is_closed = False

    async def synthesize(self, text: str, voice: str | None, speed: float) -> AsyncGenerator[bytes]:
        """Yields a WAV file in small pieces."""
        self.asked.append((text, voice, speed))
        if self.fails:
            raise build_synthesis_error("the voice is hoarse")
        wav = build_wav(text, s_per_character=self.s_per_character)
        try:
            for start in range(0, len(wav), 999):
                yield wav[start : start + 999]
                if self.waits and start:
                    await asyncio.Event().wait()
        finally:
            self.n_closed += 1

    async def close(self) -> None:
        """Remembers that it was closed."""
        self.is_closed = True
