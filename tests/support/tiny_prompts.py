"""Prompts of plain texts for tiny LLMs, as embeddings with their ids."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ossicle.backbones.causal_lm import embed
from ossicle.chat.generation import Prompt

TEXTS = ("what is the capital of france?", "hello", "the cat sat on the mat. answer in spanish, please.")


def build_prompt(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Prompt:
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Prompt(embed(llm, ids), ids)


def build_prompts(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    return [build_prompt(llm, tokenizer, text) for text in TEXTS]
