"""Gradients of several batches held against each other: how much of them is the same, and how much is noise.

It knows numbers, not what they are gradients of.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GradientStats:
    """Gradients of K batches, as their products with each other."""

    products: Float[Tensor, "K K"]
    """Of each with each."""
    products_bf16: Float[Tensor, "K K"]
    bf16_errors: Float[Tensor, " K"]
    """Length of what bfloat16 changes, by the length of the gradient."""

    @property
    def rms_norm(self) -> float:
        """Root of the mean squared length."""
        return float(self.products.diagonal().mean().sqrt())

    @property
    def longest_by_shortest(self) -> float:
        """How many times longer the longest is than the shortest."""
        lengths = self.products.diagonal().sqrt()
        return float(lengths.max() / lengths.min())


def compute_noise_scale(products: Float[Tensor, "K K"], batch_size: int) -> float:
    """Clips whose mean gradient has as much noise as signal: the trace of a clip's covariance by the squared mean.

    Args:
        products: of the gradients of K batches, each with each

    Returns: infinity where no mean is seen behind the noise

    Source: the simple noise scale of McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162;
    both parts without bias.
    """
    n = len(products)
    of_a_batch = float(products.diagonal().mean() - products.mean()) * n / (n - 1)
    squared_mean = float(products.mean()) - of_a_batch / n
    return batch_size * of_a_batch / squared_mean if squared_mean > 0 else float("inf")


def compute_mean_cosine(products: Float[Tensor, "K K"]) -> float:
    """Of the angles between the gradients of different batches: 1 where they all pull alike, 0 where there is but noise.

    Each batch weighs the same here, however long its gradient.
    """
    lengths = products.diagonal().sqrt()
    cosines = products / torch.outer(lengths, lengths)
    n = len(products)
    return float((cosines.sum() - n) / (n * (n - 1)))
