"""Answers that are spoken in Realtime sessions; every event is checked by the official models."""

import asyncio
import base64
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.fake_synthesizer import S_PER_CHARACTER, FakeSynthesizer
from support.realtime_client import SILENCE, Client, list_types, load_pcm, open_session, wait_until
from support.serve_app import serve_app

import ossicle
from ossicle.ear import Ear
from ossicle.evaluation import load_suite
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.errors import ApiError
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics
from ossicle.serving.realtime.input_audio import A_LAW, MU_LAW, PCM, RATES, decode_samples
from ossicle.serving.realtime.output_audio import AudioOutput
from ossicle.serving.realtime.spoken_text import SpokenText, Voice
from ossicle.serving.synthesis.espeak import EspeakSynthesizer

FIRST = load_suite("pocket")[40]
ANSWER = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load("pocket/ear", device="cpu")


@pytest.fixture
def voice() -> FakeSynthesizer:
    return FakeSynthesizer()


@pytest.fixture
def client(ear: Ear, voice: FakeSynthesizer) -> Iterator[Client]:
    settings = ServerSettings(model="pocket/ear", synthesizer=voice)
    with (
        serve_app(create_app(LocalEngine(ear, Metrics()), settings, Metrics())) as url,
        open_session(url) as client,
    ):
        yield client
    assert voice.is_closed


def decode(events: list[dict[str, Any]], format: str = PCM) -> np.ndarray:
    """Returns the sound of a response at the format's rate."""
    sounds = [event["delta"] for event in events if event["type"] == "response.output_audio.delta"]
    return decode_samples(b"".join(map(base64.b64decode, sounds)), format)


def list_kinds(events: list[dict[str, Any]]) -> list[str]:
    """Returns the types of events, each once, in the order in which they came first."""
    return list(dict.fromkeys(list_types(events)))


# The protocol


def test_a_spoken_turn_gets_a_spoken_answer_in_openai_s_order(
    client: Client, ear: Ear, voice: FakeSynthesizer
) -> None:
    assert client.events[0]["session"]["output_modalities"] == ["audio"]
    client.update(audio={"output": {"voice": "marin", "speed": 1.25}})
    client.append(SILENCE * 5 + load_pcm(FIRST) + SILENCE * 12)
    client.receive_until("conversation.item.done")
    events = client.receive_until("response.done")
    assert list_kinds(events) == ANSWER
    response, text = events[-1]["response"], ear.chat([{"role": "user", "content": FIRST.text}])
    assert response["status"] == "completed"
    assert response["output_modalities"] == ["audio"]
    assert response["audio"]["output"]["voice"] == "marin"
    assert response["output"][0]["content"] == [{"type": "output_audio", "transcript": text}]
    assert voice.asked == [(text, "marin", 1.25)]
    sound = decode(events)
    assert len(sound) == pytest.approx(RATES[PCM] * S_PER_CHARACTER * len(text), abs=50)
    assert np.abs(sound).max() == pytest.approx(0.5, abs=0.02)


def test_a_client_may_have_text_for_a_session_or_for_one_response(
    client: Client, voice: FakeSynthesizer
) -> None:
    client.say(FIRST.text)
    written = client.answer(output_modalities=["text"])
    assert written["output"][0]["content"][0]["type"] == "output_text"
    assert client.update(output_modalities=["text"])["output_modalities"] == ["text"]
    assert client.answer()["output_modalities"] == ["text"]
    assert voice.asked == []
    client.say(FIRST.text)
    spoken = client.answer(output_modalities=["audio"], audio={"output": {"voice": {"id": "own"}}})
    assert spoken["output_modalities"] == ["audio"]
    assert [name for _, name, _ in voice.asked] == ["own"]


@pytest.mark.parametrize("format", [MU_LAW, A_LAW])
def test_a_telephone_gets_its_own_codes(client: Client, format: str) -> None:
    session = client.update(audio={"output": {"format": {"type": format}}})
    assert session["audio"]["output"]["format"] == {"type": format}
    client.say(FIRST.text)
    client.send("response.create")
    events = client.receive_until("response.done")
    transcript = events[-1]["response"]["output"][0]["content"][0]["transcript"]
    sound = decode(events, format)
    assert len(sound) == pytest.approx(RATES[format] * S_PER_CHARACTER * len(transcript), abs=50)
    assert np.abs(sound).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("format", [MU_LAW, A_LAW])
def test_each_telephone_code_is_encoded_as_itself(format: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    samples = decode_samples(codes.tobytes(), format)
    encoded = AudioOutput(RATES[format], format).encode(np.repeat(samples, 1), is_last=True)
    np.testing.assert_array_equal(decode_samples(encoded, format), samples)


def test_what_was_not_heard_is_cut_off_where_the_voice_was(client: Client) -> None:
    client.say(FIRST.text)
    item = client.answer()["output"][0]
    transcript = item["content"][0]["transcript"]
    kept, _, _ = transcript.rpartition(" ")
    assert kept, "the answer has several words"
    heard_ms = round(1_000 * S_PER_CHARACTER * (len(kept) + 2))
    client.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=heard_ms)
    client.receive_until("conversation.item.truncated")
    client.send("conversation.item.retrieve", item_id=item["id"])
    retrieved = client.receive_until("conversation.item.retrieved")[-1]["item"]
    assert retrieved["content"] == [{"type": "output_audio", "transcript": kept}]
    client.say(FIRST.text)
    assert client.answer()["status"] == "completed"


