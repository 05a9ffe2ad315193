"""Small pieces that several connector forms and the losses share: tensors in, tensors out."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

TOKEN_TEMPERATURE = 0.1
"""Temperature of `token_logits`, in units of the candidates' mean squared distance from their mean."""


def token_logits(points: Float[Tensor, "*N D"], candidates: Float[Tensor, "C D"]) -> Float[Tensor, "*N C"]:
    """Scores each candidate by how near it lies to a point of the LLM's embedding space.

    The negative squared L2 distance, in units of the candidates' mean squared distance from their mean, divided by
    `TOKEN_TEMPERATURE`. In float32 at least, except for the product of the two, which autocast may round; both are
    taken relative to the candidates' mean, so that little precision is lost.

    Args:
        candidates: embeddings to choose from, such as those of all tokens in a batch's transcripts
    """
    mean = upcast(candidates).mean(0)
    points, candidates = upcast(points) - mean, upcast(candidates) - mean
    spread = candidates.square().sum(1).mean()
    distances = points.square().sum(-1, keepdim=True) - 2 * points @ candidates.T + candidates.square().sum(1)
    return -distances / (TOKEN_TEMPERATURE * spread.clamp(min=torch.finfo(spread.dtype).eps))


def upcast(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Casts to float32 at least, whatever the models compute in."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def build_mlp(d_in: int, d_hidden: int, d_out: int) -> nn.Sequential:
    """Builds a two-layer MLP with a GELU."""
    return nn.Sequential(nn.Linear(d_in, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_out))
