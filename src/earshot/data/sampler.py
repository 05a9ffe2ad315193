"""Which clips make up which batch: a pure function of seed, step and the clips' lengths."""

import random
from collections.abc import Sequence
from functools import lru_cache

WINDOW_BATCHES = 16
"""Batches whose clips are sorted by length among themselves, so that short clips are not padded to long ones."""


class BatchSampler:
    """Batches of like length in an order drawn from (seed, epoch); its only state is the step that is asked for.

    Every clip comes once in an epoch, but for a remainder smaller than a batch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.seed = lengths, seed
        self.batch_size = min(batch_size, len(lengths))
        self.batches_per_epoch = len(lengths) // self.batch_size
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def __getitem__(self, step: int) -> list[int]:
        """The clips of one step's batch."""
        epoch, place = divmod(step, self.batches_per_epoch)
        return self._epoch(epoch)[place]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self.seed} {epoch}")
        order = rng.sample(range(len(self.lengths)), len(self.lengths))
        order = order[: self.batches_per_epoch * self.batch_size]
        batches: list[list[int]] = []
        window = WINDOW_BATCHES * self.batch_size
        for first in range(0, len(order), window):
            group = sorted(order[first : first + window], key=self.lengths.__getitem__)
            batches += [group[n : n + self.batch_size] for n in range(0, len(group), self.batch_size)]
        rng.shuffle(batches)
        return batches
