"""One distillation while it goes on: the ear, its examples and all that has to be there before the first step."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ossicle import checkpoint
from ossicle.config import ObjectiveSettings, Recipe
from ossicle.connectors import Connector
from ossicle.data.dataset import SpeechDataset, open_speech
from ossicle.data.sampler import BatchSampler, SampleIndex
from ossicle.data.transcript import NORMALIZATION_RULE
from ossicle.ear import Ear, EarSettings
from ossicle.plan import CostModel, MicrobatchMemory, build_cost_model, build_shapes, look_up_peak_flops
from ossicle.training.batch import ClipDataset, Microbatch, WorkerBatch, build_microbatch
from ossicle.training.cache.feature_cache import fill_feature_cache
from ossicle.training.cache.tensor_cache import TensorCache
from ossicle.training.distributed import Ranks, current_ranks
from ossicle.training.memory_probe import plan_microbatches, resolve_budget
from ossicle.training.optimizer import build_optimizer
from ossicle.training.progress import Progress
from ossicle.training.resume import check_origin
from ossicle.training.sharding import place_frozen_models, shard_encoder
from ossicle.training.teacher import (
    Teacher,
    compute_teacher_fingerprint,
    load_unquantized_llm,
    open_teacher_cache,
)

_PIECE = 32
"""Clips that a worker process makes at a time."""


@dataclass(frozen=True)
class RankBatch:
    """What one rank learns from in a step."""

    microbatches: list[Microbatch]
    """The parts that it is run in, one after the other."""
    skipped: dict[str, str]
    """Rows that could not be used, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that a step needs."""

    recipe: Recipe
    ear: Ear
    connector: nn.Module
    """The connector, in what averages its gradients over the ranks where there are several."""
    dataset: ClipDataset
    teacher: Teacher
    optimizer: torch.optim.Optimizer
    sampler: BatchSampler
    ranks: Ranks
    cost_model: CostModel
    """What clips cost, by their lengths."""
    memory_model: MicrobatchMemory
    """What a part of a batch takes, by its clips' lengths."""
    microbatch_budget: float = math.inf
    """Predicted bytes to a part."""
    peak_flops: float | None
    """Floating-point operations a second that the device could do, if that is known of it."""
    backbone_fingerprints: dict[str, str]
    """Fingerprints of the frozen models as they lie on disk, before they were sharded or rounded."""

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return Path(self.recipe.out)

    @property
    def fingerprints(self) -> dict[str, str]:
        """What the run learns from, as fingerprints: files may change under the names that a recipe has for them."""
        return {**self.backbone_fingerprints, "speech": self.dataset.speech.fingerprint}

    def draw_chunks(self, step: int) -> list[list[SampleIndex]]:
        """This rank's share of a step's batch, in the pieces that clips are made in; there may be none.

        Every rank has clips of all lengths.
        """
        mine = self.sampler[step][self.ranks.rank :: self.ranks.n_ranks]
        return [mine[first : first + _PIECE] for first in range(0, len(mine), _PIECE)]

    def draw_chunks_from(self, step: int) -> Iterator[list[SampleIndex]]:
        """The pieces of this step and all that are left."""
        for number in range(step, self.recipe.train.n_steps):
            yield from self.draw_chunks(number)

    def load_rank_batch(self, step: int) -> RankBatch:
        """Loads this rank's clips of a step in this process."""
        return self.build_rank_batch([self.dataset.load_clips(chunk) for chunk in self.draw_chunks(step)])

    def build_rank_batch(self, made: Sequence[WorkerBatch]) -> RankBatch:
        """What was made for a step, in the parts that it is run in; all ranks have as many, some may be empty."""
        clips = [clip for piece in made for clip in piece.clips]
        portions = [
            build_microbatch(part)
            for part in plan_microbatches(clips, self.memory_model, self.microbatch_budget)
        ]
        n_parts = max(self.ranks.all_gather(len(portions)))
        portions += [build_microbatch([])] * (n_parts - len(portions))
        if self.ear.device.type == "cuda":
            portions = [portion.pin_memory() for portion in portions]
        skipped = {name: reason for piece in made for name, reason in piece.skipped.items()}
        return RankBatch(microbatches=portions, skipped=skipped)


