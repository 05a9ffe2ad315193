"""Question answering: whether an answer is equivalent to one of the published answers.

The published scorer, PANDA (later PEDANTS), is a small classifier that has to be downloaded. Here are rules in its
spirit, which need only the texts. Their numbers are not comparable with published tables.

Source: Li et al., PANDA / PEDANTS, arXiv 2402.11161: normalized match, token F1, and the rules of quizzes that more
detail does no harm, that a name may be shortened, and that numbers must be right.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from ossicle.evaluation.scoring.base import Rule, score_each
from ossicle.evaluation.scoring.numerals import convert_number_words
from ossicle.evaluation.statistics import METRICS
from ossicle.evaluation.suite import Item

MIN_F1 = 0.6
"""Least token F1 of an equivalent answer: above 0.5, which is that of "South Korea" and "North Korea"."""
MAX_EXTRA_WORDS = 3
"""Extra words that a longer answer may have among the expected ones: "Charles III, Prince of Wales"."""

_FUNCTION_WORDS = frozenset("a an the of in on at to and for by from with is are was were it its".split())
"""Words that do not decide whether an answer is right."""
_NEGATION_WORDS = frozenset("not never neither nor isnt wasnt arent werent cannot".split())
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_APOSTROPHES = re.compile(r"(?<=\w)['\u2019\u02bc](?=\w)")
_INITIALS = re.compile(r"\b(?:[^\W\d_]\.){2,}")
_SEPARATOR = re.compile(r"[^\w.]+|_|\.(?!\d)|(?<!\d)\.(?=\d)")
"""Separates words; a point within a number does not."""


def is_equivalent(answer: str, expected: str) -> bool:
    """Whether an answer gives the expected answer, alone or within a sentence.

    An expected "yes" or "no" is compared with the first "yes" or "no" of the answer. Any other answer is right if it
    contains the expected words close together and not after a "not", or if the two share enough words (`MIN_F1`). It
    also has to contain all numbers of the expected answer.
    """
    given_words, expected_words = _normalize_words(answer), _normalize_words(expected)
    if not given_words or not expected_words:
        return False
    if expected_words in (["yes"], ["no"]):
        return next((word for word in given_words if word in ("yes", "no")), None) == expected_words[0]
    if given_words == expected_words:
        return True
    if not _select_numbers(expected_words) <= _select_numbers(given_words):
        return False
    return _is_contained(expected_words, given_words) or _overlaps(expected_words, given_words)


def _normalize_words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without accents, punctuation and articles; number words as digits."""
    text = "".join(
        character
        for character in unicodedata.normalize("NFKD", text.casefold())
        if not unicodedata.combining(character)
    )
    text = _APOSTROPHES.sub("", _THOUSANDS.sub("", text.replace("%", " percent ")))
    text = _INITIALS.sub(lambda match: match[0].replace(".", "") + " ", text)
    words = convert_number_words(_SEPARATOR.sub(" ", text).split())
    return [word for word in words if word not in ("a", "an", "the")]


def _select_numbers(words: Sequence[str]) -> set[str]:
    return {word for word in words if word[0].isdigit()}


def _select_content_words(words: Sequence[str]) -> list[str]:
    """Returns the words that are no function words; all words if there is no other."""
    return [word for word in words if word not in _FUNCTION_WORDS] or list(words)


def _is_contained(expected: Sequence[str], given: Sequence[str]) -> bool:
    """Whether all expected content words are given close together and not negated."""
    needed = Counter(_select_content_words(expected))
    for start, end in _iterate_spans(given, len(_select_content_words(expected))):
        is_negated = any(word in _NEGATION_WORDS for word in given[max(0, start - 2) : start])
        if not needed - Counter(given[start:end]) and not is_negated:
            return True
    return False


def _iterate_spans(given: Sequence[str], n_words: int) -> Iterator[tuple[int, int]]:
    """Yields start and end of every span with `n_words` content words, plus `MAX_EXTRA_WORDS` if n_words > 1."""
    content = [index for index, word in enumerate(given) if word not in _FUNCTION_WORDS] or list(
        range(len(given))
    )
    max_words = n_words if n_words == 1 else n_words + MAX_EXTRA_WORDS
    for first in range(len(content)):
        span = content[first : first + max_words]
        yield span[0], span[-1] + 1


def _overlaps(expected: Sequence[str], given: Sequence[str]) -> bool:
    """Whether the content words of both have a token F1 of at least `MIN_F1`, and no negation is added."""
    first, second = Counter(_select_content_words(expected)), Counter(_select_content_words(given))
    n_common = (first & second).total()
    is_negated = any(word in _NEGATION_WORDS for word in given) and not any(
        word in _NEGATION_WORDS for word in expected
    )
    return not is_negated and 2 * n_common >= MIN_F1 * (first.total() + second.total())


def read_expected_answers(item: Item) -> list[str]:
    """Returns the answers that count as right for an item: those of its rubric, or else its own."""
    return list(item.rubric.get("answers") or [item.answer or ""])


def _is_expected(item: Item, answer: str) -> bool:
    return any(is_equivalent(answer, expected) for expected in read_expected_answers(item))


PANDA = Rule(
    name="panda",
    metric=METRICS["right"],
    description="Right means equivalent to one of the published answers by fixed rules after PEDANTS (Li et al. 2024,"
    " arXiv 2402.11161): the answer contains its words, or shares enough words with it, and gives its numbers exactly."
    " This is not the published classifier, and its numbers are not those of published tables.",
    score=score_each(_is_expected),
)
