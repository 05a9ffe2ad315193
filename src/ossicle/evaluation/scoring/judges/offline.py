"""A rule in a judge's place, for where no model can be asked: it counts shared words, and understands none of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ossicle.errors import RequestError
from ossicle.evaluation.scoring.judged import MOST_POINTS, Question
from ossicle.evaluation.scoring.qa import is_equivalent
from ossicle.evaluation.scoring.rule import Judgement
from ossicle.evaluation.text_normalization import normalize_text

_EMPTY_WORDS = frozenset(
    "a about all am an and any are as at be been but by can could did do does for from give had has have he her him his"
    " how i if in into is it its list make may me might my of on one or our out please she should so some tell than that"
    " the their them then there these they this those to us was we were what when where which who whom whose why will"
    " with would you your".split()
)
"""Words that say nothing about what a sentence is about."""


@dataclass(frozen=True)
class OfflineRule:
    """Rates an answer by the words it shares with what was asked, or with a reference where there is one.

    So an answer about something else is told from one that takes the request up, and a right one from a wrong one only
    where a reference says what is right. It is no judgement of quality, and its name says so in every report.
    """

    @property
    def name(self) -> str:
        """What the report calls it."""
        return "offline rule (shared words: no judgement of quality)"

    def judge(self, questions: Sequence[Judgement], /) -> list[str]:
        """Its replies, in the form that is asked of every judge.

        Raises:
            RequestError: something else than a question about an answer
        """
        return [self._reply(question) for question in questions]

    def _reply(self, question: Judgement) -> str:
        if not isinstance(question, Question):
            raise RequestError(
                "the offline rule rates answers only; name a model as the judge of anything else"
            )
        if question.scale == "verdict":
            is_right = any(is_equivalent(question.answer, reference) for reference in question.references)
            return f"Verdict: {'yes' if is_right else 'no'}"
        return f"Rating: {1 + round((MOST_POINTS - 1) * _shared(question))}"


def _shared(question: Question) -> float:
    """From 0 to 1: F1 with the nearest reference, or without any the share of the request's words taken up."""
    said = _content(question.answer)
    if question.references:
        return max(_f1(said, _content(reference)) for reference in question.references)
    asked = _content(question.asked)
    return len(asked & said) / len(asked) if asked else float(bool(said))


def _content(text: str) -> set[str]:
    """The words that a text is about, without the commonest endings, so that "trees" is "tree"."""
    words = set(normalize_text(text).split())
    return {_stem(word) for word in words - _EMPTY_WORDS or words}


def _stem(word: str) -> str:
    ending = next((end for end in ("ing", "ed", "s") if word.endswith(end) and len(word) - len(end) >= 3), "")
    return word.removesuffix(ending).removesuffix("e")


def _f1(first: set[str], second: set[str]) -> float:
    return 2 * len(first & second) / max(1, len(first) + len(second))
