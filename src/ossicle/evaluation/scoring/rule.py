"""What a rule is: from an item and an answer to marks, alone or with the help of a judge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ossicle.evaluation.statistics import ItemScore as ItemScore
from ossicle.evaluation.statistics import Metric
from ossicle.evaluation.suite import Item


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a judge is asked to say about one answer."""

    system: str
    prompt: str


@runtime_checkable
class Judge(Protocol):
    """Whoever says how good answers are: a model behind an API, a local LLM, or a rule that works offline."""

    @property
    def name(self) -> str:
        """What the report calls it."""
        ...

    def judge(self, questions: Sequence[Judgement], /) -> list[str]:
        """What it says to each question, word for word."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How the answers to some items are marked."""

    name: str
    """What items and reports know it by."""
    metric: Metric
    """What is made of the marks."""
    about: str
    """One sentence for the report: what counts as right."""
    mark: Callable[[Sequence[Item], Sequence[str], Judge | None], list[ItemScore]]
    """The marks of answers to items of this rule; the judge is None where the rule needs none."""
    is_judged: bool = False
    """Whether a judge has to be given."""
