"""Groups the ear's wrong answers by which other systems are wrong, and finds the words that go wrong most often."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ossicle.evaluation.item_result import ItemResult
from ossicle.evaluation.text_normalization import normalize_text

N_WORDS = 12
MIN_COUNT = 4
"""Items with a word below which the word is not judged."""
MIN_EXCESS = 2.0
"""Standard deviations by which the error rate of a word's items has to exceed that of all items."""


@dataclass(frozen=True, kw_only=True)
class ErrorGroup:
    """Items that the ear answers wrongly, sorted by the suite's groups."""

    title: str
    items: tuple[ItemResult, ...]


@dataclass(frozen=True, kw_only=True)
class HardWord:
    """A word whose items are answered wrongly more often than chance explains."""

    text: str
    n_wrong: int
    n: int


def group_errors(items: Sequence[ItemResult]) -> tuple[ErrorGroup, ...]:
    """Returns the ear's wrong answers by which other systems are wrong; empty groups are left out."""
    wrong = sorted((item for item in items if not item.ear_correct), key=lambda item: item.group or "")
    by_title = {
        "Wrong in text as well: the LLM does not know": [item for item in wrong if not item.text_correct],
        "Wrong in the cascade as well: misheard by both": [
            item for item in wrong if item.text_correct and not item.cascade_correct
        ],
        "Wrong by ear alone": [item for item in wrong if item.text_correct and item.cascade_correct],
    }
    return tuple(ErrorGroup(title=title, items=tuple(group)) for title, group in by_title.items() if group)


def find_hard_words(items: Sequence[ItemResult]) -> tuple[HardWord, ...]:
    """Returns the words whose items go wrong more often than others, the largest excess first."""
    error_rate = sum(not item.ear_correct for item in items) / len(items)
    if error_rate in (0, 1):
        return ()
    flags_by_word: dict[str, list[int]] = {}
    for item in items:
        for word in set(normalize_text(item.text).split()):
            flags_by_word.setdefault(word, []).append(not item.ear_correct)
    excess = {
        word: (sum(flags) - len(flags) * error_rate) / math.sqrt(len(flags) * error_rate * (1 - error_rate))
        for word, flags in flags_by_word.items()
        if len(flags) >= MIN_COUNT
    }
    words = sorted((word for word in excess if excess[word] >= MIN_EXCESS), key=lambda word: -excess[word])
    return tuple(
        HardWord(text=word, n_wrong=sum(flags_by_word[word]), n=len(flags_by_word[word]))
        for word in words[:N_WORDS]
    )
