"""Several clips in a row as one example, their transcripts too; it cuts none, and reads none by itself.

A model that only ever heard clips of five seconds fails on long questions.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float32

from ossicle.audio.waveform import HOP_LENGTH, SAMPLE_RATE

_SHORTEST_SHARE = 0.5
"""Least part of the window that a joined example is to fill."""
_PAUSE_S = (0.1, 0.5)
_FADE_SAMPLES = SAMPLE_RATE // 200
"""5 ms in which a clip's edge comes and goes, so that none clicks."""
_QUIET_SHARE = 0.05
"""The part of a clip's stretches of 10 ms that are at most as loud as its pauses."""


def draw_join(seed: int, share: float, window_samples: int) -> int | None:
    """The length that an example is to reach by joining, in samples; None where it stays one clip.

    Args:
        share: of the examples that are joined
    """
    rng = np.random.default_rng((seed, 1))
    is_joined, part = rng.random() < share, rng.uniform(_SHORTEST_SHARE, 1.0)
    return round(part * window_samples) if is_joined else None


def join_clips(
    samples: Float32[np.ndarray, " N"],
    text: str,
    others: Iterable[tuple[Float32[np.ndarray, " _"], str]],
    target_samples: int,
    window_samples: int,
    seed: int,
) -> tuple[Float32[np.ndarray, " _"], list[str]]:
    """The clip with others behind it, and the transcripts of all that are in it, to be joined by a space.

    Clips are appended until the target is reached or the next one does not fit into the window. Between two there
    is a pause, hissing as softly as the clips' own pauses do: digital silence would tell where a clip ends.

    Args:
        others: asked for one more only when there is need
    """
    rng = np.random.default_rng((seed, 2))
    pieces, texts, n_samples, source = [samples], [text], len(samples), iter(others)
    while n_samples < target_samples:
        n_pause = round(rng.uniform(*_PAUSE_S) * SAMPLE_RATE)
        following = next(source, None)
        if following is None or n_samples + n_pause + len(following[0]) > window_samples:
            break
        pause = _pause(pieces[-1], following[0], n_pause, rng)
        pieces += [pause, following[0]]
        texts.append(following[1])
        n_samples += n_pause + len(following[0])
    if len(texts) == 1:
        return samples, texts
    spoken = pieces[::2]
    pieces[::2] = [
        _faded(clip, comes=index > 0, goes=index < len(spoken) - 1) for index, clip in enumerate(spoken)
    ]
    return np.concatenate(pieces), texts


def _pause(
    before: Float32[np.ndarray, " N"],
    after: Float32[np.ndarray, " N2"],
    n_samples: int,
    rng: np.random.Generator,
) -> Float32[np.ndarray, " _"]:
    """Noise that goes from the level of one clip's pauses to that of the other's."""
    level = np.linspace(_quiet_level(before), _quiet_level(after), n_samples, dtype=np.float32)
    return level * rng.standard_normal(n_samples, dtype=np.float32)


def _quiet_level(samples: Float32[np.ndarray, " N"]) -> float:
    n_whole = len(samples) // HOP_LENGTH
    if n_whole == 0:
        return 0.0
    power = np.square(samples[: n_whole * HOP_LENGTH].reshape(n_whole, HOP_LENGTH)).mean(axis=1)
    return float(np.sqrt(np.quantile(power, _QUIET_SHARE)))


def _faded(samples: Float32[np.ndarray, " N"], *, comes: bool, goes: bool) -> Float32[np.ndarray, " N"]:
    faded, n_fade = samples.copy(), min(_FADE_SAMPLES, len(samples) // 2)
    ramp = np.linspace(0.0, 1.0, n_fade, dtype=np.float32)
    if comes:
        faded[:n_fade] *= ramp
    if goes:
        faded[len(faded) - n_fade :] *= ramp[::-1]
    return faded
