"""Checks a vLLM before the first request: whether it tokenizes a user turn as in the ear's distillation.

Two LLMs with the same tokenizer, template and width cannot be told apart this way.
"""

import json
import logging
from collections.abc import Sequence

import torch

from ossicle.chat.prompt_segments import Frame
from ossicle.errors import ConfigError
from ossicle.serving.errors import ApiError
from ossicle.serving.vllm.client import UPSTREAM_DOWN, VllmClient
from ossicle.serving.vllm.prompt import VllmTemplate, build_embeds_part

LOG = logging.getLogger("ossicle.serving")
MODELS, TOKENIZE = "/v1/models", "/tokenize"
_MAX_SHOWN_TOKENS = 8


async def resolve_model(client: VllmClient, requested: str | None) -> str:
    """Returns the name of the LLM at vLLM: the requested one, or the first that vLLM lists.

    Raises:
        ConfigError: nothing answers, or vLLM does not serve the requested model
    """
    try:
        response = await client.get(MODELS)
    except ApiError as error:
        if error.code == UPSTREAM_DOWN:
            raise ConfigError(f"Cannot reach vLLM at {client.url}; is it running?") from error
        raise ConfigError(f"--url is {client.url!r}: {error}") from error
    cards = response.get("data")
    cards = [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []
    names = [card["id"] for card in cards if isinstance(card.get("id"), str)]
    if not names:
        raise ConfigError(f"--url is {client.url!r}, which lists no models, expected a vLLM")
    if requested is not None and requested not in names:
        raise ConfigError(
            f"--remote-model is {requested!r}, which {client.url} does not serve, expected one of {', '.join(names)}"
        )
    return requested or names[0]


async def check_prompt_frame(client: VllmClient, model: str, template: VllmTemplate, d_llm: int) -> None:
    """Has vLLM tokenize a user turn with one embedding, and compares the tokens around it with the ear's own frame.

    Raises:
        ConfigError: another tokenizer, template or width, or a vLLM that accepts no embeddings
    """
    tokens = await _tokenize_one_embedding(client, model, template, d_llm)
    if tokens is None:
        LOG.warning("%s has no %s: it is not checked whether it serves the ear's LLM", client.url, TOKENIZE)
        return
    n_undated = template.n_undated
    if n_undated < len(template.frame.prefix):
        LOG.warning("the LLM's chat template reads the clock: vLLM writes today's date, not the ear's")
    if has_frame(tokens, template.frame, n_undated):
        return
    n_added = len(template.placeholder_frame.prefix) - len(template.frame.prefix)
    if not has_frame(tokens, template.placeholder_frame, n_undated + n_added):
        raise ConfigError(
            f"{client.url} tokenizes a user turn as {_format_tokens(tokens, template)}, but the ear was distilled with"
            f" {_format_tokens(template.frame.prefix, template)} before the sound and"
            f" {_format_tokens(template.frame.suffix, template)} after it: serve the ear's own LLM, with its own"
            " tokenizer and chat template"
        )
    LOG.warning(
        "the LLM's chat template writes white space next to the user's content, which vLLM makes a token of its own:"
        " the LLM reads %s before a sound and %s after it, where the ear was distilled with %s and %s",
        *(_format_tokens(ids, template) for ids in (*template.placeholder_frame, *template.frame)),
    )


async def _tokenize_one_embedding(
    client: VllmClient, model: str, template: VllmTemplate, d_llm: int
) -> list[int] | None:
    """Returns the tokens of a user turn with one embedding; None where vLLM's /tokenize cannot be reached."""
    turn = {"role": "user", "content": [build_embeds_part(torch.zeros(1, d_llm))]}
    body = {"model": model, "messages": [turn], "chat_template_kwargs": template.pinned_kwargs}
    try:
        response = await client.post_if_exists(TOKENIZE, json.dumps(body).encode())
    except ApiError as error:
        raise ConfigError(f"--url is {client.url!r}: {error}") from error
    if response is None:
        return None
    tokens = response.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise ConfigError(f"--url is {client.url!r}, whose {TOKENIZE} returns no tokens, expected a vLLM")
    return tokens


def has_frame(tokens: Sequence[int], frame: Frame, n_undated: int) -> bool:
    """Whether tokens are a frame's prefix, one token and its suffix; a date may change the head of the prefix.

    Args:
        n_undated: ids at the prefix's end that no date changes
    """
    prefix, suffix = frame
    position = len(tokens) - len(suffix) - 1
    is_dated = n_undated < len(prefix)
    return (
        (position >= n_undated if is_dated else position == len(prefix))
        and tuple(tokens[position - n_undated : position]) == prefix[len(prefix) - n_undated :]
        and tuple(tokens[position + 1 :]) == suffix
    )


def _format_tokens(ids: Sequence[int], template: VllmTemplate) -> str:
    """Returns the last few tokens as text."""
    names = [template.tokenizer.convert_ids_to_tokens(i) or str(i) for i in ids[-_MAX_SHOWN_TOKENS:]]
    return "".join(["…" if len(ids) > _MAX_SHOWN_TOKENS else "", *map(str, names)])
