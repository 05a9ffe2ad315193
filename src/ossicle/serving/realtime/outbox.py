"""Server events in the order in which they happen, on their way to a client that may read slowly."""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from ossicle.serving.realtime.conversation import new_id

_MAX_WAITING_CHARACTERS = 1 << 18
_MAX_SOUND_CHARACTERS = 1 << 16
"""Before further sound is made: a second of PCM. More would delay what matters more, such as that somebody speaks."""
_SOUND = "response.output_audio.delta"
_FLUSH_S = 5.0


class Outbox:
    """Numbers events and sends them one after the other.

    `put` never waits, so that events which belong together stay together; who causes events waits for room instead.
    """

    def __init__(self, send: Callable[[str], Awaitable[None]]) -> None:
        self._send = send
        self._waiting: deque[tuple[str | None, str]] = deque()
        """Events, each behind the id of the response whose sound it has."""
        self._n_characters = 0
        self._has_events, self._has_room, self._has_sound_room = (asyncio.Event() for _ in range(3))
        self._is_closed = False
        self._is_drained = asyncio.Event()
        self._mark_room()

    def put(self, kind: str, **fields: Any) -> None:
        """Queues an event, unless nobody sends any more."""
        if self._is_closed:
            return
        text = json.dumps({"type": kind, "event_id": new_id("event"), **fields})
        self._waiting.append((fields["response_id"] if kind == _SOUND else None, text))
        self._n_characters += len(text)
        self._has_events.set()
        self._mark_room()

    def drop_sound(self, response_id: str) -> None:
        """Drops the sound of a response that is not sent yet."""
        self._waiting = deque(event for event in self._waiting if event[0] != response_id)
        self._n_characters = sum(len(text) for _, text in self._waiting)
        self._mark_room()

    async def wait_for_room(self) -> None:
        """Waits until few events wait, or nobody sends any more."""
        await self._has_room.wait()

    async def wait_for_sound_room(self) -> None:
        """Waits until a second of sound waits at most, or nobody sends any more."""
        await self._has_sound_room.wait()

    def _mark_room(self) -> None:
        for room, most in (
            (self._has_room, _MAX_WAITING_CHARACTERS),
            (self._has_sound_room, _MAX_SOUND_CHARACTERS),
        ):
            if self._is_closed or self._n_characters <= most:
                room.set()
            else:
                room.clear()

    async def run(self) -> None:
        """Sends events until it is canceled or the client has gone."""
        try:
            while True:
                await self._has_events.wait()
                while self._waiting:
                    _, text = self._waiting.popleft()
                    self._n_characters -= len(text)
                    await self._send(text)
                    self._mark_room()
                self._has_events.clear()
                self._is_drained.set()
        finally:
            self._is_closed = True
            self._mark_room()

    async def flush(self, sending: "asyncio.Task[None]") -> None:
        """Waits until all events are sent, or `run` has ended, or the client does not read them."""
        self._is_drained.clear()
        self._has_events.set()
        drained = asyncio.create_task(self._is_drained.wait())
        await asyncio.wait({drained, sending}, return_when=asyncio.FIRST_COMPLETED, timeout=_FLUSH_S)
        drained.cancel()
