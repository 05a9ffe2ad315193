"""What can be found out about a vLLM before anyone is answered: whether it reads what the ear was distilled with.

Two LLMs with the same tokenizer, template and width cannot be told apart from outside.
"""

import json
import logging
from collections.abc import Sequence

import torch

from ossicle.chat.template import Frame
from ossicle.errors import ConfigError
from ossicle.serving.errors import ApiError
from ossicle.serving.vllm.client import VllmClient
from ossicle.serving.vllm.prompt import VllmTemplate, build_embeds_part

LOG = logging.getLogger("ossicle.serving")
MODELS, TOKENIZE = "/v1/models", "/tokenize"


async def resolve_model(upstream: VllmClient, wanted: str | None) -> str:
    """The name of the LLM at vLLM: the first that it lists, unless another of them is wanted.

    Raises:
        ConfigError: nothing answers there, or it does not serve what is wanted
    """
    try:
        listed = await upstream.get(MODELS)
    except ApiError as refusal:
        raise ConfigError(f"--url is {upstream.url!r}, expected a vLLM that is up: {refusal}") from refusal
    cards = listed.get("data")
    cards = [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []
    names = [card["id"] for card in cards if isinstance(card.get("id"), str)]
    if not names:
        raise ConfigError(f"--url is {upstream.url!r}, which lists no models, expected a vLLM")
    if wanted is not None and wanted not in names:
        raise ConfigError(
            f"--remote-model is {wanted!r}, which {upstream.url} does not serve, expected one of {', '.join(names)}"
        )
    return wanted or names[0]


async def check_prompt_frame(upstream: VllmClient, model: str, template: VllmTemplate, d_llm: int) -> None:
    """Has vLLM lay out a user turn of a single row, and compares it with the one that the ear was distilled in.

    Raises:
        ConfigError: another tokenizer, template or width, or a vLLM that takes no embeddings
    """
    turn = {"role": "user", "content": [build_embeds_part(torch.zeros(1, d_llm))]}
    body = {"model": model, "messages": [turn], "chat_template_kwargs": template.pinned_kwargs}
    try:
        answer = await upstream.post_if_exists(TOKENIZE, json.dumps(body).encode())
    except ApiError as refusal:
        raise ConfigError(f"--url is {upstream.url!r}: {refusal}") from refusal
    if answer is None:
        LOG.warning("%s has no %s: whether it serves the ear's LLM is not checked", upstream.url, TOKENIZE)
        return
    tokens = answer.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise ConfigError(f"--url is {upstream.url!r}, whose {TOKENIZE} gives no tokens, expected a vLLM")
    n_steady = template.n_undated
    if n_steady < len(template.frame.prefix):
        LOG.warning("the LLM's chat template reads the clock: vLLM writes today's date, not the ear's")
    if has_frame(tokens, template.frame, n_steady):
        return
    n_more = len(template.placeholder_frame.prefix) - len(template.frame.prefix)
    if not has_frame(tokens, template.placeholder_frame, n_steady + n_more):
        raise ConfigError(
            f"{upstream.url} writes a user's turn as the tokens {_shown(tokens, template)}, but the ear was distilled"
            f" with {_shown(template.frame.prefix, template)} and {_shown(template.frame.suffix, template)} around the"
            " sound: serve the ear's own LLM, with its own tokenizer and chat template"
        )
    LOG.warning(
        "the LLM's chat template writes white space beside what is said, which vLLM makes a token of its own: it reads"
        " %s before a sound and %s after it, where the ear was distilled with %s and %s",
        *(_shown(ids, template) for ids in (*template.placeholder_frame, *template.frame)),
    )


def has_frame(tokens: Sequence[int], frame: Frame, n_steady: int) -> bool:
    """Whether tokens are a frame's with one more between, but for what a date may change in the prefix.

    Args:
        n_steady: ids at the prefix's end that no date changes
    """
    prefix, suffix = frame
    place = len(tokens) - len(suffix) - 1
    is_dated = n_steady < len(prefix)
    return (
        (place >= n_steady if is_dated else place == len(prefix))
        and tuple(tokens[place - n_steady : place]) == prefix[len(prefix) - n_steady :]
        and tuple(tokens[place + 1 :]) == suffix
    )


def _shown(ids: Sequence[int], template: VllmTemplate) -> str:
    """The last few of some tokens, to a person."""
    names = [template.tokenizer.convert_ids_to_tokens(i) or str(i) for i in ids[-8:]]
    return "".join(["…" if len(ids) > 8 else "", *map(str, names)])
