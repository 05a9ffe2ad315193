"""Decides which clips make up which batch: a pure function of seed, step and the clips' lengths.

It knows nothing of ranks: they split a batch, which is the same for any number of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from ossicle.data.dataset import SourceRange

BATCHES_PER_BUCKET = 16
"""Batches that sort their clips by length together, so that short clips are not padded to long ones."""


@dataclass(frozen=True)
class SampleIndex:
    """One clip of a batch, and the number of times its source has been read before."""

    row: int
    epoch: int


@dataclass(frozen=True)
class _EpochPlan:
    """The batches of one epoch."""

    rows: Int[np.ndarray, " n"]
    """Batch after batch."""
    passes: Int[np.ndarray, " n"]
    """How often each row's source has been read before."""
    edges: Int[np.ndarray, " edges"]
    """Batch i holds rows edges[i] to edges[i + 1]."""
    order: Int[np.ndarray, " batches"]
    """In which the batches are taken."""


class BatchSampler:
    """Batches of similar length in an order drawn from (seed, epoch); a run only has to remember its step.

    Without weights every clip comes exactly once in an epoch. With weights each source is read in an order of its
    own, and has its share of every epoch. Samples are divided evenly, `batch_size` to a batch or fewer, and the sizes
    of two batches differ by at most one.

    Args:
        lengths: length of each row, in any unit
        source_ranges: the rows of each source; either all have a weight or none has
        is_sequential: keeps rows in order, for sources that can only be read from front to back
    """

    def __init__(
        self,
        lengths: Sequence[float | int] | Float[np.ndarray, " n"],
        batch_size: int,
        seed: int,
        *,
        source_ranges: Sequence[SourceRange] = (),
        is_sequential: bool = False,
    ) -> None:
        self.lengths, self.seed, self.is_sequential = np.asarray(lengths), seed, is_sequential
        whole = SourceRange(first_row=0, n_rows=len(self.lengths), weight=None)
        self.source_ranges = tuple(source_ranges) or (whole,)
        self.samples_per_epoch = len(self.lengths)
        self.batches_per_epoch = -(-self.samples_per_epoch // batch_size)
        self._quotas = _compute_quotas(self.source_ranges, self.samples_per_epoch)
        self._cached_plan = lru_cache(maxsize=2)(self._plan_epoch)
        self._cached_permutation = lru_cache(maxsize=2 * len(self.source_ranges))(self._permute_source)

    def __getitem__(self, step: int) -> list[SampleIndex]:
        """Returns the clips of one step's batch, shortest first."""
        epoch, position = divmod(step, self.batches_per_epoch)
        plan = self._cached_plan(epoch)
        index = plan.order[position]
        batch = slice(plan.edges[index], plan.edges[index + 1])
        rows, passes = plan.rows[batch].tolist(), plan.passes[batch].tolist()
        return [SampleIndex(row, n_passes) for row, n_passes in zip(rows, passes, strict=True)]

    def epoch_at(self, step: int) -> int:
        """Returns the number of the epoch that a step belongs to, counted from 0."""
        return step // self.batches_per_epoch

    def count_samples_before(self, step: int) -> int:
        """Returns the number of samples in all steps before this one."""
        epoch, position = divmod(step, self.batches_per_epoch)
        plan = self._cached_plan(epoch)
        batch_sizes = np.diff(plan.edges)[plan.order[:position]]
        return epoch * self.samples_per_epoch + int(batch_sizes.sum())

    def _plan_epoch(self, epoch: int) -> _EpochPlan:
        n, n_batches = self.samples_per_epoch, self.batches_per_epoch
        edges = np.arange(n_batches + 1) * n // n_batches
        rows, passes = self._interleave_sources(epoch)
        order = np.arange(n_batches)
        if not self.is_sequential:
            for first in range(0, n_batches, BATCHES_PER_BUCKET):
                bucket = slice(edges[first], edges[min(first + BATCHES_PER_BUCKET, n_batches)])
                by_length = np.argsort(self.lengths[rows[bucket]], kind="stable")
                rows[bucket], passes[bucket] = rows[bucket][by_length], passes[bucket][by_length]
            self._rng(epoch, len(self.source_ranges) + 1).shuffle(order)
        return _EpochPlan(rows, passes, edges, order)

    def _interleave_sources(self, epoch: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Returns rows and passes of an epoch: each source in its own order, at positions that are drawn."""
        source_of = np.repeat(np.arange(len(self.source_ranges)), self._quotas)
        self._rng(epoch, len(self.source_ranges)).shuffle(source_of)
        rows, passes = np.empty(len(source_of), np.int64), np.empty(len(source_of), np.int64)
        for number, (source_range, quota) in enumerate(zip(self.source_ranges, self._quotas, strict=True)):
            is_here = source_of == number
            start = epoch * quota  # position in the endless sequence of passes over the source
            rows[is_here] = source_range.first_row + self._take_rows(number, start, start + quota)
            passes[is_here] = np.arange(start, start + quota) // source_range.n_rows
        return rows, passes

    def _take_rows(self, source: int, start: int, stop: int) -> Int[np.ndarray, " quota"]:
        """Returns the rows from start to stop in the endless sequence of passes over a source."""
        n_rows, taken = self.source_ranges[source].n_rows, np.empty(stop - start, np.int64)
        for n_pass in range(start // n_rows, -(-stop // n_rows)):
            first, last = max(n_pass * n_rows, start), min((n_pass + 1) * n_rows, stop)
            permutation = self._cached_permutation(source, n_pass)
            taken[first - start : last - start] = permutation[
                first - n_pass * n_rows : last - n_pass * n_rows
            ]
        return taken

    def _permute_source(self, source: int, n_pass: int) -> Int[np.ndarray, " m"]:
        n_rows = self.source_ranges[source].n_rows
        return np.arange(n_rows) if self.is_sequential else self._rng(n_pass, source).permutation(n_rows)

    def _rng(self, epoch: int, stream: int) -> np.random.RandomState:
        """Returns a legacy generator: numpy promises that its numbers, unlike those of newer ones, never change."""
        return np.random.RandomState([self.seed & 0xFFFFFFFF, self.seed >> 32, epoch, stream])


def _compute_quotas(source_ranges: Sequence[SourceRange], n: int) -> list[int]:
    """Returns how many of an epoch's n samples each source has: by weight, or all of its rows."""
    if any(source_range.weight is None for source_range in source_ranges):
        return [source_range.n_rows for source_range in source_ranges]
    weights = np.array([source_range.weight for source_range in source_ranges], np.float64)
    edges = np.round(np.cumsum(weights) / weights.sum() * n).astype(np.int64)
    return np.diff(edges, prepend=0).tolist()
