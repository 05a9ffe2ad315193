"""One completion while it is generated: tokens become text until it ends; it knows no batch and no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ossicle.chat.generation import IncrementalDetokenizer
from ossicle.chat.sampling import TokenSampler

FinishReason = Literal["stop", "length"]
"""OpenAI's finish_reason: "stop" after an end of sequence or a stop string, "length" at the maximum length."""


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """The text that a token adds to a completion."""

    text: str
    """May be empty."""
    finish_reason: FinishReason | None = None


class Completion:
    """A completion that grows token by token.

    Args:
        eos_ids: tokens that end it
        max_tokens: the most tokens that it may have
    """

    def __init__(
        self,
        sampler: TokenSampler,
        detokenizer: IncrementalDetokenizer,
        eos_ids: frozenset[int],
        stop: Sequence[str],
        max_tokens: int,
    ) -> None:
        self.sampler, self.detokenizer, self.eos_ids, self.max_tokens = (
            sampler,
            detokenizer,
            eos_ids,
            max_tokens,
        )
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
        text = self.buffer.add(self.detokenizer.add(token))
        if not self.buffer.is_stopped and (token in self.eos_ids or self.n_tokens >= self.max_tokens):
            text += self.buffer.add(self.detokenizer.flush())
            text += self.buffer.flush()
            is_cut_off = not (self.buffer.is_stopped or token in self.eos_ids)
            return TextDelta(text=text, finish_reason="length" if is_cut_off else "stop")
        return TextDelta(text=text, finish_reason="stop" if self.buffer.is_stopped else None)


class StopStringBuffer:
    """Releases text up to the first stop string, and holds back what a stop string may begin with."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = tuple(stop)
        self.is_stopped = False
        self._held = ""

    def add(self, text: str) -> str:
        """Adds text and returns all text that can be released."""
        if self.is_stopped:
            return ""
        held = self._held + text
        found = [position for stop in self.stop if (position := held.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return held[: min(found)]
        n_held = max((_count_begun(held, stop) for stop in self.stop), default=0)
        self._held = held[len(held) - n_held :]
        return held[: len(held) - n_held]

    def flush(self) -> str:
        """Returns the text that is held back, when no text follows."""
        held, self._held = self._held, ""
        return held


def _count_begun(text: str, stop: str) -> int:
    """Returns how many characters at the end of a text may begin a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
