"""Converts English number words to digits, so that "twenty-one" and "21" are the same answer."""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal

_BELOW_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
_UNIT_VALUES: Mapping[str, int] = {word: value for value, word in enumerate(_BELOW_TWENTY)}
_TENS_VALUES: Mapping[str, int] = {word: 10 * value for value, word in enumerate(_TENS, start=2)}
_ORDINAL_VALUES: Mapping[str, int] = {word: value for value, word in enumerate(_ORDINALS, start=1)}
_SCALES: Mapping[str, int] = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def convert_number_words(words: Sequence[str]) -> list[str]:
    """Returns lower-case words with every number among them in digits: "2 million" is 2000000, "third" is 3.

    A year that is spoken in two halves ("nineteen ninety") stays two numbers, because it cannot be told from two
    numbers in a row.
    """
    return list(_convert(words))


def _convert(words: Sequence[str]) -> Iterator[str]:
    """Yields one number or word after the other."""
    index = 0
    while index < len(words):
        number, n_words = _parse_number(words[index:])
        yield f"{number.normalize():f}" if n_words else _convert_ordinal(words[index])
        index += max(n_words, 1)


def _parse_number(words: Sequence[str]) -> tuple[Decimal, int]:
    """Returns the number that the words begin with, and how many words it takes: 0 if they begin with another word."""
    total, number = Decimal(0), Decimal(0)
    n_words, is_open = 0, True  # open: a smaller number may follow, as after "hundred"
    while n_words < len(words):
        word = words[n_words]
        n_skipped = int(word == "and" and is_open and n_words > 0)
        value, n_more = _parse_below_hundred(words[n_words + n_skipped :])
        if is_open and n_more:
            number, n_words, is_open = number + value, n_words + n_skipped + n_more, False
        elif n_words and word == "hundred":
            number, n_words, is_open = number * 100, n_words + 1, True
        elif n_words and word in _SCALES:
            total, number = total + number * _SCALES[word], Decimal(0)
            n_words, is_open = n_words + 1, True
        else:
            break
    return total + number, n_words


def _parse_below_hundred(words: Sequence[str]) -> tuple[Decimal, int]:
    """Returns a number of one or two words, or any number in digits, and how many words it takes."""
    first = words[0] if words else ""
    if first in _TENS_VALUES:
        unit = _UNIT_VALUES.get(words[1], 0) if len(words) > 1 else 0
        return (
            (Decimal(_TENS_VALUES[first] + unit), 2) if 0 < unit < 10 else (Decimal(_TENS_VALUES[first]), 1)
        )
    if first in _UNIT_VALUES:
        return Decimal(_UNIT_VALUES[first]), 1
    if first.isascii() and first.replace(".", "", 1).isdecimal():
        return Decimal(first), 1
    return Decimal(0), 0


def _convert_ordinal(word: str) -> str:
    """Returns an ordinal as its number, and any other word unchanged."""
    if word in _ORDINAL_VALUES:
        return str(_ORDINAL_VALUES[word])
    is_ordinal = word.isascii() and word[:-2].isdecimal() and word[-2:] in ("st", "nd", "rd", "th")
    return word[:-2] if is_ordinal else word
