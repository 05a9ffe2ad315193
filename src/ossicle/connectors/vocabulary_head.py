"""The words that a speech recogniser and an LLM have in common: between its decoder's states and the LLM's embeddings.

It knows tensors, and nothing of the models or the vocabularies that they come from.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ossicle.connectors.monotonic_alignment import precise

_SHARPNESS = 3.0
"""How decided a new connector is: an LLM reads one token better than a blend of two, so that what is likelier than the
rest is made likelier still. Training goes on from there."""
_SAME = 1e-3
"""Squared distance of an embedding from its copy in another type of number, at most, by the mean square of all."""


@dataclass(frozen=True)
class SharedTokens:
    """The tokens that a speech recogniser and an LLM both have, and those that the recogniser begins and ends with."""

    written: Float[Tensor, "C E"]
    """How the recogniser's decoder knows them, be it told of them or asked for them."""
    others: Float[Tensor, "U E"]
    """Those that it may write and the LLM does not have."""
    read: Float[Tensor, "C D"]
    """As the LLM's first layer is given them."""
    prompt: Float[Tensor, "P E"]
    """What the decoder is told before it writes; of several languages the second row is left open, and zero."""
    end: Float[Tensor, " E"]
    """Behind the last word."""
    languages: Float[Tensor, "N E"]
    """Those that it has to be told one of; none if it has a single one."""

    @classmethod
    def outline(
        cls, *, n_words: int, n_others: int, n_prompt: int, n_languages: int, d_encoder: int, d_llm: int
    ) -> "SharedTokens":
        """Shapes alone, on the meta device."""
        sizes = {
            "written": (n_words, d_encoder),
            "others": (n_others, d_encoder),
            "read": (n_words, d_llm),
            "prompt": (n_prompt, d_encoder),
            "end": (d_encoder,),
            "languages": (n_languages, d_encoder),
        }
        return cls(**{name: torch.empty(size, device="meta") for name, size in sizes.items()})


@dataclass(frozen=True)
class Spelled:
    """Points in the LLM's embedding space as words."""

    nearest: Int[Tensor, "*N"]
    is_word: Bool[Tensor, "*N"]
    """Whether it is that word, and not just near it."""

    def behind(self, n: int) -> "Spelled":
        """All but the first so many of each row."""
        return Spelled(self.nearest[:, n:], self.is_word[:, n:])


class Words(nn.Module):
    """The tokens of both vocabularies, frozen: what is learned of some of them spoils none of the others.

    The recogniser's output layer says how likely each is; their expectation among the LLM's embeddings is an audio
    token. So a connector that has not learned anything yet lets the LLM hear what the recogniser would have written,
    as far as the LLM has the same tokens, and where that is in doubt, something between.

    Likelihoods and distances are computed in float32 at least, whatever autocast says: they differ by little where
    tokens are many.
    """

    written: Tensor
    others: Tensor
    read: Tensor
    squares: Tensor
    end: Tensor
    languages: Tensor

    def __init__(self, shared: SharedTokens) -> None:
        super().__init__()
        # The bases have them: a checkpoint need not.
        for name in ("written", "others", "read", "end", "languages"):
            rows = getattr(shared, name).detach().float().clone()
            self.register_buffer(name, rows, persistent=False)
        self.register_buffer("squares", self.read.square().sum(1), persistent=False)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(_SHARPNESS)))

    def logits(self, hidden: Float[Tensor, "B Q E"]) -> Float[Tensor, "B Q W"]:
        """How likely each token is by the decoder's states, as the recogniser itself has it: words, then others."""
        with _exactly(hidden):
            hidden = precise(hidden)
            products = [hidden @ precise(rows).T for rows in (self.written, self.others)]
            return precise(torch.cat(products, dim=-1))

    def expected(self, logits: Float[Tensor, "B Q W"]) -> Float[Tensor, "B Q D"]:
        """The embedding that is to be expected, of the likelier words rather than of all."""
        shares = (self.log_sharpness.exp() * logits[..., : len(self.read)]).softmax(-1)
        return shares.to(self.read.dtype) @ self.read

    def end_logits(
        self, hidden: Float[Tensor, "B Q E"], logits: Float[Tensor, "B Q W"]
    ) -> Float[Tensor, "B Q"]:
        """Log-odds of the end, likelier than all tokens together if it is plainly likelier than each."""
        sharpness = self.log_sharpness.exp()
        with _exactly(hidden):
            of_end = precise(hidden) @ precise(self.end)
        return sharpness * of_end - (sharpness * logits).logsumexp(-1)

    def log_likelihood(
        self, logits: Float[Tensor, "B Q W"], spelled: Spelled, n_tokens: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Of each transcript, by its tokens among the words: in nats, as a recogniser learns."""
        slots = torch.arange(logits.shape[1], device=logits.device)
        counts = spelled.is_word & (slots < n_tokens[:, None])
        found = logits.log_softmax(-1).gather(2, spelled.nearest[..., None])[..., 0]
        return (found * counts).sum(1)

    @torch.no_grad()
    def spell(self, said: Float[Tensor, "*N D"]) -> Spelled:
        """Of each audio token, or embedding of the LLM, the word nearest to it."""
        with _exactly(said):
            said, squares = precise(said), precise(self.squares)
            best = (2 * said @ precise(self.read).T - squares).max(-1)
            apart = said.square().sum(-1) - best.values
        return Spelled(best.indices, apart < _SAME * squares.mean())

    def told(self, spelled: Spelled) -> Float[Tensor, "*N E"]:
        """Those words as the decoder knows them."""
        return self.written[spelled.nearest]

    @torch.no_grad()
    def language(self, first: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        """The language that is spoken, by the decoder's state behind the first row of its prompt."""
        with _exactly(first):
            likeliest = (precise(first) @ precise(self.languages).T).argmax(-1)
        return self.languages[likeliest]


def _exactly(tensor: Tensor) -> torch.autocast:
    """Without autocast; what is planned by shapes alone is under a CPU's."""
    return torch.autocast("cpu" if tensor.is_meta else tensor.device.type, enabled=False)
