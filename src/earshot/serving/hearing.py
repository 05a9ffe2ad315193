"""Sounds of any number of requests -> audio tokens and transcripts, heard together, the same one once."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import islice
from threading import Lock
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from earshot.model import Ear
from earshot.serving.engine import Sound
from earshot.serving.meters import Meters
from earshot.serving.worker import LOG

_AT_ONCE = 8
"""Sounds that are heard in one round: answers on their way are not kept waiting for long, and on a CPU, whose caches a
larger batch outgrows, each takes least."""
_KNOWN_BYTES = 64 << 20
"""Audio tokens that are kept for the next turn of their conversation."""
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Hearing:
    """A stage of the worker that hears.

    Args:
        wake: tells the worker that there is something to do
    """

    share = 3.0  # who waits for a first token waits longest

    def __init__(self, ear: Ear, meters: Meters, wake: Callable[[], None]) -> None:
        self.ear, self.meters, self.wake = ear, meters, wake
        self.known = _Known()
        self.to_hear: OrderedDict[str, tuple[Sound, Future[Tensor]]] = OrderedDict()
        self.to_write: OrderedDict[str, tuple[Sound, Future[str]]] = OrderedDict()
        self._lock = Lock()

    async def hear(self, sounds: Sequence[Sound]) -> list[Float[Tensor, "_ D"]]:
        """The audio tokens of each sound.

        Raises:
            EarshotError: sound that cannot be heard
        """
        futures: list[Future[Tensor]] = []
        with self._lock:
            for sound in sounds:
                tokens = self.known.get(sound.key)
                if tokens is not None:
                    self.meters.heard_again.inc()
                    future: Future[Tensor] = Future()
                    future.set_result(tokens)
                else:
                    future = self.to_hear.setdefault(sound.key, (sound, Future()))[1]
                futures.append(future)
        self.wake()
        return [await asyncio.shield(asyncio.wrap_future(future)) for future in futures]

    async def transcribe(self, sound: Sound) -> str:
        """What the encoder's own decoder writes."""
        with self._lock:
            future = self.to_write.setdefault(sound.key, (sound, Future()))[1]
        self.wake()
        return await asyncio.shield(asyncio.wrap_future(future))

    def work(self) -> bool:
        """Hears what is waiting, then writes what is waiting, each in one batch."""
        with self._lock:
            heard, written = _first(self.to_hear), _first(self.to_write)
        if heard:
            self.meters.heard_together.observe(len(heard))
            self._settle(self.to_hear, heard, lambda sounds: self.ear.hear(list(sounds)), self.known.put)
        if written:
            self._settle(self.to_write, written, self.ear.transcribe, lambda key, text: None)
        return bool(heard or written)

    def _settle(
        self,
        waiting: OrderedDict[str, tuple[Sound, Future[_Value]]],
        asked: Sequence[tuple[Sound, Future[_Value]]],
        call: Callable[[Sequence], list[_Value]],
        keep: Callable[[str, _Value], None],
    ) -> None:
        """Gives each its result, or to all the error that came up."""
        found, failure = [], None
        try:
            found = call([sound.samples for sound, _ in asked])
        except Exception as error:
            LOG.exception("sounds could not be heard")
            failure = error
        with self._lock:
            for number, (sound, future) in enumerate(asked):
                waiting.pop(sound.key)
                if failure is None:
                    keep(sound.key, found[number])
                    future.set_result(found[number])
                else:
                    future.set_exception(failure)


def _first(waiting: OrderedDict[str, _Key]) -> list[_Key]:
    return list(islice(waiting.values(), _AT_ONCE))


class _Known:
    """Audio tokens by their sound; what was not asked for longest goes first when there is no room."""

    def __init__(self) -> None:
        self.tokens: OrderedDict[str, Tensor] = OrderedDict()
        self.n_bytes = 0

    def get(self, key: str) -> Tensor | None:
        if key in self.tokens:
            self.tokens.move_to_end(key)
        return self.tokens.get(key)

    def put(self, key: str, tokens: Tensor) -> None:
        tokens = tokens.clone()  # of its own, not a view of the batch
        self.tokens[key] = tokens
        self.n_bytes += tokens.nbytes
        while self.n_bytes > _KNOWN_BYTES and len(self.tokens) > 1:
            self.n_bytes -= self.tokens.popitem(last=False)[1].nbytes
