"""The training loop: step after step, from the saved state to the last one; what is logged, and how it is stopped."""

import contextlib
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path

import torch

from ossicle import checkpoint
from ossicle.atomic_io import lock_folder, write_text
from ossicle.config import Recipe, TrainSettings
from ossicle.ear import Ear
from ossicle.errors import DataError, OssicleError
from ossicle.settings_io import to_toml
from ossicle.training.batch import RankBatch
from ossicle.training.dataloader import map_in_workers, report_dead_workers
from ossicle.training.distributed import Ranks, join_process_group
from ossicle.training.resume import TrainerState, check_state, load_state, save_state, write_origin
from ossicle.training.run import Run
from ossicle.training.run_log import MetricsLog, MetricsRow, SkippedRows, TrainingProgress
from ossicle.training.schedule import compute_scheduled_step, format_progress
from ossicle.training.setup import build_run
from ossicle.training.train_step import StepResult, train_step

LOG_EVERY = 10
"""Steps to a line of metrics."""


class StopRequested(KeyboardInterrupt):
    """The user stopped the run; its state is saved."""

    def __init__(self, state: TrainerState, settings: TrainSettings) -> None:
        progress = format_progress(state.step, state.elapsed_s, settings)
        super().__init__(f"stopped after {progress}; the same command resumes there")
        self.step = state.step


def train(recipe: Recipe, progress: TrainingProgress | None = None) -> Ear:
    """Trains an ear, from the state in its folder to the end of the recipe's schedule, and saves it there.

    Ctrl-C (or SIGTERM) saves the state first; the same call resumes, with the same result unless the schedule follows
    the time. Started by torchrun, all
    processes share each batch; any number of them can resume what others began.

    Raises:
        StopRequested: the user stopped the run
        CheckpointError: a model, a state or a folder cannot be used, or another process trains in the folder
        CacheError: a cache holds something else, or is damaged
        DataError: the speech cannot be used
        OssicleError: the loss is not finite, or another process was lost
    """
    with join_process_group() as ranks:
        progress = (progress if ranks.is_first else None) or TrainingProgress()
        with contextlib.ExitStack() as held:
            with ranks.sync_errors():
                if ranks.is_first:
                    held.enter_context(lock_folder(Path(recipe.out)))
            with ranks.sync_errors():
                check_state(Path(recipe.out), recipe)
            return train_run(build_run(recipe, progress), progress)


def train_run(run: Run, progress: TrainingProgress | None = None) -> Ear:
    """Takes the steps that are left of a run, and saves the ear; for the errors it raises see `train`."""
    progress, settings = progress or TrainingProgress(), run.recipe.train
    state = load_state(run.folder, run.ear.connector, run.optimizer, run.recipe, run.ranks)
    metrics, skipped = _open_logs(run, state)
    averager, last_result = MetricAverager(run.ranks), StepResult()
    step, elapsed_s = state.step, state.elapsed_s
    start_s = time.monotonic() - elapsed_s
    with (
        report_dead_workers(),
        run.ranks.report_lost_ranks(),
        catch_stop_signals() as is_stop_requested,
        progress.show_steps(state.step, state.elapsed_s, settings),
        contextlib.closing(_load_rank_batches(run, step)) as rank_batches,
    ):
        while compute_scheduled_step(step, elapsed_s, settings) < settings.n_steps:
            result = train_step(run, step, next(rank_batches), elapsed_s)
            step += 1
            elapsed_s = run.ranks.all_reduce([time.monotonic() - start_s])[0] / run.ranks.n_ranks
            last_result = result if result.terms else last_result  # a step without clips has no loss
            averager.add(result)
            progress.advance(step, elapsed_s)
            is_last = compute_scheduled_step(step, elapsed_s, settings) >= settings.n_steps
            if step % LOG_EVERY == 0 or is_last:
                _check_finite(last_result, step, settings)
                _log_metrics(run, averager.compute_row(step, run.peak_flops), metrics, progress)
            data_error = _record_skipped(run, step, result, skipped)
            is_stopped = not is_last and run.ranks.all_reduce([is_stop_requested()])[0] > 0
            if step % settings.save_every == 0 or is_last or is_stopped or data_error:
                _check_finite(last_result, step, settings)
                state = _save_state(run, step, elapsed_s)
            if data_error:
                raise data_error
            if is_stopped:
                raise StopRequested(state, settings)
    _average_with_start(run)
    with run.ranks.sync_errors():
        if run.ranks.is_first:
            checkpoint.save(run.ear, run.folder / checkpoint.RUN_EAR, fingerprints=run.backbone_fingerprints)
    return run.ear


def _average_with_start(run: Run) -> None:
    """Moves the trained weights towards those before training, by `train.start_ratio`.

    Source: WiSE-FT, arXiv 2109.01903, for fine-tuned image classifiers.
    """
    if run.start is None:
        return
    with torch.no_grad():
        for weight, before in zip(run.ear.connector.parameters(), run.start.parameters(), strict=True):
            weight.lerp_(before, run.recipe.train.start_ratio)


