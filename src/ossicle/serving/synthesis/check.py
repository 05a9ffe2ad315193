"""Tries a synthesizer before the server starts, so that what is wrong is said there and not to its clients."""

import asyncio
from contextlib import aclosing

from ossicle.errors import ConfigError
from ossicle.serving.errors import ApiError
from ossicle.serving.synthesis.base import MAX_SENTENCE_S, Synthesizer, describe_failure, feed_wav
from ossicle.serving.synthesis.wav_stream import WavStream

TIMEOUT_S = 60.0
"""A speech server may load its model first."""


async def check_speaks(synthesizer: Synthesizer, timeout_s: float = TIMEOUT_S) -> None:
    """Has a synthesizer speak a word, and closes it.

    Raises:
        ConfigError: it fails, takes too long, or what it makes is no sound
    """
    wav, n_samples = WavStream(), 0
    try:
        async with (
            asyncio.timeout(timeout_s),
            aclosing(synthesizer.synthesize("Hello.", None, 1.0)) as pieces,
        ):
            async for piece in pieces:
                n_samples += len(feed_wav(wav, piece))
                if wav.rate and n_samples > MAX_SENTENCE_S * wav.rate:
                    raise ConfigError(
                        f"--tts cannot speak: it made more than {MAX_SENTENCE_S:.0f} s of a word"
                    )
    except ApiError as error:
        raise ConfigError(f"--tts cannot speak: {describe_failure(error)}") from error
    except TimeoutError as error:
        raise ConfigError(f"--tts cannot speak: a word took more than {timeout_s:g} s") from error
    finally:
        await synthesizer.close()
    if not n_samples:
        raise ConfigError("--tts cannot speak: it made no sound of a word")
