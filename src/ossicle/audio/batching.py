"""Groups sounds into batches of similar length; it knows lengths only."""

from collections.abc import Iterator, Sequence

from ossicle.audio.waveform import SAMPLE_RATE

_MAX_RATIO, _MAX_PADDING = 1.5, SAMPLE_RATE
"""A sound is padded to at most this many times its length, and this many samples more."""


def batch_by_length(lengths: Sequence[int], max_samples: int) -> Iterator[list[int]]:
    """Yields the indices of sounds in batches, longest first, so that no sound is padded to a much longer one.

    Args:
        lengths: samples of each sound
        max_samples: most samples of a batch, padding included; a single longer sound is a batch of its own
    """
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        is_similar = longest <= _MAX_RATIO * lengths[index] + _MAX_PADDING
        if batch and not (is_similar and (len(batch) + 1) * longest <= max_samples):
            yield batch
            batch = []
        longest = longest if batch else lengths[index]
        batch.append(index)
    if batch:
        yield batch
