"""Which clips make up which batch: a pure function of seed, step and the clips' lengths."""

import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

WINDOW_BATCHES = 16
"""Batches that share out their clips by length, so that short clips are not padded to long ones."""


class BatchSampler:
    """Batches of like length in an order drawn from (seed, epoch); its only state is the step asked for.

    Every clip comes exactly once in an epoch: clips are dealt out evenly, `batch_size` to a batch or fewer,
    and no two batches differ by more than one.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.seed = lengths, seed
        self.batches_per_epoch = -(-len(lengths) // batch_size)
        self._batches = lru_cache(maxsize=2)(self._shuffled)

    def __getitem__(self, step: int) -> list[int]:
        """The clips of one step's batch, shortest first."""
        epoch, place = divmod(step, self.batches_per_epoch)
        return self._batches(epoch)[place]

    def epoch(self, step: int) -> int:
        """Which pass over the clips a step belongs to."""
        return step // self.batches_per_epoch

    def _shuffled(self, epoch: int) -> list[list[int]]:
        n, n_batches = len(self.lengths), self.batches_per_epoch
        rng = random.Random(f"{self.seed} {epoch}")
        order = rng.sample(range(n), n)
        edges = [place * n // n_batches for place in range(n_batches + 1)]
        for first in range(0, n_batches, WINDOW_BATCHES):
            window = slice(edges[first], edges[min(first + WINDOW_BATCHES, n_batches)])
            order[window] = sorted(order[window], key=self.lengths.__getitem__)
        batches = [order[start:stop] for start, stop in pairwise(edges)]
        rng.shuffle(batches)
        return batches
