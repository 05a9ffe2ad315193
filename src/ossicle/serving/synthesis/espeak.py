"""espeak-ng as a voice: a program of this machine, small and quick, and no pleasure to listen to."""

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import suppress

from ossicle.errors import ConfigError
from ossicle.serving.synthesis.base import build_synthesis_error

NAME = "espeak-ng"
_WORDS_PER_MINUTE = 175
_PIECE_BYTES = 1 << 15
_TIMEOUT_S = 30.0


class EspeakSynthesizer:
    """Runs espeak-ng once for each text.

    Args:
        voice: such as en, en-us or de; those of clients, which are other servers' voices, are ignored

    Raises:
        ConfigError: espeak-ng is not installed
    """

    def __init__(self, voice: str | None = None) -> None:
        self._voice = voice or "en"
        program = shutil.which(NAME)
        if program is None:
            raise ConfigError(
                f"--tts is {NAME}, which is not installed here: install it, such as with apt install {NAME}, or give the"
                " URL of a speech server"
            )
        self._program = program

    async def synthesize(self, text: str, voice: str | None, speed: float) -> AsyncGenerator[bytes]:
        """Yields a WAV file; see `Synthesizer`."""
        words_per_minute = str(round(_WORDS_PER_MINUTE * speed))
        try:
            process = await asyncio.create_subprocess_exec(
                self._program,
                *("-v", self._voice, "-s", words_per_minute, "-b", "1", "--stdin", "--stdout"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise build_synthesis_error(f"{NAME} cannot be started ({error.strerror})") from error
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            # In double brackets it reads phonemes.
            process.stdin.write(text.replace("[[", "[ [").encode("utf-8", "replace"))
            process.stdin.close()
            while True:
                async with asyncio.timeout(_TIMEOUT_S):  # wait_for would lose a cancellation in Python 3.11
                    piece = await process.stdout.read(_PIECE_BYTES)
                if not piece:
                    break
                yield piece
            reason = (await process.stderr.read(1_000)).decode(errors="replace")
            if await process.wait():
                raise build_synthesis_error(
                    f"{NAME} failed: {' '.join(reason.split()) or 'it gives no reason'}"
                )
        except TimeoutError as error:
            raise build_synthesis_error(f"{NAME} gave no sound for {_TIMEOUT_S:.0f} s") from error
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def close(self) -> None:
        """Does nothing: each process ends with its text."""