def build_run(recipe: Recipe, progress: Progress | None = None) -> Run:
    """Loads the bases and the speech, and encodes it if features are kept.

    Raises:
        CheckpointError: a base or an ear to start from that cannot be used
        CacheError: stored states of something else, or damaged ones
        DataError: speech that cannot be used
    """
    progress, others = progress or Progress(), current_ranks()
    with others.sync_errors():
        speech = open_speech(recipe.data.source, recipe.data.n_clips)
        torch.manual_seed(recipe.train.seed)
        ear = Ear.new(
            EarSettings(base=recipe.base, prompt=recipe.prompt, connector=recipe.connector),
            llm_bits=recipe.train.llm_bits,
            on_host=others.is_distributed and recipe.train.frozen_placement != "replicated",
        )
    with others.sync_errors():  # a rounded LLM is read once more for its fingerprint: by one rank
        own = _fingerprints(ear, recipe) if others.is_first else {}
    bases = others.all_gather(own)[0]
    with others.sync_errors():
        check_origin(Path(recipe.out), {**bases, "speech": speech.fingerprint})
        examples = ClipDataset(ear, speech, recipe.data, recipe.augment, recipe.train.seed)
        read = _stored_readings(recipe, ear, bases)
        if recipe.train.start is not None:
            checkpoint.load_connector(ear, recipe.train.start, bases)
    is_sharded = place_frozen_models(ear, recipe.train.frozen_placement, others)
    with others.sync_errors():  # how the LLM can be read is found out on its own device
        shapes = build_shapes(ear)
        costs = build_cost_model(recipe, shapes)
    if recipe.data.feature_cache is not None:
        try:
            examples.feature_cache = fill_feature_cache(
                ear,
                examples,
                Path(recipe.data.feature_cache),
                bases["encoder"],
                others,
                announce=progress.print_message,
                progress=progress.preparing,
            )
        finally:
            progress.close()
    if is_sharded:
        shard_encoder(ear, others)
    run = Run(
        recipe=recipe,
        ear=ear,
        connector=_learner(ear.connector, recipe.objective, others),
        dataset=examples,
        teacher=Teacher(ear, recipe.objective, read, is_sharded=is_sharded),
        optimizer=build_optimizer(ear.connector, recipe.train),
        sampler=build_sampler(speech, recipe),
        ranks=others,
        cost_model=costs,
        memory_model=MicrobatchMemory.from_shapes(shapes, costs),
        peak_flops=look_up_peak_flops(torch.cuda.get_device_name(ear.device))
        if ear.device.type == "cuda"
        else None,
        backbone_fingerprints=bases,
    )
    return replace(run, microbatch_budget=resolve_budget(run))


def _fingerprints(ear: Ear, recipe: Recipe) -> dict[str, str]:
    """Of the bases as they lie on disk."""
    llm = load_unquantized_llm(ear.llm, recipe, ear.device)
    return checkpoint.fingerprint_backbones(ear.whisper, llm, ear.tokenizer)


def _stored_readings(recipe: Recipe, ear: Ear, bases: dict[str, str]) -> TensorCache | None:
    if recipe.data.teacher_cache is None:
        return None
    fingerprint = compute_teacher_fingerprint(bases, ear, NORMALIZATION_RULE, llm_bits=recipe.train.llm_bits)
    return open_teacher_cache(recipe.data.teacher_cache, fingerprint, recipe.objective)


def build_sampler(speech: SpeechDataset, recipe: Recipe) -> BatchSampler:
    """The order in which a recipe learns a speech."""
    return BatchSampler(
        speech.durations_s,
        recipe.train.batch_size,
        recipe.train.seed,
        source_ranges=speech.source_ranges,
        is_sequential=speech.is_sequential,
    )


def _learner(connector: Connector, objective: ObjectiveSettings, others: Ranks) -> nn.Module:
    if not others.is_distributed:
        return connector
    for name in connector.modules_without_gradient(
        objective
    ):  # ranks would wait for their gradients for ever
        connector.get_submodule(name).requires_grad_(False)
    # Of what is frozen all ranks have the same: it is not sent with every step.
    frozen = [name for name, _ in connector.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(connector, frozen)
    return DistributedDataParallel(connector)


def with_n_steps(run: Run, n_steps: int) -> Run:
    """The same run, for another number of steps."""
    return replace(run, recipe=replace(run.recipe, train=replace(run.recipe.train, n_steps=n_steps)))
