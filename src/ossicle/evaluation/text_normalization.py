"""Which words a text has, and which of them count as right; it knows texts, no models."""

import re
import unicodedata
from collections.abc import Sequence

import jiwer

_APOSTROPHES = "'\u2019\u02bc"
_DASHES_OF_NUMBERS = "-\u2212"
_KEPT_MARKS = frozenset("%&@")
"""Punctuation by Unicode's categories that changes what an answer says."""

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def normalize_text(text: str, *, fold_case: bool = True) -> str:
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
    expected_words = normalize_text(expected, fold_case=fold_case)
    if not expected_words:
        return answer.strip() == expected.strip()
    return normalize_text(answer, fold_case=fold_case) == expected_words


def compute_word_error_rate(references: Sequence[str], transcripts: Sequence[str]) -> float:
    """Words substituted, deleted and inserted over all pairs, per word of the references, both normalised.

    0 for no references at all. Words are what white space parts: for scripts that write none, a sentence is
    one word.
    """
    if not references:
        return 0.0
    return jiwer.wer(
        [normalize_text(text) for text in references], [normalize_text(text) for text in transcripts]
    )
