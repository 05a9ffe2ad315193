"""The next token of one answer from its logits; it knows no batch, so that none depends on its company.

Warping is transformers' own, in the order of its generate; what the model's own settings say counts as it does there.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How the tokens of an answer are drawn."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float | None = None
    """Share of the probability that the tokens to draw from hold; the model's own where it is None."""
    seed: int = 0
    """The same seed draws the same answer."""


class TokenSampler:
    """Draws the tokens of one answer, one after the other."""

    def __init__(self, llm: PreTrainedModel, sampling: SamplingSettings, prompt_ids: list[int]) -> None:
        self.is_greedy = sampling.temperature == 0
        self.ids = list(prompt_ids)
        own = llm.generation_config
        self.warpers = LogitsProcessorList()
        if own.repetition_penalty not in (None, 1.0):
            self.warpers.append(RepetitionPenaltyLogitsProcessor(own.repetition_penalty))
        if not self.is_greedy:
            self.generator = torch.Generator().manual_seed(sampling.seed)
            self.warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if own.top_k:
                self.warpers.append(TopKLogitsWarper(own.top_k))
            top_p = own.top_p if sampling.top_p is None else sampling.top_p
            if top_p is not None and top_p < 1:
                self.warpers.append(TopPLogitsWarper(top_p))

    def sample(self, logits: Float[Tensor, " V"]) -> int:
        """The next token, which counts as said from then on."""
        scores: Any = logits.float()[None]
        if self.warpers:
            said: Any = torch.tensor([self.ids], device=scores.device)
            scores = self.warpers(said, scores)
        if self.is_greedy:
            token = int(scores.argmax())
        else:  # on the host, where a generator of its own makes it the same on any device
            token = int(torch.multinomial(scores[0].softmax(-1).cpu(), 1, generator=self.generator))
        self.ids.append(token)
        return token
