"""The worker's listening stage: turns are heard while they are spoken, in the time that answers leave.

It knows no sockets and no conversations. A sound's audio tokens are those of the whole sound, whatever was heard before.
"""

import time
from collections.abc import Callable
from threading import Lock

import numpy as np
from jaxtyping import Float, Float32
from torch import Tensor

from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.ear import Ear
from ossicle.listening import MAX_BUSY, MIN_S, REHEAR_S, Hearing
from ossicle.serving.worker import LOG

_MAX_BUSY_BESIDE_ANSWERS = 0.25
"""Part of the time that turns are heard in while answers are decoded."""


class TurnListener:
    """Hears one turn; the event loop feeds it, and the worker hears.

    Args:
        publish: told the words after each hearing, in the worker's thread; None where nobody wants them
        wake: signals that there may be something to hear
        close: forgets the listener
    """

    def __init__(
        self,
        hearing: Hearing,
        publish: Callable[[str], None] | None,
        wake: Callable[[], None],
        close: Callable[["TurnListener"], None],
        rehear_s: float,
    ) -> None:
        self._hearing, self._publish, self.wake, self._close = hearing, publish, wake, close
        self._rehear_s = rehear_s
        self._pieces: list[Float32[np.ndarray, " _"]] = []
        self._n_samples = self._n_heard = 0
        self._until: int | None = None
        """Samples before a pause; None while somebody speaks."""
        self._lock = Lock()
        self.heard_at = time.monotonic()
        self._hearing_s = 0.0
        """How long the last hearing took."""

    def feed(self, samples: Float32[np.ndarray, " N"]) -> None:
        """Takes the next samples of the turn."""
        with self._lock:
            self._pieces.append(samples)
            self._n_samples += len(samples)
        self.wake()

    def pause(self, n_samples: int | None) -> None:
        """Says how long the turn's sound is if nothing more is said, so that it is heard; None: somebody speaks."""
        if n_samples != self._until:
            self._until = n_samples
            self.wake()

    def close(self) -> None:
        """Hears nothing more, unless asked by `embed`; what was heard is kept."""
        self._close(self)
        with self._lock:
            self._pieces, self._n_samples = [], 0

    def is_due(self, now: float, n_listeners: int) -> bool:
        """Whether it should hear now.

        Sound that arrives faster than it was spoken is heard no sooner for it.

        Args:
            now: monotonic time
            n_listeners: that share the machine
        """
        if self._n_samples < MIN_S * SAMPLE_RATE:
            return False
        if self._until is not None:
            return self._until != self._n_heard
        rehear_s = max(self._rehear_s, n_listeners * self._hearing_s / MAX_BUSY)
        new_s = (self._n_samples - self._n_heard) / SAMPLE_RATE
        return min(new_s, now - self.heard_at) >= rehear_s

    def hear(self) -> float:
        """Hears the turn so far, and returns how long that took."""
        with self._lock:
            pieces, until = list(self._pieces), self._until
        self.heard_at = started = time.monotonic()
        if not pieces:  # closed meanwhile
            return 0.0
        sound = np.concatenate(pieces)
        with self._lock:
            if self._pieces:
                self._pieces[: len(pieces)] = [sound]
        sound = sound[:until]
        self._n_heard = len(sound)
        if sound.any():
            self._hearing.hear(sound)
            if self._publish is not None and self._hearing.select_speech(sound) is not None:
                self._publish(self._hearing.text)
        self._hearing_s = time.monotonic() - started
        return self._hearing_s

    def embed(self, sound: Float32[np.ndarray, " N"]) -> Float[Tensor, "n D"] | None:
        """Returns the audio tokens of the whole turn, with what was heard as a draft; called by the worker.

        Returns: None if nobody speaks in it
        """
        self._hearing.hear(sound)
        return self._hearing.select_speech(sound)


class ListeningStage:
    """The stage of the worker that hears turns while they are spoken: the one that waits longest first.

    Args:
        is_answering: whether answers are decoded
        wake: signals the worker that there is work
    """

    def __init__(self, ear: Ear, is_answering: Callable[[], bool], wake: Callable[[], None]) -> None:
        self._ear, self._is_answering, self._wake = ear, is_answering, wake
        self._listeners: list[TurnListener] = []
        self._lock = Lock()
        self._rests_until = 0.0
        """Monotonic time before which answers go first."""

    def open(
        self, publish: Callable[[str], None] | None = None, *, rehear_s: float | None = None
    ) -> TurnListener:
        """Returns a listener for a turn that is being spoken.

        Args:
            publish: told the words after each hearing, in the worker's thread
            rehear_s: new sound after which the turn is heard again; infinite: only in pauses
        """
        rehear_s = REHEAR_S if rehear_s is None else rehear_s
        listener = TurnListener(self._ear.start_hearing(), publish, self._wake, self._forget, rehear_s)
        with self._lock:
            self._listeners.append(listener)
        return listener

    def step(self) -> bool:
        """Hears one turn, if there is time, and returns whether it did."""
        now = time.monotonic()
        if now < self._rests_until and self._is_answering():
            return False
        with self._lock:
            n_listeners = len(self._listeners)
            due = [listener for listener in self._listeners if listener.is_due(now, n_listeners)]
        if not due:
            return False
        listener = min(due, key=lambda each: each.heard_at)
        try:
            hearing_s = listener.hear()
        except Exception:
            LOG.exception("a turn could not be heard while it was spoken; it is heard when it ends")
            self._forget(listener)
            return True
        self._rests_until = time.monotonic() + hearing_s * (1 / _MAX_BUSY_BESIDE_ANSWERS - 1)
        return True

    def _forget(self, listener: TurnListener) -> None:
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)
