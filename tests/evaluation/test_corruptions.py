"""Corruptions change a clip exactly as specified, and reproducibly."""

import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossicle.audio.augment import measure_speech_power
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.errors import ConfigError, DataError
from ossicle.evaluation import Item
from ossicle.evaluation.corruptions import (
    CORRUPTIONS,
    MIN_VOICES,
    N_VOICES,
    TELEPHONE_BAND_HZ,
    Corruption,
    CorruptionKind,
    compute_seed,
    corrupt,
    load_babble_voices,
    mix_babble,
    simulate_telephone,
)

CLEAN = Corruption(kind="clean")
BABBLE = Corruption(kind="babble", level=5.0)
SNR_TOLERANCE_DB = 0.1
LENGTH = 12_000
FULL_SCALE_ROUNDING = 1e-6  # of one division in float32


def voice(number: int, n_samples: int = LENGTH, loudness: float = 0.1) -> np.ndarray:
    """Returns bursts of a noisy hum at its own pitch with pauses between them."""
    rng = np.random.default_rng(number)
    time = np.arange(n_samples) / SAMPLE_RATE
    hum = sum(np.sin(2 * np.pi * (90 + 17 * number) * k * time) / k for k in range(1, 60))
    sound = (hum + 0.3 * rng.standard_normal(n_samples)) * (np.sin(2 * np.pi * 3 * time + number) > -0.5)
    return (loudness * sound / np.abs(sound).max()).astype(np.float32)


VOICES = tuple(voice(number, 6_000 + 3_000 * number) for number in range(N_VOICES))


def item(number: int, text: str | None = None) -> Item:
    """Returns an item whose sound is longer by its number of samples."""
    audio = voice(number, LENGTH + number)
    return Item(id=f"item-{number}", audio=audio, text=text or f"question number {number}")


def level_db(sound: np.ndarray) -> float:
    return 10 * math.log10(np.square(sound, dtype=np.float64).mean())


def apply(clip: np.ndarray, corruption: Corruption, seed: int = 1) -> np.ndarray:
    return corrupt(clip, corruption, seed=seed, voices=VOICES)


# What is asked for


@pytest.mark.parametrize("kind", ["babble", "white noise"])
@given(snr_db=st.floats(-5, 30), seed=st.integers(0, 99), n_samples=st.integers(2_000, 40_000))
@settings(max_examples=15)
def test_noise_has_the_requested_level_below_the_speech(kind, snr_db, seed, n_samples):
    clip = voice(7, n_samples, loudness=0.02)  # too quiet to reach full scale
    noise = apply(clip, Corruption(kind=kind, level=snr_db), seed) - clip
    assert 10 * math.log10(measure_speech_power(clip)) - level_db(noise) == pytest.approx(
        snr_db, abs=SNR_TOLERANCE_DB
    )


@pytest.mark.parametrize("kind", ["babble", "white noise"])
def test_sound_above_full_scale_is_scaled_down_as_a_whole(kind):
    corruption, clip = Corruption(kind=kind, level=0.0), voice(7, loudness=1.0)
    loud, quiet = apply(clip, corruption), apply(clip / 16, corruption)
    assert np.abs(loud).max() == 1.0
    assert np.abs(quiet).max() > 1 / 16
    np.testing.assert_allclose(loud, quiet / np.abs(quiet).max(), atol=FULL_SCALE_ROUNDING)


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)
@pytest.mark.parametrize("n_samples", [1, 2, 3, 161, 24_001])
def test_results_are_finite_mono_float32_within_full_scale(corruption, n_samples):
    sound = apply(np.clip(voice(3, n_samples, loudness=1.0), -1, 1), corruption)
    assert sound.dtype == np.float32
    assert sound.ndim == 1
    assert np.isfinite(sound).all()
    assert np.abs(sound).max(initial=0.0) <= 1


