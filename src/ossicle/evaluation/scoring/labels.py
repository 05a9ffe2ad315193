"""One label out of a few: the answer is the label or it is not."""

from collections.abc import Sequence

from ossicle.evaluation.scoring.rule import Judge, Rule
from ossicle.evaluation.statistics import METRICS, ItemScore
from ossicle.evaluation.suite import Item
from ossicle.evaluation.text_normalization import normalize_text


def _mark(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[ItemScore]:
    return [
        (float(normalize_text(answer) == normalize_text(item.answer or "")),)
        for item, answer in zip(items, answers, strict=True)
    ]


LABEL = Rule(
    name="label",
    metric=METRICS["right"],
    about="Right means the published label, which the LLM finds likelier than the others. Every item weighs the same:"
    " this is accuracy, no F1 over the labels.",
    mark=_mark,
)
