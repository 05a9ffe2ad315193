"""Monotonic alignment: locates each token of a transcript in the sound. Tensors in, tensors out.

A clip is a chain of states: pause, token, pause, token, ..., pause. Each encoder position is in one state, and the next
position in the same state or the next one. This is CTC's chain (Graves et al., 2006) with a pause between any two tokens
that cannot be skipped, so that the boundaries of a token can be found without knowing which token it is.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ossicle.connectors.layers import upcast


@dataclass(frozen=True)
class Alignment:
    """Position of each transcript's tokens in the sound, summed over all paths of the chain."""

    log_likelihood: Float[Tensor, " B"]
    """In nats; zero for a clip that is too short for its transcript."""
    posterior: Float[Tensor, "B T S"]
    """Probability that a token is spoken at a position, without gradient; uniform for a clip that is too short."""


def align(
    log_spoken: Float[Tensor, "B S T"],
    log_pause: Float[Tensor, "B S"],
    n_text: Int[Tensor, " B"],
    mask: Bool[Tensor, "B S"],
) -> Alignment:
    """Sums over all paths of each transcript's chain through its clip, by the forward-backward algorithm.

    Args:
        log_spoken: log-probability that each token of the transcript is spoken at a position; tokens from n_text
            on are ignored
        log_pause: log-probability that none is
        n_text: tokens of each transcript, at least one
        mask: true where a position belongs to the clip, from its first on
    """
    log_likelihood, posterior = _ForwardBackward.apply(upcast(log_spoken), upcast(log_pause), n_text, mask)
    return Alignment(log_likelihood, posterior)


