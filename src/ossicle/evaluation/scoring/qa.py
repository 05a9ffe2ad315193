"""Answers to questions of fact: whether what was said amounts to one of the published answers.

The published scoring, PANDA (later PEDANTS), is a small classifier that is downloaded; what is here are rules in its
spirit, which need nothing but the texts. What they give is not to be put beside published tables.

Source: Li et al., PANDA / PEDANTS, arXiv 2402.11161: normalised match, token F1, and the rules of quizzes that more
detail does no harm, that a name may be shortened, and that numbers must be right.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from ossicle.evaluation.scoring.numerals import with_digits
from ossicle.evaluation.scoring.rule import Judge, Rule
from ossicle.evaluation.statistics import METRICS, ItemScore
from ossicle.evaluation.suite import Item

LEAST_F1 = 0.6
"""Token F1 from which an answer counts as the same: above a half, which "South Korea" shares with "North Korea"."""
MOST_BETWEEN = 3
"""Words that may stand among those of the expected answer in a longer one: "Charles III, Prince of Wales"."""

_UNHEARD = frozenset("a an the of in on at to and for by from with is are was were it its".split())
"""Words that no answer turns on."""
_NOT = frozenset("not never neither nor isnt wasnt arent werent cannot".split())
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_APOSTROPHES = re.compile(r"(?<=\w)['\u2019\u02bc](?=\w)")
_INITIALS = re.compile(r"\b(?:[^\W\d_]\.){2,}")
_APART = re.compile(r"[^\w.]+|_|\.(?!\d)|(?<!\d)\.(?=\d)")
"""What parts words; a point within a number does not."""


def is_equivalent(answer: str, expected: str) -> bool:
    """Whether an answer says what is expected, alone or within a sentence.

    An expected "yes" or "no" is compared with the first of the two that is said. All else is right if the expected
    words stand in the answer, in a row or nearly so, and not behind a "not"; or if the two have enough words in
    common (`LEAST_F1`). The numbers of the expected answer have to be among those that are said.
    """
    said, wanted = _words(answer), _words(expected)
    if not said or not wanted:
        return False
    if wanted in (["yes"], ["no"]):
        return next((word for word in said if word in ("yes", "no")), None) == wanted[0]
    if said == wanted:
        return True
    if not _numbers(wanted) <= _numbers(said):
        return False
    return _is_contained(wanted, said) or _is_alike(wanted, said)


def _words(text: str) -> list[str]:
    """Small letters without accents, number words as digits, no punctuation and no articles."""
    text = "".join(
        character
        for character in unicodedata.normalize("NFKD", text.casefold())
        if not unicodedata.combining(character)
    )
    text = _APOSTROPHES.sub("", _THOUSANDS.sub("", text.replace("%", " percent ")))
    text = _INITIALS.sub(lambda match: match[0].replace(".", "") + " ", text)
    words = with_digits(_APART.sub(" ", text).split())
    return [word for word in words if word not in ("a", "an", "the")]


def _numbers(words: Sequence[str]) -> set[str]:
    return {word for word in words if word[0].isdigit()}


def _heard(words: Sequence[str]) -> list[str]:
    return [word for word in words if word not in _UNHEARD] or list(words)


def _is_contained(wanted: Sequence[str], said: Sequence[str]) -> bool:
    """Whether all that is wanted is said within few words, and not denied."""
    needed = Counter(_heard(wanted))
    for start, end in _stretches(said, len(_heard(wanted))):
        is_denied = any(word in _NOT for word in said[max(0, start - 2) : start])
        if not needed - Counter(said[start:end]) and not is_denied:
            return True
    return False


def _stretches(said: Sequence[str], n_words: int) -> Iterator[tuple[int, int]]:
    """Where the answer has so many words that count, and those in between."""
    places = [place for place, word in enumerate(said) if word not in _UNHEARD] or list(range(len(said)))
    longest = n_words if n_words == 1 else n_words + MOST_BETWEEN
    for first in range(len(places)):
        stretch = places[first : first + longest]
        yield stretch[0], stretch[-1] + 1


def _is_alike(wanted: Sequence[str], said: Sequence[str]) -> bool:
    first, second = Counter(_heard(wanted)), Counter(_heard(said))
    n_common = (first & second).total()
    is_denied = any(word in _NOT for word in said) and not any(word in _NOT for word in wanted)
    return not is_denied and 2 * n_common >= LEAST_F1 * (first.total() + second.total())


def expected_answers(item: Item) -> list[str]:
    """The answers that count as right for an item: those of its rubric, or its one."""
    return list(item.rubric.get("answers") or [item.answer or ""])


def _mark(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[ItemScore]:
    return [
        (float(any(is_equivalent(answer, expected) for expected in expected_answers(item))),)
        for item, answer in zip(items, answers, strict=True)
    ]


PANDA = Rule(
    name="panda",
    metric=METRICS["right"],
    about="Right means the same as one of the published answers by fixed rules after PEDANTS (Li et al. 2024, arXiv"
    " 2402.11161): its words within the answer, or enough words in common, and its numbers exactly. This is not the"
    " published classifier, and its numbers are not those of published tables.",
    mark=_mark,
)
