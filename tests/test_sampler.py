"""In which order transcribed speech is learned."""

from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from earshot.data.sampler import BatchSampler


@given(
    lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=200),
    batch_size=st.integers(1, 64),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_clip_comes_once_in_an_epoch(lengths: list[int], batch_size: int, seed: int) -> None:
    sampler = BatchSampler(lengths, batch_size, seed)
    for epoch in range(2):
        first = epoch * sampler.batches_per_epoch
        batches = [sampler[first + place] for place in range(sampler.batches_per_epoch)]
        assert sorted(chain.from_iterable(batches)) == list(range(len(lengths)))
        sizes = {len(batch) for batch in batches}
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    lengths = list(range(100))
    forwards, backwards = BatchSampler(lengths, 8, 3), BatchSampler(lengths, 8, 3)
    steps = range(60)
    assert [forwards[step] for step in steps] == [backwards[step] for step in reversed(steps)][::-1]
    other = BatchSampler(lengths, 8, 4)
    assert [forwards[step] for step in steps] != [other[step] for step in steps]
    n = forwards.batches_per_epoch
    assert [forwards[step] for step in range(n)] != [forwards[n + step] for step in range(n)]


def test_clips_of_like_length_come_together() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 640).tolist()
    sampler = BatchSampler(lengths, 8, 0)
    spreads = [np.ptp([lengths[clip] for clip in sampler[step]]) for step in range(sampler.batches_per_epoch)]
    assert np.mean(spreads) < 100


def test_fewer_clips_than_a_batch_make_one_smaller_batch() -> None:
    sampler = BatchSampler([5, 3, 4], 8, 0)
    assert sampler[0] == sampler[7] == [1, 2, 0]
