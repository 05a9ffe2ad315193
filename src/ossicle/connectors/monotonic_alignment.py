"""Where in the sound each token of a transcript is spoken: tensors in, tensors out.

A clip is a chain: pause, token, pause, token, ..., pause. Each encoder position belongs to one link, and the next
position to the same link or the next one. It is CTC's chain (Graves et al., 2006) with a pause between any two
tokens that cannot be skipped, so that where a token is and where it ends can be seen without knowing which it is.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

NAMING_TEMPERATURE = 0.1
"""One token is told from another at a tenth of the candidates' mean squared spread."""


def naming_logits(heard: Float[Tensor, "*N D"], candidates: Float[Tensor, "C D"]) -> Float[Tensor, "*N C"]:
    """How likely each candidate is meant: the likelier the closer it lies.

    The negative squared L2 distance, in units of how far candidates lie from their mean, over
    `NAMING_TEMPERATURE`. In float32 at least, but for the product of the two, which is autocast's; both are taken from
    the candidates' mean, so that little is lost by it.

    Args:
        heard: points in the LLM's embedding space
        candidates: embeddings to choose from, such as those of all tokens in a batch's transcripts
    """
    mean = precise(candidates).mean(0)
    heard, candidates = precise(heard) - mean, precise(candidates) - mean
    spread = candidates.square().sum(1).mean()
    distances = heard.square().sum(-1, keepdim=True) - 2 * heard @ candidates.T + candidates.square().sum(1)
    return -distances / (NAMING_TEMPERATURE * spread.clamp(min=torch.finfo(spread.dtype).eps))


@dataclass(frozen=True)
class Transcripts:
    """What the clips of a batch say, for training."""

    n_tokens: Int[Tensor, " B"]
    wanted: Int[Tensor, "B T"]
    """Which candidate each token is, as wide as the longest; what stands from n_tokens on does not matter."""
    candidates: Float[Tensor, "C D"]
    """Embeddings to tell from each other, such as those of all tokens in the batch's transcripts."""


@dataclass(frozen=True)
class Alignment:
    """Where the tokens of each transcript are spoken, over all ways that the chain can lie in the sound."""

    log_likelihood: Float[Tensor, " B"]
    """In nats; zero for a clip too short for its transcript."""
    posterior: Float[Tensor, "B T S"]
    """Probability that a token is spoken at a position; it has no gradient. Even for a clip that is too short."""


def align(
    log_spoken: Float[Tensor, "B S T"],
    log_pause: Float[Tensor, "B S"],
    n_text: Int[Tensor, " B"],
    mask: Bool[Tensor, "B S"],
) -> Alignment:
    """Every way to lay the chain of a transcript into its clip, by the forward-backward algorithm.

    Args:
        log_spoken: log-probability that a position speaks each token of the transcript; tokens from n_text on
            are ignored
        log_pause: that it speaks none
        n_text: tokens of each transcript, at least one
        mask: true where a position belongs to the clip, from its first on
    """
    log_likelihood, posterior = _Chain.apply(precise(log_spoken), precise(log_pause), n_text, mask)
    return Alignment(log_likelihood, posterior)


