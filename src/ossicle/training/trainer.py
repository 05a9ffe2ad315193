"""The loop: batch after batch through the ear, from the step where the run stands to its last."""

import contextlib
import copy
import math
import time
from collections.abc import Generator
from pathlib import Path

from ossicle import checkpoint
from ossicle.atomic_io import sole_writer, write_text
from ossicle.config import Recipe
from ossicle.ear import Ear
from ossicle.errors import DataError, OssicleError
from ossicle.settings_io import to_toml
from ossicle.training.dataloader import prepared, workers_may_die
from ossicle.training.distributed import joined
from ossicle.training.progress import Progress
from ossicle.training.resume import Standing, check_state, keep_origin, load_state, save_state
from ossicle.training.run import Run, Share, prepare
from ossicle.training.run_log import MetricsLog
from ossicle.training.skipped import Skipped
from ossicle.training.stopping import Stopped, stop_requests
from ossicle.training.tally import Tally
from ossicle.training.train_step import Taken, optimise

__all__ = ["Stopped", "continue_run", "steps_within", "train"]

LOG_EVERY = 10
"""Steps to a line of metrics."""
_TIMED_STEPS, _OF_STEPS = 6, 48
"""Steps by which a run's speed is judged, and of how many: from the shortest to the longest at even distances."""


def train(recipe: Recipe, progress: Progress | None = None) -> Ear:
    """Distils an ear, from where its folder stands to the recipe's last step, and saves it there.

    Ctrl-C (or SIGTERM) saves the state first; the same call goes on from it, with the same result. Started by
    torchrun, all processes share each batch; any number of them can go on with what others began.

    Raises:
        Stopped: stopped by hand
        CheckpointError: a base, a state or a folder that cannot be used, or one that another process trains in
        CacheError: stored states of something else, or damaged ones
        DataError: speech that cannot be used
        OssicleError: the loss is not finite any more, or another process was lost
    """
    with joined() as ranks:
        progress = (progress if ranks.is_first else None) or Progress()
        with contextlib.ExitStack() as held:
            with ranks.together():
                if ranks.is_first:
                    held.enter_context(sole_writer(Path(recipe.out)))
            with ranks.together():
                check_state(Path(recipe.out), recipe)
            return continue_run(prepare(recipe, progress), progress)


def continue_run(run: Run, progress: Progress | None = None) -> Ear:
    """The steps that are left of a prepared run; for what it raises see `train`."""
    progress, n_steps = progress or Progress(), run.recipe.train.n_steps
    standing = load_state(run.folder, run.ear.connector, run.optimizer, run.recipe, run.ranks)
    metrics, skipped = _opened(run, standing)
    step, tally, learned = standing.step, Tally(run), Taken()
    with (
        workers_may_die(),
        run.ranks.may_be_lost(),
        stop_requests() as was_asked_to_stop,
        progress.training(step, n_steps),
        contextlib.closing(_shares(run, step)) as shares,
    ):
        while step < n_steps:
            taken = optimise(run, step, next(shares))
            step += 1
            learned = taken if taken.terms else learned  # a step without clips says nothing of the weights
            tally.add(taken)
            progress.advance(step)
            is_last = step == n_steps
            if step % LOG_EVERY == 0 or is_last:
                _check_finite(run, step, learned)
                row = tally.row(step)
                with run.ranks.together():
                    if metrics:
                        metrics.write(row)
                progress.log(row)
            refusal = _refusal(run, step, taken, skipped)
            is_stopped = not is_last and run.ranks.sum([was_asked_to_stop()])[0] > 0
            if step % run.recipe.train.save_every == 0 or is_last or is_stopped or refusal:
                _check_finite(run, step, learned)
                save_state(
                    run.folder, run.ear.connector, run.optimizer, _standing(run, step), run.recipe, run.ranks
                )
            if refusal:
                raise refusal
            if is_stopped:
                raise Stopped(step, n_steps)
    with run.ranks.together():
        if run.ranks.is_first:
            checkpoint.save(run.ear, run.folder / checkpoint.RUN_EAR, bases=run.bases)
    return run.ear


def _opened(run: Run, standing: Standing) -> tuple[MetricsLog | None, Skipped]:
    """The files of a run beside its state, as far as they belong to where it stands; the first rank writes them."""
    metrics = None
    with run.ranks.together():
        if run.ranks.is_first:
            keep_origin(run.folder, run.origin)
            write_text(run.folder / "recipe.toml", to_toml(run.recipe))
            metrics = MetricsLog(run.folder, standing.step)
            _skipped(run, standing.step)  # brings the file to where the run stands, before others read it
    with run.ranks.together():
        return metrics, _skipped(run, standing.step)


def _skipped(run: Run, step: int) -> Skipped:
    return Skipped(run.folder, len(run.examples.speech), run.recipe.data.max_invalid_ratio, step)


def _standing(run: Run, step: int) -> Standing:
    return Standing(step=step, n_samples=run.sampler.count_samples_before(step))


def _refusal(run: Run, step: int, taken: Taken, skipped: Skipped) -> DataError | None:
    """Lists the rows that a step had to leave out; what to end with if they are more than the recipe allows."""
    if not taken.n_skipped:
        return None
    with run.ranks.together():
        for rows in run.ranks.gather(taken.skipped):
            skipped.note(rows, step, writes=run.ranks.is_first)
    try:
        skipped.check(run.sampler.count_samples_before(step))
    except DataError as error:
        return error
    return None


def _shares(run: Run, step: int) -> Generator[Share]:
    """What this rank learns from in each of the steps that are left."""
    with contextlib.closing(
        prepared(run.examples.made, run.pieces_from(step), run.examples.n_workers)
    ) as made:
        for number in range(step, run.recipe.train.n_steps):
            yield run.share([next(made) for _ in run.pieces(number)])


def _check_finite(run: Run, step: int, taken: Taken) -> None:
    """Once a gradient is not finite, no weight is any more: nothing worth saving comes after it."""
    if not taken.is_finite:
        raise OssicleError(
            f"at step {step} the loss is {float(taken.terms['loss']):g} and its gradient not finite; begin again"
            f" with a train.peak_lr below {run.recipe.train.peak_lr:g} (the state saved before is unharmed)"
        )


def steps_within(run: Run, seconds: float) -> int:
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

    def take(step: int, share: Share) -> None:
        float(optimise(run, step, share).terms["loss"])  # waits for the device

    by_length = sorted(range(first, first + _OF_STEPS), key=lambda step: _length(run, step))
    every = _OF_STEPS // _TIMED_STEPS
    steps = by_length[every // 2 :: every]
    ready = {step: run.share([run.examples.made(piece) for piece in run.pieces(step)]) for step in steps}
    take(steps[0], ready[steps[0]])  # a first step is slower than all others
    started = time.perf_counter()
    for step, share in ready.items():
        take(step, share)
    return (time.perf_counter() - started) / _TIMED_STEPS


def _length(run: Run, step: int) -> float:
    return float(sum(run.examples.speech.durations_s[draw.row] for draw in run.sampler[step]))


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
