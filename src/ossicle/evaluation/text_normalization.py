"""Normalizes texts into words, and compares answers and transcripts word by word; it knows texts, not models."""

import re
import unicodedata
from collections.abc import Sequence

import jiwer

_APOSTROPHES = "'\u2019\u02bc"
_NUMBER_DASHES = "-\u2212"
_KEPT_PUNCTUATION = frozenset("%&@")
"""Punctuation by Unicode's categories that changes the meaning of an answer."""

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_UNIT_SPACE = re.compile(r"(?<=\d)\s+(?=%)|(?<=[$€£¥₹])\s+(?=\d)")
"""Spaces that some languages write between a number and its unit."""
_ZERO_WIDTH_SPACE = "\u200b"
_THINK = r"(?:(?:\w+:)?think(?:ing)?|thoughts?|reasoning)"
_START, _END = (rf"(?:<{slash}{_THINK}>|\[{slash}{_THINK}\]|◁{slash}{_THINK}▷)" for slash in ("", "/"))
"""The signs around what an LLM thinks, as families of LLMs write them: <think>, <seed:think>, [THINK], ◁think▷."""
_THOUGHT = re.compile(rf"{_START}.*?{_END}", re.DOTALL | re.IGNORECASE)
_THOUGHT_END = re.compile(rf"^.*{_END}", re.DOTALL | re.IGNORECASE)
_THOUGHT_START = re.compile(rf"{_START}.*$", re.DOTALL | re.IGNORECASE)


def strip_thoughts(answer: str) -> str:
    """Returns an answer without what an LLM thinks first, between <think> and </think> or their kin.

    A template may write the beginning itself, so that the answer has the end alone; a thought that was cut off has no
    end, and nothing follows it.
    """
    for pattern in (_THOUGHT, _THOUGHT_END, _THOUGHT_START):
        answer = pattern.sub("", answer)
    return answer.strip()


def normalize_text(text: str, *, fold_case: bool = True) -> str:
    """Returns the words of a text, without punctuation, extra white space and, by default, case.

    A decimal point and a minus sign are kept, the commas between thousands are removed. Symbols (+, =, $, °) and accents
    are kept, % and signs of currency next to their numbers. An apostrophe within a word is removed, so that "it's" is
    one word; any other punctuation separates words, so that "c-a-t" is three. Marks without width are removed. Digits
    and number words are different words.
    """
    text = unicodedata.normalize("NFC", text)
    if fold_case:
        text = unicodedata.normalize("NFC", text.casefold())
    text = _UNIT_SPACE.sub("", _THOUSANDS.sub("", text))
    characters = [_normalize_character(text, position) for position in range(len(text))]
    return " ".join("".join(characters).split())


def _normalize_character(text: str, position: int) -> str:
    """Returns what replaces one character: itself, a space, or nothing."""
    character = text[position]
    before = text[position - 1] if position else " "
    after = text[position + 1] if position + 1 < len(text) else " "
    if character in _NUMBER_DASHES:
        return "-" if after.isdigit() and not before.isalnum() else " "
    if character == "." and after.isdigit():
        return "."
    if character in _APOSTROPHES:
        return "" if before.isalnum() and after.isalnum() else " "
    category = unicodedata.category(character)
    if category == "Cf" and character != _ZERO_WIDTH_SPACE:  # soft hyphens, joiners and marks of direction
        return ""
    if character not in _KEPT_PUNCTUATION and (category[0] in "PCZ" or category == "Sk"):
        return " "
    return character


def is_correct(answer: str, expected: str) -> bool:
    """Whether an answer equals the expected one word by word, after `normalize_text`.

    Case counts if, and only if, the expected answer is written in capitals: so an instruction such as "Answer in
    capital letters." can be checked. An expected answer of punctuation alone is compared without normalization.
    """
    fold_case = not expected.isupper()
    expected_words = normalize_text(expected, fold_case=fold_case)
    if not expected_words:
        return answer.strip() == expected.strip()
    return normalize_text(answer, fold_case=fold_case) == expected_words


def compute_word_error_rate(references: Sequence[str], transcripts: Sequence[str]) -> float:
    """Returns the words substituted, deleted and inserted over all pairs, per word of the references, both normalized.

    It is 0 without references. Words are separated by white space: in scripts without it, a sentence is one word.
    """
    if not references:
        return 0.0
    return jiwer.wer(
        [normalize_text(text) for text in references], [normalize_text(text) for text in transcripts]
    )
