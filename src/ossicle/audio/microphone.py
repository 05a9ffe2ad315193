"""Recordings from this computer's microphone; it knows nothing of their use."""

import importlib
import sys
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import soxr
from rich.console import Console

from ossicle.audio.speech import load_speech
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.errors import AudioError, ConfigError


class Microphone:
    """The computer's default microphone.

    Raises:
        ConfigError: the recording package is not installed, or finds no sound system
        AudioError: there is no microphone
    """

    def __init__(self) -> None:
        self.is_over = False
        """Whether standard input has ended (Ctrl-D)."""
        try:
            self.sounddevice: Any = importlib.import_module("sounddevice")
        except ImportError as error:
            raise ConfigError(
                "--mic needs the package sounddevice: pip install 'ossicle[mic]', or give a sound file"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"--mic finds no sound system ({error}); install PortAudio, or give a sound file"
            ) from error
        try:
            self.sample_rate = int(self.sounddevice.query_devices(kind="input")["default_samplerate"])
        except (self.sounddevice.PortAudioError, ValueError) as error:
            raise AudioError(f"no microphone was found ({error}); give a sound file") from error

    def record(self, console: Console, hear: Callable[[np.ndarray], object] | None = None) -> np.ndarray:
        """Records until Enter is pressed, and returns mono samples at 16 kHz.

        Args:
            hear: given the same samples piece by piece while they are recorded, in a thread of its own

        Raises:
            AudioError: the microphone cannot be used, or records only silence
        """
        recording = _Recording(self.sample_rate, hear)
        try:
            stream = self.sounddevice.InputStream(
                samplerate=self.sample_rate, channels=1, dtype="float32", callback=recording.keep
            )
            with stream:
                console.print("Speak now; Enter ends it.")
                self.is_over = not sys.stdin.readline()
        except self.sounddevice.PortAudioError as error:
            raise AudioError(f"the microphone cannot be used ({error}); give a sound file") from error
        finally:
            recording.end()
        return recording.load()


class _Recording:
    """Blocks of a microphone on their way to samples at 16 kHz, outside of the thread that records."""

    def __init__(self, sample_rate: int, hear: Callable[[np.ndarray], object] | None) -> None:
        self._resampler = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")
        self._hear = hear
        self._blocks: SimpleQueue[np.ndarray | None] = SimpleQueue()
        self._pieces: list[np.ndarray] = []
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def keep(self, block: np.ndarray, n_frames: int, time: object, status: object) -> None:
        """Keeps a block; called by the microphone's thread."""
        self._blocks.put(block[:, 0].copy())

    def end(self) -> None:
        """Waits until all blocks are taken."""
        self._blocks.put(None)
        self._thread.join()

    def load(self) -> np.ndarray:
        """Returns the samples.

        Raises:
            AudioError: there are none, or only silence
        """
        if self._error is not None:
            raise self._error
        samples = np.concatenate([np.zeros(0, np.float32), *self._pieces])
        if not len(samples):
            raise AudioError("the microphone recorded nothing; speak, then press Enter")
        return load_speech(samples)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            waiting = [self._blocks.get()]
            while not self._blocks.empty():  # of a hearing that took its time
                waiting.append(self._blocks.get())
            is_last = waiting[-1] is None
            samples = np.concatenate(
                [np.zeros(0, np.float32), *(each for each in waiting if each is not None)]
            )
            piece = self._resampler.resample_chunk(samples, last=is_last)
            self._pieces.append(piece)
            if self._hear is not None and self._error is None:
                try:
                    self._hear(piece)
                except Exception as error:
                    self._error = error
