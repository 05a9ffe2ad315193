"""What the ear's wrong answers have in common: who else was wrong, in which group, at which words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ossicle.evaluation.item_result import ItemResult
from ossicle.evaluation.text_normalization import normalize_text

N_WORDS = 12
MIN_COUNT = 4
"""Words that were said less often tell nothing."""
MIN_EXCESS = 2.0
"""Standard deviations by which a word's share of wrong answers lies above that of all items."""


@dataclass(frozen=True, kw_only=True)
class ErrorGroup:
    """Wrong answers of one kind, those of a group beside each other."""

    title: str
    items: tuple[ItemResult, ...]


@dataclass(frozen=True, kw_only=True)
class HardWord:
    """A word that stands in wrongly answered items more often than chance would have it."""

    text: str
    n_wrong: int
    n: int


def group_errors(items: Sequence[ItemResult]) -> tuple[ErrorGroup, ...]:
    """The wrong answers by who else is wrong; kinds without any are left out."""
    wrong = sorted((item for item in items if not item.ear_correct), key=lambda item: item.group or "")
    by_title = {
        "Wrong in text as well: the LLM does not know": [item for item in wrong if not item.text_correct],
        "Wrong in the cascade as well: misheard by both": [
            item for item in wrong if item.text_correct and not item.cascade_correct
        ],
        "Wrong by ear alone": [item for item in wrong if item.text_correct and item.cascade_correct],
    }
    return tuple(ErrorGroup(title=title, items=tuple(found)) for title, found in by_title.items() if found)


def find_hard_words(items: Sequence[ItemResult]) -> tuple[HardWord, ...]:
    """Words of the items' texts whose items go wrong more often than others, the most striking first."""
    wrong_share = sum(not item.ear_correct for item in items) / len(items)
    if wrong_share in (0, 1):
        return ()
    counts: dict[str, list[int]] = {}
    for item in items:
        for word in set(normalize_text(item.text).split()):
            counts.setdefault(word, []).append(not item.ear_correct)
    excess = {
        word: (sum(flags) - len(flags) * wrong_share)
        / math.sqrt(len(flags) * wrong_share * (1 - wrong_share))
        for word, flags in counts.items()
        if len(flags) >= MIN_COUNT
    }
    found = sorted((word for word in excess if excess[word] >= MIN_EXCESS), key=lambda word: -excess[word])
    return tuple(
        HardWord(text=word, n_wrong=sum(counts[word]), n=len(counts[word])) for word in found[:N_WORDS]
    )
