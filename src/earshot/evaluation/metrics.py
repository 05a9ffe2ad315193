"""What counts as right, and how sure a number over few items is; it knows texts and flags, no models."""

import re
import unicodedata
from collections.abc import Sequence

import jiwer
import numpy as np

N_RESAMPLES = 10_000
"""Bootstrap resamples: enough that the interval's ends move by less than 0.1 points between seeds."""

CONFIDENCE = 0.95

_APOSTROPHES = "'\u2019\u02bc"
_DASHES_OF_NUMBERS = "-\u2212"
_KEPT_MARKS = frozenset("%&@")
"""Punctuation by Unicode's categories that changes what an answer says."""

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def normalise(text: str, *, fold_case: bool = True) -> str:
    """The words of a text: punctuation and white space no longer count, nor, by default, does case.

    Numbers keep what makes them the number they are: a decimal point and a minus sign stay, thousands lose
    their commas. Symbols (+, =, $, °) and accents stay. An apostrophe vanishes, so that "it's" is one word,
    and any other punctuation parts words, so that "c-a-t" is three. Digits and number words are not made
    equal.
    """
    text = unicodedata.normalize("NFC", text)
    if fold_case:
        text = unicodedata.normalize("NFC", text.casefold())
    text = _THOUSANDS.sub("", text)
    kept = [_kept(text, position) for position in range(len(text))]
    return " ".join("".join(kept).split())


def _kept(text: str, position: int) -> str:
    """What is left of one character: itself, a space, or nothing."""
    character = text[position]
    before = text[position - 1] if position else " "
    after = text[position + 1] if position + 1 < len(text) else " "
    if character in _DASHES_OF_NUMBERS:
        return "-" if after.isdigit() and not before.isalnum() else " "
    if character == "." and after.isdigit():
        return "."
    if character in _APOSTROPHES:
        return "" if before.isalnum() and after.isalnum() else " "
    category = unicodedata.category(character)
    if character not in _KEPT_MARKS and (category[0] in "PCZ" or category == "Sk"):
        return " "
    return character


def is_correct(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one, word for word after `normalise`.

    Case counts if, and only if, the expected answer is written all in capitals: that is how an instruction
    such as "Answer in capital letters." is checked. An expected answer of punctuation alone is compared as it
    stands.
    """
    fold_case = not expected.isupper()
    expected_words = normalise(expected, fold_case=fold_case)
    if not expected_words:
        return answer.strip() == expected.strip()
    return normalise(answer, fold_case=fold_case) == expected_words


def bootstrap_ci95(
    values: Sequence[int] | Sequence[float], *, least: float = 0.0, most: float = 1.0, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of values that each lie between `least` and `most`.

    Resampling n values is one multinomial draw over the values that occur, so no matrix of n columns is
    built. Values that are all equal have no spread to resample, and a bootstrap would claim certainty from
    two items as from two thousand; there the exact binomial bound for unanimous observations takes over. No
    values at all say nothing: the interval is the whole range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13; Clopper and Pearson, 1934.
    """
    n = len(values)
    if n == 0:
        return least, most
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    if len(distinct) == 1:
        value, unseen = float(distinct[0]), 1 - ((1 - CONFIDENCE) / 2) ** (1 / n)
        return value - (value - least) * unseen, value + (most - value) * unseen
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=N_RESAMPLES)
    low, high = np.quantile(draws @ distinct / n, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def word_error_rate(references: Sequence[str], transcripts: Sequence[str]) -> float:
    """Words substituted, deleted and inserted over all pairs, per word of the references, both normalised.

    0 for no references at all. Words are what white space parts: for scripts that write none, a sentence is
    one word.
    """
    if not references:
        return 0.0
    return jiwer.wer([normalise(text) for text in references], [normalise(text) for text in transcripts])
