"""The answer to a turn in the pause behind it, before it is known that the turn has ended.

If somebody goes on to speak, it is dropped, and nobody is told of it. It knows an engine and no events.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from ossicle.serving.engine import ChatRequest, Engine, Sound
from ossicle.serving.middleware import RequestSlot
from ossicle.serving.realtime.conversation import HeardSound

_Chunk = dict[str, Any]


class EarlyAnswer:
    """An answer that may not be needed, up to `drop` or to the end of the chunks that `take` returns.

    Args:
        hear: returns the sound of the turn; called in a thread
        build_request: returns the request that a response to that sound would send
        tells_words: whether the words of the turn are wanted, too
        slot: one of the server's, which is released when the answer ends
    """

    def __init__(
        self,
        engine: Engine,
        hear: Callable[[], HeardSound],
        build_request: Callable[[HeardSound], ChatRequest],
        *,
        tells_words: bool,
        slot: RequestSlot,
    ) -> None:
        self._engine, self._hear, self._build_request = engine, hear, build_request
        self._tells_words, self._slot = tells_words, slot
        self._key: str | None = None
        """Of the sound of the turn."""
        self._words: str | None = None
        self._identity: str | None = None
        self._is_prepared = asyncio.Event()
        """Set when sound and words are known, and the request is on its way."""
        self._chunks: asyncio.Queue[_Chunk | None] = asyncio.Queue()
        self._failure: Exception | None = None
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(self._finish)  # also of a task that was dropped before it began

    def drop(self) -> None:
        """Ends the work soon."""
        self.task.cancel()

    async def end(self) -> None:
        """Ends the work, and has released the slot."""
        self.drop()
        await asyncio.wait({self.task})

    async def find_words(self, sound: Sound) -> str | None:
        """Returns the words of a sound, if it is that of the turn and they are known."""
        await self._is_prepared.wait()
        return self._words if sound.key == self._key else None

    async def take(self, request: ChatRequest) -> AsyncIterator[_Chunk] | None:
        """Returns the chunks of the answer to a request; None if it is another request, or the answer failed."""
        try:
            await self._is_prepared.wait()
            if self._identity != _identify(request):
                return None
            first = await self._chunks.get()
        except BaseException:
            self.drop()
            raise
        return None if first is None else self._follow(first)

    async def _follow(self, chunk: _Chunk | None) -> AsyncIterator[_Chunk]:
        try:
            while chunk is not None:
                yield chunk
                chunk = await self._chunks.get()
            if self._failure is not None:
                raise self._failure
        finally:
            self.drop()

    async def _run(self) -> None:
        try:
            with suppress(asyncio.CancelledError):
                await self._answer()
        except Exception as error:
            self._failure = error

    def _finish(self, _: asyncio.Task[None]) -> None:
        self._is_prepared.set()
        self._chunks.put_nowait(None)
        self._slot.release()

    async def _answer(self) -> None:
        heard = await asyncio.to_thread(self._hear)
        if not (heard.is_speech and await self._engine.has_speech(heard.sound)):
            return
        if self._tells_words:
            self._words = await self._engine.transcribe_audio_tokens(heard.sound)
        self._key = heard.sound.key
        request = self._build_request(heard)
        self._identity = _identify(request)
        self._is_prepared.set()
        chunks = await self._engine.stream(request)
        try:
            async for chunk in chunks:
                self._chunks.put_nowait(chunk)
        finally:
            await chunks.aclose()  # ty: ignore[missing-attribute]


def _identify(request: ChatRequest) -> str:
    """Returns what two requests with the same answer have in common; sounds by their keys."""

    def name_sound(value: object) -> str:
        assert isinstance(value, Sound), "all else is JSON"
        return value.key

    return json.dumps(request.body, default=name_sound)
