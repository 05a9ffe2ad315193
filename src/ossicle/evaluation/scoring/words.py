"""The expected words, exactly: what the pocket suite and any suite of one's own is marked by."""

from collections.abc import Sequence

from ossicle.evaluation.scoring.rule import Judge, Rule
from ossicle.evaluation.statistics import METRICS, ItemScore
from ossicle.evaluation.suite import Item
from ossicle.evaluation.text_normalization import is_correct


def _mark(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[ItemScore]:
    return [
        (float(is_correct(answer, item.answer or "")),) for item, answer in zip(items, answers, strict=True)
    ]


EXACT = Rule(
    name="exact",
    metric=METRICS["right"],
    about="Right means the expected words, exactly: punctuation and spacing do not count, and case only where the"
    " expected answer is all in capitals.",
    mark=_mark,
)
