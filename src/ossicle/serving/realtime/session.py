"""One session: a client's events change its settings, its buffer and its conversation, and start responses.

It knows an engine and an outbox, and no sockets.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.errors import OssicleError
from ossicle.serving.engine import ChatRequest, Engine, TranscriptionOptions
from ossicle.serving.errors import CONTEXT_LENGTH_EXCEEDED, ApiError, build_internal_error, to_api_error
from ossicle.serving.middleware import RequestSlot, RequestSlots
from ossicle.serving.realtime import conversation as items
from ossicle.serving.realtime.conversation import Conversation, Item, new_id
from ossicle.serving.realtime.early_answer import EarlyAnswer
from ossicle.serving.realtime.fields import Fields, invalid
from ossicle.serving.realtime.input_audio import (
    AudioInput,
    check_whole_samples,
    count_bytes_per_second,
    decode_base64,
)
from ossicle.serving.realtime.live_turn import LiveTurn
from ossicle.serving.realtime.outbox import Outbox
from ossicle.serving.realtime.response import Response
from ossicle.serving.realtime.settings import (
    ResponseSettings,
    SessionSettings,
    TurnDetection,
    read_metadata,
    read_output,
    read_response_settings,
)
from ossicle.serving.realtime.spoken_text import Voice
from ossicle.serving.realtime.turns import SAMPLES_PER_MS, SoundBuffer, TurnDetector, TurnEdge
from ossicle.serving.realtime.voice_activity import DetectorPool, VoiceActivityDetector
from ossicle.serving.request_body import read_json
from ossicle.serving.synthesis.base import Synthesizer
from ossicle.serving.worker import LOG

SESSION_S = 3_600.0
"""OpenAI's longest session."""
_MIN_COMMIT_MS = 100
_MAX_RESPONSES = 8
"""Of one session at a time."""
_MAX_TASKS = 16
"""Responses and transcriptions of one session that may run; before more, its next event waits."""
_MAX_ID = 512
_TRANSCRIPTION = "conversation.item.input_audio_transcription"
_IDLE_BUFFER_MS = 30_000
"""Sound before any speech that is kept for a commit by hand."""


@dataclass(frozen=True, kw_only=True)
class SessionContext:
    """What the sessions of one server share."""

    engine: Engine
    model: str
    max_audio_s: float
    """Seconds of sound in a conversation."""
    slots: RequestSlots
    detectors: DetectorPool
    count_audio: Callable[[float], None]
    """Told the seconds of each turn."""
    synthesizer: Synthesizer | None = None
    """Speaks answers; None where they are text."""


