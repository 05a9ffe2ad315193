"""The judges of answers: a model behind an OpenAI-compatible endpoint, a local LLM, or a rule that works offline."""

import os
from urllib.parse import urlsplit

from ossicle.errors import ConfigError
from ossicle.evaluation.scoring.base import Judge
from ossicle.evaluation.scoring.judges.endpoint import EndpointJudge
from ossicle.evaluation.scoring.judges.local import load_local_judge
from ossicle.evaluation.scoring.judges.offline import OfflineJudge

__all__ = ["OFFLINE", "EndpointJudge", "OfflineJudge", "load_local_judge", "open_judge"]

OFFLINE = "offline"
"""The name of the judge that needs no model."""
KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable in which OpenAI's own clients look for a key."""


def open_judge(
    spec: str | None, *, model: str | None = None, key_variable: str = KEY_VARIABLE, device: str | None = None
) -> Judge:
    """Returns the judge that a spec names.

    Args:
        spec: "offline" or None for the rule that needs no model; the address of an OpenAI-compatible endpoint, with
            the model after a "#" ("https://api.openai.com/v1#gpt-4o-mini"); or an LLM, by hub id or local folder
        model: the endpoint's model, in place of the one after the "#"
        key_variable: the environment variable that holds the endpoint's key; if it is not set, no key is sent
        device: the device of a local LLM

    Raises:
        ConfigError: an endpoint without a model, or a model for a judge that is no endpoint
        CheckpointError: an LLM that cannot be loaded
    """
    if spec is not None and spec.lower().startswith(("http://", "https://")):
        return _build_endpoint(spec, model, key_variable)
    if model is not None:
        raise ConfigError(f"judge {spec!r} takes no model, but {model!r} was given; leave it out")
    if spec is None or spec == OFFLINE:
        return OfflineJudge()
    return load_local_judge(spec, device=device)


def _build_endpoint(spec: str, model: str | None, key_variable: str) -> EndpointJudge:
    url, _, url_model = spec.partition("#")
    try:
        host = urlsplit(url).hostname
    except ValueError:  # an address in brackets that is none
        host = None
    if not host:
        raise ConfigError(f"judge {spec!r} names no host; write https://host/v1#model")
    model = model or url_model
    if not model:
        raise ConfigError(f"judge {spec!r} names no model; add it after a #, as in https://host/v1#model")
    key = os.environ.get(key_variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{key_variable} has characters that no HTTP header can hold: copy the key again")
    return EndpointJudge(url=url.rstrip("/").removesuffix("/chat/completions"), model=model, key=key or None)
