"""Statistics over clips: standard errors, paired differences and rank correlations."""

import torch
from jaxtyping import Float
from torch import Tensor


def compute_rank_correlation(x: Float[Tensor, " N"], y: Float[Tensor, " N"]) -> float:
    """Returns Spearman's rank correlation."""
    ranks = [values.argsort().argsort().double() for values in (x, y)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def compute_standard_error(values: Float[Tensor, " N"]) -> float:
    """Returns the standard error of the mean over clips."""
    return float(values.std() / len(values) ** 0.5)


def format_paired_difference(one: Float[Tensor, " N"], other: Float[Tensor, " N"]) -> str:
    """Formats the mean difference of two values over clips, with its standard error."""
    difference = one - other
    return f"{difference.mean():+.3f} ± {compute_standard_error(difference):.3f}"
