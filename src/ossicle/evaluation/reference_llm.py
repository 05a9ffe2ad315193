"""An LLM as transformers alone loads and asks it: its own tokenizer, chat template, embeddings and generate.

None of ossicle's ways from a prompt to an answer is used here, so that these can be compared with it.
"""

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from ossicle.backbones.model_files import resolve_model_path, silence_transformers
from ossicle.backbones.pretrained import get_default_device, get_frozen_dtype
from ossicle.config import BaseSettings, PromptSettings
from ossicle.errors import CheckpointError

Ids = tuple[int, ...]
_CLOCK = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")
"""Where a chat template asks what day it is; it cannot be given another clock."""


def load_reference_llm(base: BaseSettings) -> tuple[Any, Any]:
    """The LLM and its tokenizer, from where an ear on this computer has them."""
    options: dict[str, Any] = {"local_files_only": True}
    if not Path(resolve_model_path(base.llm)).is_dir():
        options["revision"] = base.llm_revision or "main"
    device = get_default_device()
    with silence_transformers():
        tokenizer = AutoTokenizer.from_pretrained(resolve_model_path(base.llm), **options)
        llm = AutoModelForCausalLM.from_pretrained(
            resolve_model_path(base.llm), dtype=get_frozen_dtype(device), use_safetensors=True, **options
        )
    return llm.eval().to(device), tokenizer


def encode_prompt(tokenizer: Any, prompt: str, settings: PromptSettings) -> Ids:
    """A prompt through the tokenizer's own chat template, on the day and under the system prompt of the settings.

    A template without a system role has the system prompt at the head of the user's turn; one that reads no plain text
    is given a list of parts.

    Raises:
        CheckpointError: none of these shows the prompt
    """
    day = datetime.fromisoformat(settings.date)
    template = _CLOCK.sub(
        lambda call: json.dumps(day.strftime(call[1] or call[2])), tokenizer.get_chat_template()
    )
    for messages in _ways_to_write(prompt, settings.system):
        try:
            text = tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                date_string=day.strftime("%d %b %Y"),
                add_generation_prompt=True,
                tokenize=False,
            )
        except (TemplateError, TypeError, ValueError):
            continue
        if prompt.strip() in text and (settings.system or "").strip() in text:
            return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    raise CheckpointError(
        f"the chat template of {tokenizer.name_or_path!r} does not show {prompt!r} as a user's turn: expected one that"
        " does"
    )


def _ways_to_write(prompt: str, system: str | None) -> Iterator[list[dict[str, Any]]]:
    told = (system or "").strip()
    headed = f"{told}\n\n{prompt}" if told else prompt
    for form in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
        if system is not None:
            yield [
                {"role": "system", "content": form(system)},
                {"role": "user", "content": form(prompt)},
            ]
        yield [{"role": "user", "content": form(headed)}]


@torch.inference_mode()
def generate_answer(llm: Any, tokenizer: Any, ids: Ids, max_new_tokens: int) -> Ids:
    """The LLM's greedy answer, up to its end, so many tokens, or where its context ends."""
    context = getattr(llm.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if context is not None:
        max_new_tokens = min(max_new_tokens, context - len(ids))
    given = torch.tensor([ids], device=llm.device)
    own = llm.generation_config.eos_token_id
    end = tokenizer.eos_token_id if own is None else own
    with silence_transformers():  # of advice about settings for sampling that many a model carries
        made = llm.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=end[0] if isinstance(end, list) else end,
            eos_token_id=end,
        )
    return tuple(made[0, len(ids) :].tolist())
