"""The next token of one answer from its logits; it knows no batch, so no answer depends on its neighbors.

The logits processors are transformers' own, in the order of its generate, and so are the model's default settings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.model_files import format_one_line
from ossicle.chat.grammar import TokenConstraint
from ossicle.errors import CheckpointError

_LEAST_TEMPERATURE = 1e-5


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How the tokens of an answer are sampled."""

    temperature: float = 0.0
    """0 is greedy, and so is what is too small to divide by."""
    top_p: float | None = None
    """Sampling is limited to the likeliest tokens with this total probability; None takes the model's defaults."""
    top_k: int | None = None
    """Sampling is limited to so many of the likeliest tokens; 0 for no limit, None for the model's default."""
    min_p: float = 0.0
    """Sampling is limited to tokens with this part of the likeliest one's probability."""
    repetition_penalty: float | None = None
    """Divides the logits of tokens that the prompt or the answer has; None takes the model's default."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the answer has."""
    frequency_penalty: float = 0.0
    """Taken off the logits of tokens for each time that the answer has them."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens, and what is added to their logits."""
    seed: int = 0
    """The same seed samples the same answer."""

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < _LEAST_TEMPERATURE


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
        self.is_greedy = settings.is_greedy
        self.ids = list(prompt_ids)
        self.processors = LogitsProcessorList(_build_processors(llm, settings, len(prompt_ids)))
        if not self.is_greedy:
            self.generator = torch.Generator().manual_seed(settings.seed)

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


def _build_processors(
    llm: PreTrainedModel, settings: SamplingSettings, n_prompt: int
) -> Iterator[LogitsProcessor]:
    """Yields what changes the logits, in the order of transformers' generate."""
    defaults = llm.generation_config
    if settings.logit_bias:
        yield _LogitBias(settings.logit_bias)
    repetition = settings.repetition_penalty or defaults.repetition_penalty
    if repetition not in (None, 1.0):
        yield RepetitionPenaltyLogitsProcessor(repetition)
    if settings.presence_penalty or settings.frequency_penalty:
        yield _AnswerPenalty(settings.presence_penalty, settings.frequency_penalty, n_prompt)
    if settings.is_greedy:
        return
    yield TemperatureLogitsWarper(float(settings.temperature))
    top_k = defaults.top_k if settings.top_k is None else settings.top_k
    if top_k:
        yield TopKLogitsWarper(top_k)
    top_p = defaults.top_p if settings.top_p is None else settings.top_p
    if top_p is not None and top_p < 1:
        yield TopPLogitsWarper(top_p)
    if settings.min_p:
        yield MinPLogitsWarper(settings.min_p)


class _LogitBias(LogitsProcessor):
    """Adds to the logits of some tokens."""

    def __init__(self, bias: Sequence[tuple[int, float]]) -> None:
        self.ids = torch.tensor([token for token, _ in bias])
        self.values = torch.tensor([value for _, value in bias])

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        biased = scores.clone()
        biased[:, self.ids.to(scores.device)] += self.values.to(scores)
        return biased


class _AnswerPenalty(LogitsProcessor):
    """Takes OpenAI's penalties off the logits of tokens that the answer has; those of the prompt do not count."""

    def __init__(self, presence: float, frequency: float, n_prompt: int) -> None:
        self.presence, self.frequency, self.n_prompt = presence, frequency, n_prompt

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        answer = input_ids[0, self.n_prompt :]
        counts = torch.bincount(answer, minlength=scores.shape[-1])[: scores.shape[-1]].to(scores)
        return scores - self.frequency * counts - self.presence * (counts > 0)
