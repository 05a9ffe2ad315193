"""The next token of one answer from its logits; it knows no batch, so no answer depends on its neighbors.

The logits processors are transformers' own, in the order of its generate, and so are the model's default settings.
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

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.model_files import format_one_line
from ossicle.chat.grammar import TokenConstraint
from ossicle.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How the tokens of an answer are sampled."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float | None = None
    """Sampling is limited to the likeliest tokens with this total probability; None takes the model's defaults."""
    seed: int = 0
    """The same seed samples the same answer."""


def check_sampling_defaults(llm: PreTrainedModel) -> None:
    """Tries the sampling defaults of an LLM's own generation config.

    Raises:
        CheckpointError: they cannot be used
    """
    logits = torch.zeros(get_input_embeddings(llm).num_embeddings)
    for temperature in (0.0, 1.0):
        try:
            TokenSampler(llm, SamplingSettings(temperature=temperature), [0]).sample(logits)
        except Exception as error:  # any field may hold anything
            raise CheckpointError(
                f"the LLM's generation_config.json cannot be used ({format_one_line(error)}): correct or remove"
                " repetition_penalty, top_k or top_p there"
            ) from error


class TokenSampler:
    """Samples the tokens of one answer, one after the other."""

    def __init__(
        self,
        llm: PreTrainedModel,
        settings: SamplingSettings,
        prompt_ids: list[int],
        constraint: TokenConstraint | None = None,
    ) -> None:
        self.constraint = constraint
        self.is_greedy = settings.temperature == 0
        self.ids = list(prompt_ids)
        defaults = llm.generation_config
        self.processors = LogitsProcessorList()
        if defaults.repetition_penalty not in (None, 1.0):
            self.processors.append(RepetitionPenaltyLogitsProcessor(defaults.repetition_penalty))
        if not self.is_greedy:
            self.generator = torch.Generator().manual_seed(settings.seed)
            self.processors.append(TemperatureLogitsWarper(float(settings.temperature)))
            if defaults.top_k:
                self.processors.append(TopKLogitsWarper(defaults.top_k))
            top_p = defaults.top_p if settings.top_p is None else settings.top_p
            if top_p is not None and top_p < 1:
                self.processors.append(TopPLogitsWarper(top_p))

    def sample(self, logits: Float[Tensor, " V"]) -> int:
        """Returns the next token, and appends it to `ids`."""
        scores: Any = logits.float()
        if self.constraint is not None:
            scores = self.constraint.mask(scores)
        scores = scores[None]
        if self.processors:
            ids: Any = torch.tensor([self.ids], device=scores.device)
            scores = self.processors(ids, scores)
        if self.is_greedy:
            token = int(scores.argmax())
        else:  # on the host, where its own generator samples the same on any device
            token = int(torch.multinomial(scores[0].softmax(-1).cpu(), 1, generator=self.generator))
        self.ids.append(token)
        if self.constraint is not None:
            self.constraint.accept(token)
        return token
