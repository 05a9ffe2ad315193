"""From prompts made of embeddings to answers, through transformers' own generate; it knows nothing of sound."""

from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextIteratorStreamer

from earshot.errors import RequestError

MAX_NEW_TOKENS = 256
"""Longest answer, in tokens, unless the caller says otherwise."""


def pad_left(prompts: Sequence[Float[Tensor, "_ D"]]) -> tuple[Float[Tensor, "B L D"], Int[Tensor, "B L"]]:
    """Prompts of different lengths side by side, ending together, and the mask that tells prompt from padding."""
    longest = max(len(prompt) for prompt in prompts)
    embeds = torch.zeros(len(prompts), longest, prompts[0].shape[1], dtype=prompts[0].dtype, device=prompts[0].device)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=embeds.device)
    for row, prompt in enumerate(prompts):
        embeds[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return embeds, mask


def _options(llm: PreTrainedModel, given: dict[str, Any]) -> dict[str, Any]:
    """What generate is told: greedy unless sampling is asked for, end of sequence as the model's own config has it."""
    options = {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, **given}
    if "max_length" in given:
        del options["max_new_tokens"]
    if not options["do_sample"]:
        options = {"temperature": None, "top_p": None, "top_k": None, **options}
    end = llm.generation_config.eos_token_id
    if llm.generation_config.pad_token_id is None and end is not None:
        options.setdefault("pad_token_id", end[0] if isinstance(end, list) else end)
    return options


@torch.inference_mode()
def answer(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Float[Tensor, "_ D"]], **options: Any
) -> list[str]:
    """The LLM's answer to each prompt, greedy by default.

    Args:
        options: for transformers' `generate`, such as max_new_tokens, do_sample, temperature, stop_strings

    Raises:
        RequestError: an option that generate does not know
    """
    if not prompts:
        return []
    embeds, mask = pad_left(prompts)
    try:
        ids = llm.generate(
            inputs_embeds=embeds, attention_mask=mask, tokenizer=tokenizer, **_options(llm, options)
        )
    except (ValueError, TypeError) as error:
        raise RequestError(f"the LLM cannot generate with {options}: {error}") from error
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def stream(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Float[Tensor, "L D"], **options: Any
) -> Iterator[str]:
    """The same answer, piece by piece while it is made; joined, the pieces equal `answer`'s text.

    Raises:
        RequestError: an option that generate does not know
    """
    streamer = _TextPieces(tokenizer)
    failures: list[Exception] = []

    def run() -> None:
        try:
            answer(llm, tokenizer, [prompt], streamer=streamer, **options)
        except Exception as error:
            failures.append(error)
            streamer.end()

    thread = Thread(target=run, daemon=True)
    thread.start()
    yield from _without_outer_space(streamer)
    thread.join()
    if failures:
        raise failures[0]


def _without_outer_space(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces with the space before the first word and after the last left out."""
    held, has_begun = "", False
    for piece in pieces:
        held += piece if has_begun else piece.lstrip()
        has_begun = has_begun or bool(held)
        ready = held.rstrip()
        held = held[len(ready) :]
        if ready:
            yield ready


class _TextPieces(TextIteratorStreamer):
    """transformers' streamer, for prompts that are embeddings: what it receives first is no prompt to be skipped."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_prompt=False, skip_special_tokens=True)

    def put(self, value: Tensor) -> None:
        """Takes the next token; the empty prompt that comes first holds none."""
        if value.numel():
            super().put(value)
