"""A session and its turns, items and responses in every order, with an engine whose answers come when a test says so."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.realtime_client import check_event

from ossicle.serving.engine import ChatRequest, ChatResponse, Engine, Sound
from ossicle.serving.errors import CONTEXT_LENGTH_EXCEEDED, ApiError
from ossicle.serving.metrics import Metrics
from ossicle.serving.middleware import RequestSlots
from ossicle.serving.realtime import conversation
from ossicle.serving.realtime.outbox import Outbox
from ossicle.serving.realtime.session import RealtimeSession, SessionContext
from ossicle.serving.realtime.turns import TurnEdge
from ossicle.serving.realtime.voice_activity import DetectorPool

RATE = 24_000
Chunk = dict[str, Any]


class ScriptedEngine(Engine):
    """Answers each request by the chunks of `answer`, when `may_answer` is set."""

    def __init__(self) -> None:
        self.requests: list[list[dict[str, Any]]] = []
        """The messages of each."""
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.may_check = asyncio.Event()
        self.may_check.set()
        self.has_voice: Callable[[Sound], bool] = lambda _: True
        self.max_messages = 1_000
        self.answer: list[Chunk] = [{"content": "well"}]
        self.finish_reason = "stop"

    def listen(self, publish: Any) -> None: ...

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        raise NotImplementedError

    async def transcribe(self, sound: Sound, options: Any) -> Any:
        raise NotImplementedError

    async def close(self) -> None: ...

    async def has_speech(self, sound: Sound) -> bool:
        await self.may_check.wait()
        return self.has_voice(sound)

    async def transcribe_audio_tokens(self, sound: Sound) -> str:
        return f"{sound.duration_s:g} s"

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Chunk]:
        messages = json.loads(json.dumps(request.body["messages"], default=lambda sound: sound.key))
        if len(messages) > self.max_messages:
            raise ApiError("the conversation is too long", code=CONTEXT_LENGTH_EXCEEDED)
        self.requests.append(messages)
        return self._generate()

    async def _generate(self) -> AsyncGenerator[Chunk]:
        await self.may_answer.wait()
        response = ChatResponse(model="ear")
        for delta in self.answer:
            yield response.build_chunk(0, delta, None)
        yield response.build_chunk(0, {}, self.finish_reason)


class Session:
    """A session without a socket; every event is checked as the official client does."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine, self.events = engine, list[dict[str, Any]]()
        metrics = Metrics()
        self.slots = RequestSlots(4, metrics.active)
        context = SessionContext(
            engine=engine,
            model="ear",
            max_audio_s=60.0,
            slots=self.slots,
            detectors=DetectorPool(),
            count_audio=lambda seconds: None,
        )
        self._outbox = Outbox(self._receive)
        self.own = RealtimeSession(context, self._outbox)

    async def _receive(self, text: str) -> None:
        event = json.loads(text)
        check_event(event)
        self.events.append(event)

    async def send(self, kind: str, **fields: Any) -> None:
        await self.own.handle(json.dumps({"type": kind, **fields}))

    async def say(self, text: str, role: str = "user") -> None:
        kind = "output_text" if role == "assistant" else "input_text"
        content = [{"type": kind, "text": text}]
        await self.send(
            "conversation.item.create", item={"type": "message", "role": role, "content": content}
        )

    async def speak(self, seconds: float = 1.0, *, is_loud: bool = True) -> None:
        """Ends a turn as the detector of turns does."""
        self.own._buffer.append(build_sound(seconds) if is_loud else np.zeros(16_000, np.float32))
        end = self.own._buffer.end
        await self.own._pass_edge(TurnEdge("end", end, end), self.detection)

    @property
    def detection(self) -> Any:
        detection = self.own._settings.turn_detection
        assert detection is not None
        return detection

    async def wait_for(self, kind: str, n: int = 1) -> dict[str, Any]:
        """Waits for the n-th event of a type."""
        async with asyncio.timeout(10):
            while len(found := [event for event in self.events if event["type"] == kind]) < n:
                await asyncio.sleep(0.005)
        return found[n - 1]

    def list_items(self) -> list[str]:
        """Returns role and text of the items, as a client that follows the events has them."""
        order: list[dict[str, Any]] = []
        for event in self.events:
            if event["type"] == "conversation.item.added":
                ids = [item["id"] for item in order]
                previous = event["previous_item_id"]
                order.insert(0 if previous is None else ids.index(previous) + 1, event["item"])
            if event["type"] == "conversation.item.deleted":
                order = [item for item in order if item["id"] != event["item_id"]]
        own = [item.id for item in self.own._conversation.items]
        assert [item["id"] for item in order] == own
        return [item.get("role", item["type"]) for item in order]


