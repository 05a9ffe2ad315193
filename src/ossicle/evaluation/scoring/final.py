"""What a reasoned answer comes to, where that is a number, or whether an argument is valid.

Published leaderboards let a model read the answer for this; what is here are rules for the forms that occur. (Yes and
no: `ossicle.evaluation.scoring.bbh`.)
"""

import re
from collections.abc import Sequence

from ossicle.evaluation.scoring.numerals import with_digits
from ossicle.evaluation.scoring.rule import Judge, Rule
from ossicle.evaluation.statistics import METRICS, ItemScore
from ossicle.evaluation.suite import Item
from ossicle.evaluation.text_normalization import normalize_text

VALIDITY = ("valid", "invalid")
"""The words of a verdict on an argument; any other expected answer is a number."""

_RESULTS = frozenset("answer conclusion total altogether = equals".split())
"""Words that a result follows at once."""
_CUES = _RESULTS | frozenset("therefore thus so hence conclude overall finally".split())
"""And those that a verdict follows; behind "so", numbers may still be added up."""
_NOT = frozenset("not isnt never nor cannot".split())
_NEAR = 2
"""Words that may stand between a "not" and what it denies: "not a valid", "not deductively valid"."""
_MARKUP = re.compile(r"[*_`#\\{}$]|\bboxed\b|\btext\b")
_SIGNS = re.compile(r"[=+\u00d7]")


def final_answer(answer: str, expected: str) -> str | None:
    """What an answer comes to, of the kind that is expected: "valid" or "invalid", or a number in digits.

    The first such word behind the last cue ("the answer is", "in total") counts; without a cue, a verdict that the
    answer opens with, and else the last one that is said. None where nothing of that kind is said.
    """
    text = _SIGNS.sub(r" \g<0> ", _MARKUP.sub(" ", answer))
    words = with_digits(normalize_text(text).split())
    is_verdict = expected.strip().casefold() in VALIDITY
    places = [
        place for place, word in enumerate(words) if (word in VALIDITY if is_verdict else _is_number(word))
    ]
    if not places:
        return None
    known = _CUES if is_verdict else _RESULTS
    cues = [place for place, word in enumerate(words) if word in known and place < places[-1]]
    if cues:
        place = next(place for place in places if place > cues[-1])
    else:
        place = places[0] if is_verdict and places[0] == 0 else places[-1]
    return _undenied(words, place) if is_verdict else words[place]


def _undenied(words: Sequence[str], place: int) -> str:
    """The verdict at a place, or its opposite where it is denied ("not valid")."""
    is_denied = any(word in _NOT for word in words[max(0, place - 1 - _NEAR) : place])
    return VALIDITY[VALIDITY.index(words[place]) ^ is_denied]


def _is_number(word: str) -> bool:
    return word.isascii() and word.replace(".", "", 1).isdecimal()


def is_final(answer: str, expected: str) -> bool:
    """Whether an answer comes to what is expected."""
    wanted = with_digits(normalize_text(expected).split())
    return len(wanted) == 1 and final_answer(answer, expected) == wanted[0]


def _mark(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[ItemScore]:
    return [
        (float(is_final(answer, item.answer or "")),) for item, answer in zip(items, answers, strict=True)
    ]


FINAL = Rule(
    name="final",
    metric=METRICS["right"],
    about="Right means that the answer comes to the official one, valid or invalid or a number, as fixed rules find it"
    " in the text, where the published leaderboard asks a model.",
    mark=_mark,
)
