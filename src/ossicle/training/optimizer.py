"""The optimizer of the connector's weights."""

import torch
from torch import nn

from ossicle.config import TrainSettings
from ossicle.connectors import Connector

_LR_SCALE = "lr_scale"


def build_optimizer(connector: Connector, settings: TrainSettings) -> torch.optim.AdamW:
    """Returns an AdamW with weight decay on the matrices of linear layers and convolutions only."""
    layers = [module for module in connector.modules() if isinstance(module, nn.Linear | nn.Conv1d)]
    is_matrix = {id(layer.weight) for layer in layers}
    scales = connector.learning_rate_scales()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in connector.named_parameters():
        decay = settings.weight_decay if id(weight) in is_matrix else 0.0
        groups.setdefault((decay, scales.get(name, 1.0)), []).append(weight)
    return torch.optim.AdamW(
        [
            {"params": weights, "weight_decay": decay, _LR_SCALE: scale}
            for (decay, scale), weights in groups.items()
        ],
        lr=settings.peak_lr,
        betas=settings.betas,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of a step, to which each group of weights has its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_LR_SCALE]
