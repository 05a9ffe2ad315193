"""The frozen models sharded over the ranks, where one rank has no room for whole ones."""

from typing import Literal

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ossicle.backbones.causal_lm import get_layers
from ossicle.ear import Ear
from ossicle.errors import ConfigError
from ossicle.training.distributed import Ranks

_MAX_MEMORY_RATIO = 0.5
"""Part of a GPU's memory that whole frozen models may fill: connector, optimizer and activations need the rest."""


def place_frozen_models(ear: Ear, placement: Literal["auto", "replicated", "sharded"], ranks: Ranks) -> bool:
    """Moves the frozen models to each rank's device; of a sharded LLM, each rank keeps a part of every layer.

    A layer is gathered when it is run, forward and backward. What is outside of the layers (embeddings, last norm,
    head) stays whole: the ear uses it by itself.

    Returns: whether the LLM is sharded; the encoder is not yet, as each rank encodes features at its own pace

    Raises:
        ConfigError: the models cannot be sharded as requested
    """
    device = next(ear.connector.parameters()).device
    is_sharded = placement == "sharded" or (
        placement == "auto" and ranks.is_distributed and _is_too_large_on_any(ear, device, ranks)
    )
    if is_sharded:
        _check_can_be_sharded(ear, ranks)
        mesh = init_device_mesh(device.type, (ranks.n_ranks,))
        llm = ear.llm.base_model
        layers = get_layers(llm)
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        in_layers = {id(weight) for layer in layers for weight in layer.parameters()}
        whole = {weight for weight in llm.parameters() if id(weight) not in in_layers}
        fully_shard(llm, mesh=mesh, ignored_params=whole)
    ear.whisper.model.to(device)
    if not getattr(ear.llm, "is_quantized", False):
        ear.llm.to(device)
    return is_sharded


def shard_encoder(ear: Ear, ranks: Ranks) -> None:
    """Shards the encoder's layers over the ranks."""
    mesh = init_device_mesh(ear.device.type, (ranks.n_ranks,))
    for layer in ear.whisper.model.model.encoder.layers:
        fully_shard(layer, mesh=mesh)


def _check_can_be_sharded(ear: Ear, ranks: Ranks) -> None:
    if not ranks.is_distributed:
        raise ConfigError(
            'train.frozen_placement is "sharded", but there is one process: expected several, started by torchrun'
        )
    if getattr(ear.llm, "is_quantized", False):
        raise ConfigError(
            'train.frozen_placement is "sharded" and train.llm_bits is below 16: expected only one of the two, as'
            " quantized weights cannot be sharded"
        )


def _is_too_large_on_any(ear: Ear, device: torch.device, ranks: Ranks) -> bool:
    """Whether the models are too large for the GPU of any rank: then all ranks shard them."""
    return ranks.all_reduce([_is_too_large(ear, device)])[0] > 0


def _is_too_large(ear: Ear, device: torch.device) -> bool:
    if device.type != "cuda" or getattr(ear.llm, "is_quantized", False):
        return False
    models = (ear.llm, ear.whisper.model)
    n_bytes = sum(weight.nbytes for model in models for weight in model.parameters())
    return n_bytes > _MAX_MEMORY_RATIO * torch.cuda.get_device_properties(device).total_memory
