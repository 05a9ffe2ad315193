"""How the connector's weights follow their gradients."""

import math

import torch
from torch import nn

from ossicle.config import TrainSettings


def build_optimizer(connector: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW, with weight decay on the matrices of linear layers and convolutions only."""
    layers = [module for module in connector.modules() if isinstance(module, nn.Linear | nn.Conv1d)]
    matrices = [layer.weight for layer in layers]
    is_matrix = set(map(id, matrices))
    others = [weight for weight in connector.parameters() if id(weight) not in is_matrix]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.peak_lr, betas=settings.betas, fused=True)


def lr_factor(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then half a cosine from 1 down to the final share."""
    warmup = max(1, round(settings.warmup_ratio * settings.n_steps))
    if step < warmup:
        return (step + 1) / warmup
    share_done = min((step - warmup) / max(1, settings.n_steps - warmup), 1.0)
    return settings.final_lr_ratio + (1 - settings.final_lr_ratio) * 0.5 * (
        1 + math.cos(math.pi * share_done)
    )
