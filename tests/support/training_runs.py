"""What tests of training share: changed recipes, single steps, comparisons of weights, and forked ranks."""

import hashlib
import multiprocessing
import signal
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ossicle.config import Recipe
from ossicle.data.sampler import SampleIndex
from ossicle.ear import Ear
from ossicle.training.batch import Batch, build_batch, build_microbatch
from ossicle.training.resume import TrainerState, load_state
from ossicle.training.run import Run
from ossicle.training.run_log import TrainingProgress
from ossicle.training.train_step import StepResult, train_step

FORMS = ("query", "autoregressive", "anchored", "diva", "stack")
ONE_CLIP_GB = 1e-9
"""A memory for microbatches that none fits, so that each has one clip."""
BFLOAT16_EPS = 2**-7
"""Relative: cached features are rounded to bfloat16 once, and the loss depends smoothly on them."""
_RANK_TIMEOUT_S = 200


def change_settings(recipe: Recipe, **tables: dict[str, Any]) -> Recipe:
    """Returns the recipe with some settings of some tables changed."""
    return replace(recipe, **{name: replace(getattr(recipe, name), **new) for name, new in tables.items()})


def load_batch(run: Run, rows: list[int], view: int = 0) -> Batch:
    """Loads clips as a step gets them."""
    clips = run.dataset.load_clips([SampleIndex(row, view) for row in rows]).clips
    return build_batch(run.ear, build_microbatch(clips))


def run_train_step(run: Run, step: int) -> StepResult:
    """Takes one optimizer step, its clips being loaded in this process."""
    return train_step(run, step, run.load_rank_batch(step))


def compute_step_loss(run: Run, step: int) -> float:
    """Takes one optimizer step and returns its loss."""
    return float(run_train_step(run, step).terms["loss"])


def load_saved_state(run: Run) -> TrainerState:
    """Loads the newest state of a run."""
    return load_state(run.folder, run.ear.connector, run.optimizer, run.recipe)


def copy_weights(ear: Ear) -> dict[str, torch.Tensor]:
    """Returns a copy of the connector's weights."""
    return {name: weight.detach().clone() for name, weight in ear.connector.named_parameters()}


def hash_weights(ear: Ear) -> str:
    """Returns a digest of the connector's weights, bit for bit."""
    digest = hashlib.sha256()
    for weight in copy_weights(ear).values():
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


def assert_same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Asserts that two sets of tensors are equal, bit for bit."""
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


class SignalAfterStep(TrainingProgress):
    """Sends a signal to this process when a step is done."""

    def __init__(self, step: int, number: int = signal.SIGINT, times: int = 1) -> None:
        super().__init__()
        self.at, self.number, self.times = step, number, times

    def advance(self, step: int, elapsed_s: float) -> None:
        """Sends the signal if this is the step."""
        if step == self.at:
            for _ in range(self.times):
                signal.raise_signal(self.number)


def run_on_ranks(n: int, folder: Path, function: Callable[[], Any]) -> list[Any]:
    """Returns the function's result on each of n forked processes that form a group; raises an error of theirs here.

    Args:
        folder: where the processes meet
    """
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    meeting = folder / f"meeting-{len(list(folder.iterdir()))}"

    def enter(rank: int) -> None:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=n, timeout=timedelta(seconds=60)
        )
        try:
            queue.put((rank, function(), None))
        except BaseException as error:
            traceback.print_exc()
            queue.put((rank, None, error))
        finally:
            dist.destroy_process_group()

    processes = [context.Process(target=enter, args=(rank,)) for rank in range(n)]
    for process in processes:
        process.start()
    results = sorted((queue.get(timeout=_RANK_TIMEOUT_S) for _ in processes), key=lambda one: one[0])
    for process in processes:
        process.join(_RANK_TIMEOUT_S)
    for _, _, error in results:
        if error is not None:
            raise error
    return [result for _, result, _ in results]
