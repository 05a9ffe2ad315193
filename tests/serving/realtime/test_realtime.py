"""The Realtime protocol over a real socket, with the pocket ear; every event is checked by the official models."""

import asyncio
import base64
import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import websockets
from support.realtime_client import (
    FRAME_BYTES,
    SILENCE,
    Client,
    build_official_client,
    from_pcm,
    join_deltas,
    list_types,
    load_pcm,
    open_session,
)
from support.serve_app import serve_app

import ossicle
from ossicle.audio.waveform import load_audio
from ossicle.ear import Ear
from ossicle.evaluation import load_suite
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics

MODEL = "pocket/ear"
FIRST, SECOND, *_ = load_suite("pocket")[40::40]
TURN = [
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.done",
    "conversation.item.input_audio_transcription.delta",
    "conversation.item.input_audio_transcription.completed",
]
ANSWER = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load(MODEL, device="cpu")


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="module")
def url(ear: Ear, metrics: Metrics) -> Iterator[str]:
    app = create_app(LocalEngine(ear, metrics), ServerSettings(model=MODEL), metrics)
    with serve_app(app) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with open_session(url) as client:
        yield client


def chat(ear: Ear, *turns: Any) -> str:
    """Returns the ear's own answer to turns of text or of sound as PCM, which the user and the assistant take."""
    messages = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": turn}
        if isinstance(turn, str)
        else {"role": "user", "content": [{"type": "audio", "audio": from_pcm(turn)}]}
        for i, turn in enumerate(turns)
    ]
    return ear.chat(messages)


# Turns


def test_a_spoken_turn_is_found_and_answered_in_openai_s_order(client: Client, ear: Ear) -> None:
    client.update(audio={"input": {"transcription": {"model": "whisper-1"}}})
    client.append(SILENCE * 5 + load_pcm(FIRST) + SILENCE * 12)
    events = client.receive_until("response.done")
    assert list_types(events) == [*TURN, *ANSWER]
    by_type = {event["type"]: event for event in events}
    started, stopped = by_type[TURN[0]], by_type[TURN[1]]
    assert 100 <= started["audio_start_ms"] <= 600
    assert 500 < stopped["audio_end_ms"] - started["audio_start_ms"] < 6_000
    user_id = started["item_id"]
    assert {by_type[kind]["item_id"] for kind in TURN if kind != TURN[3] and kind != TURN[4]} == {user_id}
    completed = by_type[TURN[-1]]
    assert completed["transcript"] == by_type[TURN[-2]]["delta"] == FIRST.text
    assert completed["usage"]["type"] == "duration"
    assert completed["usage"]["seconds"] > 0.5
    response = by_type["response.done"]["response"]
    (message,) = response["output"]
    text = message["content"][0]["text"]
    assert text == join_deltas(events) == chat(ear, FIRST.text)
    assert response["status"] == "completed"
    assert by_type["conversation.item.done"]["previous_item_id"] == user_id
    assert response["usage"]["input_token_details"]["audio_tokens"] > 0
    assert response["usage"]["total_tokens"] > response["usage"]["output_tokens"] > 0
    in_progress = by_type["response.created"]["response"]
    assert (in_progress["status"], in_progress["id"]) == ("in_progress", response["id"])


def test_a_turn_that_is_committed_by_hand_is_heard_as_the_whole_file(client: Client, ear: Ear) -> None:
    client.use_manual_turns(transcription={"model": "any"})
    data = load_pcm(SECOND)
    client.append(data)
    client.send("input_audio_buffer.commit")
    client.receive_until(TURN[-1])
    client.send("response.create")
    events = client.receive_until("response.done")
    assert list_types(events) == ANSWER
    assert join_deltas(events) == chat(ear, data)


