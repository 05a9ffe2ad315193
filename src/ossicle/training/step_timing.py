"""How many steps of a run fit into a given time."""

import contextlib
import copy
import math
import time
from collections.abc import Generator

from ossicle.training.batch import RankBatch
from ossicle.training.run import Run
from ossicle.training.train_step import train_step

_N_TIMED_STEPS, _N_SAMPLED_STEPS = 6, 48
"""Steps that are timed, and steps they are chosen from: from the shortest to the longest, evenly spaced."""


def count_steps_within(run: Run, seconds: float) -> int:
    """Estimates how many steps a run can take in a given time, alignment-only warm-up included.

    It takes a dozen steps to time them, and restores connector and optimizer afterwards.
    """
    ratio = run.recipe.objective.align_only_ratio
    first_after = math.ceil(ratio * run.recipe.train.n_steps)
    with _restore(run):
        step_s = sum(
            weight * _time_step(run, first)
            for weight, first in ((ratio, 0), (1 - ratio, first_after))
            if weight > 0
        )
    return max(1, int(seconds / step_s))


def _time_step(run: Run, first: int) -> float:
    """Returns the seconds of a step, its clips being loaded already, as workers have them."""

    def take(step: int, rank_batch: RankBatch) -> None:
        float(train_step(run, step, rank_batch).terms["loss"])  # waits for the device

    steps = range(first, first + _N_SAMPLED_STEPS)
    by_duration = sorted(steps, key=lambda step: _sum_durations(run, step))
    spacing = _N_SAMPLED_STEPS // _N_TIMED_STEPS
    chosen = by_duration[spacing // 2 :: spacing]
    rank_batches = {step: run.load_rank_batch(step) for step in chosen}
    take(chosen[0], rank_batches[chosen[0]])  # the first step is slower than all others
    start_s = time.perf_counter()
    for step, rank_batch in rank_batches.items():
        take(step, rank_batch)
    return (time.perf_counter() - start_s) / _N_TIMED_STEPS


def _sum_durations(run: Run, step: int) -> float:
    return float(sum(run.dataset.speech.durations_s[index.row] for index in run.sampler[step]))


@contextlib.contextmanager
def _restore(run: Run) -> Generator[None]:
    """Restores connector and optimizer after the block, bit for bit."""
    before = copy.deepcopy((run.ear.connector.state_dict(), run.optimizer.state_dict()))
    try:
        yield
    finally:
        run.ear.connector.load_state_dict(before[0])
        run.optimizer.load_state_dict(before[1])
        run.optimizer.zero_grad()
