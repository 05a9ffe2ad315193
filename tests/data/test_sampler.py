"""The order of clips in training: a function of seed and step alone."""

from collections import Counter
from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ossicle.data.dataset import SourceRange
from ossicle.data.sampler import BatchSampler


def rows(sampler: BatchSampler, step: int) -> list[int]:
    return [draw.row for draw in sampler[step]]


@given(
    lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=200),
    batch_size=st.integers(1, 64),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_clip_comes_once_in_an_epoch(lengths: list[int], batch_size: int, seed: int) -> None:
    sampler = BatchSampler(lengths, batch_size, seed)
    for epoch in range(2):
        first = epoch * sampler.batches_per_epoch
        batches = [sampler[first + index] for index in range(sampler.batches_per_epoch)]
        draws = list(chain.from_iterable(batches))
        assert sorted(draw.row for draw in draws) == list(range(len(lengths)))
        assert {draw.epoch for draw in draws} == {epoch}
        sizes = {len(batch) for batch in batches}
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1


@given(lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=100), batch_size=st.integers(1, 20))
def test_samples_before_a_step_are_counted(lengths: list[int], batch_size: int) -> None:
    sampler, counted = BatchSampler(lengths, batch_size, 0), 0
    for step in range(2 * sampler.batches_per_epoch + 1):
        assert sampler.count_samples_before(step) == counted
        counted += len(sampler[step])


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    lengths = list(range(100))
    forwards, backwards = BatchSampler(lengths, 8, 3), BatchSampler(lengths, 8, 3)
    steps = range(60)
    assert [forwards[step] for step in steps] == [backwards[step] for step in reversed(steps)][::-1]
    other = BatchSampler(lengths, 8, 4)
    assert [rows(forwards, step) for step in steps] != [rows(other, step) for step in steps]
    n = forwards.batches_per_epoch
    assert [rows(forwards, step) for step in range(n)] != [rows(forwards, n + step) for step in range(n)]


def test_the_order_of_a_seed_never_changes() -> None:
    """A run that resumes with a newer numpy must draw the same clips."""
    sampler = BatchSampler([5, 3, 8, 1, 9, 2, 7], 3, 2**40 + 1)
    assert [rows(sampler, step) for step in range(4)] == [[3, 5], [6, 2, 4], [1, 0], [6, 2, 4]]


def test_clips_of_similar_length_are_batched_together() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 640).tolist()
    sampler = BatchSampler(lengths, 8, 0)
    spreads = [
        np.ptp([lengths[row] for row in rows(sampler, step)]) for step in range(sampler.batches_per_epoch)
    ]
    assert np.mean(spreads) < 100


def test_fewer_clips_than_a_batch_are_one_smaller_batch() -> None:
    sampler = BatchSampler([5, 3, 4], 8, 0)
    assert rows(sampler, 0) == rows(sampler, 7) == [1, 2, 0]


def build_source_ranges(*sizes_and_weights: tuple[int, float]) -> list[SourceRange]:
    firsts = np.cumsum([0, *(size for size, _ in sizes_and_weights)]).tolist()
    return [
        SourceRange(first_row=first, n_rows=size, weight=weight)
        for first, (size, weight) in zip(firsts, sizes_and_weights, strict=False)
    ]


def test_every_epoch_follows_the_weights_and_each_source_is_read_pass_by_pass() -> None:
    ranges = build_source_ranges((30, 1.0), (70, 3.0))
    sampler = BatchSampler([1.0] * 100, 10, 0, source_ranges=ranges)
    draws = [draw for step in range(6 * sampler.batches_per_epoch) for draw in sampler[step]]
    for epoch in range(6):
        small = [draw for draw in draws[100 * epoch :][:100] if draw.row < 30]
        assert len(small) == 25
    times = Counter(draw.row for draw in draws)
    assert {times[row] for row in range(30)} == {5}  # 6 epochs x 25 of 30 rows
    assert {times[row] for row in range(30, 100)} == {6, 7}  # 450 of 70
    passes: dict[int, list[int]] = {}
    for draw in draws:
        passes.setdefault(draw.row, []).append(draw.epoch)
    assert all(sorted(seen) == list(range(len(seen))) for seen in passes.values())


def test_a_stream_keeps_its_order() -> None:
    sampler = BatchSampler([3, 1, 2, 5, 4], 2, 0, is_sequential=True)
    taken = [row for step in range(2 * sampler.batches_per_epoch) for row in rows(sampler, step)]
    assert taken == [0, 1, 2, 3, 4] * 2
