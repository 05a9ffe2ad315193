"""Scores of translations: n-gram counts by sacreBLEU itself; the metric turns their sums into corpus BLEU."""

from functools import lru_cache
from typing import Any

from ossicle.errors import DataError
from ossicle.evaluation.scoring.base import Rule, score_each
from ossicle.evaluation.statistics import METRICS, ItemScore
from ossicle.evaluation.suite import Item

DEFAULT_TOKENIZER = "13a"
"""sacreBLEU's own default: words and punctuation, as in the shared tasks of WMT."""


@lru_cache
def load_sacrebleu(tokenizer: str) -> Any:
    """Returns sacreBLEU's BLEU with one of its tokenizers.

    Raises:
        DataError: sacreBLEU is not installed
    """
    try:
        from sacrebleu.metrics import BLEU as SacreBLEU
    except ImportError as error:
        raise DataError(
            "translations are scored with sacreBLEU, which is not installed: pip install 'ossicle[benchmarks]'"
        ) from error
    return SacreBLEU(tokenize=tokenizer)


def count_ngrams(answer: str, reference: str, tokenizer: str = DEFAULT_TOKENIZER) -> ItemScore:
    """Returns matching n-grams (n = 1 to 4), all n-grams of the answer, and the lengths of answer and reference.

    Lengths are in tokens: ten numbers in all.
    """
    counts = load_sacrebleu(tokenizer).corpus_score([answer], [[reference]])
    return tuple(map(float, (*counts.counts, *counts.totals, counts.sys_len, counts.ref_len)))


def _score_translation(item: Item, answer: str) -> ItemScore:
    tokenizer = str(item.rubric.get("tokenize", DEFAULT_TOKENIZER))
    return count_ngrams(answer, item.answer or "", tokenizer)


BLEU = Rule(
    name="bleu",
    metric=METRICS["bleu"],
    description="Corpus BLEU, 0 to 100, with sacreBLEU's counts and smoothing (Post, arXiv 1804.08771), case-sensitive."
    " Each item's rubric names its tokenizer.",
    score=score_each(_score_translation),
)
