"""One label out of a few: the answer is the label or it is not."""

from collections.abc import Sequence

from earshot.evaluation.marks import METRICS, Marks
from earshot.evaluation.metrics import normalise
from earshot.evaluation.scoring.rule import Judge, Rule
from earshot.evaluation.suite import Item


def _mark(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[Marks]:
    return [
        (float(normalise(answer) == normalise(item.answer or "")),)
        for item, answer in zip(items, answers, strict=True)
    ]


LABEL = Rule(
    name="label",
    metric=METRICS["right"],
    about="Right means the published label, which the LLM finds likelier than the others. Every item weighs the same:"
    " this is accuracy, no F1 over the labels.",
    mark=_mark,
)
