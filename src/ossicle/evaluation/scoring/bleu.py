"""Translations: which n-grams of the reference are found, counted by sacreBLEU itself, summed up by the metric."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ossicle.errors import DataError
from ossicle.evaluation.scoring.rule import Judge, Rule
from ossicle.evaluation.statistics import METRICS, ItemScore
from ossicle.evaluation.suite import Item

DEFAULT_TOKENIZER = "13a"
"""sacreBLEU's own default: words and punctuation, as in the shared tasks of WMT."""


@lru_cache
def counter(tokenizer: str) -> Any:
    """sacreBLEU with one of its tokenizers.

    Raises:
        DataError: it is not installed
    """
    try:
        from sacrebleu.metrics import BLEU as SacreBLEU
    except ImportError as error:
        raise DataError(
            "translations are marked with sacreBLEU, which is not installed: pip install 'ossicle[benchmarks]'"
        ) from error
    return SacreBLEU(tokenize=tokenizer)


def ngram_marks(answer: str, reference: str, tokenizer: str = DEFAULT_TOKENIZER) -> ItemScore:
    """Four matches and four totals of n-grams, and the lengths of the answer and the reference in tokens."""
    found = counter(tokenizer).corpus_score([answer], [[reference]])
    return tuple(map(float, (*found.counts, *found.totals, found.sys_len, found.ref_len)))


def _mark(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[ItemScore]:
    return [
        ngram_marks(answer, item.answer or "", str(item.rubric.get("tokenize", DEFAULT_TOKENIZER)))
        for item, answer in zip(items, answers, strict=True)
    ]


BLEU = Rule(
    name="bleu",
    metric=METRICS["bleu"],
    about="Corpus BLEU, 0 to 100, with sacreBLEU's counts and its smoothing (Post, arXiv 1804.08771), case counting;"
    " each answer's tokenizer is in its rubric.",
    mark=_mark,
)