class RealtimeSession:
    """A session, from `start` to `close`."""

    def __init__(self, context: SessionContext, outbox: Outbox) -> None:
        self.id = new_id("sess")
        self._context, self._outbox, self._put = context, outbox, outbox.put
        self._expires_at = int(time.time() + SESSION_S)
        can_speak = context.synthesizer is not None
        self._settings = SessionSettings(response=ResponseSettings(is_spoken=can_speak))
        self._conversation = Conversation(context.max_audio_s)
        self._input = AudioInput(self._settings.input_format)
        self._buffer = SoundBuffer()
        self._turn_id = new_id("item")
        """The id of the item that the buffer will become."""
        self._live: LiveTurn | None = None
        """The turn that is being spoken."""
        self._early: EarlyAnswer | None = None
        """The answer to that turn, in case that it has ended."""
        self._early_pause: int | None = None
        """The pause that it was begun in."""
        self._detector: VoiceActivityDetector | None = None
        self._turns: TurnDetector | None = None
        self._feeding: asyncio.Future[list[TurnEdge]] | None = None
        """The last sound on its way through the detector."""
        self._responses: dict[str, tuple[Response, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: dict[Item, bool] = {}
        """The turns that wait for a response, and whether they are ready for it: heard, and transcribed if need be."""
        self._handlers: Mapping[str, Callable[[Fields], Awaitable[None]]] = {
            "session.update": self._update_session,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "output_audio_buffer.clear": self._ignore,
            "conversation.item.create": self._create_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.truncate": self._truncate_item,
            "conversation.item.delete": self._delete_item,
            "response.create": self._create_response,
            "response.cancel": self._cancel_response,
        }

    def start(self) -> None:
        """Greets the client."""
        self._put("session.created", session=self._to_json())

    async def close(self) -> None:
        """Ends all work."""
        self._waiting.clear()
        self._stop_listening()
        tasks = self._running
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._feeding is not None:
            await asyncio.wait({self._feeding})  # a thread may still use the detector
        detector, self._detector, self._turns = self._detector, None, None
        if detector is not None:
            self._context.detectors.release(detector)

    async def handle(self, text: str) -> None:
        """Handles one client event; what is wrong with it becomes an error event."""
        event_id = None
        try:
            event = read_json(text.encode("utf-8", "surrogatepass"), "a Realtime event with a type")
            event_id = event.get("event_id") if isinstance(event.get("event_id"), str) else None
            fields = Fields(event, "")
            fields.text("event_id", None, max_characters=_MAX_ID)
            kind = fields.require_text("type", max_characters=1 << 20)
            if kind not in self._handlers:
                raise invalid("type", kind, f"one of {', '.join(self._handlers)}")
            await self._handlers[kind](fields)
        except OssicleError as error:
            self.report(to_api_error(error), event_id)
        except Exception:
            LOG.exception("an event of a Realtime session failed")
            self.report(build_internal_error(), event_id)
        while len(running := self._running) > _MAX_TASKS:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    def report(self, error: ApiError, event_id: str | None = None) -> None:
        """Sends an error event.

        Args:
            event_id: of the client's event that is wrong
        """
        self._put("error", error={**error.body["error"], "event_id": event_id and event_id[:_MAX_ID]})

    @property
    def _running(self) -> list[asyncio.Task[None]]:
        return [*self._tasks, *(task for _, task in self._responses.values())]

    def _to_json(self) -> dict[str, Any]:
        head = {"id": self.id, "model": self._context.model, "expires_at": self._expires_at}
        return {**self._settings.to_json(), **head}

    # Settings

    async def _update_session(self, fields: Fields) -> None:
        before = self._settings
        settings = before.update(
            fields.any("session"), self._context.model, can_speak=self._context.synthesizer is not None
        )
        fields.finish()
        self._settings = settings
        if self._settings.input_format != before.input_format:
            self._input = AudioInput(self._settings.input_format)
        if self._settings.turn_detection != before.turn_detection:
            self._forget_turn()
        self._put("session.updated", session=self._to_json())

    async def _ignore(self, fields: Fields) -> None:
        """Does nothing: there is no sound to play."""
        fields.finish()

    # Sound

    async def _append(self, fields: Fields) -> None:
        audio = fields.require_text("audio", max_characters=items.MAX_AUDIO_CHARACTERS)
        fields.finish()
        data = decode_base64(audio, "audio")
        check_whole_samples(data, self._input.format)
        n_bytes = count_bytes_per_second(self._input.format)
        for start in range(0, len(data), n_bytes):  # a second, so that others get their turn
            await self._hear(data[start : start + n_bytes])

    async def _hear(self, data: bytes) -> None:
        """Appends sound to the buffer, and looks for the edges of turns in it."""
        samples = self._input.decode(data)
        detection = self._settings.turn_detection
        max_samples = int(self._context.max_audio_s * SAMPLE_RATE)
        if detection is None:
            if self._buffer.n_samples + len(samples) > max_samples:
                raise ApiError(
                    f"the input audio buffer holds {self._context.max_audio_s:g} s of sound, as much as a conversation"
                    " may have on this server: commit or clear it",
                    param="audio",
                    code="input_audio_buffer_full",
                )
            self._buffer.append(samples)
            self._listen(samples, None)
            await asyncio.sleep(0)
            return
        turns = self._turns or await self._start_detection(detection)
        self._buffer.append(samples)
        self._feeding = asyncio.ensure_future(asyncio.to_thread(turns.feed, samples))
        for edge in await asyncio.shield(self._feeding):
            await self._pass_edge(edge, detection)
        if not turns.is_speaking:
            kept_ms = max(_IDLE_BUFFER_MS, detection.prefix_padding_ms)
            self._buffer.drop_before(self._buffer.end - kept_ms * SAMPLES_PER_MS)
        elif self._buffer.n_samples >= max_samples:
            turns.end_turn()
            await self._pass_edge(TurnEdge("end", self._buffer.end, self._buffer.end), detection)
        else:
            pause = None if turns.pause is None else turns.pause - self._buffer.start
            self._listen(samples, pause)
            self._answer_early(pause, detection)

    def _answer_early(self, pause: int | None, detection: TurnDetection) -> None:
        """Begins to answer the turn in a pause that may be its end, where nobody else is answered.

        Args:
            pause: samples of the turn before it; None while somebody speaks
        """
        if pause == self._early_pause:
            return
        self._drop_early()
        self._early_pause = pause
        slots, is_busy = self._context.slots, self._active is not None or bool(self._waiting)
        if pause is None or is_busy or slots.n_active or not detection.create_response:
            return
        samples, live, settings = self._buffer.peek()[:pause].copy(), self._live, self._settings
        turn = items.build_item("message", role="user", content=[{"type": "input_audio"}])

        def build_request(heard: items.HeardSound) -> ChatRequest:
            context = [*self._conversation.items, Item(turn, {0: heard})]
            response = settings.response
            return self._build_request(response, items.to_messages(context, response.instructions))

        transcription = settings.transcription
        self._early = EarlyAnswer(
            self._context.engine,
            lambda: items.hear(samples, math.inf, "audio", live),
            build_request,
            tells_words=transcription is not None and not transcription.is_guided,
            slot=slots.acquire(),
        )
        self._follow(self._early.task)

    def _drop_early(self) -> None:
        if self._early is not None:
            self._early.drop()
        self._early = self._early_pause = None

    def _listen(self, samples: Float32[np.ndarray, " N"], pause: int | None) -> None:
        """Has the engine hear the last samples of the buffer, which is the turn that is being spoken."""
        if self._live is None:
            self._live = LiveTurn(self._context.engine, self._tell_words)
            samples = self._buffer.peek()
        self._live.feed(samples, pause)

    def _tell_words(self, text: str) -> None:
        transcription = self._settings.transcription
        if transcription is not None and not transcription.is_guided:
            self._put(f"{_TRANSCRIPTION}.delta", item_id=self._turn_id, content_index=0, delta=text)

    def _stop_listening(self) -> LiveTurn | None:
        """Ends the hearing of the turn that is being spoken."""
        self._early_pause = None
        live, self._live = self._live, None
        if live is not None:
            live.end()
        return live

    async def _start_detection(self, detection: TurnDetection) -> TurnDetector:
        if self._detector is None:
            self._detector = await asyncio.to_thread(self._context.detectors.acquire)
        else:
            self._detector.reset()
        self._turns = TurnDetector(self._detector.score, detection.thresholds, self._buffer.end)
        return self._turns

    async def _pass_edge(self, edge: TurnEdge, detection: TurnDetection) -> None:
        if edge.kind == "start":
            self._buffer.drop_before(edge.position)
            self._stop_listening()
            self._drop_early()
            start_ms = self._buffer.start // SAMPLES_PER_MS
            self._put("input_audio_buffer.speech_started", audio_start_ms=start_ms, item_id=self._turn_id)
            if detection.interrupt_response:
                self._cancel_active("turn_detected")
            return
        end_ms = edge.position // SAMPLES_PER_MS
        self._put("input_audio_buffer.speech_stopped", audio_end_ms=end_ms, item_id=self._turn_id)
        await self._commit_until(edge.sound_end, creates_response=detection.create_response)
        self._buffer.drop_before(edge.position)

    async def _commit(self, fields: Fields) -> None:
        fields.finish()
        n_missing = _MIN_COMMIT_MS * SAMPLES_PER_MS - self._buffer.n_samples
        tail = self._input.decode(b"", is_last=True)
        self._buffer.append(tail)
        if n_missing > len(tail):
            raise ApiError(
                f"Error committing input audio buffer: buffer too small. Expected at least {_MIN_COMMIT_MS}ms of audio,"
                f" but buffer only has {self._buffer.n_samples / SAMPLES_PER_MS:.2f}ms of audio.",
                code="input_audio_buffer_commit_empty",
            )
        await self._commit_until(self._buffer.end, creates_response=False)
        self._turns = None

    async def _clear(self, fields: Fields) -> None:
        fields.finish()
        self._input.reset()
        self._buffer.drop_before(self._buffer.end)
        self._forget_turn()
        self._put("input_audio_buffer.cleared")

    def _forget_turn(self) -> None:
        """Forgets what was heard of the turn that is being spoken; what comes of its sound is another item."""
        self._turns = None
        self._turn_id = new_id("item")
        self._stop_listening()
        self._drop_early()
        self._answer_turns()

    async def _commit_until(self, position: int, *, creates_response: bool) -> None:
        """Makes the sound before a position an item of the user's, and answers it."""
        samples = self._buffer.take_until(position)
        live = self._stop_listening()
        heard = await asyncio.to_thread(items.hear, samples, math.inf, "audio", live)
        self._context.count_audio(heard.sound.duration_s)
        item = items.build_spoken_item(self._turn_id, heard)
        self._turn_id = new_id("item")
        previous_id = self._conversation.last_id
        self._put("input_audio_buffer.committed", previous_item_id=previous_id, item_id=item.id)
        self._add_item(item, None)
        if creates_response and heard.is_speech:
            self._waiting[item] = False
        self._run(self._react(item))

    # Items

    def _add_item(self, item: Item, previous_id: str | None) -> None:
        previous_id = self._conversation.insert(item, previous_id)
        self._put("conversation.item.added", previous_item_id=previous_id, item=item.to_json())
        self._put("conversation.item.done", previous_item_id=previous_id, item=item.to_json())
        self._tell_deleted(self._conversation.drop_oldest())

    def _tell_deleted(self, deleted: Sequence[Item]) -> None:
        for item in deleted:
            self._waiting.pop(item, None)
            self._put("conversation.item.deleted", item_id=item.id)

    async def _create_item(self, fields: Fields) -> None:
        previous_id = fields.text("previous_item_id", None, max_characters=_MAX_ID)
        item = await asyncio.to_thread(
            items.read_item, fields.any("item"), self._settings.input_format, self._context.max_audio_s
        )
        fields.finish()
        self._add_item(item, previous_id)
        if item.sounds:
            self._context.count_audio(item.duration_s)
            self._run(self._react(item))

    def _get_item(self, fields: Fields, code: str) -> Item:
        item_id = fields.require_text("item_id", max_characters=_MAX_ID)
        return self._conversation.get(item_id, param="item_id", code=code)

    async def _retrieve_item(self, fields: Fields) -> None:
        item = self._get_item(fields, "item_retrieve_invalid_item_id")
        fields.finish()
        copy = await asyncio.to_thread(item.to_json, with_audio=True)
        self._put("conversation.item.retrieved", item=copy)

    async def _truncate_item(self, fields: Fields) -> None:
        item = self._get_item(fields, "item_truncate_invalid_item_id")
        index = fields.integer("content_index", 0, 0, 0)
        audio_end_ms = fields.integer("audio_end_ms", 0, 0, 1 << 31)
        fields.finish()
        if item.fields.get("role") != "assistant":
            raise ApiError(
                f"the item {item.id!r} is not the assistant's, expected one of its messages",
                param="item_id",
                code="item_truncate_invalid_item_id",
            )
        items.truncate(item, audio_end_ms)
        place = {"item_id": item.id, "content_index": index, "audio_end_ms": audio_end_ms}
        self._put("conversation.item.truncated", **place)

    async def _delete_item(self, fields: Fields) -> None:
        item = self._get_item(fields, "item_delete_invalid_item_id")
        fields.finish()
        self._tell_deleted(self._conversation.drop([item]))

    # Transcripts

    async def _react(self, item: Item) -> None:
        """Tells the client what was heard in an item, and answers it where the turn is to be answered."""
        await self._find_speech([item])
        if not item.has_speech:
            self._waiting.pop(item, None)
        if item not in self._waiting:
            self._drop_early()
        transcription = self._settings.transcription
        if transcription is not None and transcription.is_guided:
            self._make_ready(item)  # Whisper's own decoder takes its time
        if transcription is not None:
            for index in item.sounds:
                await self._transcribe(item, index)
        self._make_ready(item)

    def _make_ready(self, item: Item) -> None:
        """Answers a turn as soon as may be."""
        if item in self._waiting:
            self._waiting[item] = True
        self._answer_turns()

    async def _find_speech(self, context: Sequence[Item]) -> None:
        """Asks the ear which sounds have speech; a sound that it cannot hear at all fails where it is used."""
        for heard in (heard for item in context for heard in item.sounds.values()):
            if heard.is_speech and not heard.is_checked:
                with suppress(Exception):
                    heard.is_speech = await self._context.engine.has_speech(heard.sound)
                    heard.is_checked = True
                    # Its audio tokens are in the engine's cache.
                    heard.sound = replace(heard.sound, listener=None)

    async def _transcribe(self, item: Item, index: int) -> None:
        heard, place = item.sounds[index], {"item_id": item.id, "content_index": index}
        try:
            text = await self._find_words(heard) if heard.is_speech else ""
        except Exception as error:
            if not isinstance(error, OssicleError):
                LOG.exception("a transcription of a Realtime session failed")
            is_known = isinstance(error, OssicleError)
            body = (to_api_error(error) if is_known else build_internal_error()).body["error"]
            self._put(f"{_TRANSCRIPTION}.failed", **place, error=body)
            return
        item.content[index]["transcript"] = text
        if new := heard.transcript.finish(text):
            self._put(f"{_TRANSCRIPTION}.delta", **place, delta=new)
        usage = {"type": "duration", "seconds": heard.sound.duration_s}
        self._put(f"{_TRANSCRIPTION}.completed", **place, transcript=text, usage=usage)

    async def _find_words(self, heard: items.HeardSound) -> str:
        settings = self._settings.transcription
        if settings is None or not settings.is_guided:
            if self._early is not None and (words := await self._early.find_words(heard.sound)) is not None:
                return words
            return await self._context.engine.transcribe_audio_tokens(heard.sound)
        options = TranscriptionOptions(language=settings.language, prompt=settings.prompt)
        return (await self._context.engine.transcribe(heard.sound, options)).text

    # Responses

    @property
    def _active(self) -> Response | None:
        """The response that writes to the conversation, of which there is one at a time."""
        running = (response for response, _ in self._responses.values())
        return next(
            (each for each in running if each.conversation is not None and not each.is_finished), None
        )

    def _answer_turns(self) -> None:
        """Starts the response to all turns that wait, unless another one is being generated or somebody interrupts."""
        if (
            self._waiting
            and all(self._waiting.values())
            and self._active is None
            and not self._is_interrupted
        ):
            self._waiting.clear()
            response = self._build_response(self._settings.response, self._conversation)
            self._start_response(response, self._conversation.items)

    @property
    def _is_interrupted(self) -> bool:
        """Whether somebody speaks and is not to be answered meanwhile."""
        detection = self._settings.turn_detection
        is_speaking = self._turns is not None and self._turns.is_speaking
        return is_speaking and detection is not None and detection.interrupt_response

    async def _create_response(self, fields: Fields) -> None:
        if len(self._responses) >= _MAX_RESPONSES:
            raise ApiError(
                f"{_MAX_RESPONSES} responses of this session are being generated, as many as may be: wait for one",
                code="too_many_responses",
            )
        settings, is_stored, context = await self._read_response(fields)
        active = self._active
        if is_stored and active is not None:
            raise ApiError(
                f"Conversation already has an active response in progress: {active.id}. Wait until the response is"
                " finished before creating a new one.",
                code="conversation_already_has_active_response",
            )
        if is_stored:
            self._waiting.clear()
        response = self._build_response(settings, self._conversation if is_stored else None)
        self._start_response(response, context)

    def _build_response(self, settings: ResponseSettings, conversation: Conversation | None) -> Response:
        synthesizer = self._context.synthesizer
        voice = None
        if settings.is_spoken and synthesizer is not None:
            voice = Voice(
                synthesizer=synthesizer,
                name=settings.voice,
                speed=settings.speed,
                format=settings.output_format,
                wait_for_room=self._outbox.wait_for_sound_room,
            )
        return Response(settings, conversation, self._put, voice)

    async def _read_response(self, fields: Fields) -> tuple[ResponseSettings, bool, list[Item]]:
        """Returns the settings of a response, whether the conversation gets it, and the items that it answers."""
        wanted = fields.object("response")
        fields.finish()
        base = self._settings.response
        can_speak = self._context.synthesizer is not None
        settings = read_response_settings(wanted, base, can_speak=can_speak)
        audio = wanted.object("audio")
        settings = read_output(audio.object("output"), settings)
        audio.finish()
        settings = replace(settings, metadata=read_metadata(wanted))
        is_stored = wanted.choice("conversation", "auto", ("auto", "none")) == "auto"
        wanted.refuse("prompt", "this server stores no prompts; set instructions")
        context = self._conversation.items
        if wanted.any("input") is not None:
            context = [
                await self._read_input(value, f"{wanted.name('input')}[{index}]")
                for index, value in enumerate(wanted.items("input", max_items=items.MAX_ITEMS))
            ]
            items.check_sounds(context, self._context.max_audio_s, wanted.name("input"))
        wanted.finish()
        return settings, is_stored, context

    async def _read_input(self, value: Any, where: str) -> Item:
        if isinstance(value, dict) and value.get("type") == "item_reference":
            item_id = Fields(value, where).require_text("id", max_characters=_MAX_ID)
            return self._conversation.get(item_id, param=f"{where}.id", code="invalid_value")
        return await asyncio.to_thread(
            items.read_item, value, self._settings.input_format, self._context.max_audio_s, where
        )

    async def _cancel_response(self, fields: Fields) -> None:
        response_id = fields.text("response_id", None, max_characters=_MAX_ID)
        fields.finish()
        if response_id is None:
            is_canceled = self._cancel_active("client_cancelled")
        else:
            response, task = self._responses.get(response_id, (None, None))
            is_canceled = response is not None and not response.is_finished
            self._cancel(response, task, "client_cancelled")
        if not is_canceled:
            raise ApiError("Cancellation failed: no active response found", code="response_cancel_not_active")

    def _cancel_active(self, reason: str) -> bool:
        active = self._active
        if active is not None:
            self._cancel(*self._responses[active.id], reason)
        return active is not None

    def _cancel(self, response: Response | None, task: asyncio.Task[None] | None, reason: str) -> None:
        if response is not None and task is not None and not response.is_finished:
            self._outbox.drop_sound(response.id)
            response.cancel(reason)
            task.cancel()

    def _start_response(self, response: Response, context: list[Item]) -> None:
        response.start()
        task = asyncio.create_task(self._generate(response, [*context]))
        self._responses[response.id] = (response, task)
        task.add_done_callback(lambda _: self._end_response(response))

    def _end_response(self, response: Response) -> None:
        del self._responses[response.id]
        self._answer_turns()

    async def _generate(self, response: Response, context: Sequence[Item]) -> None:
        try:
            await self._find_speech(context)
            chunks, slot = await self._open_fitting_answer(response, context)
            try:
                async for chunk in chunks:
                    await response.add_chunk(chunk)
                    await self._outbox.wait_for_room()
            finally:
                try:
                    await chunks.aclose()  # ty: ignore[missing-attribute]
                finally:
                    slot.release()
            await response.complete()
        except OssicleError as error:
            response.fail(to_api_error(error))
        except Exception:
            LOG.exception("a response of a Realtime session failed")
            response.fail(build_internal_error())
        finally:
            response.stop_speech()

    async def _open_fitting_answer(
        self, response: Response, context: Sequence[Item]
    ) -> tuple[AsyncIterator[dict[str, Any]], RequestSlot]:
        """Returns `_open_answer` of a response; a conversation that is too long for the LLM loses its oldest turns."""
        truncation, dropped = self._settings.truncation, list[Item]()
        may_drop = response.conversation is not None and truncation != "disabled"
        may_drop = may_drop and self._conversation.items[:1] == list(context[:1])
        while True:
            messages = items.to_messages(context[len(dropped) :], response.settings.instructions)
            try:
                opened = await self._open_answer(self._build_request(response.settings, messages))
            except OssicleError as error:
                is_too_long = to_api_error(error).code == CONTEXT_LENGTH_EXCEEDED
                n_dropped = (
                    items.count_oldest(context, len(dropped), truncation) if is_too_long and may_drop else 0
                )
                if not n_dropped:
                    raise
                dropped = list(context[:n_dropped])
            else:
                self._tell_deleted(self._conversation.drop(dropped))
                return opened

    async def _open_answer(self, request: ChatRequest) -> tuple[AsyncIterator[dict[str, Any]], RequestSlot]:
        """Returns the chunks of an answer, one that was begun early where it answers this request, and their slot."""
        early, self._early = self._early, None
        if early is not None:
            if (chunks := await early.take(request)) is not None:
                return chunks, RequestSlot(None)
            await early.end()
        slot = self._context.slots.acquire()
        try:
            return await self._context.engine.stream(request), slot
        except BaseException:
            slot.release()
            raise

    def _build_request(self, settings: ResponseSettings, messages: list[dict[str, Any]]) -> ChatRequest:
        messages = _ask_for_answer(messages, settings.instructions)
        body: dict[str, Any] = {"model": self._context.model, "messages": messages}
        if settings.max_output_tokens is not None:
            body["max_completion_tokens"] = settings.max_output_tokens
        if settings.tools and settings.tool_choice != "none":
            body["tools"] = [_to_chat_tool(tool) for tool in settings.tools]
            body["tool_choice"] = _to_chat_choice(settings.tool_choice)
            body["parallel_tool_calls"] = settings.parallel_tool_calls
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return ChatRequest(body=body, is_streamed=True, include_usage=True)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._follow(asyncio.create_task(work))

    def _follow(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _to_chat_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _to_chat_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    return {"type": "function", "function": {"name": choice["name"]}}


def _ask_for_answer(messages: list[dict[str, Any]], instructions: str) -> list[dict[str, Any]]:
    """Returns messages of which the last is somebody's who waits for an answer: else the instructions, as a user's.

    Clients have the LLM greet its user that way.

    Raises:
        ApiError: nobody has said anything, and there are no instructions
    """
    spoken = [message for message in messages if message["role"] != "system"]
    if spoken and (spoken[-1]["role"] != "assistant" or not instructions.strip()):
        return messages
    if not instructions.strip():
        raise ApiError(
            "there is nothing to answer: the conversation has no text and no sound in which somebody speaks, and there"
            " are no instructions",
            code="invalid_value",
        )
    return [*spoken, {"role": "user", "content": instructions}]
