"""Who judges answers: a model behind an OpenAI-compatible endpoint, a local LLM, or a rule that works offline."""

import os
from urllib.parse import urlsplit

from ossicle.errors import ConfigError
from ossicle.evaluation.scoring.judges.endpoint import EndpointJudge
from ossicle.evaluation.scoring.judges.local import load_judge
from ossicle.evaluation.scoring.judges.offline import OfflineRule
from ossicle.evaluation.scoring.rule import Judge

__all__ = ["OFFLINE", "EndpointJudge", "OfflineRule", "load_judge", "open_judge"]

OFFLINE = "offline"
"""How the rule that needs no model is asked for."""
KEY_VARIABLE = "OPENAI_API_KEY"
"""Where OpenAI's own clients look for a key."""


def open_judge(
    spec: str | None, *, model: str | None = None, key_variable: str = KEY_VARIABLE, device: str | None = None
) -> Judge:
    """The judge that is named.

    Args:
        spec: "offline" or None for the rule that needs no model; the address of an OpenAI-compatible endpoint, its
            model behind a "#" ("https://api.openai.com/v1#gpt-4o-mini"); or an LLM, by hub id or local folder
        model: the endpoint's model, in place of what is behind the "#"
        key_variable: the environment variable that holds the endpoint's key; without one, none is sent
        device: where a local LLM is loaded

    Raises:
        ConfigError: an endpoint without a model, or a model for what is no endpoint
        CheckpointError: an LLM that cannot be loaded
    """
    if spec is not None and spec.lower().startswith(("http://", "https://")):
        return _endpoint(spec, model, key_variable)
    if model is not None:
        raise ConfigError(f"judge {spec!r} takes no model, but {model!r} is given; leave it out")
    if spec is None or spec == OFFLINE:
        return OfflineRule()
    return load_judge(spec, device=device)


def _endpoint(spec: str, model: str | None, key_variable: str) -> EndpointJudge:
    url, _, behind = spec.partition("#")
    if not urlsplit(url).hostname:
        raise ConfigError(f"judge {spec!r} names no host; write https://host/v1#model")
    named = model or behind
    if not named:
        raise ConfigError(f"judge {spec!r} names no model; add it behind a #, as in https://host/v1#model")
    return EndpointJudge(
        url=url.rstrip("/").removesuffix("/chat/completions"),
        model=named,
        key=os.environ.get(key_variable) or None,
    )
