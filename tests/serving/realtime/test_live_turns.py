"""Turns are heard while they are spoken, and nothing of the result depends on it."""

import base64
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.realtime_client import (
    FRAME_BYTES,
    SILENCE,
    Client,
    from_pcm,
    join_deltas,
    list_types,
    load_pcm,
    open_session,
    wait_until,
)
from support.serve_app import serve_app

import ossicle
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.ear import Ear
from ossicle.errors import RequestError
from ossicle.evaluation import load_suite
from ossicle.serving import turn_listening
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.engine import ChatRequest
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics
from ossicle.serving.realtime.live_turn import LiveTranscript
from ossicle.serving.turn_listening import ListeningStage, TurnListener

MODEL = "pocket/ear"
FIRST, SECOND, *_ = load_suite("pocket")[40::40]
DELTA = "conversation.item.input_audio_transcription.delta"


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load(MODEL, device="cpu")


@pytest.fixture(scope="module")
def engine(ear: Ear) -> LocalEngine:
    return LocalEngine(ear, Metrics())


@pytest.fixture(scope="module")
def url(engine: LocalEngine) -> Iterator[str]:
    with serve_app(create_app(engine, ServerSettings(model=MODEL), Metrics())) as address:
        yield address


@pytest.fixture
def client(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(turn_listening, "REHEAR_S", 0.05)
    with open_session(url) as client:
        yield client


def speak(client: Client, engine: LocalEngine, data: bytes) -> None:
    """Sends sound as a microphone does, to a machine that hears nearly all of it in time."""
    for start in range(0, len(data), 5 * FRAME_BYTES):
        client.append(data[start : start + 5 * FRAME_BYTES])
        deadline, n_sent = time.monotonic() + 0.5, start // 3
        while time.monotonic() < deadline:
            if any(each._n_heard >= n_sent > 0 for each in listeners_of(engine)):
                break
            time.sleep(0.01)


def answer_of(ear: Ear, samples: np.ndarray) -> str:
    return ear.chat([{"role": "user", "content": [{"type": "audio", "audio": samples}]}])


def listeners_of(engine: LocalEngine) -> list[TurnListener]:
    return engine._listening._listeners


def test_words_come_while_they_are_spoken_and_the_answer_is_that_of_the_whole_sound(
    client: Client, ear: Ear, engine: LocalEngine
) -> None:
    client.use_manual_turns(transcription={"model": "any"})
    data = load_pcm(FIRST) + load_pcm(SECOND)
    speak(client, engine, data)
    early = client.receive_until(DELTA)
    assert list_types(early) == [DELTA]
    client.send("input_audio_buffer.commit")
    events = client.receive_until("conversation.item.input_audio_transcription.completed")
    deltas = [event for event in early + events if event["type"] == DELTA]
    assert {event["item_id"] for event in deltas} == {events[-1]["item_id"]}
    transcript = events[-1]["transcript"]
    assert transcript == ear.transcribe_audio_tokens([from_pcm(data)])[0]
    assert transcript.startswith("".join(event["delta"] for event in deltas))
    client.send("response.create")
    assert join_deltas(client.receive_until("response.done")) == answer_of(ear, from_pcm(data))
    wait_until(lambda: not listeners_of(engine))


def test_a_turn_found_by_the_server_is_that_of_its_own_sound(
    client: Client, ear: Ear, engine: LocalEngine
) -> None:
    client.update(audio={"input": {"transcription": {"model": "any"}}})
    speak(client, engine, SILENCE * 4 + load_pcm(FIRST) + SILENCE * 12)
    events = client.receive_until("response.done")
    item = next(event["item"] for event in events if event["type"] == "conversation.item.done")
    client.send("conversation.item.retrieve", item_id=item["id"])
    sound = from_pcm(base64.b64decode(client.receive()["item"]["content"][0]["audio"]))
    assert join_deltas(events) == answer_of(ear, sound)


def test_the_audio_tokens_are_those_of_the_whole_sound(ear: Ear) -> None:
    stage, sound = ListeningStage(ear, lambda: False, lambda: None), load_audio(FIRST.audio)
    told: list[str] = []
    listener = stage.open(told.append, rehear_s=0.0)
    for start in range(0, len(sound), 4_000):
        listener._hearing_s = 0.0
        listener.feed(sound[start : start + 4_000])
        assert stage.step()
    end = len(sound) - 3_000
    listener.pause(end)
    assert stage.step()
    assert not stage.step()
    listener.close()
    assert len(told) > 3
    torch.testing.assert_close(listener.embed(sound[:end]), ear.hear((sound[:end], SAMPLE_RATE)))
    torch.testing.assert_close(listener.embed(sound), ear.hear((sound, SAMPLE_RATE)), rtol=1e-4, atol=1e-5)


def test_turns_take_turns_and_answers_go_first(ear: Ear) -> None:
    is_answering = [False]
    stage = ListeningStage(ear, lambda: is_answering[0], lambda: None)
    sound, heard = load_audio(FIRST.audio), []
    listeners = [stage.open(lambda _, number=number: heard.append(number), rehear_s=0.0) for number in (0, 1)]
    for _ in range(2):
        for listener in listeners:
            listener._hearing_s = 0.0
            listener.feed(sound[:8_000])
        assert stage.step()
        assert stage.step()
    assert heard == [0, 1, 0, 1]
    is_answering[0] = True
    listeners[0].feed(sound[:8_000])
    listeners[0]._hearing_s = 0.0
    assert not stage.step()
    is_answering[0] = False
    assert stage.step()


def test_sound_that_comes_at_once_is_heard_once(
    client: Client, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    hear = engine.ear._hear_window
    monkeypatch.setattr(
        engine.ear, "_hear_window", lambda samples, draft: heard.append(len(samples)) or hear(samples, draft)
    )
    monkeypatch.setattr(turn_listening, "REHEAR_S", 30.0)
    client.use_manual_turns()
    client.append(load_pcm(SECOND))
    client.send("input_audio_buffer.commit")
    client.receive_until("conversation.item.done")
    assert client.answer()["status"] == "completed"
    assert len(heard) == 1


@pytest.mark.parametrize("ending", ["clear", "detection", "close"])
def test_turns_that_are_given_up_leave_no_listener(url: str, engine: LocalEngine, ending: str) -> None:
    with open_session(url) as client:
        client.use_manual_turns()
        client.append(load_pcm(FIRST))
        client.say("hello")
        wait_until(lambda: len(listeners_of(engine)) == 1)  # those of earlier sessions are closed
        if ending == "clear":
            client.send("input_audio_buffer.clear")
            client.receive_until("input_audio_buffer.cleared")
        elif ending == "detection":
            client.update(audio={"input": {"turn_detection": {"type": "server_vad"}}})
    wait_until(lambda: not listeners_of(engine))


def test_a_turn_that_cannot_be_heard_early_is_heard_when_it_ends(ear: Ear, caplog: Any) -> None:
    stage, sound = ListeningStage(ear, lambda: False, lambda: None), load_audio(FIRST.audio)

    def fail(text: str) -> None:
        raise RuntimeError

    listener = stage.open(fail, rehear_s=0.0)
    listener.feed(sound)
    assert stage.step()
    assert "could not be heard while it was spoken" in caplog.text
    assert not stage.step()
    torch.testing.assert_close(listener.embed(sound), ear.hear((sound, SAMPLE_RATE)))


def test_only_words_that_stay_are_told() -> None:
    transcript = LiveTranscript()
    hearings = ["The", "The cat", "The cat say", "The cow says", "The cow says moo.", "The cow says moo."]
    assert [transcript.add(text) for text in hearings] == ["", "", "The", "", " cow", " says"]
    assert transcript.finish("The cow says moo.") == " moo."
    assert transcript.finish("A cow says moo.") == ""


# Answers that are begun in a pause


class Recorder:
    """Counts the answers that an engine begins and those that it is still generating."""

    def __init__(self, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[ChatRequest] = []
        self.n_open = 0
        stream = engine.stream

        async def record(request: ChatRequest) -> Any:
            self.requests.append(request)
            chunks: Any = await stream(request)
            self.n_open += 1

            async def follow() -> Any:
                try:
                    yield {}
                    async for chunk in chunks:
                        yield chunk
                finally:
                    self.n_open -= 1
                    await chunks.aclose()

            following = follow()
            await anext(following)
            return following

        monkeypatch.setattr(engine, "stream", record)

    def wait_for(self, n: int) -> None:
        wait_until(lambda: len(self.requests) >= n)


@pytest.fixture
def recorder(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(engine, monkeypatch)


def find_slowly(client: Client, **transcription: Any) -> None:
    """Has the server take two seconds of silence for the end of a turn."""
    detection = {"type": "server_vad", "silence_duration_ms": 2_000}
    client.update(audio={"input": {"turn_detection": detection, **transcription}})


def read_turn(client: Client, events: list[dict[str, Any]]) -> np.ndarray:
    """Returns the sound of the turn that these events are of."""
    item = next(event["item"] for event in events if event["type"] == "conversation.item.done")
    client.send("conversation.item.retrieve", item_id=item["id"])
    return from_pcm(base64.b64decode(client.receive()["item"]["content"][0]["audio"]))


@pytest.mark.parametrize("transcription", [{}, {"transcription": {"model": "any"}}])
def test_an_answer_is_begun_in_the_pause_and_kept_when_the_turn_has_ended(
    client: Client, ear: Ear, recorder: Recorder, transcription: dict[str, Any]
) -> None:
    find_slowly(client, **transcription)
    client.append(SILENCE * 4 + load_pcm(FIRST) + SILENCE * 6)
    recorder.wait_for(1)
    assert "input_audio_buffer.speech_stopped" not in list_types(client.events)
    wait_until(lambda: recorder.n_open == 0)  # the whole answer is there
    client.append(SILENCE * 20)
    events = client.receive_until("response.done")
    assert len(recorder.requests) == 1
    assert join_deltas(events) == answer_of(ear, read_turn(client, events))
    if transcription:
        completed = "conversation.item.input_audio_transcription.completed"
        assert list_types(events).index(completed) < list_types(events).index("response.created")


def test_an_answer_is_dropped_when_somebody_goes_on_to_speak(
    client: Client, ear: Ear, recorder: Recorder
) -> None:
    find_slowly(client)
    client.append(SILENCE * 4 + load_pcm(FIRST) + SILENCE * 6)
    recorder.wait_for(1)
    client.append(load_pcm(SECOND) + SILENCE * 24)
    events = client.receive_until("response.done")
    sound = read_turn(client, events)
    assert len(sound) > len(load_audio(FIRST.audio)) + len(load_audio(SECOND.audio))
    assert join_deltas(events) == answer_of(ear, sound)
    assert list_types(events).count("response.created") == 1
    wait_until(lambda: recorder.n_open == 0)


def test_an_answer_to_other_instructions_is_not_used(client: Client, ear: Ear, recorder: Recorder) -> None:
    find_slowly(client)
    client.append(SILENCE * 4 + load_pcm(FIRST) + SILENCE * 6)
    recorder.wait_for(1)
    client.update(instructions="Answer in Spanish.")
    client.append(SILENCE * 20)
    client.receive_until("response.done")
    assert [request.body["messages"][0]["role"] for request in recorder.requests] == ["user", "system"]
    wait_until(lambda: recorder.n_open == 0)


@pytest.mark.parametrize("ending", ["clear", "close", "manual"])
def test_nothing_is_left_of_an_answer_that_nobody_takes(
    url: str, engine: LocalEngine, recorder: Recorder, ending: str
) -> None:
    with open_session(url) as client:
        find_slowly(client)
        client.append(SILENCE * 4 + load_pcm(FIRST) + SILENCE * 6)
        recorder.wait_for(1)
        if ending == "clear":
            client.send("input_audio_buffer.clear")
            client.receive_until("input_audio_buffer.cleared")
        elif ending == "manual":
            client.send("input_audio_buffer.commit")
            client.receive_until("conversation.item.done")
        if ending != "close":
            wait_until(lambda: recorder.n_open == 0)
    wait_until(lambda: recorder.n_open == 0 and not listeners_of(engine))
    assert len(recorder.requests) == 1


def test_no_answer_is_begun_where_none_is_asked_for_or_others_are_answered(
    client: Client, recorder: Recorder, url: str
) -> None:
    detection = {"type": "server_vad", "silence_duration_ms": 400, "create_response": False}
    client.update(audio={"input": {"turn_detection": detection}})
    client.append(SILENCE * 4 + load_pcm(FIRST) + SILENCE * 12)
    client.receive_until("conversation.item.done")
    assert recorder.requests == []


def test_an_early_answer_that_fails_is_asked_for_again(
    client: Client, ear: Ear, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, n_asked = engine.stream, 0

    async def fail_first(request: ChatRequest) -> Any:
        nonlocal n_asked
        n_asked += 1
        if n_asked == 1:
            raise RequestError("not now")
        return await stream(request)

    monkeypatch.setattr(engine, "stream", fail_first)
    find_slowly(client)
    client.append(SILENCE * 4 + load_pcm(FIRST) + SILENCE * 26)
    events = client.receive_until("response.done")
    assert events[-1]["response"]["status"] == "completed"
    assert join_deltas(events) == answer_of(ear, read_turn(client, events))
