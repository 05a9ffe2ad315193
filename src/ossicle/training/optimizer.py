"""The optimizer of the connector's weights, and its learning rate at each step."""

import math

import torch
from torch import nn

from ossicle.config import TrainSettings


def build_optimizer(connector: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Returns an AdamW with weight decay on the matrices of linear layers and convolutions only."""
    layers = [module for module in connector.modules() if isinstance(module, nn.Linear | nn.Conv1d)]
    matrices = [layer.weight for layer in layers]
    is_matrix = set(map(id, matrices))
    others = [weight for weight in connector.parameters() if id(weight) not in is_matrix]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.peak_lr, betas=settings.betas, fused=True)


def compute_lr_factor(step: int, settings: TrainSettings) -> float:
    """Returns the learning rate as a factor of its peak: linear warm-up, then half a cosine to the final ratio."""
    n_warmup_steps = max(1, round(settings.warmup_ratio * settings.n_steps))
    if step < n_warmup_steps:
        return (step + 1) / n_warmup_steps
    progress = min((step - n_warmup_steps) / max(1, settings.n_steps - n_warmup_steps), 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return settings.final_lr_ratio + (1 - settings.final_lr_ratio) * cosine
