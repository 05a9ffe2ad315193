"""The optimizer of the connector's weights, and its learning rate at each step."""

import math

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


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, settings: TrainSettings) -> None:
    """Sets the rate of a step, to which each group of weights has its own factor."""
    rate = settings.peak_lr * compute_lr_factor(step, settings)
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_LR_SCALE]


def compute_lr_factor(step: int, settings: TrainSettings) -> float:
    """Returns the learning rate as a factor of its peak: linear warm-up, then half a cosine to the final ratio."""
    n_warmup_steps = max(1, round(settings.warmup_ratio * settings.n_steps))
    if step < n_warmup_steps:
        return (step + 1) / n_warmup_steps
    progress = min((step - n_warmup_steps) / max(1, settings.n_steps - n_warmup_steps), 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return settings.final_lr_ratio + (1 - settings.final_lr_ratio) * cosine