def run(test: Callable[[Session], Coroutine[Any, Any, None]]) -> Session:
    """Runs a test in a session, which has lost nothing at its end."""

    async def run_session() -> Session:
        session = Session(ScriptedEngine())
        sending = asyncio.create_task(session._outbox.run())
        session.own.start()
        await test(session)
        await session.own.close()
        await session._outbox.flush(sending)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert session.slots.n_active == 0
        return session

    return asyncio.run(run_session())


def build_sound(seconds: float) -> np.ndarray:
    """A tone that comes and goes, so that it may be speech, at 16 kHz."""
    time_s = np.arange(round(seconds * 16_000)) / 16_000
    envelope = np.sin(2 * np.pi * 3 * time_s) > 0
    return (0.3 * np.sin(2 * np.pi * 440 * time_s) * envelope).astype(np.float32)


def describe(messages: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Returns role and texts or sounds of messages."""
    return [
        (
            message["role"],
            message["content"]
            if isinstance(message["content"], str | None)
            else [part.get("text", "sound") for part in message["content"]],
        )
        for message in messages
    ]


@pytest.mark.parametrize("instructions", ["", "Be brief."])
def test_what_is_said_during_an_answer_comes_after_it(instructions: str) -> None:
    async def test(session: Session) -> None:
        engine = session.engine
        await session.send("session.update", session={"type": "realtime", "instructions": instructions})
        engine.may_answer.clear()
        await session.say("one")
        await session.send("response.create")
        await session.say("two")
        engine.may_answer.set()
        await session.wait_for("response.done")
        assert session.list_items() == ["user", "assistant", "user"]
        await session.send("response.create")
        assert (await session.wait_for("response.done", 2))["response"]["status"] == "completed"
        system = [("system", instructions)] if instructions else []
        expected = [("user", ["one"]), ("assistant", ["well"]), ("user", ["two"])]
        assert describe(engine.requests[1]) == [*system, *expected]

    run(test)


def test_a_turn_during_an_answer_is_answered_next() -> None:
    async def test(session: Session) -> None:
        engine = session.engine
        detection = {"type": "server_vad", "interrupt_response": False}
        audio = {"input": {"turn_detection": detection}}
        await session.send("session.update", session={"type": "realtime", "audio": audio})
        engine.may_answer.clear()
        await session.speak()
        await session.wait_for("response.created")
        await session.speak(1.5)
        await session.speak(is_loud=False)  # a pause that somebody commits by hand takes nobody's turn
        engine.may_answer.set()
        await session.wait_for("response.done", 2)
        await asyncio.sleep(0.05)
        assert describe(engine.requests[1]) == [
            ("user", ["sound"]),
            ("assistant", ["well"]),
            ("user", ["sound"]),
        ]
        assert len(engine.requests) == 2

    run(test)


def test_a_turn_is_answered_when_it_is_known_that_somebody_speaks() -> None:
    async def test(session: Session) -> None:
        engine = session.engine
        instructions = {"type": "realtime", "instructions": "Be brief."}
        await session.send("session.update", session=instructions)
        await session.say("what is a cat")
        await session.send("response.create")
        await session.wait_for("response.done")
        engine.may_check.clear()
        engine.has_voice = lambda _: False
        await session.speak()
        other = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "classify"}]}
        await session.send("response.create", response={"conversation": "none", "input": [other]})
        await session.wait_for("response.done", 2)
        engine.may_check.set()
        await asyncio.sleep(0.05)
        assert [request[-1]["content"][0]["text"] for request in engine.requests] == [
            "what is a cat",
            "classify",
        ]

    run(test)


def test_a_cough_does_not_take_the_turn_before_it() -> None:
    """It is heard between a turn and its answer, and interrupts nothing that was said."""

    async def test(session: Session) -> None:
        engine = session.engine
        engine.may_check.clear()
        engine.has_voice = lambda sound: sound.duration_s > 0.8
        await session.speak()
        turns = await session.own._start_detection(session.detection)
        turns.is_speaking = True
        session.own._buffer.append(build_sound(0.3))
        await session.own._pass_edge(TurnEdge("start", session.own._buffer.start), session.detection)
        engine.may_check.set()
        await asyncio.sleep(0.05)
        assert not engine.requests  # somebody seems to go on
        turns.end_turn()
        await session.speak(0.3)
        await session.wait_for("response.done")
        assert [len(message["content"]) for message in engine.requests[0]] == [1]

    run(test)


@pytest.mark.parametrize("truncation", ["auto", {"type": "retention_ratio", "retention_ratio": 0.5}])
def test_a_conversation_beyond_the_context_loses_its_oldest_turns(truncation: Any) -> None:
    async def test(session: Session) -> None:
        session.engine.max_messages = 8
        await session.send("session.update", session={"type": "realtime", "truncation": truncation})
        for number in range(1, 7):
            await session.say(f"question {number}")
            await session.send("response.create")
            assert (await session.wait_for("response.done", number))["response"]["status"] == "completed"
        roles = session.list_items()
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert session.engine.requests[-1][-1]["content"][0]["text"] == "question 6"

    def count_deleted(session: Session) -> int:
        return sum(event["type"] == "conversation.item.deleted" for event in session.events)

    assert count_deleted(run(test)) == (4 if truncation == "auto" else 6)


def test_a_turn_that_never_fits_takes_nothing_with_it() -> None:
    async def test(session: Session) -> None:
        for number in (1, 2):
            await session.say("question")
            await session.send("response.create")
            await session.wait_for("response.done", number)
        session.engine.max_messages = 0
        await session.say("a long one")
        await session.send("response.create")
        assert (await session.wait_for("response.done", 3))["response"]["status"] == "failed"
        assert session.list_items() == ["user", "assistant"] * 2 + ["user"]

    run(test)


def test_a_turn_that_waits_is_not_taken_for_the_one_that_is_answered() -> None:
    async def test(session: Session) -> None:
        session.engine.max_messages = 0
        session.engine.may_check.clear()
        await session.speak()  # so that the response to it is still being opened
        await session.send("response.create")
        await session.say("two")
        session.engine.may_check.set()
        assert (await session.wait_for("response.done"))["response"]["status"] == "failed"
        assert session.list_items() == ["user", "user"]

    run(test)


@pytest.mark.parametrize(
    "truncation", [{"type": "retention_ratio"}, {"type": "retention_ratio", "retention_ratio": None}]
)
def test_a_ratio_that_is_left_out_keeps_what_fits(truncation: Any) -> None:
    async def test(session: Session) -> None:
        await session.send("session.update", session={"type": "realtime", "truncation": truncation})
        assert session.own._settings.truncation == {"type": "retention_ratio", "retention_ratio": 1.0}

    run(test)


@pytest.mark.parametrize("is_deleted", [True, False])
def test_an_answer_stays_before_what_was_said_during_it(
    monkeypatch: pytest.MonkeyPatch, is_deleted: bool
) -> None:
    """Also where the turn that it answers is gone by then."""

    async def test(session: Session) -> None:
        engine = session.engine
        engine.may_answer.clear()
        await session.say("one")
        await session.send("response.create")
        (first,) = session.own._conversation.items
        if is_deleted:
            await session.send("conversation.item.delete", item_id=first.id)
        else:
            monkeypatch.setattr(conversation, "MAX_ITEMS", 1)
        await session.say("two")
        monkeypatch.undo()
        engine.may_answer.set()
        await session.wait_for("response.done")
        assert session.list_items() == ["assistant", "user"]

    run(test)


def test_nothing_is_dropped_against_the_client_s_will() -> None:
    async def test(session: Session) -> None:
        session.engine.max_messages = 2
        await session.send("session.update", session={"type": "realtime", "truncation": "disabled"})
        for number in (1, 2):
            await session.say("question")
            await session.send("response.create")
            done = await session.wait_for("response.done", number)
        assert done["response"]["status"] == "failed"
        assert done["response"]["status_details"]["error"]["code"] == CONTEXT_LENGTH_EXCEEDED
        assert len(session.list_items()) == 3

    run(test)


@pytest.mark.parametrize("ends_by", ["length", "response.cancel"])
def test_half_a_call_is_not_sent_again(ends_by: str) -> None:
    async def test(session: Session) -> None:
        engine = session.engine
        function = {"name": "look", "arguments": '{"at": "Par'}
        engine.answer = [{"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]}]
        engine.finish_reason = "length"
        if ends_by != "length":
            engine.answer *= 2
            session._outbox.wait_for_room = asyncio.Event().wait  # ty: ignore[invalid-assignment]
        await session.say("where")
        await session.send("response.create")
        if ends_by != "length":
            await session.wait_for("response.function_call_arguments.delta")
            await session.send(ends_by)
        done = await session.wait_for("response.done")
        assert [item["status"] for item in done["response"]["output"]] == ["incomplete"]
        await session.say("go on")
        messages = conversation.to_messages(session.own._conversation.items, "")
        assert describe(messages) == [("user", ["where", "go on"])]

    run(test)


def test_arguments_that_are_no_object_are_refused() -> None:
    async def test(session: Session) -> None:
        for arguments in ('{"a"', "[]", "x" * 5_000, "[" * 100_000):
            call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": arguments}
            await session.send("conversation.item.create", item=call)
            error = await session.wait_for(
                "error", len([e for e in session.events if e["type"] == "error"]) or 1
            )
            assert error["error"]["param"] == "item.arguments"
        assert not session.own._conversation.items

    assert sum(event["type"] == "error" for event in run(test).events) == 4


def test_a_call_without_arguments_has_none() -> None:
    async def test(session: Session) -> None:
        call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": ""}
        await session.send("conversation.item.create", item=call)
        assert (await session.wait_for("conversation.item.done"))["item"]["arguments"] == "{}"

    run(test)


def test_a_refused_update_changes_nothing() -> None:
    async def test(session: Session) -> None:
        before = session.own._settings
        audio = {"input": {"format": {"type": "audio/pcmu"}, "turn_detection": None}}
        update = {"type": "realtime", "instructions": "X", "audio": audio}
        await session.send("session.update", session=update, extra=1)
        assert (await session.wait_for("error"))["error"]["param"] == "extra"
        assert session.own._settings == before

    run(test)


def test_what_is_cleared_is_another_item_than_what_comes_after() -> None:
    async def test(session: Session) -> None:
        audio = {"input": {"turn_detection": None, "transcription": {"model": "ear"}}}
        await session.send("session.update", session={"type": "realtime", "audio": audio})
        await append(session, 1.0)
        session.own._tell_words("how many legs")
        await session.send("input_audio_buffer.clear")
        await append(session, 0.5)
        session.own._tell_words("what is")
        await session.send("input_audio_buffer.commit")
        done = await session.wait_for("conversation.item.input_audio_transcription.completed")
        kind = "conversation.item.input_audio_transcription.delta"
        deltas = [event for event in session.events if event["type"] == kind]
        assert deltas[0]["item_id"] != deltas[1]["item_id"] == done["item_id"]

    run(test)


def test_others_get_their_turn_while_a_long_sound_is_appended() -> None:
    async def test(session: Session) -> None:
        audio = {"input": {"turn_detection": None}}
        await session.send("session.update", session={"type": "realtime", "audio": audio})
        n_turns = 0

        async def count() -> None:
            nonlocal n_turns
            while True:
                await asyncio.sleep(0)
                n_turns += 1

        counting = asyncio.create_task(count())
        await append(session, 30.0)
        counting.cancel()
        assert n_turns > 20

    run(test)


async def append(session: Session, seconds: float) -> None:
    pcm = np.rint(np.resize(build_sound(1.0), round(seconds * RATE)) * 32_767).astype("<i2").tobytes()
    await session.send("input_audio_buffer.append", audio=base64.b64encode(pcm).decode())


def test_a_response_that_is_canceled_twice_gives_its_slot_back() -> None:
    async def test(session: Session) -> None:
        closing = asyncio.Event()

        async def generate() -> AsyncGenerator[Chunk]:
            try:
                yield ChatResponse(model="ear").build_chunk(0, {"content": "well"}, None)
            finally:
                closing.set()
                await asyncio.sleep(0.05)

        session.engine._generate = generate
        session._outbox.wait_for_room = asyncio.Event().wait  # ty: ignore[invalid-assignment]
        await session.say("hello")
        await session.send("response.create")
        await session.wait_for("response.output_text.delta")
        ((_, task),) = session.own._responses.values()
        await session.send("response.cancel")
        await closing.wait()
        task.cancel()  # as a session that is closed does
        await asyncio.wait({task})

    run(test)


# Conversations as messages


def build_talk(*roles: str) -> conversation.Conversation:
    talk = conversation.Conversation(60.0)
    for number, role in enumerate(roles):
        content = [{"type": "text", "text": str(number)}]
        talk.insert(conversation.Item(conversation.build_item("message", role=role, content=content)))
    return talk


@pytest.mark.parametrize(
    ("roles", "instructions", "expected"),
    [
        (("assistant", "user"), "Greet.", [("user", "Greet."), ("assistant", ["0"]), ("user", ["1"])]),
        (("assistant", "user"), "", [("assistant", ["0"]), ("user", ["1"])]),
        (("user", "user"), "Be brief.", [("system", "Be brief."), ("user", ["0", "1"])]),
        (("system", "user"), "Be brief.", [("system", ["Be brief.", "0"]), ("user", ["1"])]),
        (("user", "assistant", "assistant"), "", [("user", ["0"]), ("assistant", ["1", "2"])]),
    ],
)
def test_roles_alternate_where_they_can(roles: tuple[str, ...], instructions: str, expected: Any) -> None:
    assert describe(conversation.to_messages(build_talk(*roles).items, instructions)) == expected


def test_what_is_kept_begins_with_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "MAX_ITEMS", 3)
    talk = build_talk("user", "assistant", "user", "assistant")
    assert [item.content[0]["text"] for item in talk.drop_oldest()] == ["0", "1"]
    assert build_talk("user", "assistant", "assistant", "assistant").drop_oldest()


def test_the_number_of_sounds_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "MAX_SOUNDS", 5)
    monkeypatch.setattr(conversation, "MAX_SOUNDS_PER_MESSAGE", 2)
    talk = conversation.Conversation(60.0)
    for number in range(7):
        heard = conversation.hear(build_sound(0.3), 60.0, "audio")
        heard.sound = replace(heard.sound, key=str(number))
        talk.insert(conversation.build_spoken_item(f"item_{number}", heard))
    assert [item.id for item in talk.drop_oldest()] == ["item_0", "item_1"]
    assert [len(content) for _, content in describe(conversation.to_messages(talk.items, ""))] == [2, 2, 1]
    with pytest.raises(ApiError, match=r"input has 6 sounds of 1\.8 s, expected at most 5 of 60 s"):
        conversation.check_sounds([*talk.items, talk.items[0]], 60.0, "input")
    audio = base64.b64encode(bytes(4_800)).decode()
    content = [{"type": "input_audio", "audio": audio}] * 3
    with pytest.raises(ApiError, match="expected at most 2 sounds"):
        conversation.read_item({"type": "message", "role": "user", "content": content}, "audio/pcm", 60.0)
