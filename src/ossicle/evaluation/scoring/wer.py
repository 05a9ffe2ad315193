"""Repeated words: how many of them are wrong, after Whisper's normalisation of English."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import jiwer
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from ossicle.evaluation.scoring.rule import Judge, Rule
from ossicle.evaluation.statistics import METRICS, ItemScore
from ossicle.evaluation.suite import Item

_OUR = "arbour ardour armour behaviour candour clamour colour endeavour favour fervour flavour harbour honour"
_OUR += " humour labour neighbour odour parlour rigour rumour savour splendour succour tumour valour vapour vigour"
_TRE = "centre fibre lustre meagre sabre sceptre sombre spectre theatre"
_ISE = "apologise baptise civilise criticise organise realise recognise sympathise"
_WHOLE = {"grey": "gray", "greyish": "grayish", "plough": "plow", "ploughed": "plowed", "defence": "defense"}
_ENDINGS = ("", "s", "ed", "ing", "able", "less", "ite", "hood", "er", "ers")


def _spellings() -> Iterator[tuple[str, str]]:
    """British spellings of old books, and the American ones: few, where Whisper's own list has 1,700."""
    yield from _WHOLE.items()
    for word in _OUR.split():
        yield from ((word + ending, word[:-2] + "r" + ending) for ending in _ENDINGS)
    for word in _TRE.split():
        yield from ((word + ending, word[:-2] + "er" + ending) for ending in ("", "s"))
    for word in _ISE.split():
        for ending in ("e", "es", "ed", "ing"):
            yield word[:-1] + ending, word[:-2] + "z" + ending


@lru_cache
def _normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer(dict(_spellings()))


def word_marks(answer: str, reference: str) -> ItemScore:
    """Words wrong, missing or too many, and words of the reference, both normalised.

    Source: Radford et al., arXiv 2212.04356, appendix C, for the normalisation.
    """
    normalise = _normalizer()
    said, wanted = normalise(answer), normalise(reference)
    if not wanted:  # nothing but "um": there is no word to get wrong, only some to add
        return float(len(said.split())), 0.0
    found = jiwer.process_words(wanted, said)
    n_errors = found.substitutions + found.deletions + found.insertions
    return float(n_errors), float(len(wanted.split()))


def _mark(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[ItemScore]:
    return [word_marks(answer, item.answer or item.text) for item, answer in zip(items, answers, strict=True)]


WER = Rule(
    name="wer",
    metric=METRICS["wer"],
    about="Words wrong, missing or added per word that was spoken, after Whisper's normalisation of English with a short"
    " list of British spellings in place of its long one. All that an answer says counts, introductions too.",
    mark=_mark,
)
