"""Long audio cut where it is quiet."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.audio_files import build_tone

from ossicle.audio.waveform import (
    SAMPLE_RATE,
    split_at_quiet,
)

MEDIUM = settings(max_examples=60)


@MEDIUM
@given(
    n_samples=st.integers(1, 40_000),
    max_samples=st.one_of(st.integers(1, 9_000), st.integers(3_000, 9_000)),
    n_silent=st.integers(0, 40_000),
    seed=st.integers(0, 99),
)
def test_pieces_join_to_the_whole_and_are_neither_too_long_nor_too_short(
    n_samples, max_samples, n_silent, seed
):
    n_samples = min(n_samples, 30 * max_samples)
    sound = np.random.default_rng(seed).standard_normal(n_samples).astype(np.float32)
    sound[:n_silent] = 0
    pieces = split_at_quiet(sound, max_samples)
    np.testing.assert_array_equal(np.concatenate(pieces), sound)
    assert max(map(len, pieces)) <= max_samples
    assert len(pieces) == 1 or min(map(len, pieces)) >= max(1, max_samples // 4)
    assert all(len(piece) >= max_samples // 2 for piece in pieces[:-1])
    assert [len(piece) for piece in split_at_quiet(sound.copy(), max_samples)] == [
        len(piece) for piece in pieces
    ]


@pytest.mark.parametrize(("n_more", "n_pieces"), [(-1, 1), (0, 1), (1, 2)])
def test_audio_of_exactly_the_maximum_length_is_not_cut(n_more, n_pieces):
    assert len(split_at_quiet(build_tone(duration_s=6.0 + n_more / SAMPLE_RATE), 6 * SAMPLE_RATE)) == n_pieces


@pytest.mark.parametrize("hiss", [0.0, 0.01])
@pytest.mark.parametrize("pause_s", [0.1, 0.3])
@pytest.mark.parametrize("at_s", [3.3, 4.0, 5.4])
def test_audio_is_cut_in_its_pause(at_s, pause_s, hiss):
    """Even if there is a very short silence elsewhere, such as the closure of a consonant."""
    sound = build_tone(duration_s=8.0)
    for first_s, length_s in [(at_s, pause_s), (4.8, 0.03)]:
        first, n = round(first_s * SAMPLE_RATE), round(length_s * SAMPLE_RATE)
        sound[first : first + n] = hiss * np.random.default_rng(1).standard_normal(n)
    cut_s = len(split_at_quiet(sound, 6 * SAMPLE_RATE)[0]) / SAMPLE_RATE
    assert at_s < cut_s < at_s + pause_s


def test_silence_is_cut_as_late_as_possible():
    pieces = split_at_quiet(np.zeros(14 * SAMPLE_RATE, np.float32), 6 * SAMPLE_RATE)
    assert [len(piece) / SAMPLE_RATE for piece in pieces] == [6.0, 6.0, 2.0]
