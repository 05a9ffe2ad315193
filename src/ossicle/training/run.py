"""One training run as values: the ear, its clips, and everything else that a step needs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ossicle.backbones.fingerprints import fingerprint_llm_config
from ossicle.config import Recipe
from ossicle.data.sampler import BatchSampler, SampleIndex
from ossicle.ear import Ear
from ossicle.plan import CostModel, MicrobatchMemory
from ossicle.training.batch import RankBatch, WorkerBatch, build_rank_batch
from ossicle.training.dataset import ClipDataset
from ossicle.training.distributed import Ranks
from ossicle.training.teacher import Teacher

_CHUNK_SIZE = 32
"""Clips that a worker process loads at a time."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that a step needs."""

    recipe: Recipe
    ear: Ear
    connector: nn.Module
    """The ear's connector; with several ranks, wrapped in what averages its gradients over them."""
    start: nn.Module | None
    """The connector as it was before training, for the anchor and the final average; None where neither is asked for."""
    dataset: ClipDataset
    teacher: Teacher
    optimizer: torch.optim.Optimizer
    sampler: BatchSampler
    ranks: Ranks
    cost_model: CostModel
    """FLOPs of clips by their lengths."""
    memory_model: MicrobatchMemory
    """Bytes of a microbatch by the lengths of its clips."""
    microbatch_budget: float = math.inf
    """Predicted bytes of a microbatch."""
    peak_flops: float | None
    """Most floating-point operations a second of the device, if known."""
    backbone_fingerprints: dict[str, str]
    """Fingerprints of the frozen models as they are on disk, before they are sharded or quantized."""
    start_fingerprint: str | None = None
    """Fingerprint of the connector that `train.start` names."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.recipe.out)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of what the run learns from: files may change while their names in a recipe stay."""
        fingerprints = {
            **self.backbone_fingerprints,
            "llm config": fingerprint_llm_config(self.ear.llm),
            "speech": self.dataset.speech.fingerprint,
        }
        if self.dataset.augmenter.noises:
            fingerprints["noise"] = self.dataset.augmenter.fingerprint
        if self.start_fingerprint is not None:
            fingerprints["start"] = self.start_fingerprint
        return fingerprints

    def is_align_only(self, scheduled_step: float) -> bool:
        """Whether a step belongs to the alignment-only warm-up, which leaves out the terms that need the LLM."""
        return scheduled_step < self.recipe.objective.align_only_ratio * self.recipe.train.n_steps

    def draw_chunks(self, step: int) -> list[list[SampleIndex]]:
        """Returns this rank's clips of a step, in the chunks that workers load; there may be none.

        Every rank gets clips of all lengths.
        """
        own = self.sampler[step][self.ranks.rank :: self.ranks.n_ranks]
        return [own[first : first + _CHUNK_SIZE] for first in range(0, len(own), _CHUNK_SIZE)]

    def draw_chunks_from(self, step: int) -> Iterator[list[SampleIndex]]:
        """Yields the chunks of this step and all later ones."""
        for later_step in range(step, self.recipe.train.n_steps):
            yield from self.draw_chunks(later_step)

    def load_rank_batch(self, step: int) -> RankBatch:
        """Loads this rank's clips of a step in this process."""
        return self.build_rank_batch([self.dataset.load_clips(chunk) for chunk in self.draw_chunks(step)])

    def build_rank_batch(self, worker_batches: Sequence[WorkerBatch]) -> RankBatch:
        """Divides what workers loaded for a step into microbatches; all ranks call it together."""
        pin_memory = self.ear.device.type == "cuda"
        return build_rank_batch(
            worker_batches, self.memory_model, self.microbatch_budget, self.ranks, pin_memory=pin_memory
        )
