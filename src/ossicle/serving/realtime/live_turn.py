"""A turn while it is spoken: what hears it, and the words that the client is told of it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from jaxtyping import Float32

from ossicle.listening import REHEAR_S
from ossicle.serving.engine import Engine
from ossicle.serving.turn_listening import TurnListener


class LiveTranscript:
    """Turns what was heard, which may change, into pieces of text that stay."""

    def __init__(self) -> None:
        self._heard = self._told = ""

    def add(self, text: str) -> str:
        """Returns the new words on which this hearing and the one before it agree; the last word may still change."""
        pairs = zip(self._heard, text, strict=False)
        n_equal = next(
            (i for i, (old, new) in enumerate(pairs) if old != new), min(len(self._heard), len(text))
        )
        self._heard = text
        return self._tell(text[:n_equal].rpartition(" ")[0])

    def finish(self, text: str) -> str:
        """Returns what is left of the whole transcript; nothing if it begins otherwise than what was told."""
        return self._tell(text)

    def _tell(self, text: str) -> str:
        if not text.startswith(self._told):
            return ""
        new = text[len(self._told) :]
        self._told = text
        return new


class LiveTurn:
    """The turn that is being spoken, in the event loop in which it is built.

    Args:
        tell: told new words that stay
    """

    def __init__(self, engine: Engine, tell: Callable[[str], None]) -> None:
        self.transcript = LiveTranscript()
        self._is_over = False
        self._tell, self._loop = tell, asyncio.get_running_loop()
        self.listener: TurnListener | None = engine.listen(self._publish)
        self._reminder: asyncio.TimerHandle | None = None

    def feed(self, samples: Float32[np.ndarray, " N"], pause: int | None = None) -> None:
        """Takes the next samples of the turn.

        Args:
            pause: its samples if nothing more is said; None while somebody speaks
        """
        if self.listener is not None:
            self.listener.feed(samples)
            self.listener.pause(pause)
            self._stop_reminder()
            self._reminder = self._loop.call_later(REHEAR_S, self.listener.wake)

    def end(self) -> None:
        """Ends the hearing; `listener` keeps what was heard."""
        self._is_over = True
        self._stop_reminder()
        if self.listener is not None:
            self.listener.close()

    def _stop_reminder(self) -> None:
        if self._reminder is not None:
            self._reminder.cancel()

    def _publish(self, text: str) -> None:
        with suppress(RuntimeError):  # the loop is closed, so that nobody reads the words
            self._loop.call_soon_threadsafe(self._add, text)

    def _add(self, text: str) -> None:
        if not self._is_over and (new := self.transcript.add(text)):
            self._tell(new)
