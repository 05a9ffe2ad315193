"""Hearing while somebody speaks: the sound so far is heard again and again, and each time what was heard before is the
draft that one pass of the connector checks. When the sound ends, little is left to do, and the audio tokens are those
of the whole sound heard at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ossicle.audio.speech import load_speech
from ossicle.audio.waveform import SAMPLE_RATE, SILENCE_PEAK, SampleReader, locate_windows
from ossicle.errors import AudioError

REHEAR_S = 0.5
"""New sound after which a listener hears again, by default."""
MAX_BUSY = 0.5
"""Part of the time that it may hear while it listens: on slow machines it hears again less often."""
MIN_S = 0.2
"""Sound before which it does not begin."""


@dataclass(frozen=True)
class HeardWindow:
    """A window of the sound, as it was heard."""

    tokens: Float[Tensor, "n D"]
    written: Int[Tensor, " S"] | None
    """The steps of the decoder, as a draft for the same window with more sound in it."""
    is_doubtful: bool
    """Whether the words are unlikely, and Whisper's sign that nobody speaks is likely."""


HearWindow = Callable[[np.ndarray, "Int[Tensor, ' S'] | None"], HeardWindow]
"""Hears one window of samples at 16 kHz, with a draft of what it may say."""


@dataclass
class Hearing:
    """What was heard of a sound so far, of which more is heard each time."""

    hear_window: HearWindow
    decode: Callable[[list[Float[Tensor, "_ D"]]], list[str]]
    """Turns the audio tokens of windows into text."""
    is_speech: Callable[[np.ndarray], bool]
    """Whether somebody speaks in a window; asked of doubtful ones."""
    window_samples: int
    _windows: dict[tuple[int, int], HeardWindow] = field(default_factory=dict)
    """By first sample and number of samples."""

    @property
    def tokens(self) -> Float[Tensor, "n D"] | None:
        """The audio tokens of what was heard; None if nothing was."""
        if not self._windows:
            return None
        return torch.cat([window.tokens for _, window in sorted(self._windows.items())])

    @property
    def text(self) -> str:
        """What was heard."""
        windows = [window.tokens for _, window in sorted(self._windows.items())]
        return " ".join(filter(None, self.decode(windows))) if windows else ""

    def hear(self, sound: np.ndarray) -> None:
        """Hears the windows that have changed, each with what was heard of it before as its draft.

        Args:
            sound: begins as those before it did, and may be longer or shorter
        """
        before = {start: window for (start, _), window in sorted(self._windows.items())}
        windows: dict[tuple[int, int], HeardWindow] = {}
        for start, samples in locate_windows(sound, self.window_samples):
            key = (start, len(samples))
            if key in self._windows:
                windows[key] = self._windows[key]
            else:
                draft = before[start].written if start in before else None
                windows[key] = self.hear_window(samples, draft)
        self._windows = windows

    def select_speech(self, sound: np.ndarray) -> Float[Tensor, "n D"] | None:
        """Returns the audio tokens of the sound that was heard last, without windows in which nobody speaks.

        Returns: None if all are such
        """
        spoken = [
            window.tokens
            for (start, n_samples), window in sorted(self._windows.items())
            if not window.is_doubtful or self.is_speech(sound[start : start + n_samples])
        ]
        return torch.cat(spoken) if spoken else None


@dataclass
class Listener:
    """Hears a sound that arrives in pieces; `Ear.listen` builds one.

    Feed it from one thread at a time. What it has heard so far may change with every piece; what `finish` returns does
    not depend on the pieces.
    """

    hearing: Hearing
    rehear_s: float = REHEAR_S
    _reader: SampleReader = field(default_factory=SampleReader)
    _pieces: list[np.ndarray] = field(default_factory=list)
    """The sound so far: what was heard last is one piece."""
    _n_samples: int = 0
    _is_silent: bool = True
    _n_heard: int = 0
    _is_finished: bool = False
    _last_hearing_s: float = 0.0
    """How long it took."""

    @property
    def duration_s(self) -> float:
        """Seconds of sound so far."""
        return self._n_samples / SAMPLE_RATE

    @property
    def tokens(self) -> Float[Tensor, "n D"] | None:
        """The audio tokens of what was heard so far; None if nothing was."""
        return self.hearing.tokens

    @property
    def text(self) -> str:
        """What was heard so far."""
        return self.hearing.text

    def feed(self, samples: Any, sample_rate: int = SAMPLE_RATE) -> bool:
        """Takes the next samples; hears again if there is enough new sound.

        Args:
            samples: as for `load_audio`, float from -1 to 1 or integers; a pause may be silent
            sample_rate: Hz; the same one for all pieces, or a new sound begins in the middle of this one

        Returns: whether `tokens` and `text` were computed anew

        Raises:
            AudioError: not samples, or the sound is finished
        """
        if self._is_finished:
            raise AudioError("this sound is finished: call listen() for the next one")
        self._append(self._reader.read(samples, sample_rate))
        new_s = (self._n_samples - self._n_heard) / SAMPLE_RATE
        rehear_s = max(self.rehear_s, self._last_hearing_s / MAX_BUSY)
        if new_s < rehear_s or self.duration_s < MIN_S or self._is_silent:
            return False
        started = perf_counter()
        self._hear()
        self._last_hearing_s = perf_counter() - started
        return True

    def finish(self) -> Float[Tensor, "n D"]:
        """Returns the audio tokens of the whole sound, those of `Ear.hear`; it can be called again.

        Raises:
            AudioError: nothing was fed, or too short or too even for speech
        """
        if not self._n_samples:
            raise AudioError("no sound was fed; expected feed(samples) before finish()")
        if not self._is_finished:
            self._append(self._reader.flush())
            load_speech(self._join())
            self._hear()
            self._is_finished = True
        tokens = self.tokens
        assert tokens is not None
        return tokens

    def finish_speech(self) -> Float[Tensor, "n D"] | None:
        """Returns the audio tokens as `finish` does, without windows in which nobody speaks; None if all are such."""
        self.finish()
        return self.hearing.select_speech(self._join())

    def _append(self, piece: np.ndarray) -> None:
        self._pieces.append(piece)
        self._n_samples += len(piece)
        self._is_silent = self._is_silent and float(np.abs(piece).max(initial=0.0)) < SILENCE_PEAK

    def _join(self) -> np.ndarray:
        """Returns the sound so far, as one piece from now on."""
        self._pieces = [np.concatenate([np.zeros(0, np.float32), *self._pieces])]
        return self._pieces[0]

    def _hear(self) -> None:
        self.hearing.hear(self._join())
        self._n_heard = self._n_samples
