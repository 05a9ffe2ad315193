"""A run of ossicle in memory with batches that are ready, as the benchmarks step and measure it."""

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.meters import FlopCounter, RecordPart, measure_seconds
from benchmarks.shapes import CONNECTOR, Backbones, Shape
from benchmarks.training.synthetic_run import build_recipe, build_run, draw_batches, fill_teacher_cache
from ossicle.config import ConnectorSettings
from ossicle.training.batch import Clip, Microbatch, RankBatch, build_microbatch
from ossicle.training.run import Run
from ossicle.training.teacher import Teacher
from ossicle.training.train_step import train_step


@dataclass(frozen=True)
class FastRun:
    """Our training step, with the teacher's states on disk, and its batches."""

    run: Run
    batches: list[list[Clip]]
    portions: list[Microbatch]
    cache_s: float
    """Seconds that the teacher took for all clips."""
    cache_flops: float

    @property
    def n_clips(self) -> int:
        """Clips in all batches."""
        return sum(map(len, self.batches))

    @property
    def middle_index(self) -> int:
        """Index of the batch of clips neither short nor long."""
        return len(self.batches) // 2

    def run_step(self, index: int) -> None:
        """Takes one optimizer step with a batch."""
        train_step(self.run, 0, RankBatch([self.portions[index]], {}))

    def run_steps(self) -> None:
        """Takes one optimizer step with each batch."""
        for index in range(len(self.portions)):
            self.run_step(index)

    def compute_planned_flops(self) -> float:
        """Returns the FLOPs that `ossicle plan` computes for all batches."""
        return sum(
            self.run.cost_model.count_flops(
                np.array(portion.n_positions),
                np.array(portion.n_text),
                is_align_only=False,
                n_teacher_clips=0,
                n_candidates=len(torch.cat([clip.ids for clip in batch]).unique()),
            )
            for portion, batch in zip(self.portions, self.batches, strict=True)
        )


def prepare_run(
    backbones: Backbones,
    shape: Shape,
    mean_s: float,
    batch_size: int,
    folder: Path,
    n_batches: int,
    connector: ConnectorSettings = CONNECTOR,
) -> FastRun:
    """Builds a run, and writes the teacher's states of all its clips to disk.

    Args:
        mean_s: mean length of the clips in seconds
    """
    batches = draw_batches(shape, mean_s, batch_size, n_batches)
    recipe = build_recipe(shape, folder, batch_size, connector)
    run = build_run(backbones, recipe)
    clips = [clip for batch in batches for clip in batch]
    with FlopCounter() as counter:
        fill_teacher_cache(run, clips)
    (folder / "teacher").rename(folder / "counted")
    caches = []
    cache_s = measure_seconds(lambda: caches.append(fill_teacher_cache(run, clips)), run.ear.device)
    run = replace(run, teacher=Teacher(run.ear, recipe.objective, caches[0]))
    return FastRun(run, batches, [build_microbatch(batch) for batch in batches], cache_s, counter.total)


@contextlib.contextmanager
def record_parts(run: Run, record: RecordPart) -> Generator[None]:
    """Records each part of our step within the block."""

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            with record(name):
                return call(*args, **kwargs)

        return recorded

    parts: list[tuple[Any, str, str]] = [
        (run.teacher, "compute_targets", "teacher"),
        (run.ear, "encode_mels", "encoder"),
        (run.connector, "forward", "connector"),
        (run.ear, "llm_states", "student"),
        (Tensor, "backward", "backward"),
        (run.optimizer, "step", "optimizer"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, attribute, name in parts:
            recorded = wrap(name, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, recorded))
        yield


def list_weights(run: Run) -> list[Tensor]:
    """Returns all weights and buffers of the run's ear: memory that is in use anyway."""
    models = (run.ear.connector, run.ear.llm, run.ear.whisper.model)
    return [weight for model in models for weight in (*model.parameters(), *model.buffers())]