def _open_logs(run: Run, state: TrainerState) -> tuple[MetricsLog | None, SkippedRows]:
    """Opens the logs of a run, without lines of steps after its state; the first rank writes them."""
    metrics = None
    with run.ranks.sync_errors():
        if run.ranks.is_first:
            write_origin(run.folder, run.fingerprints)
            write_text(run.folder / "recipe.toml", to_toml(run.recipe))
            metrics = MetricsLog(run.folder, state.step)
            _open_skipped(run, state.step)  # removes later lines, before the other ranks read the file
    with run.ranks.sync_errors():
        return metrics, _open_skipped(run, state.step)


def _open_skipped(run: Run, step: int) -> SkippedRows:
    return SkippedRows(run.folder, len(run.dataset.speech), run.recipe.data.max_invalid_ratio, step)


def _log_metrics(run: Run, row: MetricsRow, metrics: MetricsLog | None, progress: TrainingProgress) -> None:
    with run.ranks.sync_errors():
        if metrics:
            metrics.append(row)
    progress.log(row)


def _save_state(run: Run, step: int, elapsed_s: float) -> TrainerState:
    state = TrainerState(step=step, n_samples=run.sampler.count_samples_before(step), elapsed_s=elapsed_s)
    save_state(run.folder, run.ear.connector, run.optimizer, state, run.recipe, run.ranks)
    return state


def _record_skipped(run: Run, step: int, result: StepResult, skipped: SkippedRows) -> DataError | None:
    """Lists the rows that a step skipped; returns the error to end with if there are more than the recipe allows."""
    if not result.n_skipped:
        return None
    with run.ranks.sync_errors():
        for rows in run.ranks.all_gather(result.skipped):
            skipped.add(rows, step, writes=run.ranks.is_first)
    try:
        skipped.check(run.sampler.count_samples_before(step))
    except DataError as error:
        return error
    return None


def _load_rank_batches(run: Run, step: int) -> Generator[RankBatch]:
    """Yields this rank's clips of each step that is left."""
    chunks = run.draw_chunks_from(step)
    with contextlib.closing(map_in_workers(run.dataset.load_clips, chunks, run.dataset.n_workers)) as loaded:
        for later_step in range(step, run.recipe.train.n_steps):
            yield run.build_rank_batch([next(loaded) for _ in run.draw_chunks(later_step)])


def _check_finite(result: StepResult, step: int, settings: TrainSettings) -> None:
    """Checks the gradient: if it is not finite, neither are the weights, and they are not worth saving.

    Raises:
        OssicleError: the gradient is not finite
    """
    if not result.is_finite:
        raise OssicleError(
            f"at step {step} the loss is {float(result.terms['loss']):g} and its gradient is not finite; begin the run"
            f" again with a train.peak_lr below {settings.peak_lr:g} (the state saved before is unharmed)"
        )


class MetricAverager:
    """Averages over the steps since the last line of metrics."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._reset()

    def _reset(self) -> None:
        self.results: list[StepResult] = []
        self.start_s = time.monotonic()

    def add(self, result: StepResult) -> None:
        """Adds a step."""
        self.results.append(result)

    def compute_row(self, step: int, peak_flops: float | None) -> MetricsRow:
        """Returns the means over these steps and their speed, and starts again; all ranks call it together.

        Args:
            step: the last of these steps
            peak_flops: of the device, if known
        """
        elapsed_s = time.monotonic() - self.start_s
        terms = [result.terms for result in self.results if result.terms]
        names = list(dict.fromkeys(name for step_terms in terms for name in step_terms))
        means = [
            torch.stack([step_terms[name] for step_terms in terms if name in step_terms]).mean().item()
            for name in names
        ]
        row_means = dict(zip(names, self.ranks.all_reduce(means), strict=True))
        if "grad_norm" in row_means:  # the same on all ranks
            row_means["grad_norm"] /= self.ranks.n_ranks
        row: MetricsRow = {
            "step": step,
            **row_means,
            "lr": self.results[-1].lr,
            "clips_per_s": sum(result.n_clips for result in self.results) / elapsed_s,
            "audio_h_per_h": sum(result.audio_s for result in self.results) / elapsed_s,
        }
        flops = sum(result.flops for result in self.results)
        row["tflops"] = flops / elapsed_s / self.ranks.n_ranks / 1e12  # of one device
        if peak_flops:
            row["mfu"] = row["tflops"] * 1e12 / peak_flops
        self._reset()
        return row


@contextlib.contextmanager
def catch_stop_signals() -> Generator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C or SIGTERM came; a second Ctrl-C interrupts immediately."""
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread receives signals
        previous = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
