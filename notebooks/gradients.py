"""Statistics of the gradients of several batches: how much of them is signal, and how much is noise."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GradientStats:
    """Gradients of K batches, as their dot products with each other."""

    products: Float[Tensor, "K K"]
    """Dot products of all pairs."""
    products_bf16: Float[Tensor, "K K"]
    bf16_errors: Float[Tensor, " K"]
    """Length of the change by bfloat16, relative to the length of the gradient."""

    @property
    def rms_norm(self) -> float:
        """Root of the mean squared length."""
        return float(self.products.diagonal().mean().sqrt())

    @property
    def longest_by_shortest(self) -> float:
        """Ratio of the longest length to the shortest."""
        lengths = self.products.diagonal().sqrt()
        return float(lengths.max() / lengths.min())


def compute_noise_scale(products: Float[Tensor, "K K"], batch_size: int) -> float:
    """Returns the number of clips whose mean gradient has as much noise as signal.

    This is the trace of a clip's covariance divided by the squared mean.

    Args:
        products: dot products of the gradients of K batches

    Returns: infinity where the noise hides the mean

    Source: the simple noise scale of McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162;
    both parts without bias.
    """
    n = len(products)
    batch_variance = float(products.diagonal().mean() - products.mean()) * n / (n - 1)
    squared_mean = float(products.mean()) - batch_variance / n
    return batch_size * batch_variance / squared_mean if squared_mean > 0 else float("inf")


def compute_mean_cosine(products: Float[Tensor, "K K"]) -> float:
    """Returns the mean cosine between the gradients of different batches: 1 if they are parallel, 0 if all is noise.

    Each batch weighs the same, however long its gradient.
    """
    lengths = products.diagonal().sqrt()
    cosines = products / torch.outer(lengths, lengths)
    n = len(products)
    return float((cosines.sum() - n) / (n * (n - 1)))