def test_clean_sound_is_the_same_array():
    clip = voice(0)
    assert apply(clip, CLEAN) is clip


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.2, 1.3])
def test_speed_changes_length_and_pitch_by_the_factor(factor):
    clip = (0.3 * np.sin(2 * np.pi * 500 * np.arange(32_000) / SAMPLE_RATE)).astype(np.float32)
    sound = apply(clip, Corruption(kind="speed", level=factor))
    assert len(sound) == pytest.approx(len(clip) / factor, abs=1)
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    assert np.argmax(spectrum) * SAMPLE_RATE / len(sound) == pytest.approx(500 * factor, abs=1)


@pytest.mark.parametrize(
    ("kind", "n_before", "n_after"),
    [("silence before", 1, 0), ("silence after", 0, 1), ("silence around", 1, 1)],
)
def test_added_silence_has_exactly_its_duration(kind, n_before, n_after):
    clip = voice(0)
    sound = apply(clip, Corruption(kind=kind, level=1.0))
    zeros = np.zeros(SAMPLE_RATE, np.float32)
    np.testing.assert_array_equal(sound, np.concatenate([*[zeros] * n_before, clip, *[zeros] * n_after]))


# A telephone


def make_white_noise(n_samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(n_samples)).astype(np.float32)


def spectrum_db(sound: np.ndarray, low_hz: float, high_hz: float) -> float:
    """Returns the mean power density of a band."""
    power = np.square(np.abs(np.fft.rfft(sound * np.hanning(len(sound)))))
    hertz = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    return 10 * math.log10(power[(hertz >= low_hz) & (hertz < high_hz)].mean())


@pytest.mark.parametrize("clip", [make_white_noise(48_000), voice(1, 48_001)], ids=["noise", "voice"])
def test_a_telephone_removes_sound_outside_its_band(clip):
    sound, (low, high) = simulate_telephone(clip), TELEPHONE_BAND_HZ
    inside = spectrum_db(sound, low, high)
    assert spectrum_db(sound, 0, low) < inside - 40
    assert spectrum_db(sound, high, SAMPLE_RATE / 2 + 1) < inside - 40
    assert spectrum_db(sound, low + 100, high - 100) == pytest.approx(
        spectrum_db(clip, low + 100, high - 100), abs=0.2
    )


def test_a_telephone_adds_no_delay_and_the_noise_of_the_mu_law():
    time = np.arange(48_000) / SAMPLE_RATE
    clip = (0.2 * np.sin(2 * np.pi * 1_003 * time)).astype(np.float32)
    sound = simulate_telephone(clip)
    assert len(sound) == len(clip)
    inner = slice(4_000, -4_000)
    noise_db = level_db(sound[inner]) - level_db(sound[inner] - clip[inner])
    assert (
        34 < noise_db < 44
    )  # about 38 dB, G.711's at any loudness; 16 bits would have 90, 8 plain ones 36 or less
    quiet = simulate_telephone(clip / 32)
    quiet_db = level_db(quiet[inner]) - level_db(quiet[inner] - clip[inner] / 32)
    assert quiet_db > 25  # 8 plain bits would have 6


# What is drawn


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)
def test_the_same_seed_gives_the_same_sound(corruption):
    clip = voice(2)
    np.testing.assert_array_equal(apply(clip, corruption), apply(clip.copy(), corruption))


@pytest.mark.parametrize("kind", ["babble", "white noise"])
def test_noise_differs_between_items_and_only_in_level_between_levels(kind: CorruptionKind):
    clip, at_10_db = voice(7, loudness=0.02), Corruption(kind=kind, level=10.0)
    seed = compute_seed("a", at_10_db)
    noise = apply(clip, at_10_db, seed) - clip
    other = apply(clip, at_10_db, compute_seed("b", at_10_db)) - clip
    at_0_db = Corruption(kind=kind, level=0.0)
    louder = apply(clip, at_0_db, compute_seed("a", at_0_db)) - clip
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.2
    assert np.corrcoef(noise, louder)[0, 1] > 0.9999


