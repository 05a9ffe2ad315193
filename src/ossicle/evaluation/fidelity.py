"""Fidelity: how close the LLM's response to a sound is to its response to the same turn as text.

It needs no labels and no correct answers, because the response to the text is the reference. This file compares
pairs of conversations; it knows neither suites nor files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ossicle.chat.choice_scoring import ContinuationScores
from ossicle.errors import DataError
from ossicle.evaluation.statistics import bootstrap_ci95
from ossicle.losses import forward_kl

N_COMPARED_TOKENS = 32
"""Number of tokens, from the start of the LLM's own answer, at which both are compared."""

Messages = list[dict[str, Any]]


@runtime_checkable
class ContinuationScorer(Protocol):
    """The part of an ear that this measurement needs."""

    def generate_ids_batch(self, conversations: list[Messages], /, **options: Any) -> list[list[int]]:
        """Returns the tokens of the LLM's greedy answers, including the end token."""
        ...

    def score_continuations(
        self, conversations: list[Messages], answers: list[list[int]], /
    ) -> list[ContinuationScores]:
        """Returns the LLM's states and greedy tokens for each conversation, along a given answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How close one turn that was heard is to the same turn that was read."""

    kl_nats: float
    """KL(read || heard) of the answer's first token, in nats."""
    cosine: float
    """Cosine similarity of the final hidden states that predict it."""
    l2: float
    """L2 distance of the same states: `ossicle.losses.hidden_distance` is its mean over a batch."""
    agreements: tuple[bool, ...]
    """Whether the most likely token is the same, at each of the first `N_COMPARED_TOKENS` tokens of the LLM's answer to
    the text. Both are given the answer's tokens before it, so one difference causes no others. The end token counts."""

    @property
    def is_first_same(self) -> bool:
        """Whether the most likely first token of the answer is the same."""
        return self.agreements[0]

    @property
    def agreement_ratio(self) -> float:
        """Ratio of tokens at which the most likely token is the same."""
        return sum(self.agreements) / len(self.agreements)

    @property
    def is_same_throughout(self) -> bool:
        """Whether the most likely token is the same at every token."""
        return all(self.agreements)

    def to_json(self) -> dict[str, Any]:
        """Returns the values as `report.json` stores them."""
        return asdict(self) | {"agreements": [*self.agreements]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Fidelity":
        """Returns the fidelity that `to_json` stored."""
        numbers = {name: float(stored[name]) for name in ("kl_nats", "cosine", "l2")}
        return cls(**numbers, agreements=tuple(map(bool, stored["agreements"])))


@dataclass(frozen=True, kw_only=True)
class MeanEstimate:
    """Mean and median of a number over several items."""

    n: int
    mean: float
    """The ratio of true values, if the values are booleans."""
    median: float
    ci95: tuple[float, float] | None
    """Interval of the mean; None if it is unbounded: all values are equal, and the quantity has no maximum."""


@dataclass(frozen=True, kw_only=True)
class FidelitySummary:
    """How close hearing is to reading, over items with equal weight."""

    n: int
    kl_nats: MeanEstimate
    cosine: MeanEstimate
    l2: MeanEstimate
    first_same: MeanEstimate
    """Ratio of items whose most likely first token is the same."""
    agreement: MeanEstimate
    """Each item's `agreement_ratio`, along the LLM's own answer to the text."""
    same_along: MeanEstimate
    """Ratio of items whose most likely token is the same at every token."""
    by_position: tuple[MeanEstimate, ...]
    """The ratio at each position of the answer, over the items whose answer is long enough."""
    same_answers: MeanEstimate | None
    """Ratio of items whose whole answers are equal as texts; None if no answers were given."""

    def to_json(self) -> dict[str, Any]:
        """Returns the values as `report.json` stores them."""
        return asdict(self)


def compute_fidelity(read: ContinuationScores, heard: ContinuationScores) -> Fidelity:
    """Compares the scores of a turn that was read and of the same turn that was heard, in float64."""
    states = read.states[0].double(), heard.states[0].double()
    if not all(state.isfinite().all() for state in states):
        raise DataError("the LLM's states are not finite in this dtype; use --dtype bfloat16 or float32")
    kl = forward_kl(heard.first_logits.double()[None], read.first_logits.double()[None])
    return Fidelity(
        kl_nats=max(0.0, float(kl)),
        cosine=max(-1.0, min(1.0, float(functional.cosine_similarity(*states, dim=0)))),
        l2=_compute_l2(*states),
        agreements=tuple((read.greedy_ids == heard.greedy_ids).tolist()),
    )


def _compute_l2(one: Float[Tensor, " D"], other: Float[Tensor, " D"]) -> float:
    return float((one - other).norm())


def compute_fidelity_batch(
    ear: ContinuationScorer, read: Sequence[Messages], heard: Mapping[str, Sequence[Messages | None]]
) -> list[dict[str, Fidelity | None]]:
    """Returns, for each turn of a batch, the fidelity of each system that hears it.

    The reference is computed once: the LLM's greedy answer to the text under its own settings, up to
    `N_COMPARED_TOKENS` tokens, and its most likely tokens along that answer.

    Args:
        read: the turns as text
        heard: by system, the same turns with sound ("ear") or with a transcript ("cascade"); None where there is
            nothing to compare, such as a transcript without words

    Raises:
        DataError: a system with another number of turns
        RequestError: a turn that cannot be read or heard
        AudioError: sound that cannot be decoded
    """
    for name, turns in heard.items():
        if len(turns) != len(read):
            raise DataError(
                f"{len(turns)} turns to hear as {name!r}, but {len(read)} to read; expected one for each"
            )
    if not read:
        return []
    answers = ear.generate_ids_batch([*read], max_new_tokens=N_COMPARED_TOKENS)
    read_scores = ear.score_continuations([*read], answers)
    fidelities: list[dict[str, Fidelity | None]] = [dict.fromkeys(heard) for _ in read]
    for name, turns in heard.items():
        given = {index: turn for index, turn in enumerate(turns) if turn is not None}
        heard_scores = (
            ear.score_continuations([*given.values()], [answers[index] for index in given]) if given else []
        )
        for index, scores in zip(given, heard_scores, strict=True):
            fidelities[index][name] = compute_fidelity(read_scores[index], scores)
    return fidelities


def summarize_fidelity(items: Sequence[Fidelity], answers: Sequence[tuple[str, str]] = ()) -> FidelitySummary:
    """Returns means over items, with 95 % bootstrap intervals.

    Args:
        answers: the whole greedy answers of each item, to the text and to the sound; or none at all

    Raises:
        DataError: no items, or another number of answers
    """
    if not items or (answers and len(answers) != len(items)):
        raise DataError(
            f"{len(items)} items and {len(answers)} pairs of answers; expected at least one item and a pair for each"
        )
    n_positions = max(len(item.agreements) for item in items)
    by_position = [
        [item.agreements[position] for item in items if len(item.agreements) > position]
        for position in range(n_positions)
    ]
    return FidelitySummary(
        n=len(items),
        kl_nats=_estimate_mean([item.kl_nats for item in items], upper_bound=math.inf),
        cosine=_estimate_mean([item.cosine for item in items], lower_bound=-1.0),
        l2=_estimate_mean([item.l2 for item in items], upper_bound=math.inf),
        first_same=_estimate_mean([item.is_first_same for item in items]),
        agreement=_estimate_mean([item.agreement_ratio for item in items]),
        same_along=_estimate_mean([item.is_same_throughout for item in items]),
        by_position=tuple(map(_estimate_mean, by_position)),
        same_answers=_estimate_mean([read == heard for read, heard in answers]) if answers else None,
    )


def _estimate_mean(
    values: Sequence[int] | Sequence[float], *, lower_bound: float = 0.0, upper_bound: float = 1.0
) -> MeanEstimate:
    low, high = bootstrap_ci95(values, lower_bound=lower_bound, upper_bound=upper_bound)
    return MeanEstimate(
        n=len(values),
        mean=float(np.mean(values)),
        median=float(np.median(values)),
        ci95=(low, high) if math.isfinite(high) else None,
    )
