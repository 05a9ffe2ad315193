"""Which clips make up which batch: a pure function of seed, sample counter and the clips' lengths.

It knows nothing of ranks: they share out a batch that is the same for any number of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from ossicle.data.dataset import Section

WINDOW_BATCHES = 16
"""Batches that share out their clips by length, so that short clips are not padded to long ones."""


@dataclass(frozen=True)
class Draw:
    """One clip of a batch, and which pass over its source this is."""

    row: int
    epoch: int


class BatchSampler:
    """Batches of like length in an order drawn from (seed, epoch); all that a run has to keep is how many samples
    came before.

    Without weights every clip comes exactly once in an epoch. With weights each source is gone through in an order
    of its own, and has its share of every epoch. Samples are dealt out evenly, `batch_size` to a batch or fewer, and
    no two batches differ by more than one.

    Args:
        lengths: of each row, in any unit
        sections: the sources' rows; all have a weight or none has
        is_sequential: rows keep their order, for sources that can only be read from front to back
    """

    def __init__(
        self,
        lengths: Sequence[float | int] | Float[np.ndarray, " n"],
        batch_size: int,
        seed: int,
        *,
        sections: Sequence[Section] = (),
        is_sequential: bool = False,
    ) -> None:
        self.lengths, self.seed, self.is_sequential = np.asarray(lengths), seed, is_sequential
        self.sections = tuple(sections) or (Section(first=0, n_rows=len(self.lengths), weight=None),)
        self.samples_per_epoch = len(self.lengths)
        self.batches_per_epoch = -(-self.samples_per_epoch // batch_size)
        self._quotas = _quotas(self.sections, self.samples_per_epoch)
        self._batches = lru_cache(maxsize=2)(self._drawn)
        self._permuted = lru_cache(maxsize=2 * len(self.sections))(self._permutation)

    def __getitem__(self, step: int) -> list[Draw]:
        """The clips of one step's batch, shortest first."""
        epoch, place = divmod(step, self.batches_per_epoch)
        rows, passes, edges, order = self._batches(epoch)
        batch = slice(edges[order[place]], edges[order[place] + 1])
        return [
            Draw(row, before)
            for row, before in zip(rows[batch].tolist(), passes[batch].tolist(), strict=True)
        ]

    def epoch(self, step: int) -> int:
        """Which pass over the clips a step belongs to."""
        return step // self.batches_per_epoch

    def n_samples(self, step: int) -> int:
        """How many samples come before a step: the counter that a run keeps."""
        epoch, place = divmod(step, self.batches_per_epoch)
        _, _, edges, order = self._batches(epoch)
        sizes = np.diff(edges)[order[:place]]
        return epoch * self.samples_per_epoch + int(sizes.sum())

    def _drawn(
        self, epoch: int
    ) -> tuple[
        Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " edges"], Int[np.ndarray, " batches"]
    ]:
        """Rows of an epoch, batch after batch, their passes, the batches' edges, and the order to take them in."""
        n, n_batches = self.samples_per_epoch, self.batches_per_epoch
        edges = np.arange(n_batches + 1) * n // n_batches
        rows, passes = self._interleaved(epoch)
        order = np.arange(n_batches)
        if not self.is_sequential:
            for first in range(0, n_batches, WINDOW_BATCHES):
                window = slice(edges[first], edges[min(first + WINDOW_BATCHES, n_batches)])
                by_length = np.argsort(self.lengths[rows[window]], kind="stable")
                rows[window], passes[window] = rows[window][by_length], passes[window][by_length]
            self._rng(epoch, len(self.sections) + 1).shuffle(order)
        return rows, passes, edges, order

    def _interleaved(self, epoch: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Each source's share of an epoch, in its own order, at places that are drawn."""
        whose = np.repeat(np.arange(len(self.sections)), self._quotas)
        self._rng(epoch, len(self.sections)).shuffle(whose)
        rows, passes = np.empty(len(whose), np.int64), np.empty(len(whose), np.int64)
        for number, (section, quota) in enumerate(zip(self.sections, self._quotas, strict=True)):
            first, size = epoch * quota, section.n_rows  # where it stands in the source's endless walk
            before = np.arange(first, first + quota) // size
            taken = np.empty(quota, np.int64)
            for one in range(first // size, -(-(first + quota) // size)):
                start, stop = max(one * size, first), min((one + 1) * size, first + quota)
                taken[start - first : stop - first] = self._permuted(number, one)[
                    start - one * size : stop - one * size
                ]
            is_here = whose == number
            rows[is_here], passes[is_here] = section.first + taken, before
        return rows, passes

    def _permutation(self, section: int, epoch: int) -> Int[np.ndarray, " m"]:
        n_rows = self.sections[section].n_rows
        return np.arange(n_rows) if self.is_sequential else self._rng(epoch, section).permutation(n_rows)

    def _rng(self, epoch: int, stream: int) -> np.random.RandomState:
        """numpy promises that the numbers of this generator, unlike those of newer ones, never change."""
        return np.random.RandomState([self.seed & 0xFFFFFFFF, self.seed >> 32, epoch, stream])


def _quotas(sections: Sequence[Section], n: int) -> list[int]:
    """How many of an epoch's n samples each source has: by weight, or all of its rows."""
    if any(section.weight is None for section in sections):
        return [section.n_rows for section in sections]
    weights = np.array([section.weight for section in sections], np.float64)
    edges = np.round(np.cumsum(weights) / weights.sum() * n).astype(np.int64)
    return np.diff(edges, prepend=0).tolist()
