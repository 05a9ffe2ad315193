"""What can hold no speech is refused, and quiet speech is not."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.audio_files import build_tone

from ossicle.audio.speech import MIN_SPEECH_S, load_speech
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.errors import AudioError

NOISE = np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE).astype(np.float32)
STEPS = np.random.default_rng(1).integers(-1, 2, 2 * SAMPLE_RATE).astype(np.int16)
HUM = np.sin(np.arange(SAMPLE_RATE) * 2 * np.pi * 50 / SAMPLE_RATE).astype(np.float32)


@pytest.mark.parametrize("duration_s", [0.001, 0.02, 0.05, 0.09])
def test_clips_shorter_than_any_word_are_refused(duration_s: float) -> None:
    with pytest.raises(AudioError, match=r"too short for speech: 0\.\d\d s; expected at least 0\.1 s"):
        load_speech(build_tone(duration_s=duration_s))


def test_a_short_clip_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "click.wav", build_tone(duration_s=0.05), SAMPLE_RATE)
    with pytest.raises(AudioError, match=r"click\.wav' is too short"):
        load_speech(tmp_path / "click.wav")


@pytest.mark.parametrize(
    "samples",
    [
        1e-5 * NOISE,
        1e-3 * NOISE,
        1e-3 * NOISE[: SAMPLE_RATE // 10],
        1e-4 * np.cumsum(NOISE[:SAMPLE_RATE]) / 20,
        STEPS,
        0.02 * HUM + 1e-4 * NOISE[:SAMPLE_RATE],
        np.full(SAMPLE_RATE, 0.1, np.float32),
        np.concatenate([np.zeros(SAMPLE_RATE, np.float32), 1e-3 * NOISE]),
    ],
    ids=["faint", "hiss", "short hiss", "rumble", "last bit", "hum", "offset", "behind zeros"],
)
def test_the_even_noise_of_a_silent_room_is_refused(samples: np.ndarray) -> None:
    with pytest.raises(AudioError, match="no speech, only even noise or hum"):
        load_speech(samples)


@pytest.mark.parametrize("volume", [1.0, 1e-2, 1e-3])
def test_sound_that_changes_is_loaded_however_quiet_it_is(volume: float) -> None:
    syllables = np.square(np.sin(np.arange(SAMPLE_RATE) * 2 * np.pi * 4 / SAMPLE_RATE)).astype(np.float32)
    samples = volume * (syllables * build_tone() + 1e-3 * NOISE[:SAMPLE_RATE])
    np.testing.assert_array_equal(load_speech(samples), samples)


def test_a_short_word_in_long_quiet_noise_is_loaded() -> None:
    samples = 1e-3 * np.tile(NOISE, 10)
    samples[16_000:17_600] *= 5
    assert len(load_speech(samples)) == len(samples)


def test_loud_noise_and_the_shortest_clip_are_loaded() -> None:
    assert len(load_speech(0.1 * NOISE)) == len(NOISE)
    assert len(load_speech(build_tone(duration_s=MIN_SPEECH_S))) == MIN_SPEECH_S * SAMPLE_RATE


@pytest.mark.parametrize("level_db", [-40.0, -10.0, -3.0])
@pytest.mark.parametrize("hertz", [50, 60])
def test_hum_is_no_speech_however_loud_it_is(hertz: int, level_db: float) -> None:
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    hum = sum(np.sin(2 * np.pi * hertz * n * time) / n for n in (1, 2, 3))
    with pytest.raises(AudioError, match="even noise or hum"):
        load_speech(((0.5 * 10 ** (level_db / 20) * hum).astype(np.float32), SAMPLE_RATE))
