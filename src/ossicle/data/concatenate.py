"""Concatenates several clips and their transcripts into one example; cuts no clip, and reads none itself.

A model that was only trained on clips of five seconds fails on long questions.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float32

from ossicle.audio.waveform import HOP_LENGTH, SAMPLE_RATE

_MIN_WINDOW_RATIO = 0.5
"""The least part of the encoder's window that a concatenated example should fill."""
_PAUSE_S = (0.1, 0.5)
_FADE_SAMPLES = SAMPLE_RATE // 200
"""A fade of 5 ms at both ends of a clip, so that none clicks."""
_QUIET_RATIO = 0.05
"""The part of a clip's frames of 10 ms that are as quiet as its pauses."""
_TARGET_STREAM, _PAUSE_STREAM = 3, 4
"""Random numbers of a seed; streams 0 to 2 are those of the augmentation, which must not depend on these."""


def draw_concat_target(seed: int, concat_ratio: float, window_samples: int) -> int | None:
    """Draws the length in samples that an example should reach by concatenation; None if it stays one clip.

    Args:
        concat_ratio: ratio of examples that are concatenated
    """
    rng = np.random.default_rng((seed, _TARGET_STREAM))
    is_concatenated, window_ratio = rng.random() < concat_ratio, rng.uniform(_MIN_WINDOW_RATIO, 1.0)
    return round(window_ratio * window_samples) if is_concatenated else None


def concatenate_clips(
    samples: Float32[np.ndarray, " N"],
    text: str,
    others: Iterable[tuple[Float32[np.ndarray, " _"], str]],
    target_samples: int,
    window_samples: int,
    seed: int,
) -> tuple[Float32[np.ndarray, " _"], list[str]]:
    """Returns the clip followed by others, and the transcripts of all clips in it.

    Clips are appended until the target is reached or the next clip does not fit into the window. Between two clips
    there is a pause with noise as quiet as the clips' own pauses: digital silence would reveal where a clip ends.

    Args:
        others: clips to append; consumed only as far as needed
    """
    rng = np.random.default_rng((seed, _PAUSE_STREAM))
    segments, texts, n_samples, source = [samples], [text], len(samples), iter(others)
    while n_samples < target_samples:
        n_pause = round(rng.uniform(*_PAUSE_S) * SAMPLE_RATE)
        following = next(source, None)
        if following is None or n_samples + n_pause + len(following[0]) > window_samples:
            break
        pause = _generate_pause(segments[-1], following[0], n_pause, rng)
        segments += [pause, following[0]]
        texts.append(following[1])
        n_samples += n_pause + len(following[0])
    if len(texts) == 1:
        return samples, texts
    clips = segments[::2]
    segments[::2] = [
        _fade_edges(clip, fades_in=index > 0, fades_out=index < len(clips) - 1)
        for index, clip in enumerate(clips)
    ]
    return np.concatenate(segments), texts


def _generate_pause(
    before: Float32[np.ndarray, " N"],
    after: Float32[np.ndarray, " N2"],
    n_samples: int,
    rng: np.random.Generator,
) -> Float32[np.ndarray, " _"]:
    """Returns noise whose level moves from that of one clip's pauses to that of the other's."""
    level = np.linspace(
        _measure_quiet_level(before), _measure_quiet_level(after), n_samples, dtype=np.float32
    )
    return level * rng.standard_normal(n_samples, dtype=np.float32)


def _measure_quiet_level(samples: Float32[np.ndarray, " N"]) -> float:
    n_frames = len(samples) // HOP_LENGTH
    if n_frames == 0:
        return 0.0
    power = np.square(samples[: n_frames * HOP_LENGTH].reshape(n_frames, HOP_LENGTH)).mean(axis=1)
    return float(np.sqrt(np.quantile(power, _QUIET_RATIO)))


def _fade_edges(
    samples: Float32[np.ndarray, " N"], *, fades_in: bool, fades_out: bool
) -> Float32[np.ndarray, " N"]:
    faded, n_fade = samples.copy(), min(_FADE_SAMPLES, len(samples) // 2)
    ramp = np.linspace(0.0, 1.0, n_fade, dtype=np.float32)
    if fades_in:
        faded[:n_fade] *= ramp
    if fades_out:
        faded[len(faded) - n_fade :] *= ramp[::-1]
    return faded
