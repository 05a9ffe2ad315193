"""Concatenated clips: none is cut, nothing clicks, and they always fit into the window."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossicle.audio.augment import Augmenter
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.config import AugmentSettings
from ossicle.data.concatenate import concatenate_clips, draw_concat_target

FADE = SAMPLE_RATE // 200
WINDOW = 6 * SAMPLE_RATE


def make_clip(n_samples: int, seed: int = 0) -> np.ndarray:
    """Loud noise after a quiet beginning."""
    samples = np.random.default_rng(seed).standard_normal(n_samples).astype(np.float32) * 0.2
    samples[: n_samples // 10] *= 0.01
    return samples


def make_clips(lengths: list[int]) -> list[tuple[np.ndarray, str]]:
    return [(make_clip(n, seed), f"text {seed}") for seed, n in enumerate(lengths)]


@given(
    lengths=st.lists(st.integers(1, 50_000), min_size=1, max_size=7),
    part=st.floats(0, 1),
    seed=st.integers(0, 2**60),
)
@settings(max_examples=60)
def test_an_example_holds_whole_clips_with_short_pauses_within_the_window(lengths, part, seed):
    all_clips, target = make_clips(lengths), round(part * WINDOW)
    (first, text), consumed = all_clips[0], []

    def others():
        for other in all_clips[1:]:
            consumed.append(other)
            yield other

    concatenated, texts = concatenate_clips(first, text, others(), target, WINDOW, seed)
    n_used = len(texts)
    assert texts == [text for _, text in all_clips[:n_used]]
    assert len(concatenated) <= WINDOW
    assert len(consumed) <= n_used, "clips are read that are not needed"
    if n_used < len(all_clips) and len(concatenated) < target:
        assert len(concatenated) + 0.5 * SAMPLE_RATE + lengths[n_used] > WINDOW
    n_pauses = len(concatenated) - sum(lengths[:n_used])
    assert 0.1 * (n_used - 1) <= n_pauses / SAMPLE_RATE <= 0.5 * (n_used - 1)
    position = 0
    for samples, _ in all_clips[:n_used]:  # each is there, whole and in order
        inner = samples[FADE : len(samples) - FADE]
        if len(inner) > 200:
            starts = range(position, len(concatenated) - len(samples) + 1)
            position = next(
                at for at in starts if np.array_equal(concatenated[at + FADE : at + FADE + len(inner)], inner)
            )
        position += len(samples)


def test_the_same_seed_gives_the_same_example():
    row = make_clips([20_000, 20_000, 20_000])
    examples = [concatenate_clips(*row[0], iter(row[1:]), WINDOW, WINDOW, seed)[0] for seed in (5, 5, 6)]
    np.testing.assert_array_equal(examples[0], examples[1])
    assert len(examples[0]) != len(examples[2])


def test_a_clip_that_has_reached_the_target_stays_unchanged_and_reads_no_other():
    (samples, text), *_ = make_clips([20_000])

    def unexpected():
        raise AssertionError("no other clip is needed")
        yield

    concatenated, texts = concatenate_clips(samples, text, unexpected(), 20_000, WINDOW, 1)
    assert concatenated is samples
    assert texts == ["text 0"]


@pytest.mark.parametrize("second", [1.0, -1.0])
def test_pauses_are_as_quiet_as_the_clips_pauses_and_nothing_clicks(second):
    """Tones that begin and end at their peaks would click loudest."""
    first = np.full(SAMPLE_RATE, 0.5, np.float32)
    hiss = np.random.default_rng(0).standard_normal(SAMPLE_RATE // 5).astype(np.float32) * 0.001
    first[4_000 : 4_000 + len(hiss)] = hiss
    concatenated, texts = concatenate_clips(first, "a", iter([(second * first, "b")]), WINDOW, WINDOW, 3)
    assert texts == ["a", "b"]
    pause = concatenated[SAMPLE_RATE:-SAMPLE_RATE]
    assert 0.0005 < pause.std() < 0.002
    assert np.abs(np.diff(concatenated[SAMPLE_RATE - FADE : FADE - SAMPLE_RATE])).max() < 0.02


def test_silent_clips_are_separated_by_silence():
    silent = np.zeros(10_000, np.float32)
    concatenated, texts = concatenate_clips(
        silent, "a", itertools.repeat((silent, "b"), 2), WINDOW, WINDOW, 3
    )
    assert len(texts) == 3
    assert not concatenated.any()


def test_the_requested_ratio_of_examples_is_concatenated_to_more_than_half_of_the_window():
    assert not any(draw_concat_target(seed, 0.0, WINDOW) for seed in range(100))
    drawn = [draw_concat_target(seed, 0.3, WINDOW) for seed in range(1_000)]
    targets = [target for target in drawn if target is not None]
    assert 250 < len(targets) < 350
    assert WINDOW / 2 <= min(targets) < 0.55 * WINDOW
    assert 0.95 * WINDOW < max(targets) <= WINDOW
    assert drawn == [draw_concat_target(seed, 0.3, WINDOW) for seed in range(1_000)]
    assert None not in [draw_concat_target(seed, 1.0, WINDOW) for seed in range(100)]


def test_whether_clips_are_concatenated_does_not_tell_how_they_are_augmented():
    clip = make_clip(SAMPLE_RATE)
    augmenter = Augmenter(AugmentSettings(silence_ratio=0.5), WINDOW)
    pairs = Counter(
        (
            draw_concat_target(seed, 0.5, WINDOW) is not None,
            len(augmenter.augment_samples(clip, seed)) > len(clip),
        )
        for seed in range(1_000)
    )
    assert len(pairs) == 4
    assert min(pairs.values()) > 200
