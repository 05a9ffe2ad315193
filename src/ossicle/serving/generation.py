"""One answer on its way: its tokens become text, and something ends it; it knows no batch and no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ossicle.chat.generation import IncrementalDetokenizer
from ossicle.chat.sampling import TokenSampler

FinishReason = Literal["stop", "length"]
"""OpenAI's finish_reason: the LLM came to an end or said a stop string; or there was no more room."""


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """What a token added to an answer."""

    text: str
    """May be empty."""
    finish_reason: FinishReason | None = None


class Completion:
    """An answer that grows token by token.

    Args:
        ends: ids that end an answer
        n_room: most tokens that it may have
    """

    def __init__(
        self,
        drawing: TokenSampler,
        wording: IncrementalDetokenizer,
        eos_ids: frozenset[int],
        stop: Sequence[str],
        max_tokens: int,
    ) -> None:
        self.drawing, self.wording, self.ends, self.n_room = drawing, wording, eos_ids, max_tokens
        self.told = StopStringBuffer(stop)
        self.n_tokens = 0
        """Said so far, the one that ends it included."""

    @property
    def last_token(self) -> int:
        """What was said last, of the prompt or the answer."""
        return self.drawing.ids[-1]

    def append_token(self, logits: Float[Tensor, " V"]) -> TextDelta:
        """What the next token adds."""
        token = self.drawing.sample(logits)
        self.n_tokens += 1
        text = self.told.add(self.wording.add(token))
        if not self.told.is_stopped and (token in self.ends or self.n_tokens >= self.n_room):
            text += self.told.add(self.wording.flush())
            text += self.told.flush()
            is_cut = not (self.told.is_stopped or token in self.ends)
            return TextDelta(text=text, finish_reason="length" if is_cut else "stop")
        return TextDelta(text=text, finish_reason="stop" if self.told.is_stopped else None)


class StopStringBuffer:
    """Text up to the first of some strings, told as soon as it is clear that none of them begins there."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = tuple(stop)
        self.is_stopped = False
        self._held = ""

    def add(self, text: str) -> str:
        """What can be told of all that came so far and was not told yet."""
        if self.is_stopped:
            return ""
        held = self._held + text
        found = [place for stop in self.stop if (place := held.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return held[: min(found)]
        n_open = max((_n_begun(held, stop) for stop in self.stop), default=0)
        self._held = held[len(held) - n_open :]
        return held[: len(held) - n_open]

    def flush(self) -> str:
        """What was held back, when nothing follows."""
        held, self._held = self._held, ""
        return held


def _n_begun(text: str, stop: str) -> int:
    """Letters at the end of a text that a stop string may have begun with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
