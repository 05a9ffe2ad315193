"""Sounds of any number of requests -> audio tokens and transcripts, heard together, the same one once."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.ear import Ear
from ossicle.serving.engine import Sound
from ossicle.serving.metrics import Metrics
from ossicle.serving.worker import LOG

_AT_ONCE = 8
"""Sounds that are heard in one round, so that answers on their way are not kept waiting for long; on a CPU larger
batches are no faster."""
_AT_ONCE_S = 60.0
"""... and seconds of them; a single one may be longer."""
_KNOWN_BYTES = 64 << 20
"""Audio tokens that are kept for the next turn of their conversation."""
_Value = TypeVar("_Value")


@dataclass(eq=False)
class _Asked(Generic[_Value]):
    """A sound, and what is to become of it."""

    sound: Sound
    n_waiting: int = 0
    """Requests that wait for it."""
    future: Future[_Value] = field(default_factory=Future)


_Waiting = OrderedDict[str, _Asked[_Value]]
"""By the hash of the sound, in the order they came."""


class AudioBatcher:
    """A stage of the worker that hears.

    Args:
        wake: tells the worker that there is something to do
    """

    def __init__(self, ear: Ear, metrics: Metrics, wake: Callable[[], None]) -> None:
        self.ear, self.meters, self.wake = ear, metrics, wake
        self.known = _Known()
        self.to_hear: _Waiting[Tensor] = OrderedDict()
        self.to_write: _Waiting[str] = OrderedDict()
        self._lock = Lock()

    async def embed(self, sounds: Sequence[Sound]) -> list[Float[Tensor, "_ D"]]:
        """The audio tokens of each sound.

        Raises:
            OssicleError: sound that cannot be heard
        """
        with self._lock:
            known = {sound.key: self.known.get(sound.key) for sound in sounds}
        self.meters.audio_cache_hits.inc(sum(known[sound.key] is not None for sound in sounds))
        unknown = [sound for sound in sounds if known[sound.key] is None]
        heard = iter(await self._made_of(self.to_hear, unknown))
        return [next(heard) if (tokens := known[sound.key]) is None else tokens for sound in sounds]

    async def transcribe(self, sound: Sound) -> str:
        """What the encoder's own decoder writes."""
        (text,) = await self._made_of(self.to_write, [sound])
        return text

    async def _made_of(self, waiting: _Waiting[_Value], sounds: Sequence[Sound]) -> list[_Value]:
        """What becomes of sounds; those that nobody waits for any more are left out."""
        with self._lock:
            asked = [waiting.setdefault(sound.key, _Asked(sound)) for sound in sounds]
            for one in asked:
                one.n_waiting += 1
        self.wake()
        try:
            return [await asyncio.shield(asyncio.wrap_future(one.future)) for one in asked]
        finally:
            with self._lock:
                for one in asked:
                    one.n_waiting -= 1
                    if not one.n_waiting:
                        _take_out(waiting, one)

    def work(self) -> bool:
        """Hears what is waiting, then writes what is waiting, each in one batch."""
        with self._lock:
            heard, written = _first(self.to_hear), _first(self.to_write)
        if heard:
            self.meters.audio_batch_size.observe(len(heard))
            self._settle(self.to_hear, heard, lambda sounds: self.ear.hear(list(sounds)), self.known.put)
        if written:
            self._settle(self.to_write, written, self.ear.transcribe, lambda key, text: None)
        return bool(heard or written)

    def _settle(
        self,
        waiting: _Waiting[_Value],
        asked: Sequence[_Asked[_Value]],
        call: Callable[[Sequence], list[_Value]],
        keep: Callable[[str, _Value], None],
    ) -> None:
        """Gives each its result, or the error that it alone comes to."""
        found, failure = [], None
        try:
            found = call([one.sound.samples for one in asked])
        except Exception as error:
            if len(asked) > 1:
                for one in asked:
                    self._settle(waiting, [one], call, keep)
                return
            LOG.exception("a sound could not be heard")
            failure = error
        with self._lock:
            for number, one in enumerate(asked):
                _take_out(waiting, one)
                if failure is None:
                    keep(one.sound.key, found[number])
                    one.future.set_result(found[number])
                else:
                    one.future.set_exception(failure)


def _take_out(waiting: _Waiting[_Value], one: _Asked[_Value]) -> None:
    if waiting.get(one.sound.key) is one:
        del waiting[one.sound.key]


def _first(waiting: _Waiting[_Value]) -> list[_Asked[_Value]]:
    """What came first, as much as is heard in one round."""
    first: list[_Asked[_Value]] = []
    left = _AT_ONCE_S * SAMPLE_RATE
    for one in waiting.values():
        left -= len(one.sound.samples)
        if first and (left < 0 or len(first) == _AT_ONCE):
            break
        first.append(one)
    return first


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
