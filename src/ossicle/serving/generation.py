"""One completion while it is generated: tokens become text until it ends; it knows no batch and no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ossicle.chat.incremental_text import IncrementalDetokenizer, StopStringBuffer
from ossicle.chat.sampling import TokenSampler
from ossicle.chat.token_logprobs import TokenContents, TokenLogprob

FinishReason = Literal["stop", "length"]
"""OpenAI's finish_reason: "stop" after an end of sequence or a stop string, "length" at the maximum length."""


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """The text that a token adds to a completion."""

    text: str
    """May be empty."""
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens up to here that no earlier delta had, if they are asked for."""


class Completion:
    """A completion that grows token by token.

    Args:
        eos_ids: tokens that end it
        max_tokens: the most tokens that it may have
        markers: special tokens that are text nevertheless
        contents: of the tokens, if their probabilities are asked for
        n_likeliest: of the likeliest tokens in the place of each
    """

    def __init__(
        self,
        sampler: TokenSampler,
        detokenizer: IncrementalDetokenizer,
        eos_ids: frozenset[int],
        stop: Sequence[str],
        max_tokens: int,
        markers: Mapping[int, str] = MappingProxyType({}),
        contents: TokenContents | None = None,
        n_likeliest: int = 0,
    ) -> None:
        self.sampler, self.detokenizer, self.eos_ids = sampler, detokenizer, eos_ids
        self.max_tokens, self.markers = max_tokens, markers
        self.contents, self.n_likeliest = contents, n_likeliest
        self._logprobs: list[TokenLogprob] = []
        self.buffer = StopStringBuffer(stop)
        self.n_tokens = 0
        """Generated so far, the one that ends it included."""

    @property
    def last_token(self) -> int:
        """The last token of the prompt and the completion."""
        return self.sampler.ids[-1]

    def append_token(self, logits: Float[Tensor, " V"]) -> TextDelta:
        """Samples the next token and returns the text that it adds."""
        token = self.sampler.sample(logits)
        self.n_tokens += 1
        if self.contents and token not in self.eos_ids:
            self._logprobs.append(self.contents.compute_logprob(logits, token, self.n_likeliest))
        text = self.buffer.add(self._decode(token))
        if not self.buffer.is_stopped and (token in self.eos_ids or self.n_tokens >= self.max_tokens):
            text += self.buffer.add(self.detokenizer.flush())
            text += self.buffer.flush()
            is_cut_off = not (self.buffer.is_stopped or token in self.eos_ids)
            return self._build_delta(text, "length" if is_cut_off else "stop")
        return self._build_delta(text, "stop" if self.buffer.is_stopped else None)

    def _build_delta(self, text: str, finish_reason: FinishReason | None) -> TextDelta:
        logprobs: tuple[TokenLogprob, ...] = ()
        if text or finish_reason:
            logprobs = tuple(self._logprobs)
            self._logprobs.clear()
        return TextDelta(text=text, finish_reason=finish_reason, logprobs=logprobs)

    def _decode(self, token: int) -> str:
        """Returns the text that a token adds, which for a marker is the marker itself."""
        if token not in self.markers or token in self.eos_ids:
            return self.detokenizer.add(token)
        text = self.detokenizer.flush()
        self.detokenizer = IncrementalDetokenizer(self.detokenizer.tokenizer, self.eos_ids)
        return text + self.markers[token]