def test_several_sounds_and_texts_are_one_conversation(client: Client, ear: Ear) -> None:
    client.use_manual_turns()
    first, second = load_pcm(FIRST), load_pcm(SECOND)
    sound = {"type": "input_audio", "audio": base64.b64encode(first).decode()}
    item = {"id": "my_first", "type": "message", "role": "user", "content": [sound]}
    client.send("conversation.item.create", item=item)
    added = client.receive_until("conversation.item.done")
    assert [event["item"]["id"] for event in added] == ["my_first"] * 2
    assert added[0]["previous_item_id"] is None
    answer = client.answer()["output"][0]
    assert answer["content"][0]["text"] == chat(ear, first)
    client.append(second)
    client.send("input_audio_buffer.commit")
    committed, *_ = client.receive_until("conversation.item.done")
    assert committed["previous_item_id"] == answer["id"]
    heard = client.answer()["output"][0]["content"][0]["text"]
    assert heard == chat(ear, first, answer["content"][0]["text"], second)


def test_two_turns_of_one_stream(client: Client) -> None:
    sounds = SILENCE * 5 + load_pcm(FIRST) + SILENCE * 10, load_pcm(SECOND) + SILENCE * 10
    client.append(sounds[0])
    client.receive_until("response.done")
    client.append(sounds[1])
    second = client.receive_until("response.done")
    assert list_types(second) == [*TURN[:5], *ANSWER]
    starts = [event["audio_start_ms"] for event in client.events if event["type"] == TURN[0]]
    ends = [event["audio_end_ms"] for event in client.events if event["type"] == TURN[1]]
    assert starts[0] < ends[0] < starts[1] < ends[1]


def test_turns_can_be_found_and_left_unanswered(client: Client) -> None:
    client.update(audio={"input": {"turn_detection": {"type": "server_vad", "create_response": False}}})
    client.append(load_pcm(FIRST) + SILENCE * 10)
    events = client.receive_until("conversation.item.done")
    assert list_types(events) == TURN[:5]
    assert client.answer()["status"] == "completed"


def test_more_silence_and_semantic_detection_wait_longer(client: Client) -> None:
    for detection, frames in (
        ({"type": "semantic_vad", "eagerness": "low"}, 14),
        ({"type": "server_vad"}, 4),
    ):
        client.update(audio={"input": {"turn_detection": {**detection, "create_response": False}}})
        client.append(load_pcm(FIRST) + SILENCE * frames)
        client.say("hello")  # answered when all sound is heard
        assert TURN[1] not in list_types(client.events)
        client.append(SILENCE * 3)
        client.receive_until(TURN[1])
        client.receive_until("conversation.item.done")
        client.events.clear()


def test_silence_is_no_turn_and_no_speech_is_not_answered(client: Client) -> None:
    client.append(SILENCE * 30)
    client.send("input_audio_buffer.clear")
    assert list_types(client.receive_until("input_audio_buffer.cleared")) == ["input_audio_buffer.cleared"]
    client.use_manual_turns(transcription={"model": "any"})
    client.append(SILENCE * 3)
    client.send("input_audio_buffer.commit")
    completed = client.receive_until(TURN[-1])[-1]
    assert completed["transcript"] == ""
    response = client.answer()
    assert (response["status"], response["output"]) == ("failed", [])
    assert "nothing to answer" in response["status_details"]["error"]["message"]


