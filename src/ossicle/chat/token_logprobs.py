"""How likely each token of an answer was, and the likeliest others in its place; it knows one answer, and no batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ossicle.backbones.token_bytes import read_token_bytes

_LOWEST = -9999.0
"""Stands for the logarithm of zero, which JSON does not have."""


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability."""

    content: bytes
    """What the token stands for; may end within a character."""
    logprob: float
    """Of the LLM itself: before temperature, penalties, biases and grammars."""
    likeliest: Sequence["TokenLogprob"] = ()
    """The likeliest tokens in its place, itself among them where it is one."""


class TokenContents:
    """Looks up what tokens stand for, in one tokenizer; the first lookup reads the whole vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._bytes: dict[int, bytes] | None = None

    def find(self, token: int) -> bytes:
        """Returns the bytes of a token; of a special one, those of its name."""
        if self._bytes is None:
            self._bytes = read_token_bytes(self._tokenizer)
        content = self._bytes.get(token)
        return content if content is not None else str(self._tokenizer.decode([token])).encode()

    def compute_logprob(self, logits: Float[Tensor, " V"], token: int, n_likeliest: int) -> TokenLogprob:
        """Returns the probability of a token that was sampled from logits.

        Args:
            n_likeliest: of the likeliest tokens in its place
        """
        logprobs = logits.float().log_softmax(-1)
        top = torch.topk(logprobs, min(n_likeliest, len(logprobs)))
        likeliest = [
            TokenLogprob(content=self.find(index), logprob=max(value, _LOWEST))
            for index, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        logprob = max(float(logprobs[token]), _LOWEST)
        return TokenLogprob(content=self.find(token), logprob=logprob, likeliest=likeliest)
