"""A local LLM as the judge of answers, asked greedily and in batches; this file knows no scales."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ossicle.backbones.causal_lm import embed
from ossicle.backbones.fingerprints import fingerprint_model
from ossicle.backbones.pretrained import load_llm, resolve_device
from ossicle.chat.generation import Prompt, generate_answers
from ossicle.chat.messages import Conversation, parse_conversation
from ossicle.chat.template import ChatTemplate
from ossicle.config import PromptSettings
from ossicle.errors import RequestError
from ossicle.evaluation.scoring.base import JudgeRequest

MAX_NEW_TOKENS = 512
"""Longest reply, in tokens: the judge is asked for one line, but some models think aloud before it."""


@dataclass(frozen=True, kw_only=True)
class LocalJudge:
    """A judge that is an LLM in this process, asked through its own chat template."""

    name: str
    """The judge's name in the report: its hub id or folder, and the fingerprint of its weights."""
    llm: Any = field(repr=False)
    template: ChatTemplate = field(repr=False)
    batch_size: int = 8

    def judge(self, requests: Sequence[JudgeRequest], /) -> list[str]:
        """Returns the reply to each request, in order. Requests of similar length share a batch.

        Raises:
            RequestError: a request longer than the LLM's context
        """
        ids = [self._encode(request) for request in requests]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        replies: dict[int, str] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            prompts = [self._build_prompt(ids[index]) for index in batch]
            batch_replies = generate_answers(
                self.llm, self.template.tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS
            )
            replies |= zip(batch, batch_replies, strict=True)
        return [replies[index] for index in range(len(ids))]

    def _encode(self, request: JudgeRequest) -> Sequence[int]:
        """Returns the token ids of a request in the chat template; control tokens in an answer are split up first."""
        try:
            return self.template.tokenize(_build_conversation(request.system, request.prompt))
        except RequestError:
            without_control_tokens = request.prompt.replace("<", "< ").replace("[", "[ ")
            return self.template.tokenize(_build_conversation(request.system, without_control_tokens))

    @torch.inference_mode()
    def _build_prompt(self, ids: Sequence[int]) -> Prompt:
        return Prompt(embed(self.llm, ids), torch.tensor(ids, device=self.llm.device))


def load_local_judge(name: str, *, device: str | None = None) -> LocalJudge:
    """Returns a causal LM as a judge, by hub id or local folder.

    Raises:
        CheckpointError: the LLM cannot be found, or has no chat template
        ConfigError: no such device
    """
    llm, tokenizer = load_llm(name, None, resolve_device(device))
    name = f"{name} ({fingerprint_model(llm)})"
    return LocalJudge(name=name, llm=llm, template=ChatTemplate(tokenizer, PromptSettings()))


def _build_conversation(system: str, prompt: str) -> Conversation:
    return parse_conversation([{"role": "system", "content": system}, {"role": "user", "content": prompt}])