def test_a_server_without_a_voice_says_so(ear: Ear) -> None:
    app = create_app(LocalEngine(ear, Metrics()), ServerSettings(model="pocket/ear"), Metrics())
    with serve_app(app) as url, open_session(url) as client:
        client.send("session.update", session={"type": "realtime", "output_modalities": ["audio"]})
        error = client.receive()["error"]
        assert "--tts" in error["message"]
        client.send("session.update", session={"type": "realtime", "output_modalities": ["video"]})
        assert '["audio"]' in client.receive()["error"]["message"]


# What goes wrong


def test_a_voice_that_fails_ends_the_response_and_not_the_session(
    client: Client, voice: FakeSynthesizer
) -> None:
    voice.fails = True
    client.say(FIRST.text)
    failed = client.answer()
    assert failed["status"] == "failed"
    assert failed["status_details"]["error"]["code"] == "speech_synthesis_failed"
    assert failed["output"][0]["status"] == "incomplete"
    voice.fails = False
    client.say(FIRST.text)
    assert client.answer()["status"] == "completed"


def test_a_voice_that_fails_ends_an_answer_that_is_still_written() -> None:
    async def run() -> None:
        spoken = SpokenText(
            Voice(
                synthesizer=FakeSynthesizer(fails=True),
                name=None,
                speed=1.0,
                format=PCM,
                wait_for_room=lambda: asyncio.sleep(0),
            ),
            lambda *_: None,
        )
        spoken.write("One. Two")
        await asyncio.sleep(0.01)
        spoken.write(" and three.")

    with pytest.raises(ApiError, match="hoarse"):
        asyncio.run(run())


def test_a_session_has_eight_responses_at_a_time(client: Client, voice: FakeSynthesizer) -> None:
    voice.waits = True
    client.say(FIRST.text)
    for _ in range(8):
        client.send("response.create", response={"conversation": "none"})
    while sum(event["type"] == "response.output_audio.delta" for event in client.events) < 8:
        client.receive()
    client.send("response.create", response={"conversation": "none"})
    while client.receive()["type"] != "error":
        pass
    assert client.events[-1]["error"]["code"] == "too_many_responses"


def test_an_answer_can_be_interrupted_while_it_is_spoken(client: Client, voice: FakeSynthesizer) -> None:
    voice.waits = True
    client.say(FIRST.text)
    client.send("response.create")
    client.receive_until("response.output_audio.delta")
    client.append(load_pcm(FIRST) + SILENCE * 2)
    events = client.receive_until("response.done")
    assert events[-1]["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert "response.output_audio.done" in list_types(events)
    wait_until(lambda: voice.n_closed == 1)


def test_a_client_that_goes_ends_the_voice(ear: Ear) -> None:
    voice = FakeSynthesizer(waits=True)
    settings = ServerSettings(model="pocket/ear", synthesizer=voice)
    with serve_app(create_app(LocalEngine(ear, Metrics()), settings, Metrics())) as url:
        with open_session(url) as client:
            client.say(FIRST.text)
            client.send("response.create")
            client.receive_until("response.output_audio.delta")
        wait_until(lambda: voice.n_closed == 1)


# Sentence by sentence


def speak(text: str, voice: FakeSynthesizer) -> list[tuple[int, int]]:
    """Speaks a text that comes in small pieces; returns the bytes and characters of each sound."""
    sounds: list[tuple[int, int]] = []

    async def run() -> None:
        choice = Voice(
            synthesizer=voice, name=None, speed=1.0, format=PCM, wait_for_room=lambda: asyncio.sleep(0)
        )
        spoken = SpokenText(choice, lambda data, n: sounds.append((len(data), n)))
        for start in range(0, len(text), 3):
            spoken.write(text[start : start + 3])
            await asyncio.sleep(0.001)
        await spoken.finish()

    asyncio.run(run())
    return sounds


def test_sentences_are_spoken_one_after_the_other() -> None:
    voice, text = FakeSynthesizer(), "# Hello there.\n\nIs it **far**? --- "
    sounds = speak(text, voice)
    assert [asked for asked, _, _ in voice.asked] == ["Hello there.", "Is it far?"]
    assert sum(n for _, n in sounds) == len(text)
    n_said = sum(len(asked) for asked, _, _ in voice.asked)
    assert sum(n for n, _ in sounds) == pytest.approx(2 * RATES[PCM] * S_PER_CHARACTER * n_said, abs=200)


def test_a_sentence_that_fails_is_told_at_the_end() -> None:
    with pytest.raises(ApiError, match="hoarse"):
        speak("One. Two. Three.", FakeSynthesizer(fails=True))


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_espeak_speaks_an_answer(ear: Ear) -> None:
    settings = ServerSettings(model="pocket/ear", synthesizer=EspeakSynthesizer())
    app = create_app(LocalEngine(ear, Metrics()), settings, Metrics())
    with serve_app(app) as url, open_session(url) as client:
        client.say(FIRST.text)
        client.send("response.create")
        sound = decode(client.receive_until("response.done"))
    assert len(sound) > 0.2 * RATES[PCM]
    assert np.abs(sound).max() > 0.1
