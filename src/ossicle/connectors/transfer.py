"""Fits an autoregressive connector to another LLM by least squares, without training.

Almost all that such a connector has learned is in Whisper's own space: decoder, positions, queries, prompt, ends of
texts. Two layers touch the LLM: the last one of the projection, whose residual is a displacement in the LLM's embedding
space, and the first one of the feedback, which reads the token before. Both are refitted on the words that Whisper and
both LLMs share. This file knows tensors only, neither the models nor where they lie.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from ossicle.connectors.autoregressive import FEEDBACK_NORM_EPS, AutoregressiveConnector

_PENALTIES = tuple(10.0**exponent for exponent in range(-4, 2))
"""Ridge penalties to choose from, in units of the mean variance of the inputs."""
_HELD_OUT_EVERY = 10
"""One word in ten is held out to choose the penalty."""


@dataclass(frozen=True)
class SharedRows:
    """The words that Whisper and both LLMs have, as rows of the two connectors' vocabulary heads."""

    source: Int[Tensor, " C"]
    target: Int[Tensor, " C"]


@dataclass(frozen=True)
class LinearMap:
    """An affine map that least squares has fitted."""

    weight: Float[Tensor, "Y X"]
    bias: Float[Tensor, " Y"]
    r2: float
    """Explained ratio of the outputs' variance, on words that were held out."""


@dataclass(frozen=True)
class TransferFit:
    """How well both refitted layers are determined: explained ratios of the variance on words that were held out."""

    residual_r2: float
    feedback_r2: float


@torch.no_grad()
def transfer_connector(
    source: AutoregressiveConnector, target: AutoregressiveConnector, words: SharedRows
) -> TransferFit:
    """Loads what a trained connector has learned into an untrained one for another LLM.

    Args:
        source: the trained connector
        target: one of the same settings on the same Whisper, with the vocabulary head of the other LLM; it is changed
        words: more than `_HELD_OUT_EVERY`
    """
    assert source.vocabulary_head is not None
    assert target.vocabulary_head is not None
    before = source.vocabulary_head.llm_embeddings[words.source]
    after = target.vocabulary_head.llm_embeddings[words.target]
    weights = source.state_dict()
    residual = _refit_residual(weights, before, after)
    feedback = _refit_feedback(weights, before, after)
    target.load_state_dict(weights)
    return TransferFit(residual_r2=residual.r2, feedback_r2=feedback.r2)


def _refit_residual(
    weights: dict[str, Tensor], before: Float[Tensor, "C D1"], after: Float[Tensor, "C D2"]
) -> LinearMap:
    """Maps the learned residual, a displacement between embeddings, by the linear part of the map of embeddings."""
    fitted = fit_ridge(before, after)
    for name in ("projection.2.weight", "projection.2.bias"):
        weights[name] = fitted.weight @ weights[name]
    return fitted


def _refit_feedback(
    weights: dict[str, Tensor], before: Float[Tensor, "C D1"], after: Float[Tensor, "C D2"]
) -> LinearMap:
    """Lets the first layer compute from the new LLM's normalized embeddings what it computed from the old ones'."""
    scale, shift = weights["feedback.norm.weight"], weights["feedback.norm.bias"]
    weight, bias = weights["feedback.token.0.weight"], weights["feedback.token.0.bias"]
    normalized = layer_norm(before, before.shape[1:], scale, shift, FEEDBACK_NORM_EPS)
    given = layer_norm(after, after.shape[1:], eps=FEEDBACK_NORM_EPS)
    fitted = fit_ridge(given, linear(normalized, weight, bias))
    weights["feedback.norm.weight"], weights["feedback.norm.bias"] = (
        torch.ones_like(after[0]),
        torch.zeros_like(after[0]),
    )
    weights["feedback.token.0.weight"], weights["feedback.token.0.bias"] = fitted.weight, fitted.bias
    return fitted


def fit_ridge(inputs: Float[Tensor, "C X"], outputs: Float[Tensor, "C Y"]) -> LinearMap:
    """Fits an affine map by ridge regression to nine of ten samples; the tenth ones choose the penalty."""
    is_held_out = torch.arange(len(inputs), device=inputs.device) % _HELD_OUT_EVERY == 0
    mean_in, mean_out = inputs[~is_held_out].mean(0), outputs[~is_held_out].mean(0)
    inputs, outputs = inputs - mean_in, outputs - mean_out
    # In the principal axes of the inputs, each penalty is a division.
    variances, axes = torch.linalg.eigh(inputs[~is_held_out].T @ inputs[~is_held_out])
    variances = variances.clamp(min=torch.finfo(variances.dtype).tiny)
    covariance = axes.T @ (inputs[~is_held_out].T @ outputs[~is_held_out])  # (X, Y)
    held_out, wanted = inputs[is_held_out] @ axes, outputs[is_held_out]

    def solve(penalty: float) -> Float[Tensor, "X Y"]:
        return covariance / (variances + penalty * variances.mean())[:, None]

    errors = [float((held_out @ solve(penalty) - wanted).square().sum()) for penalty in _PENALTIES]
    error, penalty = min(zip(errors, _PENALTIES, strict=True))
    weight = (axes @ solve(penalty)).T
    total = float(wanted.square().sum())
    return LinearMap(weight, mean_out - weight @ mean_in, r2=1 - error / total if total else 1.0)