def test_seeds_are_the_same_on_every_machine():
    assert compute_seed("0001", CLEAN) == 16435010037853769720
    assert compute_seed("0001", BABBLE) != compute_seed("0001", Corruption(kind="white noise", level=5.0))


def get_numbers(voices: Sequence[np.ndarray]) -> frozenset[int]:
    """Returns the numbers of the items whose voices these are."""
    return frozenset(len(sound) - LENGTH for sound in voices)


def test_babble_contains_neither_the_item_nor_one_with_the_same_words():
    twins = [item(20, "Question number 3!"), item(21, "question  NUMBER 3")]
    suite = [item(number) for number in range(8)] + twins
    for seed in range(40):
        chosen = get_numbers(load_babble_voices(suite[3], suite, seed))
        assert len(chosen) == N_VOICES
        assert not chosen & {3, 20, 21}


def test_voices_depend_on_the_item_and_not_on_the_order_of_items():
    suite = [item(number) for number in range(30)]
    drawn = []
    for one in suite:
        seed = compute_seed(one.id, BABBLE)
        drawn.append(get_numbers(load_babble_voices(one, suite, seed)))
        assert drawn[-1] == get_numbers(load_babble_voices(one, suite[::-1], seed))
    assert len(set(drawn)) > 25
    assert frozenset.union(*drawn) == frozenset(range(30))


def test_a_new_item_changes_only_the_babbles_that_it_is_part_of():
    suite = [item(number) for number in range(12)]
    n_changed = 0
    for seed in range(20):
        before = get_numbers(load_babble_voices(suite[0], suite, seed))
        after = get_numbers(load_babble_voices(suite[0], [*suite, item(99)], seed))
        assert after == before or after - before == {99}
        n_changed += after != before
    assert 0 < n_changed < 20


def test_all_voices_of_a_babble_have_equal_power():
    n_samples = 10 * SAMPLE_RATE
    voices = [voice(number, n_samples, loudness=10.0**-number) for number in range(4)]
    mixed = mix_babble(voices, n_samples, np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(mixed))
    for number, single in enumerate(voices):
        pitch_hz = 90 + 17 * number
        own = np.abs(np.fft.rfft(single / np.sqrt(measure_speech_power(single))))
        bin_ = round(pitch_hz * n_samples / SAMPLE_RATE)
        assert spectrum[bin_] == pytest.approx(own[bin_], rel=0.05)


def test_a_silent_voice_does_not_change_the_babble():
    silent = np.zeros(100, np.float32)
    assert np.isfinite(mix_babble([silent, *VOICES[:2]], 5_000, np.random.default_rng(0))).all()


# What is refused


def test_babble_of_too_few_voices_is_an_error():
    suite = [item(0), item(1), item(2), item(3, "question number 0")]
    voices = load_babble_voices(suite[0], suite, 1)
    assert len(voices) == MIN_VOICES - 1
    with pytest.raises(DataError, match=r"got 2 voice\(s\) for babble; expected at least 3"):
        corrupt(voice(0), BABBLE, seed=1, voices=voices)


@pytest.mark.parametrize(
    ("kind", "level", "expected"),
    [
        ("babble", None, "corruption.level is None; expected -40 to 80 dB of speech over babble for babble"),
        ("white noise", math.nan, "corruption.level is nan"),
        ("speed", 0.0, "corruption.level is 0.0; expected 0.25 to 4 times as fast for speed"),
        ("silence before", -1.0, "corruption.level is -1.0"),
        ("telephone", 8.0, "corruption.level is 8.0, but telephone has no levels; leave it out"),
    ],
)
def test_an_invalid_level_is_an_error(kind, level, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        Corruption(kind=kind, level=level)


def test_corruptions_have_readable_names():
    names = [corruption.name for corruption in CORRUPTIONS]
    assert len(set(names)) == len(names) == 18
    assert names[0] == "clean"
    assert {
        "babble, 10 dB",
        "white noise, 0 dB",
        "speed × 0.8",
        "telephone",
        "silence before, 1 s",
    } < set(names)
