"""Augmentation does what its settings ask for, and depends on its seed alone."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossicle.audio.augment import (
    Augmenter,
    add_noise,
    change_speed,
    crop_or_loop,
    generate_colored_noise,
    measure_speech_power,
)
from ossicle.audio.mel import log_mel_spectrogram
from ossicle.audio.spec_augment import augment_mel, mask_patches
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.config import AugmentSettings
from ossicle.errors import ConfigError

FLOOR = 2.0
"""Whisper's log-mel keeps 8 decades below a clip's loudest bin, and divides decades by 4."""
SNR_DB_ROUNDING = 1e-3  # of sums in float32
EVERYTHING = AugmentSettings(noise_ratio=1.0, speed=(0.8, 1.25), silence_ratio=0.5, spec_augment=True)
WINDOW = 6 * SAMPLE_RATE


def tone(n_samples: int, pitch: float = 0.1) -> np.ndarray:
    return (0.3 * np.sin(np.arange(n_samples) * pitch)).astype(np.float32)


def noise(n_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n_samples, dtype=np.float32)


def random_mel(n_frames: int, seed: int = 0) -> torch.Tensor:
    mel = torch.rand(80, n_frames, generator=torch.Generator().manual_seed(seed)) * FLOOR
    return mel - mel.max() + 1.5


# On samples


@given(snr_db=st.floats(-20, 60), n_silent=st.integers(0, 20_000), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_the_noise_has_the_requested_ratio_with_any_silence_around_the_speech(snr_db, n_silent, seed):
    speech = tone(16_000)
    silence = np.zeros(n_silent // 160 * 160, np.float32)
    clip = np.concatenate([silence, speech, silence])
    added = add_noise(clip, noise(len(clip), seed), snr_db) - clip
    ratio = np.square(speech, dtype=np.float64).mean() / np.square(added, dtype=np.float64).mean()
    tolerance = SNR_DB_ROUNDING * max(
        1.0, 10 ** ((snr_db - 40) / 20)
    )  # the clip's own last bits are in `added`
    assert 10 * math.log10(ratio) == pytest.approx(snr_db, abs=tolerance)


@pytest.mark.parametrize("n_samples", [1, 159, 160, 161, 16_000])
def test_the_power_of_speech_without_pauses_is_its_mean_square(n_samples):
    clip = np.full(n_samples, 0.5, np.float32)
    assert measure_speech_power(clip) == 0.25


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.1, 2.0])
def test_speed_changes_length_and_pitch_by_the_same_factor(factor):
    augmented = change_speed(tone(16_000), factor)
    assert len(augmented) == pytest.approx(16_000 / factor, abs=1)
    inner = slice(500, -500)  # the resampler meets silence at the ends
    np.testing.assert_allclose(augmented[inner], tone(len(augmented), 0.1 * factor)[inner], atol=2e-3)


@pytest.mark.parametrize("n_samples", [1, 2, 3, 1_000, 65_536, 65_537])
def test_generated_noise_is_finite_and_of_a_different_color_each_time(n_samples):
    noises = [generate_colored_noise(n_samples, np.random.default_rng(seed)) for seed in range(20)]
    assert all(len(sound) == n_samples and np.isfinite(sound).all() for sound in noises)
    if n_samples >= 1_000:
        highs = [
            np.square(np.diff(sound)).mean() / np.square(sound).mean() for sound in noises
        ]  # 2 for white noise, towards 0 for brown
        assert max(highs) > 1.5
        assert min(highs) < 0.5


@given(n_noise=st.integers(1, 50), n_samples=st.integers(1, 120), seed=st.integers(0, 99))
def test_crop_or_loop_returns_a_part_of_the_recording_repeated_as_needed(n_noise, n_samples, seed):
    recording = np.arange(n_noise, dtype=np.float32)
    augmented = crop_or_loop(recording, n_samples, np.random.default_rng(seed))
    assert len(augmented) == n_samples
    steps = np.diff(augmented)
    assert ((steps == 1) | (steps == 1 - n_noise)).all()
    if n_samples <= n_noise:
        assert (steps == 1).all()


# The settings of a run


def test_default_settings_change_nothing():
    clip, mel = tone(16_000), random_mel(100)
    augmenter = Augmenter(AugmentSettings(), WINDOW)
    np.testing.assert_array_equal(augmenter.augment_samples(clip, 3), clip)
    assert augmenter.augment_mel(mel, mel.shape[1], 3) is mel


def test_augmentation_of_samples_depends_on_the_seed_alone():
    """Neither on earlier calls nor on the instance."""
    clips, mels = [tone(9_000 + 977 * i) for i in range(6)], [random_mel(60 + i) for i in range(6)]
    one, other = Augmenter(EVERYTHING, WINDOW), Augmenter(EVERYTHING, WINDOW)
    forwards = [(one.augment_samples(clips[i], i), one.augment_mel(mels[i], 60, i)) for i in range(6)]
    backwards = [
        (other.augment_samples(clips[i], i), other.augment_mel(mels[i], 60, i)) for i in reversed(range(6))
    ][::-1]
    for (samples, mel), (samples_again, mel_again) in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(samples, samples_again)
        assert torch.equal(mel, mel_again)
    assert len({len(one.augment_samples(clips[0], seed)) for seed in range(10)}) > 5


def test_inputs_are_not_modified():
    clip, mel = tone(16_000), random_mel(100)
    augmenter = Augmenter(EVERYTHING, WINDOW)
    assert not torch.equal(augmenter.augment_mel(mel, mel.shape[1], 4), mel)
    assert not np.array_equal(augmenter.augment_samples(clip, 4), clip)
    np.testing.assert_array_equal(clip, tone(16_000))
    assert torch.equal(mel, random_mel(100))


def test_one_setting_does_not_change_the_draws_of_another():
    clip = tone(16_000)
    slow = Augmenter(AugmentSettings(speed=(0.8, 1.25)), WINDOW)
    both = Augmenter(AugmentSettings(speed=(0.8, 1.25), noise_ratio=0.5), WINDOW)
    for seed in range(10):
        assert len(slow.augment_samples(clip, seed)) == len(both.augment_samples(clip, seed))
    noisy, padded = (
        Augmenter(AugmentSettings(noise_ratio=0.5, silence_ratio=share), WINDOW) for share in (0.0, 0.5)
    )
    same = [
        np.array_equal(noisy.augment_samples(clip, seed), padded.augment_samples(clip, seed))
        for seed in range(40)
    ]
    assert 10 < sum(same) < 30, "of those without silence the noise is the same"


def test_the_ratio_of_noisy_clips_is_the_requested_one():
    augmenter, clip = Augmenter(AugmentSettings(noise_ratio=0.3), WINDOW), tone(160)
    n_noisy = sum(not np.array_equal(augmenter.augment_samples(clip, seed), clip) for seed in range(1_000))
    assert 250 < n_noisy < 350


@given(n_samples=st.integers(1, 3_000), seed=st.integers(0, 2**60))
@settings(max_examples=40)
def test_no_clip_becomes_longer_than_the_maximum_and_none_is_cut_for_it(n_samples, seed):
    slowest = Augmenter(AugmentSettings(speed=(0.5, 0.5)), 2_000)
    augmented = slowest.augment_samples(tone(n_samples), seed)
    expected = n_samples if n_samples >= 2_000 else min(2 * n_samples, 2_000)
    assert len(augmented) == pytest.approx(expected, abs=1)
    assert len(augmented) <= max(n_samples, 2_000)


def test_the_ratio_of_clips_with_silence_is_the_requested_one_and_noise_covers_it():
    clip = tone(16_000)
    augmenter = Augmenter(AugmentSettings(silence_ratio=0.3), WINDOW)
    before, behind = [], []
    for seed in range(300):
        augmented = augmenter.augment_samples(clip, seed)
        first = int(np.flatnonzero(augmented)[0]) - 1  # a sine begins with a zero
        np.testing.assert_array_equal(augmented[first : first + len(clip)], clip)
        assert not augmented[:first].any()
        assert not augmented[first + len(clip) :].any()
        if len(augmented) > len(clip):
            before.append(first)
            behind.append(len(augmented) - len(clip) - first)
    assert 60 < len(before) < 120
    for lengths in (before, behind):
        assert max(lengths) <= 1.5 * SAMPLE_RATE
        assert 0.5 * SAMPLE_RATE < sum(lengths) / len(lengths) < SAMPLE_RATE
    noisy = Augmenter(AugmentSettings(silence_ratio=1.0, noise_ratio=1.0), WINDOW).augment_samples(clip, 1)
    assert len(noisy) == len(Augmenter(AugmentSettings(silence_ratio=1.0), WINDOW).augment_samples(clip, 1))
    assert noisy[:100].all()


@given(n_samples=st.integers(1, 3_000), seed=st.integers(0, 2**60))
@settings(max_examples=40)
def test_silence_makes_no_clip_longer_than_the_window(n_samples, seed):
    augmented = Augmenter(AugmentSettings(silence_ratio=1.0), 2_000).augment_samples(tone(n_samples), seed)
    assert n_samples <= len(augmented) <= max(n_samples, 2_000)


def test_silence_stays_silent():
    augmented = Augmenter(EVERYTHING, WINDOW).augment_samples(np.zeros(16_000, np.float32), 1)
    assert not augmented.any()


# Noise from files


@pytest.fixture
def noises(tmp_path: Path) -> Path:
    folder = tmp_path / "noises"
    (folder / "deeper").mkdir(parents=True)
    (folder / "README.txt").write_text("where these are from")
    soundfile.write(folder / "short.wav", 0.1 * noise(1_000), 16_000)
    soundfile.write(folder / "deeper" / "long.flac", 0.1 * noise(70_000, 1), 44_100)
    return folder


def test_noise_comes_from_the_files_of_the_folder(noises: Path):
    (noises / "deeper" / "long.flac").unlink()
    (recording, _), clip = soundfile.read(noises / "short.wav", dtype="float32"), tone(16_000)
    augmenter = Augmenter(AugmentSettings(noise_ratio=1.0, noise=str(noises)), WINDOW)
    added = augmenter.augment_samples(clip, 5) - clip
    places = [float(added[first : first + 1_000] @ recording) for first in range(1_000)]
    likeness = max(places) / float(np.linalg.norm(added[:1_000]) * np.linalg.norm(recording))
    assert likeness == pytest.approx(1.0, abs=1e-3)
    assert any(
        not np.allclose(augmenter.augment_samples(clip, seed) - clip, added, atol=1e-6) for seed in range(3)
    )


def test_noise_files_of_any_length_and_format_are_used_cached_or_not(
    noises: Path, monkeypatch: pytest.MonkeyPatch
):
    noise_settings = AugmentSettings(noise_ratio=1.0, noise=str(noises))
    cached = Augmenter(noise_settings, WINDOW)
    monkeypatch.setattr("ossicle.audio.augment._MAX_CACHED_SAMPLES", 26_000)
    reloaded = Augmenter(noise_settings, WINDOW)  # one recording of 25,397 samples and one of 1,000
    assert [isinstance(noise, Path) for noise in cached.noises] == [False, False]
    assert [isinstance(noise, Path) for noise in reloaded.noises] == [False, True]
    for seed in range(8):
        augmented = cached.augment_samples(tone(30_000), seed)
        assert len(augmented) == 30_000
        assert np.isfinite(augmented).all()
        np.testing.assert_array_equal(reloaded.augment_samples(tone(30_000), seed), augmented)


def test_unusable_noise_is_refused_before_training(noises: Path, tmp_path: Path):
    def refused(folder: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            Augmenter(AugmentSettings(noise_ratio=0.1, noise=str(folder)), WINDOW)
        return str(caught.value)

    assert "which is not a folder" in refused(tmp_path / "nowhere")
    assert "which is not a folder" in refused(noises / "short.wav")
    (tmp_path / "empty").mkdir()
    assert "has no sound files" in refused(tmp_path / "empty")
    (noises / "broken.ogg").write_bytes(b"OggS and nothing else")
    assert "broken.ogg" in refused(noises)
    assert "remove the file from the folder" in refused(noises)


# On spectrograms


@pytest.mark.parametrize("seed", range(40))
def test_an_augmented_clip_is_a_log_mel_spectrogram(seed):
    mel = augment_mel(random_mel(200), seed, 210, lambda: random_mel(30))
    assert mel.shape[0] == 80
    assert mel.shape[1] % 2 == 0
    assert 170 <= mel.shape[1] <= 210
    assert torch.isfinite(mel).all()
    assert mel.max() - mel.min() <= FLOOR + 1e-5


def test_a_silent_spectrogram_stays_finite():
    silent = log_mel_spectrogram(np.zeros(16_000, np.float32), 80, 100)
    for seed in range(20):
        assert torch.isfinite(augment_mel(silent, seed, 600, lambda: silent)).all()


def test_augmentation_of_spectrograms_depends_on_the_seed_alone():
    clip = random_mel(120)
    first, again, other = (augment_mel(clip, seed, 600, lambda: random_mel(100)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_babble_is_drawn_for_one_clip_in_seven_and_mixed_in():
    clip = random_mel(60)
    babbled_seeds: list[int] = []
    for seed in range(400):
        before = len(babbled_seeds)
        augmented = augment_mel(
            clip, seed, 600, lambda seed=seed: babbled_seeds.append(seed) or random_mel(80, seed)
        )
        is_other = not torch.equal(augmented, augment_mel(clip, seed, 600))
        assert is_other == (len(babbled_seeds) > before)
    assert 0.1 < len(babbled_seeds) / 400 < 0.2


def test_masks_cover_a_small_part_and_stay_inside():
    mel = random_mel(100)
    masked = mel.clone()
    mask_patches(masked, seed=1)
    assert 0 < (masked != mel).float().mean() < 0.5


def test_the_silence_behind_a_sound_is_not_masked():
    mel, augmenter = random_mel(3_000), Augmenter(EVERYTHING, WINDOW)
    for seed in range(20):
        masked = augmenter.augment_mel(mel, 200, seed)
        assert torch.equal(masked[:, 200:], mel[:, 200:])
        assert not torch.equal(masked[:, :200], mel[:, :200])