def test_a_turn_in_which_the_ear_hears_nobody_is_told_and_left_out(
    client: Client, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(-20_000, 20_000, 24_000, np.int16).tobytes()
    monkeypatch.setattr("ossicle.ear.DOUBTFUL_MEAN_LOG_PROB", 100.0)
    monkeypatch.setattr("ossicle.ear.expect_no_speech", lambda _whisper, states: [True] * len(states))
    monkeypatch.setattr(
        "ossicle.ear.find_speechless_windows",
        lambda _whisper, sounds, _states: [bool(np.median(np.abs(sound)) > 0.1) for sound in sounds],
    )
    for transcription in ({"model": "any"}, {"model": "whisper-1", "language": "en"}):
        client.use_manual_turns(transcription=transcription)
        client.append(noise)
        client.send("input_audio_buffer.commit")
        events = client.receive_until(TURN[-1])
        assert events[-1]["transcript"] == ""
        assert TURN[-2] not in list_types(events)
        response = client.answer()
        assert (response["status"], response["output"]) == ("failed", [])
        assert "no sound in which somebody speaks" in response["status_details"]["error"]["message"]
    client.append(load_pcm(FIRST))
    client.send("input_audio_buffer.commit")
    assert client.receive_until(TURN[-1])[-1]["transcript"] == FIRST.text
    assert client.answer()["output"][0]["content"][0]["text"] == chat(ear, FIRST.text)


def test_a_turn_in_which_the_ear_hears_nobody_gets_no_response(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ossicle.ear.DOUBTFUL_MEAN_LOG_PROB", 100.0)
    monkeypatch.setattr("ossicle.ear.expect_no_speech", lambda _whisper, states: [True] * len(states))
    monkeypatch.setattr(
        "ossicle.ear.find_speechless_windows", lambda _whisper, sounds, _states: [True] * len(sounds)
    )
    client.update(audio={"input": {"transcription": {"model": "whisper-1"}}})
    client.append(SILENCE * 5 + load_pcm(SECOND)[2_400:] + SILENCE * 12)
    events = client.receive_until(TURN[-1])
    assert events[-1]["transcript"] == ""
    assert TURN[-2] not in list_types(events)
    client.send("input_audio_buffer.clear")
    assert "response.created" not in list_types(client.receive_until("input_audio_buffer.cleared"))


def test_telephone_sound_is_heard(client: Client) -> None:
    for kind, subtype in (("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")):
        client.update(
            audio={
                "input": {
                    "format": {"type": kind},
                    "turn_detection": None,
                    "transcription": {"model": "any"},
                }
            }
        )
        file = io.BytesIO()
        samples = soxr.resample(load_audio(FIRST.audio), 16_000, 8_000)
        soundfile.write(file, samples, 8_000, format="RAW", subtype=subtype)
        client.append(file.getvalue())
        client.send("input_audio_buffer.commit")
        assert client.receive_until(TURN[-1])[-1]["transcript"] == FIRST.text


def test_a_language_or_prompt_asks_whisper_s_own_decoder(client: Client, ear: Ear) -> None:
    client.use_manual_turns(transcription={"model": "whisper-1", "language": "en"})
    client.append(load_pcm(FIRST))
    client.send("input_audio_buffer.commit")
    events = client.receive_until("conversation.item.input_audio_transcription.completed")
    assert events[-1]["transcript"] == ear.transcribe([from_pcm(load_pcm(FIRST))])[0]
    client.update(audio={"input": {"transcription": {"model": "whisper-1", "language": "xx"}}})
    client.append(load_pcm(FIRST))
    client.send("input_audio_buffer.commit")
    failed = client.receive_until("conversation.item.input_audio_transcription.failed")[-1]
    assert failed["error"]["param"] == "language"


# Items and responses


def test_items_are_inserted_retrieved_truncated_and_deleted(client: Client) -> None:
    client.use_manual_turns()
    last = client.say("what is the capital of japan")
    message = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "one two three"}],
    }
    client.send("conversation.item.create", previous_item_id="root", item={**message, "id": "a"})
    assert client.receive_until("conversation.item.done")[-1]["previous_item_id"] is None
    client.send("conversation.item.create", previous_item_id="a", item={**message, "id": "b"})
    assert client.receive_until("conversation.item.done")[-1]["previous_item_id"] == "a"
    client.send("conversation.item.truncate", item_id="b", content_index=0, audio_end_ms=600)
    assert client.receive()["audio_end_ms"] == 600
    client.send("conversation.item.retrieve", item_id="b")
    assert client.receive()["item"]["content"][0]["text"] == "one two"
    for item_id in ("a", "b"):
        client.send("conversation.item.delete", item_id=item_id)
        assert client.receive()["item_id"] == item_id
    client.send("conversation.item.retrieve", item_id="a")
    assert client.receive()["error"]["code"] == "item_retrieve_invalid_item_id"
    response = client.answer()
    assert "tokyo" in response["output"][0]["content"][0]["text"].lower()
    assert client.events[-2]["previous_item_id"] == last


