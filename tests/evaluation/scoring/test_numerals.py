"""English number words become digits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossicle.evaluation.scoring.numerals import convert_number_words


@pytest.mark.parametrize(
    ("words", "digits"),
    [
        ("twenty one", "21"),
        ("one hundred and five men", "105 men"),
        ("five thousand three hundred twenty one", "5321"),
        ("nineteen hundred", "1900"),
        ("1.5 million", "1500000"),
        ("six hundred thousand", "600000"),
        ("seven and eight", "7 and 8"),
        ("the third man of the 21st century", "the 3 man of the 21 century"),
        ("hundred years and a million", "hundred years and a million"),
        ("9007199254740993", "9007199254740993"),
        ("ten 10", "10 10"),
    ],
)
def test_number_words_become_digits(words: str, digits: str) -> None:
    assert " ".join(convert_number_words(words.split())) == digits


@given(st.integers(0, 999_999_999))
def test_digits_stay_unchanged(number: int) -> None:
    assert convert_number_words([str(number)]) == [str(number)]
    assert convert_number_words(["about", str(number), "people"]) == ["about", str(number), "people"]
