"""The encoder on shorter windows and in batches against transformers' own, which takes full windows only."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import freeze, tiny_whisper, tiny_whisper_config
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from ossicle.audio.waveform import HOP_LENGTH, SAMPLE_RATE
from ossicle.backbones.encoder import (
    FRAMES_PER_POSITION,
    POSITIONS_PER_SECOND,
    EncoderWindow,
    Features,
    build_mel_batch,
    compute_clip_mel,
    count_frames,
    encode,
    expand_attention_mask,
)
from ossicle.backbones.pretrained import Whisper
from ossicle.errors import AudioError

WINDOW_FRAMES = 200
FULL = EncoderWindow(WINDOW_FRAMES, "full")
SOUND = EncoderWindow(WINDOW_FRAMES, "sound")
MELS = pytest.mark.parametrize("n_mels", [8, 80, 128])


@functools.cache
def whisper(n_mels: int = 8) -> Whisper:
    return tiny_whisper(n_mels=n_mels, window_frames=WINDOW_FRAMES)


def encoder(n_mels: int = 8) -> WhisperEncoder:
    return whisper(n_mels).model.model.encoder


def noise(duration_s: float, seed: int = 0) -> np.ndarray:
    n_samples = round(duration_s * SAMPLE_RATE)
    return (0.1 * np.random.default_rng(seed).standard_normal(n_samples)).astype(np.float32)


def features(sounds: list[np.ndarray], window: EncoderWindow = SOUND) -> Features:
    mel, n_frames = build_mel_batch(sounds, 8, window)
    return encode(encoder(), mel, n_frames)


@MELS
def test_the_full_window_equals_transformers(n_mels: int) -> None:
    mel, n_frames = build_mel_batch([noise(0.7), noise(2.0, 1)], n_mels, FULL)
    encoded = encode(encoder(n_mels), mel, n_frames)
    torch.testing.assert_close(encoded.states, encoder(n_mels)(mel).last_hidden_state)
    assert encoded.mask.all()


def test_a_short_window_equals_a_transformers_encoder_of_that_size() -> None:
    mel, n_frames = build_mel_batch([noise(0.7)], 8, SOUND)
    small = WhisperEncoder(tiny_whisper_config(n_mels=8, window_frames=mel.shape[2]))
    weights = encoder().state_dict()
    weights["embed_positions.weight"] = weights["embed_positions.weight"][: mel.shape[2] // 2]
    small.load_state_dict(weights)
    torch.testing.assert_close(encode(encoder(), mel, n_frames).states, freeze(small)(mel).last_hidden_state)


@pytest.mark.parametrize("window", [SOUND, FULL])
def test_a_clip_does_not_depend_on_its_batch(window: EncoderWindow) -> None:
    sounds = [noise(duration_s, seed) for seed, duration_s in enumerate([0.3, 2.0, 1.11, 0.001])]
    together = features(sounds, window)
    for row, sound in enumerate(sounds):
        alone = features([sound], window)
        assert alone.mask.all()
        assert together.mask[row].sum() == alone.mask.sum()
        torch.testing.assert_close(together.states[row, : alone.states.shape[1]], alone.states[0])


@pytest.mark.parametrize("n", [40, 41])
def test_frames_beyond_a_clip_are_ignored(n: int) -> None:
    mel, _ = build_mel_batch([noise(1.0)], 8, SOUND)
    alone = encode(encoder(), mel[:, :, :n], torch.tensor([n]))
    within = encode(encoder(), mel, torch.tensor([n]))
    assert within.mask.sum() == alone.states.shape[1] == -(-n // FRAMES_PER_POSITION)
    torch.testing.assert_close(within.states[within.mask], alone.states[0])


@given(n_samples=st.integers(1, 40 * SAMPLE_RATE))
@settings(max_examples=50)
def test_frames_cover_the_sound_and_fill_positions(n_samples: int) -> None:
    n_frames = count_frames(n_samples)
    assert n_frames % FRAMES_PER_POSITION == 0
    assert n_samples < n_frames * HOP_LENGTH <= n_samples + 7 * HOP_LENGTH


def test_positions_per_second() -> None:
    assert POSITIONS_PER_SECOND == 50


def test_a_sound_may_fill_the_window_and_not_exceed_it() -> None:
    window_s = WINDOW_FRAMES * HOP_LENGTH / SAMPLE_RATE
    mel, n_frames = build_mel_batch([noise(window_s)], 8, SOUND)
    assert mel.shape == (1, 8, WINDOW_FRAMES)
    assert n_frames.tolist() == [WINDOW_FRAMES]
    with pytest.raises(AudioError, match="window"):
        build_mel_batch([noise(window_s + 1 / SAMPLE_RATE)], 8, SOUND)


def test_mels_are_padded_with_zeros() -> None:
    mel, n_frames = build_mel_batch([noise(0.2), noise(0.5)], 8, SOUND)
    assert mel.shape == (2, 8, int(n_frames.max()))
    assert not mel[0, :, n_frames[0] :].any()
    assert mel[0, :, : n_frames[0]].all()


def test_a_batch_of_mels_equals_those_of_single_clips() -> None:
    sounds = [noise(0.2), noise(0.5, 1), noise(0.31, 2)]
    for window in (SOUND, FULL):
        mel, n_frames = build_mel_batch(sounds, 8, window)
        for row, sound in enumerate(sounds):
            alone = compute_clip_mel(sound, 8, window)
            assert torch.equal(mel[row, :, : n_frames[row]], alone)


def test_attention_gets_a_mask_only_where_it_hides_something() -> None:
    mask = torch.tensor([[True, False]])
    assert expand_attention_mask(torch.ones(2, 5, dtype=torch.bool)) is None
    hides = expand_attention_mask(mask)
    assert hides is not None
    assert torch.equal(hides, mask[:, None, None])
    assert (
        expand_attention_mask(mask, is_unpadded=True) is None
    )  # the argument is trusted, the mask is not read


def test_bfloat16() -> None:
    half = WhisperEncoder(encoder().config).to(torch.bfloat16).eval()
    half.load_state_dict(encoder().state_dict())
    mel, n_frames = build_mel_batch([noise(0.3), noise(1.0)], 8, SOUND)
    encoded = encode(half, mel, n_frames)
    assert encoded.states.dtype == torch.bfloat16
    exact = encode(encoder(), mel, n_frames)
    similarity = torch.cosine_similarity(encoded.states.float(), exact.states, dim=-1)[exact.mask]
    assert similarity.min() > 0.99
