"""What a number of clips says: of a mean, of a difference, of whether two quantities go together."""

import torch
from jaxtyping import Float
from torch import Tensor


def compute_rank_correlation(x: Float[Tensor, " N"], y: Float[Tensor, " N"]) -> float:
    """Spearman's rank correlation."""
    ranks = [values.argsort().argsort().double() for values in (x, y)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def compute_standard_error(values: Float[Tensor, " N"]) -> float:
    """Of the mean over clips."""
    return float(values.std() / len(values) ** 0.5)


def format_paired_difference(one: Float[Tensor, " N"], other: Float[Tensor, " N"]) -> str:
    """The mean over clips of one value less the other, with the standard error of that mean."""
    less = one - other
    return f"{less.mean():+.3f} ± {compute_standard_error(less):.3f}"
