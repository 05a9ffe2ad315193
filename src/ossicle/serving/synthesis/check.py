"""Tries a synthesizer before the server starts, so that what is wrong is said there and not to its clients."""

from contextlib import aclosing

from ossicle.errors import ConfigError
from ossicle.serving.errors import ApiError
from ossicle.serving.synthesis.base import Synthesizer
from ossicle.serving.synthesis.wav_stream import WavStream


async def check_speaks(synthesizer: Synthesizer) -> None:
    """Has a synthesizer speak a word, and closes it.

    Raises:
        ConfigError: it fails, or what it makes is no sound
    """
    wav, n_samples = WavStream(), 0
    try:
        async with aclosing(synthesizer.synthesize("Hello.", None, 1.0)) as pieces:
            async for piece in pieces:
                n_samples += len(wav.feed(piece))
    except ApiError as error:
        raise ConfigError(f"--tts cannot speak: {error}") from error
    except ValueError as error:
        raise ConfigError(f"--tts cannot speak: what it made {error}") from error
    finally:
        await synthesizer.close()
    if not n_samples:
        raise ConfigError("--tts cannot speak: it made no sound of a word")
