"""Where turns begin and end in a stream of sound, and the sound of the turn that is being spoken.

Positions are samples at 16 kHz since the session began. It knows no events and no network.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32

from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.serving.realtime.voice_activity import WINDOW_SAMPLES

SAMPLES_PER_MS = SAMPLE_RATE // 1_000
_MIN_SPEECH_WINDOWS = 2
"""Windows of speech in a row that begin a turn: a click fills one."""
_KEPT_SILENCE_WINDOWS = 7
"""Silence behind the last word that belongs to the turn: 224 ms."""
_HYSTERESIS = 0.15
"""Silence begins below a threshold that is lower by this, as in Silero's own iterator."""


@dataclass(frozen=True, kw_only=True)
class TurnThresholds:
    """What begins and what ends a turn."""

    threshold: float
    """Probability of speech."""
    prefix_padding_ms: int
    """Sound before the first word that belongs to the turn."""
    silence_duration_ms: int
    """Silence that ends it."""


@dataclass(frozen=True)
class TurnEdge:
    """The begin or the end of a turn."""

    kind: Literal["start", "end"]
    position: int
    """Of the first sample of the turn, or of the one after the silence that ends it."""
    sound_end: int = 0
    """Of the one after the last sample that belongs to the turn."""


class TurnDetector:
    """Finds the edges of turns.

    Args:
        score: returns the probability of speech in the next window
        position: of the stream's first sample
    """

    def __init__(
        self,
        score: Callable[[Float32[np.ndarray, " N"]], float],
        thresholds: TurnThresholds,
        position: int = 0,
    ) -> None:
        self.thresholds = thresholds
        self.is_speaking = False
        self._score = score
        self._position = position
        self._rest = np.zeros(0, np.float32)
        self._n_windows = 0
        """Windows in a row that are speech, before a turn, or silence, in it."""

    @property
    def pause(self) -> int | None:
        """Where the sound of the turn ends if nothing more is said; None while somebody speaks.

        More silence tells nothing. So a turn can be heard to its end before it is known that it has ended.
        """
        if not self.is_speaking or self._n_windows < _KEPT_SILENCE_WINDOWS:
            return None
        return self._position - (self._n_windows - _KEPT_SILENCE_WINDOWS) * WINDOW_SAMPLES

    def feed(self, samples: Float32[np.ndarray, " N"]) -> list[TurnEdge]:
        """Returns the edges in the next samples; of a window that is not complete yet, with later ones."""
        samples = np.concatenate([self._rest, samples])
        n_complete = len(samples) // WINDOW_SAMPLES * WINDOW_SAMPLES
        self._rest = samples[n_complete:]
        windows = samples[:n_complete].reshape(-1, WINDOW_SAMPLES)
        return [edge for window in windows if (edge := self._step(window)) is not None]

    def end_turn(self) -> None:
        """Ends the turn without an edge, because somebody else did."""
        self.is_speaking, self._n_windows = False, 0

    def _step(self, window: Float32[np.ndarray, " N"]) -> TurnEdge | None:
        probability = self._score(window)
        self._position += WINDOW_SAMPLES
        limit = self.thresholds.threshold
        if self.is_speaking and not self._n_windows:
            limit = max(limit - _HYSTERESIS, limit / 2)
        is_met = probability < limit if self.is_speaking else probability >= limit
        self._n_windows = self._n_windows + 1 if is_met else 0
        n_samples = self._n_windows * WINDOW_SAMPLES
        if not self.is_speaking and self._n_windows >= _MIN_SPEECH_WINDOWS:
            padding = self.thresholds.prefix_padding_ms * SAMPLES_PER_MS
            self.is_speaking, self._n_windows = True, 0
            return TurnEdge("start", max(0, self._position - n_samples - padding))
        if is_met and self.is_speaking and n_samples >= self.thresholds.silence_duration_ms * SAMPLES_PER_MS:
            sound_end = self.pause or self._position
            self.end_turn()
            return TurnEdge("end", self._position, sound_end)
        return None


class SoundBuffer:
    """The sound that was received and not committed yet."""

    def __init__(self) -> None:
        self.start = self.end = 0
        self._pieces: deque[Float32[np.ndarray, " _"]] = deque()

    @property
    def n_samples(self) -> int:
        """Samples in the buffer."""
        return self.end - self.start

    def append(self, samples: Float32[np.ndarray, " N"]) -> None:
        """Adds samples at the end."""
        if len(samples):
            self._pieces.append(samples)
            self.end += len(samples)

    def peek(self) -> Float32[np.ndarray, " _"]:
        """Returns all samples in the buffer."""
        return np.concatenate([np.zeros(0, np.float32), *self._pieces])

    def drop_before(self, position: int) -> None:
        """Drops the samples before a position."""
        while self._pieces and self.start < position:
            piece = self._pieces.popleft()
            n_dropped = min(len(piece), position - self.start)
            self.start += n_dropped
            if n_dropped < len(piece):
                self._pieces.appendleft(piece[n_dropped:].copy())

    def take_until(self, position: int) -> Float32[np.ndarray, " _"]:
        """Removes the samples before a position and returns them."""
        samples = self.peek()
        n_taken = max(0, min(position, self.end) - self.start)
        self.drop_before(position)
        return samples[:n_taken].copy()
