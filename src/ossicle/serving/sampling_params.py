"""The fields of a chat request that a local engine understands, checked; none is dropped without a word."""

import reprlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ossicle.chat.generation import MAX_NEW_TOKENS
from ossicle.chat.sampling import SamplingSettings
from ossicle.serving.errors import ApiError

MAX_ANSWERS = 16
"""Answers to one request (`n`)."""
MAX_STOPS, MAX_STOP_LETTERS = 16, 256
_READ_ELSEWHERE = {"model", "messages", "stream", "stream_options"}
_FOR_THE_RECORD = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
"""What a client may say of itself, which changes no answer."""
_NEUTRAL: Mapping[str, Callable[[Any], bool]] = {
    "frequency_penalty": lambda value: value == 0,
    "presence_penalty": lambda value: value == 0,
    "logit_bias": lambda value: value == {},
    "logprobs": lambda value: value is False,
    "top_logprobs": lambda value: value == 0,
    "response_format": lambda value: value == {"type": "text"},
    "modalities": lambda value: value == ["text"],
    "tools": lambda value: value == [],
    "tool_choice": lambda value: value in ("none", "auto"),
    "parallel_tool_calls": lambda value: isinstance(value, bool),
    "functions": lambda value: value == [],
    "function_call": lambda value: value in ("none", "auto"),
}
"""Fields of which a local engine has no other value than the one that changes nothing."""
_KNOWN = {"temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n"}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a request wants to be answered."""

    sampling: SamplingSettings
    max_tokens: int
    stop: tuple[str, ...]
    n: int


def read_sampling_params(body: Mapping[str, Any]) -> SamplingParams:
    """The options of a request; greedy, unless a temperature or top_p asks for sampling.

    Raises:
        ApiError: a field that is not known, or a value that cannot be used
    """
    given = {name: value for name, value in body.items() if value is not None}
    _check_names(given)
    limits = [_whole(given, name, 1, 1 << 20, MAX_NEW_TOKENS) for name in _limits(given)]
    return SamplingParams(
        sampling=_sampling(given),
        max_tokens=min(limits, default=MAX_NEW_TOKENS),
        stop=_stop(given.get("stop", [])),
        n=_whole(given, "n", 1, MAX_ANSWERS, 1),
    )


def _limits(given: Mapping[str, Any]) -> list[str]:
    return [name for name in ("max_completion_tokens", "max_tokens") if name in given]


def _check_names(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _KNOWN | _READ_ELSEWHERE | _FOR_THE_RECORD:
            continue
        if name not in _NEUTRAL:
            raise ApiError(
                f"{reprlib.repr(name)} is no field that is known here; expected {', '.join(sorted(_KNOWN))}: leave it"
                " out, or serve the ear with --engine vllm, which takes all that vLLM takes",
                param=name[:64],
                code="unknown_parameter",
            )
        if not _NEUTRAL[name](value):
            raise ApiError(
                f"{name} is {reprlib.repr(value)}, which this engine does not have: leave it out, or serve the ear"
                " with --engine vllm",
                param=name,
                code="unsupported_parameter",
            )


def _sampling(given: Mapping[str, Any]) -> SamplingSettings:
    top_p = _number(given, "top_p", 0.0, 1.0)
    if top_p == 0:
        raise ApiError("top_p is 0, expected more than 0 and at most 1", param="top_p")
    temperature = _number(given, "temperature", 0.0, 2.0)
    seed = _whole(given, "seed", -(1 << 63), (1 << 63) - 1, secrets.randbits(62))
    if temperature is None:
        temperature = 0.0 if top_p is None else 1.0
    return SamplingSettings(temperature=temperature, top_p=top_p, seed=seed)


def _number(given: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        raise ApiError(
            f"{name} is {reprlib.repr(value)}, expected a number from {least:g} to {most:g}", param=name
        )
    return float(value)


def _whole(given: Mapping[str, Any], name: str, least: int, most: int, default: int) -> int:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ApiError(
            f"{name} is {reprlib.repr(value)}, expected a whole number from {least} to {most}", param=name
        )
    return value


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    is_fine = (
        isinstance(stops, list)
        and len(stops) <= MAX_STOPS
        and all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_LETTERS for stop in stops)
    )
    if not is_fine:
        raise ApiError(
            f"stop is {reprlib.repr(value)}, expected a string or a list of at most {MAX_STOPS} of them, of 1 to"
            f" {MAX_STOP_LETTERS} letters each",
            param="stop",
        )
    return tuple(stops)
