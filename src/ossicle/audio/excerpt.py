"""Stretches of longer recordings: their samples alone, without those before and behind them."""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ossicle.audio.decoding import AudioStream
from ossicle.errors import AudioError

_ROUNDING_S = 0.1
"""A stretch may end this much behind the recording."""
_CUT_OUT_S = 0.25
"""A sound this much longer or shorter than the stretch is taken for the stretch itself."""


@dataclass(frozen=True, kw_only=True)
class AudioExcerpt:
    """A stretch of a recording.

    Many data sets keep the times of a stretch with the sound that was cut out by them. Hence a sound that does not
    reach the stretch, and is as long as it, is the stretch.
    """

    source: str | Path | bytes | np.ndarray
    """A path, the bytes of an audio file, or samples at 16 kHz."""
    start_s: float
    end_s: float | None = None
    """None: the end of the recording."""


@contextmanager
def open_excerpt(
    open_stream: Callable[[], AbstractContextManager[AudioStream]], excerpt: AudioExcerpt
) -> Generator[AudioStream, None, None]:
    """Opens an excerpt as a stream, to be read inside `with`; a recording that declares no length is decoded twice.

    Args:
        open_stream: opens the recording

    Raises:
        AudioError: as the decoder; or a stretch outside the recording
    """
    with open_stream() as stream:
        duration_s = stream.declared_duration_s
        if duration_s is None:
            duration_s = sum(map(len, stream.blocks)) / stream.sample_rate
    start_s, end_s = _find_range(stream.name, excerpt, duration_s)
    with open_stream() as stream:
        first, last = round(start_s * stream.sample_rate), round(end_s * stream.sample_rate)
        yield replace(stream, blocks=_cut(stream, first, last), declared_duration_s=end_s - start_s)


def _find_range(name: str, excerpt: AudioExcerpt, duration_s: float) -> tuple[float, float]:
    """Returns the seconds of a recording that an excerpt stands for."""
    start_s, end_s = excerpt.start_s, excerpt.end_s
    if end_s is None:
        is_cut_out, end_s = False, duration_s
    else:
        is_cut_out = end_s > duration_s and abs(duration_s - (end_s - start_s)) <= _CUT_OUT_S
    if is_cut_out:
        return 0.0, duration_s
    if start_s >= duration_s or end_s > duration_s + _ROUNDING_S:
        end = "the end" if excerpt.end_s is None else f"{end_s:g} s"
        raise AudioError(
            f"{name} has {duration_s:.2f} s, and the stretch from {start_s:g} s to {end} lies outside it; expected"
            " seconds of the recording, or of the clip that was cut out of it"
        )
    return start_s, min(end_s, duration_s)


def _cut(stream: AudioStream, first: int, last: int) -> Iterator[np.ndarray]:
    """Yields the samples from the first on and before the last."""
    position = stream.skip(first) if first else 0
    for block in stream.blocks:
        if first < position + len(block) and position < last:
            yield block[max(0, first - position) : last - position]
        position += len(block)
        if position >= last:
            return
