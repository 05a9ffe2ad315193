"""An LLM as transformers alone loads and runs it, with its own tokenizer, chat template, embeddings and `generate`.

None of ossicle's code from a prompt to an answer is used here, so that ossicle can be compared with it.
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

from ossicle.backbones.causal_lm import get_eos_ids
from ossicle.backbones.chat_template_file import find_chat_template
from ossicle.backbones.gguf_file import is_gguf, open_gguf
from ossicle.backbones.model_files import LLM, find_model, resolve_model_path, silence_transformers
from ossicle.backbones.pretrained import get_default_device, get_frozen_dtype
from ossicle.config import BaseSettings, PromptSettings, parse_template_variables
from ossicle.errors import CheckpointError

TokenIds = tuple[int, ...]
_CLOCK_CALL = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")
"""The call by which a chat template reads today's date; a template cannot be given another clock."""


def load_reference_llm(base: BaseSettings) -> tuple[Any, Any]:
    """Returns the LLM and its tokenizer, from the same files as an ear on this computer."""
    path, device = Path(resolve_model_path(base.llm)), get_default_device()
    options: dict[str, Any] = {"dtype": get_frozen_dtype(device), "use_safetensors": True}
    if is_gguf(path):
        file = open_gguf(base.llm, path)
        with silence_transformers(), file.open_with_transformers() as (folder, named):
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, **named)
            options |= file.build_model_options()
            llm = AutoModelForCausalLM.from_pretrained(folder, **named, **options)
        file.drop_added_tokens(tokenizer)
        file.finish(llm, tokenizer)
        return llm.eval().to(device), tokenizer
    located: dict[str, Any] = {"local_files_only": True}
    if not path.is_dir():
        located["revision"] = base.llm_revision or "main"
    with silence_transformers():
        own_tokenizer: Any = AutoTokenizer.from_pretrained(str(path), **located)
        llm = AutoModelForCausalLM.from_pretrained(str(path), **located, **options)
    files, _ = find_model(LLM, base.llm, base.llm_revision)
    own_tokenizer.chat_template = find_chat_template(files, own_tokenizer)
    return llm.eval().to(device), own_tokenizer


def encode_prompt(tokenizer: Any, prompt: str, settings: PromptSettings) -> TokenIds:
    """Returns a prompt's tokens in the tokenizer's own chat template, with the settings' date and system prompt.

    If the template has no system role, the system prompt begins the user's turn. If it takes no plain text, the content
    is a list of parts.

    Raises:
        CheckpointError: in none of these forms does the template contain the prompt
    """
    date = datetime.fromisoformat(settings.date)
    template = _CLOCK_CALL.sub(
        lambda call: json.dumps(date.strftime(call[1] or call[2])), tokenizer.get_chat_template()
    )
    for messages in _iterate_message_forms(prompt, settings.system):
        try:
            text = tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                **parse_template_variables(settings.template_variables or ()),
                date_string=date.strftime("%d %b %Y"),
                add_generation_prompt=True,
                tokenize=False,
            )
        except (TemplateError, TypeError, ValueError):
            continue
        if prompt.strip() in text and (settings.system or "").strip() in text:
            return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    raise CheckpointError(
        f"the chat template of {tokenizer.name_or_path!r} leaves out {prompt!r} as a user's turn; expected a"
        " template that contains it"
    )


def _iterate_message_forms(prompt: str, system: str | None) -> Iterator[list[dict[str, Any]]]:
    system_text = (system or "").strip()
    prompt_with_system = f"{system_text}\n\n{prompt}" if system_text else prompt
    for wrap in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
        if system is not None:
            yield [
                {"role": "system", "content": wrap(system)},
                {"role": "user", "content": wrap(prompt)},
            ]
        yield [{"role": "user", "content": wrap(prompt_with_system)}]


@torch.inference_mode()
def generate_answer(llm: Any, tokenizer: Any, ids: TokenIds, max_new_tokens: int) -> TokenIds:
    """Returns the LLM's greedy answer, up to its end token, `max_new_tokens`, or the end of the context."""
    context = getattr(llm.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if context is not None:
        max_new_tokens = min(max_new_tokens, context - len(ids))
    input_ids = torch.tensor([ids], device=llm.device)
    eos_ids = get_eos_ids(llm, tokenizer)
    with silence_transformers():  # silences advice about sampling settings that many models have
        output_ids = llm.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=eos_ids[0] if eos_ids else None,
            eos_token_id=eos_ids or None,
        )
    return tuple(output_ids[0, len(ids) :].tolist())
