"""A sound heard while it arrives gives the audio tokens of the whole sound heard at once."""

import functools
import math
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import tiny_ear

from ossicle import checkpoint
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.backbones.model_files import POCKET_DIR
from ossicle.ear import Ear
from ossicle.errors import AudioError


@functools.cache
def pocket_ear() -> Ear:
    return checkpoint.load("pocket/ear")


@functools.cache
def speech(n_clips: int = 1) -> np.ndarray:
    rows = pq.read_table(POCKET_DIR / "speech.parquet").slice(0, 16).to_pylist()
    sounds = sorted((load_audio(row["audio"]["bytes"]) for row in rows), key=len)
    return np.concatenate(sounds[-n_clips:])


def feed(listener: Any, sound: np.ndarray, samples: int) -> list[str]:
    """Feeds a sound in pieces; returns what was heard after each that changed it."""
    pieces = [sound[start : start + samples] for start in range(0, len(sound), samples)]
    return [listener.text for piece in pieces if listener.feed(piece)]


@given(seconds=st.floats(0.05, 3.0), rehear_s=st.floats(0.1, 2.0))
@settings(max_examples=8, deadline=None)
def test_the_result_is_that_of_the_whole_sound(seconds: float, rehear_s: float) -> None:
    ear, sound = pocket_ear(), speech()
    listener = ear.listen(rehear_s)
    feed(listener, sound, round(seconds * SAMPLE_RATE))
    torch.testing.assert_close(listener.finish(), ear.hear((sound, SAMPLE_RATE)), rtol=1e-4, atol=1e-5)


def test_words_appear_while_one_speaks() -> None:
    ear, sound = pocket_ear(), speech()
    listener = ear.listen(0.3)
    texts = feed(listener, sound, 1_600)
    listener.finish()
    assert len(texts) > 2
    assert len(texts[0].split()) < len(listener.text.split())
    assert listener.text == ear.transcribe_audio_tokens([(sound, SAMPLE_RATE)])[0]
    assert listener.duration_s == pytest.approx(len(sound) / SAMPLE_RATE)


def test_a_sound_of_several_windows_hears_only_the_last_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ear, sound = pocket_ear(), speech(8)
    assert len(sound) > 2 * ear.whisper.window_samples
    heard: list[int] = []
    hear = ear._hear_window

    def record(samples: np.ndarray, draft: Any) -> Any:
        heard.append(len(samples))
        return hear(samples, draft)

    monkeypatch.setattr(ear, "_hear_window", record)
    listener = ear.listen(1.0)
    feed(listener, sound, SAMPLE_RATE)
    tokens = listener.finish()
    torch.testing.assert_close(tokens, ear.hear((sound, SAMPLE_RATE)), rtol=1e-4, atol=1e-5)
    assert len(heard) < 1.5 * len(sound) / SAMPLE_RATE


def test_the_end_is_checked_in_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    ear, sound = pocket_ear(), speech()
    listener = ear.listen(0.2)
    feed(listener, sound, 1_600)
    connector: Any = ear.connector
    decode, n_passes = connector.decode, []
    monkeypatch.setattr(connector, "decode", lambda *args: n_passes.append(1) or decode(*args))
    n_tokens = len(listener.finish())
    assert len(n_passes) < n_tokens
    assert len(n_passes) <= 4


@pytest.mark.parametrize(("rate", "size"), [(8_000, 160), (44_100, 512), (48_000, 441)])
def test_pieces_of_another_rate_are_resampled_as_the_whole(rate: int, size: int) -> None:
    ear = pocket_ear()
    sound = soxr.resample(speech(2), SAMPLE_RATE, rate)
    listener = ear.listen(math.inf)
    for start in range(0, len(sound), size):
        listener.feed(sound[start : start + size], rate)
    torch.testing.assert_close(listener.finish(), ear.hear((sound, rate)), rtol=1e-4, atol=1e-5)
    assert listener.duration_s == pytest.approx(len(sound) / rate, abs=1e-3)


