"""Answers that have to equal the expected words, or one label out of a few."""

from ossicle.evaluation.scoring.base import Rule, score_each
from ossicle.evaluation.statistics import METRICS
from ossicle.evaluation.suite import Item
from ossicle.evaluation.text_normalization import is_correct, normalize_text


def _is_exact(item: Item, answer: str) -> bool:
    return item.answer is not None and is_correct(answer, item.answer)


def _is_label(item: Item, answer: str) -> bool:
    return normalize_text(answer) == normalize_text(item.answer or "")


EXACT = Rule(
    name="exact",
    metric=METRICS["right"],
    description="Right means exactly the expected words. Punctuation and spacing do not count; case counts only where"
    " the expected answer is all in capitals.",
    score=score_each(_is_exact),
)
LABEL = Rule(
    name="label",
    metric=METRICS["right"],
    description="Right means that the LLM finds the published label more likely than the other labels. Every item has"
    " the same weight: this is accuracy, not an F1 score over the labels.",
    score=score_each(_is_label),
)