class _ForwardBackward(torch.autograd.Function):
    """The gradient of the log-likelihood is the posterior, which the forward pass computes anyway."""

    @staticmethod
    def forward(
        ctx: Any, log_spoken: Tensor, log_pause: Tensor, n_text: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        n_states, n_positions = 2 * n_text + 1, mask.sum(1)
        emissions = _interleave(log_spoken, log_pause)  # (B, S, 2T + 1)
        # The backward pass is the forward pass from the ends of chain and clip: one loop runs both.
        from_end = _reverse(_reverse(emissions, n_positions, 1), n_states, 2)
        forward, from_end = _prefix_sums(torch.cat([emissions, from_end])).chunk(2)
        total, state_posterior, posterior = _compute_posteriors(emissions, forward, from_end, n_text, mask)
        ctx.save_for_backward(state_posterior)
        ctx.mark_non_differentiable(posterior)
        return total, posterior

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (state_posterior,) = ctx.saved_tensors
        weighted = state_posterior * gradients[0][:, None, None]
        return weighted[..., 1::2], weighted[..., ::2].sum(2), None, None


def _compute_posteriors(
    emissions: Float[Tensor, "B S C"],
    forward: Float[Tensor, "B S C"],
    from_end: Float[Tensor, "B S C"],
    n_text: Int[Tensor, " B"],
    mask: Bool[Tensor, "B S"],
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B S C"], Float[Tensor, "B T S"]]:
    """Computes the log-likelihood, the posterior of each state at each position, and that of the tokens alone.

    Args:
        forward: prefix sums from the first position and state on
        from_end: the same over emissions that are reversed along both axes
    """
    n_states, n_positions = 2 * n_text + 1, mask.sum(1)
    backward = _reverse(_reverse(from_end, n_positions, 1), n_states, 2)
    rows = torch.arange(len(emissions), device=emissions.device)
    last = forward[rows, n_positions - 1]  # (B, 2T + 1)
    total = torch.logaddexp(last[rows, n_states - 1], last[rows, n_states - 2])  # (B)
    fits = total.isfinite()
    state = torch.arange(emissions.shape[2], device=emissions.device)
    counts = mask[..., None] & (state < n_states[:, None])[:, None] & fits[:, None, None]
    posterior = (forward + backward - emissions - total[:, None, None]).exp()
    posterior = torch.where(counts, posterior, 0.0)
    uniform = _uniform_posterior(n_text, n_positions, emissions.shape[1], emissions.shape[2] // 2).to(
        posterior
    )
    tokens = torch.where(fits[:, None, None], posterior[..., 1::2], uniform)
    return total.where(fits, 0.0), posterior, tokens.transpose(1, 2)  # (B, S, T) -> (B, T, S)


def _interleave(
    log_spoken: Float[Tensor, "B S T"], log_pause: Float[Tensor, "B S"]
) -> Float[Tensor, "B S C"]:
    """Interleaves them into the emissions of the chain's states: pause, token, pause, token, ..., pause."""
    emissions = log_pause[..., None].repeat(1, 1, 2 * log_spoken.shape[2] + 1)
    emissions[..., 1::2] = log_spoken
    return emissions


def _prefix_sums(emissions: Float[Tensor, "B S C"]) -> Float[Tensor, "B S C"]:
    """Log-probability of all paths that are in a state at a position and began in the first or second state.

    Written in place: on a GPU the loop is bound by kernel launches, two for each position.
    """
    steps = emissions.transpose(0, 1)  # (B, S, C) -> (S, B, C)
    n_positions, n_clips, n_states = steps.shape
    sums = steps.new_full(
        (n_positions, n_clips, 1 + n_states), -torch.inf
    )  # nothing comes before the first state
    at, before = sums[..., 1:], sums[..., :-1]
    at[0, :, :2] = steps[0, :, :2]
    for reached, stays, moves, state in zip(
        at[1:].unbind(), at[:-1].unbind(), before[:-1].unbind(), steps[1:].unbind(), strict=True
    ):
        torch.logaddexp(stays, moves, out=reached).add_(state)
    return at.transpose(0, 1)  # (S, B, C) -> (B, S, C)


def _reverse(values: Float[Tensor, "B S C"], lengths: Int[Tensor, " B"], axis: int) -> Float[Tensor, "B S C"]:
    """Reverses the first `lengths` entries of each row along an axis; the rest keeps its place."""
    position = torch.arange(values.shape[axis], device=values.device)
    index = torch.where(position < lengths[:, None], lengths[:, None] - 1 - position, position)
    return values.gather(axis, index.unsqueeze(3 - axis).expand_as(values))


def _uniform_posterior(
    n_text: Int[Tensor, " B"], n_positions: Int[Tensor, " B"], size: int, width: int
) -> Tensor:
    """Divides the clip evenly among its tokens."""
    position = torch.arange(size, device=n_text.device)
    token = position * n_text[:, None] // n_positions[:, None]
    is_inside = position < n_positions[:, None]
    return functional.one_hot(token.clamp(max=width - 1), width) * is_inside[..., None]


@dataclass(frozen=True)
class DetectedTokens:
    """The tokens that are most likely spoken, without saying which they are."""

    n_tokens: Int[Tensor, " B"]
    posterior: Float[Tensor, "B T S"]
    """Probability that a token is spoken at a position, padded to the clip with most tokens."""


@torch.no_grad()
def detect_tokens(
    log_spoken: Float[Tensor, "B S"],
    log_pause: Float[Tensor, "B S"],
    max_tokens: Int[Tensor, " B"],
    mask: Bool[Tensor, "B S"],
) -> DetectedTokens:
    """Finds the likeliest number of tokens in each clip, over all paths, and their positions.

    Args:
        log_spoken: log-probability that a token is spoken at a position
        log_pause: log-probability that none is
        max_tokens: upper limit for each clip, at least one
        mask: true where a position belongs to the clip, from its first on
    """
    limit, n_positions = int(max_tokens.max()), mask.sum(1)
    # Chains of all lengths begin alike and, as their tokens are all the same, end alike: the sums of the longest one
    # contain those of all shorter ones from either end, and one loop finds both the number and the positions.
    emissions = _interleave(upcast(log_spoken)[..., None].expand(-1, -1, limit), upcast(log_pause))
    forward, from_end = _prefix_sums(torch.cat([emissions, _reverse(emissions, n_positions, 1)])).chunk(2)
    last = forward[torch.arange(len(mask), device=mask.device), n_positions - 1]  # (B, 2C + 1)
    totals = torch.logaddexp(last[:, 1::2], last[:, 2::2])  # (B, C): for 1, 2, ..., C tokens
    count = torch.arange(1, limit + 1, device=max_tokens.device)
    n_tokens = totals.masked_fill(count > max_tokens[:, None], -torch.inf).argmax(1) + 1
    width = 2 * int(n_tokens.max()) + 1
    own = (each[..., :width] for each in (emissions, forward, from_end))
    return DetectedTokens(n_tokens, _compute_posteriors(*own, n_tokens, mask)[2])
