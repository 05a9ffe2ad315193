"""The sampling parameters of a chat request, as the local engine supports them; no field is silently ignored."""

import reprlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ossicle.chat.sampling import SamplingSettings
from ossicle.serving.errors import ApiError
from ossicle.serving.tool_params import TOOL_FIELDS

MAX_OUTPUT_TOKENS = 4_096
"""Tokens of an answer whose request sets no limit, as far as the LLM's context has room for them."""
MAX_CHOICES = 16
"""Completions of one request (`n`)."""
MAX_STOP_STRINGS, MAX_STOP_CHARACTERS = 16, 256
MAX_BIASED_TOKENS = 1_024
MAX_LIKELIEST = 20
"""Likeliest tokens in the place of each (`top_logprobs`)."""
_SUPPORTED = {
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n", "top_k", "min_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs",
}  # fmt: skip
_READ_ELSEWHERE = {
    "model",
    "messages",
    "stream",
    "stream_options",
    "chat_template_kwargs",
    "reasoning_effort",
    "response_format",
    *TOOL_FIELDS,
}
_IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "prediction",
}  # fmt: skip
"""What changes no answer: information about the client, and what may only make OpenAI's servers faster."""
_IS_NEUTRAL: Mapping[str, Callable[[Any], bool]] = {
    "modalities": lambda value: value == ["text"],
    "functions": lambda value: value == [],
    "function_call": lambda value: value in ("none", "auto"),
    "verbosity": lambda value: value == "medium",
    **dict.fromkeys(("audio", "moderation", "web_search_options"), lambda value: False),
}
"""Unsupported fields, which are accepted only with a value that changes nothing."""
_SWITCHES = {"tools": "tool_choice", "functions": "function_call"}
"""Unsupported fields that another one switches off by "none"."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the completions of a request are sampled."""

    sampling: SamplingSettings
    max_tokens: int
    stop: tuple[str, ...]
    n: int
    """Number of completions."""
    n_likeliest: int | None = None
    """Likeliest tokens that are told in the place of each; None where no probabilities are asked for."""


def read_sampling_params(body: Mapping[str, Any]) -> SamplingParams:
    """Returns the sampling parameters of a request: greedy, unless temperature or top_p asks for sampling.

    Raises:
        ApiError: an unknown field, or a value that is not supported
    """
    fields = {name: value for name, value in body.items() if value is not None}
    _check_names(fields)
    limits = [
        _read_int(fields, name, 1, 1 << 20, MAX_OUTPUT_TOKENS)
        for name in ("max_completion_tokens", "max_tokens")
        if name in fields
    ]
    return SamplingParams(
        sampling=_read_sampling(fields),
        max_tokens=min(limits, default=MAX_OUTPUT_TOKENS),
        stop=_read_stop(fields.get("stop", [])),
        n=_read_int(fields, "n", 1, MAX_CHOICES, 1),
        n_likeliest=_read_n_likeliest(fields),
    )


def _check_names(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in _SUPPORTED | _READ_ELSEWHERE | _IGNORED:
            continue
        if name not in _IS_NEUTRAL:
            raise ApiError(
                f"Unknown parameter {reprlib.repr(name)}; supported: {', '.join(sorted(_SUPPORTED | _READ_ELSEWHERE))}"
                " (with --engine vllm: all of vLLM's)",
                param=name[:64],
                code="unknown_parameter",
            )
        is_off = fields.get(_SWITCHES.get(name, "")) == "none"
        if not (is_off or _IS_NEUTRAL[name](value)):
            raise ApiError(
                f"Parameter '{name}' is not supported with this value by the local engine; leave it out, or start the"
                " server with --engine vllm",
                param=name,
                code="unsupported_parameter",
            )


def _read_sampling(fields: Mapping[str, Any]) -> SamplingSettings:
    top_p = _read_float(fields, "top_p", 0.0, 1.0)
    if top_p == 0:
        raise ApiError("top_p is 0, expected more than 0 and at most 1", param="top_p")
    temperature = _read_float(fields, "temperature", 0.0, 2.0)
    top_k = max(_read_int(fields, "top_k", -1, 1 << 20, 0), 0) if "top_k" in fields else None
    min_p = _read_float(fields, "min_p", 0.0, 1.0)
    seed = _read_int(fields, "seed", -(1 << 63), (1 << 63) - 1, secrets.randbits(62))
    if temperature is None:
        temperature = 0.0 if top_p is None and not (top_k or min_p) else 1.0
    return SamplingSettings(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p or 0.0,
        repetition_penalty=_read_float(fields, "repetition_penalty", 0.01, 10.0),
        presence_penalty=_read_float(fields, "presence_penalty", -2.0, 2.0) or 0.0,
        frequency_penalty=_read_float(fields, "frequency_penalty", -2.0, 2.0) or 0.0,
        logit_bias=_read_logit_bias(fields.get("logit_bias", {})),
        seed=seed,
    )


def _read_n_likeliest(fields: Mapping[str, Any]) -> int | None:
    is_asked = fields.get("logprobs", False)
    if not isinstance(is_asked, bool):
        raise ApiError(f"logprobs is {reprlib.repr(is_asked)}, expected true or false", param="logprobs")
    n_likeliest = _read_int(fields, "top_logprobs", 0, MAX_LIKELIEST, 0)
    if n_likeliest and not is_asked:
        raise ApiError(f"top_logprobs is {n_likeliest}, which needs logprobs: true", param="top_logprobs")
    return n_likeliest if is_asked else None


def _read_logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    is_valid = (
        isinstance(value, dict)
        and len(value) <= MAX_BIASED_TOKENS
        and all(token.isascii() and token.isdecimal() and len(token) < 10 for token in value)
        and all(isinstance(bias, int | float) and not isinstance(bias, bool) for bias in value.values())
        and all(-100 <= bias <= 100 for bias in value.values())
    )
    if not is_valid:
        raise ApiError(
            f"logit_bias is malformed, expected at most {MAX_BIASED_TOKENS} ids of tokens, each with a number from -100"
            " to 100",
            param="logit_bias",
        )
    return tuple((int(token), float(bias)) for token, bias in value.items())


def _read_float(fields: Mapping[str, Any], name: str, minimum: float, maximum: float) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not minimum <= value <= maximum:
        raise ApiError(
            f"{name} is {reprlib.repr(value)}, expected a number from {minimum:g} to {maximum:g}", param=name
        )
    return float(value)


def _read_int(fields: Mapping[str, Any], name: str, minimum: int, maximum: int, default: int) -> int:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise ApiError(
            f"{name} is {reprlib.repr(value)}, expected a whole number from {minimum} to {maximum}",
            param=name,
        )
    return value


def _read_stop(value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    is_valid = (
        isinstance(strings, list)
        and len(strings) <= MAX_STOP_STRINGS
        and all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in strings)
    )
    if not is_valid:
        raise ApiError(
            f"stop is {reprlib.repr(value)}, expected a string or a list of at most {MAX_STOP_STRINGS} strings, each of"
            f" 1 to {MAX_STOP_CHARACTERS} characters",
            param="stop",
        )
    return tuple(strings)