def test_a_sound_is_retrieved_as_it_was_sent(client: Client) -> None:
    client.use_manual_turns()
    data = load_pcm(FIRST)
    client.append(data)
    client.send("input_audio_buffer.commit")
    item = client.receive_until("conversation.item.done")[-1]["item"]
    assert "audio" not in item["content"][0]
    client.send("conversation.item.retrieve", item_id=item["id"])
    audio = base64.b64decode(client.receive()["item"]["content"][0]["audio"])
    assert abs(len(audio) - len(data)) <= 4


def test_a_response_has_its_own_settings_and_echoes_its_metadata(client: Client, ear: Ear) -> None:
    client.use_manual_turns()
    item_id = client.say("what is the capital of japan")
    metadata = {"client_event_id": "response_create_1"}
    response = client.answer(metadata=metadata, max_output_tokens=1)
    created = next(event for event in client.events if event["type"] == "response.created")
    assert created["response"]["metadata"] == response["metadata"] == metadata
    assert response["status"] == "incomplete"
    assert response["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
    assert response["usage"]["output_tokens"] == 1
    message = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "what is 2 plus 2"}],
    }
    own = client.answer(conversation="none", input=[message])
    assert own["conversation_id"] is None
    assert own["output"][0]["content"][0]["text"] == chat(ear, "what is 2 plus 2")
    again = client.answer(conversation="none", input=[{"type": "item_reference", "id": item_id}])
    assert again["output"][0]["content"][0]["text"] == chat(ear, "what is the capital of japan")
    out_of_band = [event for event in client.events if event["type"] == "conversation.item.added"]
    assert len(out_of_band) == 2  # the user's, and the first response's


def test_instructions_alone_are_answered(client: Client, ear: Ear) -> None:
    client.use_manual_turns()
    greeting = client.answer(instructions="what is the capital of japan")
    assert greeting["output"][0]["content"][0]["text"] == chat(ear, "what is the capital of japan")


def test_answers_of_sessions_that_speak_together_are_those_of_each_alone(url: str, ear: Ear) -> None:
    items = load_suite("pocket")[20:200:40]

    async def ask(item: Any) -> str:
        async with build_official_client(url) as client, client.realtime.connect(model=MODEL) as session:
            await session.session.update(
                session={"type": "realtime", "audio": {"input": {"turn_detection": None}}}
            )
            data = load_pcm(item)
            for start in range(0, len(data), FRAME_BYTES):
                audio = base64.b64encode(data[start : start + FRAME_BYTES]).decode()
                await session.input_audio_buffer.append(audio=audio)
            await session.input_audio_buffer.commit()
            await session.response.create()
            async for event in session:
                assert event.type != "error", event
                if event.type == "response.output_text.done":
                    return event.text
        raise AssertionError("the session ended")

    async def ask_all() -> list[str]:
        async with asyncio.timeout(120):
            return await asyncio.gather(*map(ask, items))

    assert asyncio.run(ask_all()) == [chat(ear, load_pcm(item)) for item in items]


def test_browsers_send_their_key_as_a_subprotocol(url: str) -> None:
    address = url.replace("http", "ws", 1) + "/v1/realtime"

    async def connect() -> str | None:
        subprotocols = [websockets.Subprotocol(name) for name in ("realtime", "openai-insecure-api-key.k")]
        async with websockets.connect(address, subprotocols=subprotocols) as socket:
            return socket.subprotocol

    assert asyncio.run(connect()) == "realtime"


def test_closed_sessions_leave_nothing_behind(url: str, metrics: Metrics) -> None:
    for _ in range(3):
        with open_session(url) as client:
            client.append(load_pcm(FIRST) + SILENCE * 10)
            client.receive_until("response.created")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (metrics.sessions._value.get() or metrics.active._value.get()):
        time.sleep(0.05)
    assert metrics.sessions._value.get() == metrics.active._value.get() == 0
