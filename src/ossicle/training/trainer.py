"""The loop: batch after batch through the ear, from the step where the run stands to its last."""

import contextlib
import copy
import math
import time
from collections.abc import Generator
from pathlib import Path

from ossicle import checkpoint
from ossicle.atomic_io import lock_folder, write_text
from ossicle.config import Recipe
from ossicle.ear import Ear
from ossicle.errors import DataError, OssicleError
from ossicle.settings_io import to_toml
from ossicle.training.dataloader import map_in_workers, report_dead_workers
from ossicle.training.distributed import join_process_group
from ossicle.training.progress import Progress
from ossicle.training.resume import TrainerState, check_state, load_state, save_state, write_origin
from ossicle.training.run import RankBatch, Run, build_run
from ossicle.training.run_log import MetricsLog
from ossicle.training.skipped import SkippedRows
from ossicle.training.stopping import StopRequested, catch_stop_signals
from ossicle.training.tally import MetricAverager
from ossicle.training.train_step import StepResult, train_step

__all__ = ["StopRequested", "count_steps_within", "train", "train_run"]

LOG_EVERY = 10
"""Steps to a line of metrics."""
_TIMED_STEPS, _OF_STEPS = 6, 48
"""Steps by which a run's speed is judged, and of how many: from the shortest to the longest at even distances."""


def train(recipe: Recipe, progress: Progress | None = None) -> Ear:
    """Distils an ear, from where its folder stands to the recipe's last step, and saves it there.

    Ctrl-C (or SIGTERM) saves the state first; the same call goes on from it, with the same result. Started by
    torchrun, all processes share each batch; any number of them can go on with what others began.

    Raises:
        StopRequested: stopped by hand
        CheckpointError: a base, a state or a folder that cannot be used, or one that another process trains in
        CacheError: stored states of something else, or damaged ones
        DataError: speech that cannot be used
        OssicleError: the loss is not finite any more, or another process was lost
    """
    with join_process_group() as ranks:
        progress = (progress if ranks.is_first else None) or Progress()
        with contextlib.ExitStack() as held:
            with ranks.sync_errors():
                if ranks.is_first:
                    held.enter_context(lock_folder(Path(recipe.out)))
            with ranks.sync_errors():
                check_state(Path(recipe.out), recipe)
            return train_run(build_run(recipe, progress), progress)


def train_run(run: Run, progress: Progress | None = None) -> Ear:
    """The steps that are left of a prepared run; for what it raises see `train`."""
    progress, n_steps = progress or Progress(), run.recipe.train.n_steps
    standing = load_state(run.folder, run.ear.connector, run.optimizer, run.recipe, run.ranks)
    metrics, skipped = _opened(run, standing)
    step, tally, learned = standing.step, MetricAverager(run), StepResult()
    with (
        report_dead_workers(),
        run.ranks.report_lost_ranks(),
        catch_stop_signals() as was_asked_to_stop,
        progress.training(step, n_steps),
        contextlib.closing(_shares(run, step)) as shares,
    ):
        while step < n_steps:
            taken = train_step(run, step, next(shares))
            step += 1
            learned = taken if taken.terms else learned  # a step without clips says nothing of the weights
            tally.add(taken)
            progress.advance(step)
            is_last = step == n_steps
            if step % LOG_EVERY == 0 or is_last:
                _check_finite(run, step, learned)
                row = tally.compute_row(step)
                with run.ranks.sync_errors():
                    if metrics:
                        metrics.append(row)
                progress.log(row)
            refusal = _refusal(run, step, taken, skipped)
            is_stopped = not is_last and run.ranks.all_reduce([was_asked_to_stop()])[0] > 0
            if step % run.recipe.train.save_every == 0 or is_last or is_stopped or refusal:
                _check_finite(run, step, learned)
                save_state(
                    run.folder, run.ear.connector, run.optimizer, _standing(run, step), run.recipe, run.ranks
                )
            if refusal:
                raise refusal
            if is_stopped:
                raise StopRequested(step, n_steps)
    with run.ranks.sync_errors():
        if run.ranks.is_first:
            checkpoint.save(run.ear, run.folder / checkpoint.RUN_EAR, bases=run.backbone_fingerprints)
    return run.ear


