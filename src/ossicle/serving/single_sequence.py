"""One completion at a time, for LLMs whose rows cannot be added to a running batch; it knows embeddings and tokens.

These keep more than keys and values: the states of convolutions and recurrences. Their own cache is used where it gives
the logits of a forward without a cache; otherwise the whole sequence is computed again for each token.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ossicle.backbones.causal_lm import CACHE_NAME, compute_logits, embed, get_tolerance

_TEXT, _NEXT = [3, 3, 1, 2, 2, 1, 3], [1, 2]


class SingleSequence:
    """The interface of a continuous batch, for at most one row."""

    def __init__(self, llm: PreTrainedModel, *, uses_cache: bool) -> None:
        self.llm, self.uses_cache = llm, uses_cache
        self._embeds: Tensor | None = None
        self._cache: Any = None

    def __len__(self) -> int:
        return 0 if self._embeds is None else 1

    @torch.inference_mode()
    def add(self, prompts: Sequence[Float[Tensor, "_ D"]]) -> Float[Tensor, "1 V"]:
        """Begins with a prompt and returns the logits of its first token."""
        assert self._embeds is None, "the scheduler has one row"
        (prompt,) = prompts
        self._embeds = prompt[None]
        if self.uses_cache:
            self._cache = DynamicCache(config=self.llm.config.get_text_config(decoder=True))
        return self._forward(self._embeds)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Float[Tensor, "1 V"]:
        """Appends the next token and returns the logits of the token after it."""
        assert self._embeds is not None, "there is a row"
        new = embed(self.llm, [list(tokens)]).to(self._embeds.dtype)
        self._embeds = torch.cat([self._embeds, new], 1)
        return self._forward(new if self.uses_cache else self._embeds)

    def evict(self, rows: Collection[int]) -> None:
        """Removes the row, if it is named."""
        if rows:
            self._embeds = self._cache = None

    def _forward(self, embeds: Float[Tensor, "1 L D"]) -> Float[Tensor, "1 V"]:
        cache = {CACHE_NAME: self._cache} if self.uses_cache else {}
        output: Any = self.llm.base_model(inputs_embeds=embeds, use_cache=self.uses_cache, **cache)
        if self.uses_cache:
            self._cache = getattr(output, CACHE_NAME)
        return compute_logits(self.llm, output.last_hidden_state[:, -1])


@torch.inference_mode()
def can_use_cache(llm: PreTrainedModel) -> bool:
    """Whether an LLM computes the same logits with its own kind of cache as without one."""
    try:
        cached, whole = (_compute_steps(llm, uses_cache=uses_cache) for uses_cache in (True, False))
    except Exception:  # a family may fail in any way
        return False
    return bool((cached - whole).abs().max() <= get_tolerance(llm) * whole.abs().max())


def _compute_steps(llm: PreTrainedModel, *, uses_cache: bool) -> Float[Tensor, "N V"]:
    row = SingleSequence(llm, uses_cache=uses_cache)
    return torch.cat([row.add([embed(llm, _TEXT)]), *(row.step([token]) for token in _NEXT)]).float()
