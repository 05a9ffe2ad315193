"""Stored silence behind a clip, against the whole window computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_ear, tiny_whisper

from ossicle.backbones.encoder import EncoderWindow, Features, build_mel_batch, encode
from ossicle.backbones.pretrained import load_whisper
from ossicle.backbones.silence import (
    Silence,
    compute_silence,
    count_positions,
    count_rows,
    synthesize_voice,
)
from ossicle.backbones.silence_check import MAX_DIVERGENCE, measure_divergence
from ossicle.config import BaseSettings, ConnectorSettings
from ossicle.ear import EarSettings
from ossicle.errors import ConfigError


def load_pocket_whisper():
    return load_whisper("pocket/whisper", None, torch.device("cpu"))


@pytest.fixture(scope="module")
def whisper():
    return load_pocket_whisper()


@pytest.fixture(scope="module")
def silence(whisper) -> Silence:
    return compute_silence(whisper.model.model.encoder)


def encode_sounds(whisper, sounds: list[np.ndarray], kind, behind: Silence | None = None) -> Features:
    window = EncoderWindow(whisper.window_frames, kind)
    mel, n_frames = build_mel_batch(sounds, whisper.config.num_mel_bins, window)
    with torch.no_grad():
        return encode(whisper.model.model.encoder, mel, n_frames, behind)


def test_every_position_of_the_window_has_its_row(silence: Silence) -> None:
    assert int(silence.counts.sum()) == 300
    assert len(silence.states) == count_rows(300)
    assert silence.starts.equal(silence.starts.sort().values)
    assert (silence.counts[silence.starts < 60] > 1).all()  # outliers are sought where it is silent


def test_rows_and_positions_of_a_clip_make_up_the_window(silence: Silence) -> None:
    for n_positions in (60, 100, 220, 300):
        rows = silence.rows_behind(torch.tensor([n_positions]), n_positions)
        assert n_positions + int(silence.counts[rows.first :].sum()) == 300
        assert float(rows.bias.exp().sum()) == pytest.approx(300, rel=1e-5)


def test_stored_silence_stands_for_the_whole_window(whisper, silence: Silence) -> None:
    """The states of a sound are those of the whole window, much closer than without anything behind it."""
    sound = synthesize_voice(7, 2.0)
    full = encode_sounds(whisper, [sound], "full").states[0, :100]
    behind = encode_sounds(whisper, [sound], "sound+silence", silence).states[0, :100]
    alone = encode_sounds(whisper, [sound], "sound").states[0, :100]
    assert (behind - full).square().mean() < 0.2 * (alone - full).square().mean()


def test_with_rows_of_one_position_each_nothing_is_lost(whisper) -> None:
    """Against the silence behind the very same sound."""
    sound = synthesize_voice(0, 0.7)
    exact = encode_sounds(whisper, [sound], "full")
    recorded: list[torch.Tensor] = []
    encoder = whisper.model.model.encoder
    hooks = [
        part.register_forward_hook(lambda _module, _inputs, output: recorded.append(output[0]))
        for layer in encoder.layers
        for part in (layer.self_attn.k_proj, layer.self_attn.v_proj)
    ]
    encode_sounds(whisper, [sound], "full")
    for hook in hooks:
        hook.remove()
    own = Silence(
        keys=torch.stack(recorded[::2]),
        values=torch.stack(recorded[1::2]),
        states=exact.states[0],
        starts=torch.arange(300),
        counts=torch.ones(300, dtype=torch.long),
    )
    found = encode_sounds(whisper, [sound], "sound+silence", own)
    assert found.mask.shape[1] == 60
    torch.testing.assert_close(found.states, exact.states, rtol=1e-3, atol=1e-4)


def test_a_clip_with_silence_does_not_depend_on_its_batch(whisper, silence: Silence) -> None:
    sounds = [synthesize_voice(seed, seconds) for seed, seconds in ((1, 0.5), (2, 5.9), (3, 2.2))]
    together = encode_sounds(whisper, sounds, "sound+silence", silence)
    assert together.silence_bias is not None
    for row, sound in enumerate(sounds):
        alone = encode_sounds(whisper, [sound], "sound+silence", silence)
        n = alone.mask.shape[1]
        assert int(together.mask[row].sum()) == n
        torch.testing.assert_close(together.states[row, :n], alone.states[0, :n], rtol=1e-3, atol=1e-4)
        assert alone.silence_bias is not None
        weights = together.silence_bias[row].exp().sum()
        assert float(weights) == pytest.approx(float(alone.silence_bias.exp().sum()), rel=1e-5)


def test_a_sound_as_long_as_the_window_has_nothing_behind_it(whisper, silence: Silence) -> None:
    sound = synthesize_voice(4, 6.0)
    full, found = (
        encode_sounds(whisper, [sound], "full"),
        encode_sounds(whisper, [sound], "sound+silence", silence),
    )
    assert found.states.shape == full.states.shape
    torch.testing.assert_close(found.states, full.states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("n_positions", "n_window", "expected"),
    [(1, 1500, 60), (61, 1500, 80), (1490, 1500, 1500), (10, 50, 50), (3, 7, 7), (70, 299, 78)],
)
def test_positions_are_whole_rows(n_positions: int, n_window: int, expected: int) -> None:
    assert count_positions(n_positions, n_window) == expected


def test_stored_silence_is_checked(whisper, silence: Silence) -> None:
    window = EncoderWindow(whisper.window_frames, "sound+silence")
    divergence = measure_divergence(whisper, silence, window)
    assert divergence < MAX_DIVERGENCE
    other = replace(silence, values=silence.values.flip(1), states=silence.states.flip(0))
    assert divergence < measure_divergence(whisper, other, window)
    assert measure_divergence(whisper, silence, replace(window, silence_margin_s=8.0)) < 1e-6


def test_a_margin_of_silence_is_encoded_with_the_clip(whisper) -> None:
    sound = synthesize_voice(7, 1.5)
    for margin_s, n_positions in ((0.0, 80), (1.0, 140), (2.5, 220), (8.0, 300)):
        window = EncoderWindow(whisper.window_frames, "sound+silence", margin_s)
        assert window.count_frames(len(sound)) == 2 * n_positions


def test_training_and_hearing_have_the_same_features() -> None:
    """Stored states get the same silence as computed ones."""
    base = BaseSettings(
        encoder="tiny/whisper", llm="tiny/llm", encoder_window="sound+silence", silence_margin_s=0.0
    )
    ear = tiny_ear("autoregressive", base=base)
    sounds = [synthesize_voice(seed, seconds) for seed, seconds in ((1, 0.5), (2, 3.0))]
    computed = ear.encode_sounds(sounds)
    n_positions = computed.mask.sum(1)
    states = computed.states[:, : computed.mask.shape[1]]
    stored = ear.wrap_states(states, n_positions)
    assert torch.equal(stored.states, computed.states)
    assert stored.silence_bias is not None
    assert computed.silence_bias is not None
    assert torch.equal(stored.silence_bias, computed.silence_bias)


@pytest.mark.parametrize("form", ["anchored", "stack"])
def test_a_form_that_reads_positions_one_by_one_is_refused(form) -> None:
    base = BaseSettings(encoder="tiny/whisper", llm="tiny/llm", encoder_window="sound+silence")
    with pytest.raises(ConfigError, match=r"base\.encoder_window.*sound or full"):
        EarSettings(base=base, connector=ConnectorSettings(form=form))


def test_a_tiny_window_is_taken_whole() -> None:
    whisper = tiny_whisper()
    silence = compute_silence(whisper.model.model.encoder)
    assert int(silence.counts.sum()) == whisper.config.max_source_positions
