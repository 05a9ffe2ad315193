"""Measures ways to answer a question: time to the first token, pace from there, and what passes through the models."""

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from torch import Tensor, nn

from benchmarks.meters import FlopCounter, build_clock, measure_peak_bytes, measure_seconds
from ossicle.ear import Ear

_N_AFTER_FIRST = 16
"""Tokens by which the pace after the first one is measured."""
Answer = Callable[[int], Any]
"""Answers the question with at most as many tokens as given."""


@dataclass
class AnswerTrace:
    """Counts of the models' inputs and outputs while a question is answered."""

    n_encoder_positions: int = 0
    n_llm_positions: int = 0
    """Positions of the LLM until its first token."""
    n_whisper_tokens: int = 0
    """Forward passes of Whisper's decoder, one for each token that it writes."""
    llm_started_s: list[float] = field(default_factory=list)
    """When the LLM was called for each token, by the clock."""


@contextlib.contextmanager
def trace_answer(ear: Ear) -> Generator[AnswerTrace]:
    """Traces the ear's models within the block."""
    trace, read_clock = AnswerTrace(), build_clock(ear.device)
    whisper = ear.whisper.model.model

    def before_llm(_module: nn.Module, _args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        embeds, ids = kwargs.get("inputs_embeds"), kwargs.get("input_ids")
        inputs = ids if embeds is None else embeds
        assert inputs is not None, "the LLM is called with either"
        trace.n_llm_positions += 0 if trace.llm_started_s else inputs.shape[1]
        trace.llm_started_s.append(read_clock())

    def after_encoder(_module: nn.Module, _args: tuple[Tensor, ...], states: Tensor) -> None:
        trace.n_encoder_positions += states.shape[1]

    def after_decoder(*_: Any) -> None:
        trace.n_whisper_tokens += 1

    with contextlib.ExitStack() as hooks:
        for handle in (
            ear.llm.register_forward_pre_hook(before_llm, with_kwargs=True),
            whisper.encoder.layer_norm.register_forward_hook(after_encoder),
            whisper.decoder.register_forward_hook(after_decoder),
        ):
            hooks.callback(handle.remove)
        yield trace


def measure_answers(ways: Mapping[str, Answer], ear: Ear, n_rounds: int) -> dict[str, dict[str, Any]]:
    """Measures all ways, which take turns; medians count.

    Args:
        ear: one with the models that all ways share
    """
    rows = {name: _count_answer(answer, ear) for name, answer in ways.items()}
    first_s: dict[str, list[float]] = {name: [] for name in ways}
    tokens_per_s: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(n_rounds):
        order = list(ways.items())
        for name, answer in order if number % 2 else order[::-1]:
            first_s[name].append(measure_seconds(lambda answer=answer: answer(1), ear.device))
            with trace_answer(ear) as trace:
                answer(1 + _N_AFTER_FIRST)
            started_s = trace.llm_started_s
            if len(started_s) > 2:
                tokens_per_s[name].append((len(started_s) - 2) / (started_s[-1] - started_s[1]))
    for name, row in rows.items():
        row["first_token_ms"] = round(1000 * median(first_s[name]), 2)
        row["tokens_per_s"] = round(median(tokens_per_s[name]), 1) if tokens_per_s[name] else None
    return rows


def _count_answer(answer: Answer, ear: Ear) -> dict[str, Any]:
    """Counts what one way needs until its first token."""
    with trace_answer(ear) as trace:
        answer(1)
    with FlopCounter() as counter:
        answer(1)
    return {
        "encoder_frames": trace.n_encoder_positions,
        "llm_positions": trace.n_llm_positions,
        "whisper_tokens": trace.n_whisper_tokens,
        "gflop": round(counter.total / 1e9, 3),
        "peak_bytes": measure_peak_bytes(lambda: answer(1), ear.device),
    }