class _Chain(torch.autograd.Function):
    """The gradient of the log-likelihood is the posterior, which the forward pass has to find anyway."""

    @staticmethod
    def forward(
        ctx: Any, log_spoken: Tensor, log_pause: Tensor, n_text: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        n_links, n_positions = 2 * n_text + 1, mask.sum(1)
        links = _links(log_spoken, log_pause)  # (B, S, 2T + 1)
        # Backward is forward through the chain and the clip from their ends: both in one loop.
        from_end = _reversed(_reversed(links, n_positions, 1), n_links, 2)
        forward, from_end = _prefix_sums(torch.cat([links, from_end])).chunk(2)
        total, shares, posterior = _shares(links, forward, from_end, n_text, mask)
        ctx.save_for_backward(shares)
        ctx.mark_non_differentiable(posterior)
        return total, posterior

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (shares,) = ctx.saved_tensors
        weighted = shares * gradients[0][:, None, None]
        return weighted[..., 1::2], weighted[..., ::2].sum(2), None, None


def _shares(
    links: Float[Tensor, "B S C"],
    forward: Float[Tensor, "B S C"],
    from_end: Float[Tensor, "B S C"],
    n_text: Int[Tensor, " B"],
    mask: Bool[Tensor, "B S"],
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B S C"], Float[Tensor, "B T S"]]:
    """Log-likelihood, how much each position belongs to each link, and the posterior of tokens.

    Args:
        forward: sums from the first position and link on
        from_end: the same for what is reversed in both
    """
    n_links, n_positions = 2 * n_text + 1, mask.sum(1)
    backward = _reversed(_reversed(from_end, n_positions, 1), n_links, 2)
    rows = torch.arange(len(links), device=links.device)
    last = forward[rows, n_positions - 1]  # (B, 2T + 1)
    total = torch.logaddexp(last[rows, n_links - 1], last[rows, n_links - 2])  # (B)
    fits = total.isfinite()
    link = torch.arange(links.shape[2], device=links.device)
    counts = mask[..., None] & (link < n_links[:, None])[:, None] & fits[:, None, None]
    shares = (forward + backward - links - total[:, None, None]).exp()
    shares = torch.where(counts, shares, 0.0)
    even = _even_shares(n_text, n_positions, links.shape[1], links.shape[2] // 2).to(shares)
    posterior = torch.where(fits[:, None, None], shares[..., 1::2], even)
    return total.where(fits, 0.0), shares, posterior.transpose(1, 2)  # (B, S, T) -> (B, T, S)


def _links(log_spoken: Float[Tensor, "B S T"], log_pause: Float[Tensor, "B S"]) -> Float[Tensor, "B S C"]:
    """Pause, token, pause, token, ..., pause."""
    links = log_pause[..., None].repeat(1, 1, 2 * log_spoken.shape[2] + 1)
    links[..., 1::2] = log_spoken
    return links


def _prefix_sums(links: Float[Tensor, "B S C"]) -> Float[Tensor, "B S C"]:
    """Log-probability of all ways to be at a link at a position, having begun at the first or the second.

    Written in place: on a GPU the loop takes as long as its kernels take to be started, two for each position.
    """
    steps = links.transpose(0, 1)  # (B, S, C) -> (S, B, C)
    n_positions, n_clips, n_links = steps.shape
    sums = steps.new_full(
        (n_positions, n_clips, 1 + n_links), -torch.inf
    )  # nothing comes before the first link
    at, before = sums[..., 1:], sums[..., :-1]
    at[0, :, :2] = steps[0, :, :2]
    for reached, stays, moves, link in zip(
        at[1:].unbind(), at[:-1].unbind(), before[:-1].unbind(), steps[1:].unbind(), strict=True
    ):
        torch.logaddexp(stays, moves, out=reached).add_(link)
    return at.transpose(0, 1)  # (S, B, C) -> (B, S, C)


def _reversed(
    values: Float[Tensor, "B S C"], lengths: Int[Tensor, " B"], axis: int
) -> Float[Tensor, "B S C"]:
    """Each row's first so many entries along an axis in reverse; the rest stays where it is."""
    place = torch.arange(values.shape[axis], device=values.device)
    index = torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)
    return values.gather(axis, index.unsqueeze(3 - axis).expand_as(values))


def _even_shares(n_text: Int[Tensor, " B"], n_positions: Int[Tensor, " B"], size: int, width: int) -> Tensor:
    """One token after the other, each for as long as the next."""
    position = torch.arange(size, device=n_text.device)
    token = position * n_text[:, None] // n_positions[:, None]
    is_inside = position < n_positions[:, None]
    return functional.one_hot(token.clamp(max=width - 1), width) * is_inside[..., None]


@dataclass(frozen=True)
class Spotted:
    """The tokens that are most likely spoken, whichever they are."""

    n_tokens: Int[Tensor, " B"]
    posterior: Float[Tensor, "B T S"]
    """Probability that a token is spoken at a position, as wide as the most tokens of a clip."""


@torch.no_grad()
def likeliest_tokens(
    log_spoken: Float[Tensor, "B S"],
    log_pause: Float[Tensor, "B S"],
    most: Int[Tensor, " B"],
    mask: Bool[Tensor, "B S"],
) -> Spotted:
    """How many tokens each clip most likely speaks, over all ways to lay them into it, and where.

    Args:
        log_spoken: log-probability that a position speaks a token
        log_pause: that it speaks none
        most: no more than so many; at least one
        mask: true where a position belongs to the clip, from its first on
    """
    n_most, n_positions = int(most.max()), mask.sum(1)
    # Chains of any length begin alike and, of tokens that are all the same, end alike: the sums of the longest one
    # hold those of all shorter ones from either end, and one loop finds both the number and the places.
    links = _links(precise(log_spoken)[..., None].expand(-1, -1, n_most), precise(log_pause))
    forward, from_end = _prefix_sums(torch.cat([links, _reversed(links, n_positions, 1)])).chunk(2)
    last = forward[torch.arange(len(mask), device=mask.device), n_positions - 1]  # (B, 2C + 1)
    totals = torch.logaddexp(last[:, 1::2], last[:, 2::2])  # (B, C): for 1, 2, ..., C tokens
    count = torch.arange(1, n_most + 1, device=most.device)
    n_tokens = totals.masked_fill(count > most[:, None], -torch.inf).argmax(1) + 1
    width = 2 * int(n_tokens.max()) + 1
    own = (each[..., :width] for each in (links, forward, from_end))
    return Spotted(n_tokens, _shares(*own, n_tokens, mask)[2])


def precise(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In float32 at least, whatever the models compute in."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
