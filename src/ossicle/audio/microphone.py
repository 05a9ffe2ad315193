"""Recordings from this computer's microphone; it knows nothing of their use."""

import importlib
import sys
from typing import Any

import numpy as np
from rich.console import Console

from ossicle.audio.speech import load_speech
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

    def record(self, console: Console) -> np.ndarray:
        """Records until Enter is pressed, and returns mono samples at 16 kHz.

        Raises:
            AudioError: the microphone cannot be used, or records only silence
        """
        blocks: list[np.ndarray] = []

        def keep(block: np.ndarray, n_frames: int, time: object, status: object) -> None:
            blocks.append(block[:, 0].copy())

        try:
            stream = self.sounddevice.InputStream(
                samplerate=self.sample_rate, channels=1, dtype="float32", callback=keep
            )
            with stream:
                console.print("Speak now; Enter ends it.")
                self.is_over = not sys.stdin.readline()
        except self.sounddevice.PortAudioError as error:
            raise AudioError(f"the microphone cannot be used ({error}); give a sound file") from error
        if not blocks:
            raise AudioError("the microphone recorded nothing; speak, then press Enter")
        return load_speech((np.concatenate(blocks), self.sample_rate))
