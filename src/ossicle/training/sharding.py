"""The frozen models spread over the ranks, where one of them has no room for the whole."""

from typing import Literal

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ossicle.backbones.causal_lm import get_layers
from ossicle.ear import Ear
from ossicle.errors import ConfigError
from ossicle.training.distributed import Ranks

_ROOM = 0.5
"""Share of a GPU's memory that whole frozen models may fill: connector, optimizer and activations want the rest."""


def place_frozen_models(ear: Ear, how: Literal["auto", "replicated", "sharded"], ranks: Ranks) -> bool:
    """Brings the frozen models to each rank's device, of the LLM's layers only its share if that is wanted or needed.

    Layers are put together again when they are passed, forwards and backwards. What is outside of them (embeddings,
    last norm, head) stays whole: the ear uses it by itself.

    Returns: whether they are spread; the encoder is not yet, as features are kept by each rank at its own pace

    Raises:
        ConfigError: a wish that cannot be fulfilled
    """
    device = next(ear.connector.parameters()).device
    is_sharded = how == "sharded" or (
        how == "auto" and ranks.is_distributed and _are_too_large(ear, device, ranks)
    )
    if is_sharded:
        _check_can_be_spread(ear, ranks)
        mesh = init_device_mesh(device.type, (ranks.n_ranks,))
        llm = ear.llm.base_model
        layers = get_layers(llm)
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        inside = {id(weight) for layer in layers for weight in layer.parameters()}
        fully_shard(llm, mesh=mesh, ignored_params={w for w in llm.parameters() if id(w) not in inside})
    ear.whisper.model.to(device)
    if not getattr(ear.llm, "is_quantized", False):
        ear.llm.to(device)
    return is_sharded


def shard_encoder(ear: Ear, ranks: Ranks) -> None:
    """Leaves each rank its share of the encoder's layers."""
    mesh = init_device_mesh(ear.device.type, (ranks.n_ranks,))
    for layer in ear.whisper.model.model.encoder.layers:
        fully_shard(layer, mesh=mesh)


def _check_can_be_spread(ear: Ear, ranks: Ranks) -> None:
    if not ranks.is_distributed:
        raise ConfigError(
            'train.frozen_placement is "sharded", but there is one process: expected several, started by torchrun'
        )
    if getattr(ear.llm, "is_quantized", False):
        raise ConfigError(
            'train.frozen_placement is "sharded" and train.llm_bits below 16: expected one of the two, as'
            " rounded weights cannot be spread"
        )


def _are_too_large(ear: Ear, device: torch.device, ranks: Ranks) -> bool:
    """Whether the models are too large for the GPU of any rank: all do what one has to."""
    return ranks.all_reduce([_is_too_large(ear, device)])[0] > 0


def _is_too_large(ear: Ear, device: torch.device) -> bool:
    if device.type != "cuda" or getattr(ear.llm, "is_quantized", False):
        return False
    models = (ear.llm, ear.whisper.model)
    n_bytes = sum(weight.nbytes for model in models for weight in model.parameters())
    return n_bytes > _ROOM * torch.cuda.get_device_properties(device).total_memory
