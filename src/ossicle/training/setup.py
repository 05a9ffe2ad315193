"""Everything before the first step: models and speech are loaded, features encoded, and a run is built of them."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ossicle import checkpoint
from ossicle.backbones.fingerprints import fingerprint_backbones, fingerprint_model
from ossicle.config import BaseSettings, ObjectiveSettings, Recipe, TrainSettings
from ossicle.connectors import Connector
from ossicle.data.dataset import SpeechDataset, open_speech
from ossicle.data.sampler import BatchSampler
from ossicle.data.transcript import NORMALIZATION_RULE
from ossicle.ear import Ear, EarSettings
from ossicle.plan import MicrobatchMemory, build_cost_model, build_shapes, look_up_peak_flops
from ossicle.training.cache.feature_cache import fill_feature_cache
from ossicle.training.cache.teacher_cache import (
    compute_teacher_fingerprint,
    load_unquantized_llm,
    open_teacher_cache,
)
from ossicle.training.cache.tensor_cache import TensorCache
from ossicle.training.dataset import ClipDataset
from ossicle.training.distributed import Ranks, current_ranks
from ossicle.training.memory_probe import resolve_budget
from ossicle.training.optimizer import build_optimizer
from ossicle.training.resume import check_origin
from ossicle.training.run import Run
from ossicle.training.run_log import TrainingProgress
from ossicle.training.sharding import place_frozen_models, shard_encoder
from ossicle.training.teacher import Teacher


def build_run(recipe: Recipe, progress: TrainingProgress | None = None) -> Run:
    """Loads the frozen models and the speech, and encodes the speech if the recipe has a feature cache.

    Raises:
        CheckpointError: a model, or an ear to start from, cannot be used
        CacheError: a cache holds something else, or is damaged
        DataError: the speech cannot be used
    """
    ranks, train = current_ranks(), recipe.train
    with ranks.sync_errors():
        speech = open_speech(recipe.data.source, recipe.data.n_clips)
        ear = _build_ear(recipe, ranks)
    with ranks.sync_errors():  # on one rank only: a quantized LLM is loaded once more for it
        own = _fingerprint_backbones(ear, recipe.base, train.llm_bits) if ranks.is_first else {}
    fingerprints = ranks.all_gather(own)[0]
    with ranks.sync_errors():
        check_origin(Path(recipe.out), {**fingerprints, "speech": speech.fingerprint})
        has_anchor = recipe.objective.anchor_weight > 0
        dataset = ClipDataset(
            ear, speech, recipe.data, recipe.augment, train.seed, needs_clean_sound=has_anchor
        )
        teacher_cache = _open_teacher_cache(
            recipe.data.teacher_cache, ear, recipe.objective, train.llm_bits, fingerprints
        )
        start_fingerprint = None
        if train.start is not None:
            checkpoint.load_connector(ear, train.start, fingerprints)
            start_fingerprint = fingerprint_model(ear.connector)
            check_origin(Path(recipe.out), {"start": start_fingerprint})
    is_sharded = place_frozen_models(ear, train.frozen_placement, ranks)
    with ranks.sync_errors():  # after the models are placed: it runs the LLM on its own device
        shapes = build_shapes(ear)
        cost_model = build_cost_model(recipe, shapes)
    if recipe.data.feature_cache is not None:
        folder = Path(recipe.data.feature_cache)
        dataset.feature_cache = _fill_feature_cache(
            ear, dataset, folder, fingerprints["encoder"], ranks, progress or TrainingProgress()
        )
    if is_sharded:
        _ = ear.silence  # computed while the encoder is whole
        shard_encoder(ear, ranks)
    is_cuda = ear.device.type == "cuda"
    run = Run(
        recipe=recipe,
        ear=ear,
        start=_copy_frozen(ear.connector) if has_anchor or train.start_ratio else None,
        connector=_wrap_connector(ear.connector, recipe.objective, ranks),
        dataset=dataset,
        teacher=Teacher(ear, recipe.objective, teacher_cache, is_sharded=is_sharded),
        optimizer=build_optimizer(ear.connector, train),
        sampler=build_sampler(speech, train),
        ranks=ranks,
        cost_model=cost_model,
        memory_model=MicrobatchMemory.from_shapes(shapes, cost_model),
        peak_flops=look_up_peak_flops(torch.cuda.get_device_name(ear.device)) if is_cuda else None,
        backbone_fingerprints=fingerprints,
        start_fingerprint=start_fingerprint,
    )
    return replace(run, microbatch_budget=resolve_budget(run))


def _build_ear(recipe: Recipe, ranks: Ranks) -> Ear:
    torch.manual_seed(recipe.train.seed)
    ear = Ear.new(
        EarSettings(base=recipe.base, prompt=recipe.prompt, connector=recipe.connector),
        llm_bits=recipe.train.llm_bits,
        on_host=ranks.is_distributed and recipe.train.frozen_placement != "replicated",
    )
    if ear.connector.vocabulary_head is not None:
        ear.connector.vocabulary_head.soften()
    return ear


def _copy_frozen(connector: Connector) -> Connector:
    return copy.deepcopy(connector).eval().requires_grad_(False)


def _fingerprint_backbones(ear: Ear, base: BaseSettings, llm_bits: int) -> dict[str, str]:
    """Returns fingerprints of the frozen models as they are on disk."""
    llm = load_unquantized_llm(ear.llm, base, llm_bits, ear.device)
    return fingerprint_backbones(ear.whisper, llm, ear.tokenizer)


def _open_teacher_cache(
    folder: str | None,
    ear: Ear,
    objective: ObjectiveSettings,
    llm_bits: int,
    backbone_fingerprints: Mapping[str, str],
) -> TensorCache | None:
    if folder is None:
        return None
    fingerprint = compute_teacher_fingerprint(
        backbone_fingerprints, ear, NORMALIZATION_RULE, llm_bits=llm_bits
    )
    return open_teacher_cache(folder, fingerprint, objective)


def _fill_feature_cache(
    ear: Ear, dataset: ClipDataset, folder: Path, encoder: str, ranks: Ranks, progress: TrainingProgress
) -> TensorCache:
    try:
        return fill_feature_cache(
            ear,
            dataset,
            folder,
            encoder,
            ranks,
            print_message=progress.print_message,
            progress=progress.update_encoding,
        )
    finally:
        progress.close()


def build_sampler(speech: SpeechDataset, settings: TrainSettings) -> BatchSampler:
    """Returns the order in which a run takes the rows of its speech."""
    return BatchSampler(
        speech.durations_s,
        settings.batch_size,
        settings.seed,
        source_ranges=speech.source_ranges,
        is_sequential=speech.is_sequential,
    )


def _wrap_connector(connector: Connector, objective: ObjectiveSettings, ranks: Ranks) -> nn.Module:
    """Returns the connector, wrapped with several ranks to average its gradients over them."""
    if not ranks.is_distributed:
        return connector
    for name in connector.modules_without_gradient(objective):  # DDP would wait for their gradients
        connector.get_submodule(name).requires_grad_(False)
    # Buffers are constant and the same on all ranks: they need not be sent with every step.
    frozen = [name for name, _ in connector.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(connector, frozen)
    return DistributedDataParallel(connector)
