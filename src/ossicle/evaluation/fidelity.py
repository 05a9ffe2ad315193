"""How near hearing comes to reading: the LLM's reaction to a turn that it hears beside that to the same turn as text.

It needs no labels and no right answers: what the LLM makes of the text is the measure. It knows conversations in pairs
and whatever reacts to them, neither suites nor files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ossicle.chat.generation import ContinuationScores
from ossicle.errors import DataError
from ossicle.evaluation.statistics import bootstrap_ci95
from ossicle.losses import forward_kl

N_COMPARED_TOKENS = 32
"""First tokens of the LLM's own answer along which both are compared."""

Messages = list[dict[str, Any]]


@runtime_checkable
class ContinuationScorer(Protocol):
    """The part of an ear that this measurement needs."""

    def generate_ids_batch(self, conversations: list[Messages], /, **options: Any) -> list[list[int]]:
        """The tokens of the LLM's greedy answers, their end included."""
        ...

    def score_continuations(
        self, conversations: list[Messages], answers: list[list[int]], /
    ) -> list[ContinuationScores]:
        """What the LLM would say to each, and along an answer that is given."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How near one turn that was heard came to the same one that was read."""

    kl_nats: float
    """KL(read || heard) of the answer's first token, in nats."""
    cosine: float
    """Of the final hidden states that predict it."""
    l2: float
    """Distance of the same: what `objectives.hidden_distance` is the mean of, at the last position."""
    agreements: tuple[bool, ...]
    """Whether the likeliest token is the same, at each of the first `N_ALONG` tokens of the LLM's answer to the text.
    Both are given the tokens before it, so that one slip is one slip; the answer's end is a token, too."""

    @property
    def is_first_same(self) -> bool:
        """Whether the likeliest first token of the answer is the same."""
        return self.agreements[0]

    @property
    def agreement_ratio(self) -> float:
        """Share of the tokens at which the likeliest one is the same."""
        return sum(self.agreements) / len(self.agreements)

    @property
    def is_same_throughout(self) -> bool:
        """Whether it is the same at all of them."""
        return all(self.agreements)

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self) | {"agreements": [*self.agreements]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Fidelity":
        """As it was stored."""
        numbers = {name: float(stored[name]) for name in ("kl_nats", "cosine", "l2")}
        return cls(**numbers, agreements=tuple(map(bool, stored["agreements"])))


@dataclass(frozen=True, kw_only=True)
class MeanEstimate:
    """A number over several items."""

    n: int
    mean: float
    """Of flags, the share that is true."""
    median: float
    ci95: tuple[float, float] | None
    """Of the mean. None where nothing bounds it: all values are equal, and the quantity has no upper end."""


@dataclass(frozen=True, kw_only=True)
class FidelitySummary:
    """How near hearing comes to reading, over items that each weigh the same."""

    n: int
    kl_nats: MeanEstimate
    cosine: MeanEstimate
    l2: MeanEstimate
    first_same: MeanEstimate
    """Items whose likeliest first token is the same."""
    agreement: MeanEstimate
    """Each item's share of tokens, along the LLM's own answer to the text, at which the likeliest one is the same."""
    same_along: MeanEstimate
    """Items at which that is so at every token."""
    by_position: tuple[MeanEstimate, ...]
    """The share at each token from the answer's first on, over the items whose answer has so many."""
    same_answers: MeanEstimate | None
    """Items whose whole answers are equal as texts; None where no answers were given."""

    def to_json(self) -> dict[str, Any]:
        """As a report has it."""
        return asdict(self)


def compute_fidelity(read: ContinuationScores, heard: ContinuationScores) -> Fidelity:
    """Two reactions to one turn and along one answer, compared in float64."""
    states = read.states[0].double(), heard.states[0].double()
    kl = forward_kl(heard.first_logits.double()[None], read.first_logits.double()[None])
    return Fidelity(
        kl_nats=max(0.0, float(kl)),
        cosine=max(-1.0, min(1.0, float(functional.cosine_similarity(*states, dim=0)))),
        l2=_distance(*states),
        agreements=tuple((read.greedy_ids == heard.greedy_ids).tolist()),
    )


def _distance(one: Float[Tensor, " D"], other: Float[Tensor, " D"]) -> float:
    return float((one - other).norm())


def compute_fidelity_batch(
    ear: ContinuationScorer, read: Sequence[Messages], heard: Mapping[str, Sequence[Messages | None]]
) -> list[dict[str, Fidelity | None]]:
    """For each turn of a batch, how near each way of hearing it comes to reading it.

    The reading, which all ways are compared with, is done once: the LLM's greedy answer under its own settings, as far
    as `N_ALONG` tokens, and its likeliest tokens along it.

    Args:
        read: the turns as text
        heard: by name, the same turns in other ways, such as with sound ("ear") or a transcript ("cascade"); None
            where there is nothing to hear, such as no words in a transcript

    Raises:
        DataError: ways of another number of turns
        RequestError: a turn that cannot be read or heard
        AudioError: sound that cannot be heard
    """
    for name, turns in heard.items():
        if len(turns) != len(read):
            raise DataError(
                f"{len(turns)} turns to hear as {name!r}, but {len(read)} to read: expected one for each"
            )
    if not read:
        return []
    answers = ear.generate_ids_batch([*read], max_new_tokens=N_COMPARED_TOKENS)
    reactions = ear.score_continuations([*read], answers)
    found: list[dict[str, Fidelity | None]] = [dict.fromkeys(heard) for _ in read]
    for name, turns in heard.items():
        given = {place: turn for place, turn in enumerate(turns) if turn is not None}
        reacted = (
            ear.score_continuations([*given.values()], [answers[place] for place in given]) if given else []
        )
        for place, reaction in zip(given, reacted, strict=True):
            found[place][name] = compute_fidelity(reactions[place], reaction)
    return found


def summarize_fidelity(items: Sequence[Fidelity], answers: Sequence[tuple[str, str]] = ()) -> FidelitySummary:
    """The numbers over items, with 95 % bootstrap intervals of their means.

    Args:
        answers: of each item the whole greedy answers to the text and to what was heard; or none at all

    Raises:
        DataError: no items, or answers to another number of them
    """
    if not items or (answers and len(answers) != len(items)):
        raise DataError(
            f"{len(items)} items and {len(answers)} pairs of answers, expected one or more of each"
        )
    longest = max(len(item.agreements) for item in items)
    along = [
        [item.agreements[place] for item in items if len(item.agreements) > place] for place in range(longest)
    ]
    return FidelitySummary(
        n=len(items),
        kl_nats=_mean([item.kl_nats for item in items], most=math.inf),
        cosine=_mean([item.cosine for item in items], least=-1.0),
        l2=_mean([item.l2 for item in items], most=math.inf),
        first_same=_mean([item.is_first_same for item in items]),
        agreement=_mean([item.agreement_ratio for item in items]),
        same_along=_mean([item.is_same_throughout for item in items]),
        by_position=tuple(map(_mean, along)),
        same_answers=_mean([read == heard for read, heard in answers]) if answers else None,
    )


def _mean(values: Sequence[int] | Sequence[float], *, least: float = 0.0, most: float = 1.0) -> MeanEstimate:
    low, high = bootstrap_ci95(values, lower_bound=least, upper_bound=most)
    return MeanEstimate(
        n=len(values),
        mean=float(np.mean(values)),
        median=float(np.median(values)),
        ci95=(low, high) if math.isfinite(high) else None,
    )
