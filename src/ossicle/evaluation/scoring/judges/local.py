"""A local LLM as the judge of answers, greedily and in batches; it knows no scales."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ossicle.backbones.causal_lm import embed
from ossicle.backbones.pretrained import load_llm, resolve_device
from ossicle.chat.generation import Prompt, generate_answers
from ossicle.chat.template import ChatTemplate
from ossicle.config import PromptSettings
from ossicle.errors import RequestError
from ossicle.evaluation.scoring.rule import Judgement

MAX_NEW_TOKENS = 512
"""Longest reply: a line is asked for, but some models think aloud before it."""


@dataclass(frozen=True, kw_only=True)
class LocalJudge:
    """An LLM in this process, with its own chat template."""

    name: str
    """What the report calls it: its hub id or folder."""
    llm: Any = field(repr=False)
    template: ChatTemplate = field(repr=False)
    batch_size: int = 8

    def judge(self, questions: Sequence[Judgement], /) -> list[str]:
        """What it says to each question, in their order; long ones are asked together with long ones.

        Raises:
            RequestError: a question longer than the LLM's context
        """
        ids = [self._ids(question) for question in questions]
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        replies: dict[int, str] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            prompts = [self._prompt(ids[place]) for place in batch]
            said = generate_answers(self.llm, self.template.tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS)
            replies |= zip(batch, said, strict=True)
        return [replies[place] for place in range(len(ids))]

    def _ids(self, question: Judgement) -> Sequence[int]:
        """The question as the template lays it out; what an answer has of control tokens is taken apart first."""
        try:
            return self.template.tokenize(_messages(question.system, question.prompt))
        except RequestError:
            apart = question.prompt.replace("<", "< ").replace("[", "[ ")
            return self.template.tokenize(_messages(question.system, apart))

    @torch.inference_mode()
    def _prompt(self, ids: Sequence[int]) -> Prompt:
        return Prompt(embed(self.llm, ids), torch.tensor(ids, device=self.llm.device))


def load_judge(name: str, *, device: str | None = None) -> LocalJudge:
    """A causal LM as a judge, by hub id or local folder.

    Raises:
        CheckpointError: nothing there, or no LLM with a chat template
        ConfigError: no such device
    """
    llm, tokenizer = load_llm(name, None, resolve_device(device))
    return LocalJudge(name=name, llm=llm, template=ChatTemplate(tokenizer, PromptSettings()))


def _messages(system: str, prompt: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
