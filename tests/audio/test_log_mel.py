"""Log-mel spectrograms against WhisperFeatureExtractor."""

import numpy as np
import pytest
import torch
from support.audio_files import build_tone
from torch.testing import assert_close
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import hertz_to_mel as transformers_hertz_to_mel

from ossicle.audio.mel import hz_to_mel, log_mel_spectrogram, mel_filters, mel_to_hz
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.errors import AudioError, ConfigError


@pytest.mark.parametrize("n_samples", [1, 399, 16_000, 96_000])
@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("chunk_length", [6, 30])
def test_log_mel_equals_whispers(n_samples, n_mels, chunk_length):
    extractor = WhisperFeatureExtractor(feature_size=n_mels, chunk_length=chunk_length)
    samples = 0.1 * np.random.default_rng(n_samples).standard_normal(n_samples).astype(np.float32)
    expected = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0]
    assert_close(log_mel_spectrogram(samples, n_mels, chunk_length * 100), expected)
    assert_close(
        log_mel_spectrogram(torch.from_numpy(samples).double(), n_mels, chunk_length * 100), expected
    )


@pytest.mark.parametrize("n_frames", [2, 3, 250, 601])
def test_log_mel_equals_whispers_for_any_window(n_frames):
    extractor = WhisperFeatureExtractor()
    samples = build_tone(duration_s=n_frames / 100)
    expected = extractor(
        samples, sampling_rate=SAMPLE_RATE, max_length=n_frames * 160, return_tensors="pt"
    ).input_features[0]
    assert log_mel_spectrogram(samples, 80, n_frames).shape == (80, n_frames)
    assert_close(log_mel_spectrogram(samples, 80, n_frames), expected)


def test_log_mel_of_silence_and_near_silence_equals_whispers():
    extractor = WhisperFeatureExtractor(chunk_length=6)
    for samples in (np.zeros(100, np.float32), np.full(100, 1e-9, np.float32)):
        expected = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0]
        assert_close(log_mel_spectrogram(samples, 80, 600), expected)


@pytest.mark.parametrize("n_mels", [1, 40, 80, 128])
def test_mel_filters_equal_whispers(n_mels):
    expected = WhisperFeatureExtractor(feature_size=n_mels).mel_filters.T
    assert_close(mel_filters(n_mels), torch.from_numpy(expected).float())
    assert mel_filters(n_mels) is mel_filters(n_mels)


def test_a_window_takes_its_exact_length_and_not_one_sample_more():
    sound = np.zeros(96_001, np.float32)
    sound[95_999] = 1.0
    assert (
        log_mel_spectrogram(sound[:96_000], 80, 600)[:, -1].max()
        > log_mel_spectrogram(sound[:96_000], 80, 600)[:, 0].max()
    )
    with pytest.raises(AudioError, match=r"6\.00 s \(96001 samples\).*at most.*96000.*split"):
        log_mel_spectrogram(sound, 80, 600)


def test_impossible_sizes_of_log_mel_are_refused():
    with pytest.raises(ConfigError, match="n_frames=1: expected at least 2"):
        log_mel_spectrogram(np.zeros(10, np.float32), 80, 1)
    with pytest.raises(ConfigError, match="n_mels=0: expected a positive"):
        log_mel_spectrogram(np.zeros(10, np.float32), 0, 600)


def test_mel_and_hz_are_inverse():
    hertz = np.linspace(0, 8_000, 801)
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hertz)), hertz, atol=1e-9)
    np.testing.assert_allclose(hz_to_mel(hertz), transformers_hertz_to_mel(hertz, mel_scale="slaney"))