def test_silence_of_every_kind_is_a_pause() -> None:
    listener = pocket_ear().listen()
    for pause in (
        np.full(1_600, 128, np.uint8),
        np.ones(1_600, np.int32),
        np.zeros((1, 1_600), np.float32),
        torch.zeros(1_600, dtype=torch.bfloat16),
    ):
        listener.feed(pause)
    assert listener.duration_s == pytest.approx(0.4)
    for rate in (0, -1, 10**15):
        with pytest.raises(AudioError, match=r"sample rate|channel"):
            listener.feed(np.zeros(1_600, np.float32), rate)


def test_pauses_and_other_rates_are_taken() -> None:
    ear, sound = pocket_ear(), speech()
    listener = ear.listen()
    listener.feed(np.zeros(2_000, np.float32))
    listener.feed(np.full(2_000, 1e-9, np.float32))  # what resampling leaves of silence
    listener.feed(np.zeros(0, np.float32))
    listener.feed(np.zeros(12_000, np.int16), 24_000)
    listener.feed((32_767 * sound).astype(np.int16))
    assert listener.duration_s == pytest.approx(0.25 + 0.5 + len(sound) / SAMPLE_RATE)
    listener.finish()
    assert listener.text == ear.transcribe_audio_tokens([(sound, SAMPLE_RATE)])[0]


@pytest.mark.parametrize("form", ["query", "anchored", "diva"])
def test_other_forms_listen_too(form: str) -> None:
    ear, sound = tiny_ear(form), speech()
    listener = ear.listen(1.0)
    feed(listener, sound, 8_000)
    torch.testing.assert_close(listener.finish(), ear.hear((sound, SAMPLE_RATE)))


def test_a_listener_stands_for_its_sound_in_messages() -> None:
    ear, sound = pocket_ear(), speech()
    listener = ear.listen()
    feed(listener, sound, 4_000)

    def ask(audio: Any) -> list[dict[str, Any]]:
        other = {"role": "user", "content": [{"type": "audio", "audio": (sound[::-1].copy(), SAMPLE_RATE)}]}
        answer = {"role": "assistant", "content": "yes."}
        return [other, answer, {"role": "user", "content": [{"type": "audio", "audio": audio}]}]

    for _ in range(2):
        assert ear.chat(ask(listener)) == ear.chat(ask((sound, SAMPLE_RATE)))


def test_a_listener_in_a_chat_is_refused_where_nobody_speaks_as_its_sound_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ear, sound = pocket_ear(), speech()
    listener = ear.listen()
    feed(listener, sound, 4_000)
    heard = listener.finish()
    monkeypatch.setattr("ossicle.ear.DOUBTFUL_MEAN_LOG_PROB", 1.0)  # every word is doubtful
    monkeypatch.setattr("ossicle.ear.expect_no_speech", lambda _whisper, states: [True] * len(states))
    monkeypatch.setattr(
        "ossicle.ear.find_speechless_windows", lambda _whisper, sounds, _states: [True] * len(sounds)
    )
    doubtful = ear.listen()
    feed(doubtful, sound, 4_000)
    assert doubtful.finish_speech() is None
    torch.testing.assert_close(doubtful.finish(), heard)
    for audio in (doubtful, (sound, SAMPLE_RATE)):
        with pytest.raises(AudioError, match="no speech was found"):
            ear.chat([{"role": "user", "content": [{"type": "audio", "audio": audio}]}])


def test_what_is_no_sound_is_refused() -> None:
    listener = pocket_ear().listen()
    assert listener.tokens is None
    assert not listener.text
    with pytest.raises(AudioError, match="no sound was fed"):
        listener.finish()
    with pytest.raises(AudioError):
        listener.feed(np.full(1_600, np.nan))
    listener.feed(np.zeros(16_000, np.float32))
    with pytest.raises(AudioError, match="silen"):
        listener.finish()
    listener.feed(speech())
    listener.finish()
    with pytest.raises(AudioError, match="finished"):
        listener.feed(speech())
