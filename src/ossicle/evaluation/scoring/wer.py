"""Word errors of repeated sentences, after Whisper's normalization of English."""

from collections.abc import Iterator
from functools import lru_cache

import jiwer
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from ossicle.evaluation.scoring.base import Rule, score_each
from ossicle.evaluation.statistics import METRICS, ItemScore
from ossicle.evaluation.suite import Item

_OUR = "arbour ardour armour behaviour candour clamour colour endeavour favour fervour flavour harbour honour"
_OUR += " humour labour neighbour odour parlour rigour rumour savour splendour succour tumour valour vapour vigour"
_TRE = "centre fibre lustre meagre sabre sceptre sombre spectre theatre"
_ISE = "apologise baptise civilise criticise organise realise recognise sympathise"
_IRREGULAR = {
    "grey": "gray",
    "greyish": "grayish",
    "plough": "plow",
    "ploughed": "plowed",
    "defence": "defense",
}
_ENDINGS = ("", "s", "ed", "ing", "able", "less", "ite", "hood", "er", "ers")


def _iterate_spellings() -> Iterator[tuple[str, str]]:
    """Yields British spellings of old books with the American ones: a few, where Whisper's own list has 1,700."""
    yield from _IRREGULAR.items()
    for word in _OUR.split():
        yield from ((word + ending, word[:-2] + "r" + ending) for ending in _ENDINGS)
    for word in _TRE.split():
        yield from ((word + ending, word[:-2] + "er" + ending) for ending in ("", "s"))
    for word in _ISE.split():
        for ending in ("e", "es", "ed", "ing"):
            yield word[:-1] + ending, word[:-2] + "z" + ending


@lru_cache
def _build_normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer(dict(_iterate_spellings()))


def count_word_errors(answer: str, reference: str) -> ItemScore:
    """Returns the number of word errors and the number of words in the reference, both texts normalized.

    Errors are substitutions, deletions and insertions.

    Source: Radford et al., arXiv 2212.04356, appendix C, for the normalization.
    """
    normalizer = _build_normalizer()
    given_text, expected_text = normalizer(answer), normalizer(reference)
    if not expected_text:  # the reference was only "um" or similar: all words of the answer are insertions
        return float(len(given_text.split())), 0.0
    alignment = jiwer.process_words(expected_text, given_text)
    n_errors = alignment.substitutions + alignment.deletions + alignment.insertions
    return float(n_errors), float(len(expected_text.split()))


def _score_repetition(item: Item, answer: str) -> ItemScore:
    return count_word_errors(answer, item.answer or item.text)


WER = Rule(
    name="wer",
    metric=METRICS["wer"],
    description="Word errors (wrong, missing or added words) per spoken word, after Whisper's normalization of English"
    " with a short list of British spellings in place of its long one. The whole answer counts, introductions too.",
    score=score_each(_score_repetition),
)