def _opened(run: Run, standing: TrainerState) -> tuple[MetricsLog | None, SkippedRows]:
    """The files of a run beside its state, as far as they belong to where it stands; the first rank writes them."""
    metrics = None
    with run.ranks.sync_errors():
        if run.ranks.is_first:
            write_origin(run.folder, run.fingerprints)
            write_text(run.folder / "recipe.toml", to_toml(run.recipe))
            metrics = MetricsLog(run.folder, standing.step)
            _skipped(run, standing.step)  # brings the file to where the run stands, before others read it
    with run.ranks.sync_errors():
        return metrics, _skipped(run, standing.step)


def _skipped(run: Run, step: int) -> SkippedRows:
    return SkippedRows(run.folder, len(run.dataset.speech), run.recipe.data.max_invalid_ratio, step)


def _standing(run: Run, step: int) -> TrainerState:
    return TrainerState(step=step, n_samples=run.sampler.count_samples_before(step))


def _refusal(run: Run, step: int, taken: StepResult, skipped: SkippedRows) -> DataError | None:
    """Lists the rows that a step had to leave out; what to end with if they are more than the recipe allows."""
    if not taken.n_skipped:
        return None
    with run.ranks.sync_errors():
        for rows in run.ranks.all_gather(taken.skipped):
            skipped.add(rows, step, writes=run.ranks.is_first)
    try:
        skipped.check(run.sampler.count_samples_before(step))
    except DataError as error:
        return error
    return None


def _shares(run: Run, step: int) -> Generator[RankBatch]:
    """What this rank learns from in each of the steps that are left."""
    with contextlib.closing(
        map_in_workers(run.dataset.load_clips, run.draw_chunks_from(step), run.dataset.n_workers)
    ) as made:
        for number in range(step, run.recipe.train.n_steps):
            yield run.build_rank_batch([next(made) for _ in run.draw_chunks(number)])


def _check_finite(run: Run, step: int, taken: StepResult) -> None:
    """Once a gradient is not finite, no weight is any more: nothing worth saving comes after it."""
    if not taken.is_finite:
        raise OssicleError(
            f"at step {step} the loss is {float(taken.terms['loss']):g} and its gradient not finite; begin again"
            f" with a train.peak_lr below {run.recipe.train.peak_lr:g} (the state saved before is unharmed)"
        )


def count_steps_within(run: Run, seconds: float) -> int:
    """How many steps a prepared run can take in so many seconds, lead phase and the rest in proportion.

    It takes a dozen steps to see, which are not counted, and puts connector and optimizer back as they were.
    """
    share = run.recipe.objective.align_only_ratio
    first_after = math.ceil(share * run.recipe.train.n_steps)
    with _put_back(run):
        step_s = sum(
            part * _seconds_per_step(run, first)
            for part, first in ((share, 0), (1 - share, first_after))
            if part > 0
        )
    return max(1, int(seconds / step_s))


def _seconds_per_step(run: Run, first: int) -> float:
    """By steps whose clips are ready, as workers have them when a step wants them."""

    def take(step: int, share: RankBatch) -> None:
        float(train_step(run, step, share).terms["loss"])  # waits for the device

    by_length = sorted(range(first, first + _OF_STEPS), key=lambda step: _length(run, step))
    every = _OF_STEPS // _TIMED_STEPS
    steps = by_length[every // 2 :: every]
    ready = {step: run.load_rank_batch(step) for step in steps}
    take(steps[0], ready[steps[0]])  # a first step is slower than all others
    started = time.perf_counter()
    for step, share in ready.items():
        take(step, share)
    return (time.perf_counter() - started) / _TIMED_STEPS


def _length(run: Run, step: int) -> float:
    return float(sum(run.dataset.speech.durations_s[draw.row] for draw in run.sampler[step]))


@contextlib.contextmanager
def _put_back(run: Run) -> Generator[None]:
    """Connector and optimizer are after the block, bit for bit, what they were before it."""
    before = copy.deepcopy((run.ear.connector.state_dict(), run.optimizer.state_dict()))
    try:
        yield
    finally:
        run.ear.connector.load_state_dict(before[0])
        run.optimizer.load_state_dict(before[1])
        run.optimizer.zero_grad()
