"""English number words as digits, so that "twenty-one" and "21" are the same answer; it knows words, no answers."""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal

_BELOW_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
_UNITS: Mapping[str, int] = {word: value for value, word in enumerate(_BELOW_TWENTY)}
_ROUND: Mapping[str, int] = {word: 10 * value for value, word in enumerate(_TENS, start=2)}
_PLACES: Mapping[str, int] = {word: value for value, word in enumerate(_ORDINALS, start=1)}
_SCALES: Mapping[str, int] = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def with_digits(words: Sequence[str]) -> list[str]:
    """Words in small letters with every number among them in digits: "2 million" is 2000000, "third" is 3.

    A year that is spoken in two halves ("nineteen ninety") stays two numbers, since two numbers in a row look no
    different.
    """
    return list(_read(words))


def _read(words: Sequence[str]) -> Iterator[str]:
    """One number or word after the other."""
    place = 0
    while place < len(words):
        number, n_words = _number(words[place:])
        yield f"{number.normalize():f}" if n_words else _place(words[place])
        place += max(n_words, 1)


def _number(words: Sequence[str]) -> tuple[Decimal, int]:
    """The number that words begin with, and how many words it takes; none if they begin with another word."""
    total, number = Decimal(0), Decimal(0)
    n_words, is_open = 0, True  # open: a smaller number may follow, as behind "hundred"
    while n_words < len(words):
        word = words[n_words]
        n_skipped = int(word == "and" and is_open and n_words > 0)
        value, n_more = _below_hundred(words[n_words + n_skipped :])
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


def _below_hundred(words: Sequence[str]) -> tuple[Decimal, int]:
    """A number of one word or two, or any that is written in digits, and how many words it takes."""
    first = words[0] if words else ""
    if first in _ROUND:
        unit = _UNITS.get(words[1], 0) if len(words) > 1 else 0
        return (Decimal(_ROUND[first] + unit), 2) if 0 < unit < 10 else (Decimal(_ROUND[first]), 1)
    if first in _UNITS:
        return Decimal(_UNITS[first]), 1
    if first.isascii() and first.replace(".", "", 1).isdecimal():
        return Decimal(first), 1
    return Decimal(0), 0


def _place(word: str) -> str:
    """An ordinal as its number, any other word as it is."""
    if word in _PLACES:
        return str(_PLACES[word])
    is_ordinal = word.isascii() and word[:-2].isdecimal() and word[-2:] in ("st", "nd", "rd", "th")
    return word[:-2] if is_ordinal else word
