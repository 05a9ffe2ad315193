"""The values of scoring: rules, judges, and the requests that a judge is sent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ossicle.evaluation.statistics import ItemScore, Metric
from ossicle.evaluation.suite import Item


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """The two prompts that a judge is sent about one answer."""

    system: str
    prompt: str


@runtime_checkable
class Judge(Protocol):
    """Rates answers: a model behind an API, a local LLM, or a rule that works offline."""

    @property
    def name(self) -> str:
        """The judge's name in the report."""
        ...

    def judge(self, requests: Sequence[JudgeRequest], /) -> list[str]:
        """Returns the reply to each request, verbatim and in order."""
        ...


ScoreAnswers = Callable[[Sequence[Item], Sequence[str], Judge | None], list[ItemScore]]
"""Returns the score of each answer to an item of one rule. The judge is None where the rule needs none."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How the answers to some items are scored."""

    name: str
    """The rule's name in suites and reports."""
    metric: Metric
    """Turns sums of scores into the suite's number."""
    description: str
    """One sentence for the report: which answers count as right."""
    score: ScoreAnswers
    needs_judge: bool = False
    """Whether `score` has to be given a judge."""


def score_each(score_answer: Callable[[Item, str], bool | ItemScore]) -> ScoreAnswers:
    """Returns a rule's `score` that scores each answer on its own and asks no judge.

    Args:
        score_answer: gives the score of one answer; True is a score of 1, False of 0
    """

    def score(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[ItemScore]:
        scores = (score_answer(item, answer) for item, answer in zip(items, answers, strict=True))
        return [(float(score),) if isinstance(score, bool) else score for score in scores]

    return score
