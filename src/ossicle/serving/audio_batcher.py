"""Embeds and transcribes the sounds of all requests in batches, and each distinct sound once."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from ossicle.audio.speech import build_no_speech_error
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.backbones.transcription import Transcript
from ossicle.backbones.whisper_prompt import check_task, find_language
from ossicle.ear import Ear
from ossicle.errors import NoSpeechError, OssicleError, RequestError
from ossicle.serving.engine import Sound, TranscriptionOptions
from ossicle.serving.errors import ApiError
from ossicle.serving.metrics import Metrics
from ossicle.serving.worker import LOG

_MAX_BATCH = 8
"""Sounds in one batch, so that running answers do not wait long; on a CPU larger batches are no faster."""
_MAX_BATCH_S = 60.0
"""Seconds of sound in one batch; a single sound may be longer."""
_REST_RATIO, _MAX_REST_S = 0.5, 0.5
"""How long it rests after a batch while answers are decoded: this part of the batch's time, and this many seconds at
most."""
_CACHE_BYTES = 64 << 20
"""Audio tokens that are kept for the next turn of their conversation."""
_Result = TypeVar("_Result")
_Key = tuple[str, TranscriptionOptions | None]
"""The key of a sound, and how it is transcribed."""


@dataclass(eq=False)
class _PendingSound(Generic[_Result]):
    """A sound that waits, and the future of its result."""

    sound: Sound
    options: TranscriptionOptions | None = None
    """How it is transcribed; None for a sound that is embedded."""
    audio_tokens: Float[Tensor, "_ D"] | None = None
    """Of a sound whose words are to be found."""
    n_waiters: int = 0
    """Requests that wait for the result."""
    future: Future[_Result] = field(default_factory=Future)

    @property
    def key(self) -> _Key:
        """What two requests have in common that wait for the same result."""
        return self.sound.key, self.options

    def shares_batch(self, other: "_PendingSound[_Result]") -> bool:
        """Whether both can be computed at once.

        Whisper takes one prompt and task for a whole batch, and what was heard before goes on alone.
        """
        is_embedded = self.options is None and self.audio_tokens is None
        if is_embedded and (self.sound.listener or other.sound.listener):
            return False
        return not (self.options and other.options) or (
            replace(self.options, language=None) == replace(other.options, language=None)
        )


_Queue = OrderedDict[_Key, _PendingSound[_Result]]
"""Waiting sounds by their key, in order of arrival."""


class AudioBatcher:
    """The stage of the worker that runs the encoder.

    While answers are decoded, it rests after each batch, for half of the time that the batch took. So answers go on when
    many sounds arrive one by one, and the sounds gather to larger batches.

    Args:
        wake: signals the worker that there is work
        is_answering: whether answers are decoded by the same worker
    """

    def __init__(
        self,
        ear: Ear,
        metrics: Metrics,
        wake: Callable[[], None],
        is_answering: Callable[[], bool] = lambda: False,
    ) -> None:
        self.ear, self.metrics, self.wake, self.is_answering = ear, metrics, wake, is_answering
        self.cache = _AudioTokenCache()
        self.to_embed: _Queue[Tensor] = OrderedDict()
        self.to_transcribe: _Queue[Transcript] = OrderedDict()
        self.to_decode: _Queue[str] = OrderedDict()
        self._lock = Lock()
        self._rests_until = 0.0
        """Monotonic time before which answers go first."""

    async def embed(self, sounds: Sequence[Sound]) -> list[Float[Tensor, "_ D"]]:
        """Returns the audio tokens of each sound.

        Raises:
            OssicleError: a sound that cannot be embedded
        """
        with self._lock:
            cached = {sound.key: self.cache.get(sound.key) for sound in sounds}
        self.metrics.audio_cache_hits.inc(sum(cached[sound.key] is not None for sound in sounds))
        missing = [sound for sound in sounds if cached[sound.key] is None]
        pending = [_PendingSound(sound) for sound in missing]
        embedded = iter(await self._wait_for_results(self.to_embed, pending))
        return [next(embedded) if (tokens := cached[sound.key]) is None else tokens for sound in sounds]

    async def has_speech(self, sound: Sound) -> bool:
        """Whether somebody can be heard in a sound; its audio tokens are kept for an answer.

        Raises:
            OssicleError: as `embed`
        """
        try:
            await self.embed([sound])
        except NoSpeechError:
            return False
        return True

    async def transcribe(self, sound: Sound, options: TranscriptionOptions) -> Transcript:
        """Returns the transcript of Whisper's own decoder.

        Raises:
            ApiError: a language, a prompt or a task that the Whisper does not take
        """
        try:
            if options.language:
                code = find_language(self.ear.whisper.prompt, options.language)
                options = replace(options, language=code)
        except RequestError as error:
            raise ApiError(str(error), param="language", code="invalid_language_format") from error
        try:
            check_task(self.ear.whisper.prompt, options.task)
        except RequestError as error:
            raise ApiError(str(error)) from error
        try:
            (transcript,) = await self._wait_for_results(self.to_transcribe, [_PendingSound(sound, options)])
        except RequestError as error:
            raise ApiError(str(error), param="prompt") from error
        return transcript

    async def transcribe_audio_tokens(self, sound: Sound) -> str:
        """Returns the words nearest to the audio tokens of a sound, which are embedded once for this and the LLM.

        Raises:
            OssicleError: as `embed`
        """
        (tokens,) = await self.embed([sound])
        (text,) = await self._wait_for_results(self.to_decode, [_PendingSound(sound, audio_tokens=tokens)])
        return text

    async def _wait_for_results(
        self, queue: _Queue[_Result], sounds: Sequence[_PendingSound[_Result]]
    ) -> list[_Result]:
        """Queues sounds and returns their results; a sound leaves the queue when its last waiter is canceled."""
        with self._lock:
            pending = [queue.setdefault(sound.key, sound) for sound in sounds]
            for each in pending:
                each.n_waiters += 1
        self.wake()
        try:
            return [await asyncio.shield(asyncio.wrap_future(each.future)) for each in pending]
        finally:
            with self._lock:
                for each in pending:
                    each.n_waiters -= 1
                    if not each.n_waiters:
                        _remove(queue, each)

    def step(self) -> bool:
        """Embeds one batch of waiting sounds, then transcribes one; returns whether there may be more to do."""
        started = time.monotonic()
        if started < self._rests_until and self.is_answering():
            return True  # the answers may be canceled, and nothing else would wake the worker
        with self._lock:
            to_embed, to_transcribe = _select_batch(self.to_embed), _select_batch(self.to_transcribe)
            to_decode = _select_batch(self.to_decode)
        if to_decode:
            self._resolve(self.to_decode, to_decode, self._decode_batch, lambda *_: None)
        if to_embed:
            self.metrics.audio_batch_size.observe(len(to_embed))
            self._resolve(self.to_embed, to_embed, self._embed_batch, self.cache.put)
        if to_transcribe:
            self._resolve(self.to_transcribe, to_transcribe, self._transcribe_batch, lambda *_: None)
        finished = time.monotonic()
        self._rests_until = finished + min(_REST_RATIO * (finished - started), _MAX_REST_S)
        return bool(to_embed or to_transcribe or to_decode)

    def _embed_batch(self, batch: Sequence[_PendingSound[Tensor]]) -> list[Tensor | OssicleError]:
        listener = batch[0].sound.listener
        if listener is None:
            embedded = self.ear.embed_speech([pending.sound.samples for pending in batch])
        else:
            embedded = [listener.embed(batch[0].sound.samples)]
        return [build_no_speech_error() if tokens is None else tokens for tokens in embedded]

    def _decode_batch(self, batch: Sequence[_PendingSound[str]]) -> list[str]:
        tokens = [pending.audio_tokens for pending in batch]
        return self.ear.decode_audio_tokens([rows for rows in tokens if rows is not None])

    def _transcribe_batch(self, batch: Sequence[_PendingSound[Transcript]]) -> list[Transcript]:
        options = [pending.options or TranscriptionOptions() for pending in batch]
        return self.ear.transcribe_with_language(
            [pending.sound.samples for pending in batch],
            languages=[each.language for each in options],
            previous=options[0].prompt,
            temperature=options[0].temperature,
            task=options[0].task,
            has_timestamps=options[0].has_timestamps,
        )

    def _resolve(
        self,
        queue: _Queue[_Result],
        batch: Sequence[_PendingSound[_Result]],
        compute: Callable[[Sequence[_PendingSound[_Result]]], Sequence[_Result | OssicleError]],
        store: Callable[[str, _Result], None],
    ) -> None:
        """Computes a batch and sets its futures; if it fails, each sound is tried alone and gets its own error."""
        results: Sequence[_Result | Exception] = []
        try:
            results = compute(batch)
        except Exception as error:
            if len(batch) > 1:
                for pending in batch:
                    self._resolve(queue, [pending], compute, store)
                return
            if not isinstance(error, OssicleError):
                LOG.exception("a sound could not be processed")
            results = [error]
        with self._lock:
            for pending, result in zip(batch, results, strict=True):
                _remove(queue, pending)
                if isinstance(result, Exception):
                    pending.future.set_exception(result)
                else:
                    store(pending.sound.key, result)
                    pending.future.set_result(result)


def _remove(queue: _Queue[_Result], pending: _PendingSound[_Result]) -> None:
    if queue.get(pending.key) is pending:
        del queue[pending.key]


def _select_batch(queue: _Queue[_Result]) -> list[_PendingSound[_Result]]:
    """Returns the oldest waiting sounds, as many as one batch may have."""
    batch: list[_PendingSound[_Result]] = []
    n_remaining = _MAX_BATCH_S * SAMPLE_RATE
    for pending in queue.values():
        if batch and not pending.shares_batch(batch[0]):
            continue
        n_remaining -= len(pending.sound.samples)
        if batch and (n_remaining < 0 or len(batch) == _MAX_BATCH):
            break
        batch.append(pending)
    return batch


class _AudioTokenCache:
    """Audio tokens by the key of their sound; the least recently used are evicted first."""

    def __init__(self) -> None:
        self.tokens: OrderedDict[str, Tensor] = OrderedDict()
        self.n_bytes = 0

    def get(self, key: str) -> Tensor | None:
        if key in self.tokens:
            self.tokens.move_to_end(key)
        return self.tokens.get(key)

    def put(self, key: str, tokens: Tensor) -> None:
        tokens = tokens.clone()  # a view would keep the whole batch alive
        if (old := self.tokens.pop(key, None)) is not None:  # heard twice, as its first clients had gone
            self.n_bytes -= old.nbytes
        self.tokens[key] = tokens
        self.n_bytes += tokens.nbytes
        while self.n_bytes > _CACHE_BYTES and len(self.tokens) > 1:
            self.n_bytes -= self.tokens.popitem(last=False)[1].nbytes
