"""Server events in the order in which they happen, on their way to a client that may read slowly."""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from ossicle.serving.realtime.conversation import new_id

_MAX_WAITING_CHARACTERS = 1 << 18
_FLUSH_S = 5.0


class Outbox:
    """Numbers events and sends them one after the other.

    `put` never waits, so that events which belong together stay together; who causes events waits for room instead.
    """

    def __init__(self, send: Callable[[str], Awaitable[None]]) -> None:
        self._send = send
        self._waiting: deque[str] = deque()
        self._n_characters = 0
        self._has_events, self._has_room = asyncio.Event(), asyncio.Event()
        self._is_drained = asyncio.Event()
        self._has_room.set()

    def put(self, kind: str, **fields: Any) -> None:
        """Queues an event."""
        text = json.dumps({"type": kind, "event_id": new_id("event"), **fields})
        self._waiting.append(text)
        self._n_characters += len(text)
        self._has_events.set()
        if self._n_characters > _MAX_WAITING_CHARACTERS:
            self._has_room.clear()

    async def wait_for_room(self) -> None:
        """Waits until few events wait."""
        await self._has_room.wait()

    async def run(self) -> None:
        """Sends events until it is canceled or the client has gone."""
        while True:
            await self._has_events.wait()
            while self._waiting:
                text = self._waiting.popleft()
                await self._send(text)
                self._n_characters -= len(text)
                if self._n_characters <= _MAX_WAITING_CHARACTERS:
                    self._has_room.set()
            self._has_events.clear()
            self._is_drained.set()

    async def flush(self, sending: "asyncio.Task[None]") -> None:
        """Waits until all events are sent, or `run` has ended, or the client does not read them."""
        self._is_drained.clear()
        self._has_events.set()
        drained = asyncio.create_task(self._is_drained.wait())
        await asyncio.wait({drained, sending}, return_when=asyncio.FIRST_COMPLETED, timeout=_FLUSH_S)
        drained.cancel()
