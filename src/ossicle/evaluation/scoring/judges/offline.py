"""A rule in place of a judge, for use without a model: it counts shared words and understands none of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ossicle.errors import RequestError
from ossicle.evaluation.scoring.base import JudgeRequest
from ossicle.evaluation.scoring.judged import MAX_RATING, JudgeQuestion
from ossicle.evaluation.scoring.qa import is_equivalent
from ossicle.evaluation.text_normalization import normalize_text

_FUNCTION_WORDS = frozenset(
    "a about all am an and any are as at be been but by can could did do does for from give had has have he her him his"
    " how i if in into is it its list make may me might my of on one or our out please she should so some tell than"
    " that the their them then there these they this those to us was we were what when where which who whom whose why"
    " will with would you your".split()
)
"""Words that do not show what a sentence is about."""


@dataclass(frozen=True)
class OfflineJudge:
    """Rates an answer by the words that it shares with the question, or with a reference if there is one.

    So it can tell an answer that is off topic, and a wrong answer only if there is a reference. This does not measure
    quality, and the judge's name says so in every report.
    """

    @property
    def name(self) -> str:
        """The judge's name in the report."""
        return "offline rule (shared words: no judgment of quality)"

    def judge(self, requests: Sequence[JudgeRequest], /) -> list[str]:
        """Returns the replies, in the form that is asked of every judge.

        Raises:
            RequestError: a request that is no question about an answer
        """
        return [self._reply(request) for request in requests]

    def _reply(self, question: JudgeRequest) -> str:
        if not isinstance(question, JudgeQuestion):
            raise RequestError(
                "the offline rule rates answers only; name a model as the judge of anything else"
            )
        if question.scale == "verdict":
            is_right = any(is_equivalent(question.answer, reference) for reference in question.references)
            return f"Verdict: {'yes' if is_right else 'no'}"
        return f"Rating: {1 + round((MAX_RATING - 1) * _rate_overlap(question))}"


def _rate_overlap(question: JudgeQuestion) -> float:
    """Returns a number from 0 to 1: F1 with the nearest reference, or else the ratio of the question's words used."""
    answer = _content_stems(question.answer)
    if question.references:
        return max(_f1(answer, _content_stems(reference)) for reference in question.references)
    asked = _content_stems(question.question)
    return len(asked & answer) / len(asked) if asked else float(bool(answer))


def _content_stems(text: str) -> set[str]:
    """Returns the content words of a text without common endings, so "trees" equals "tree"."""
    words = set(normalize_text(text).split())
    return {_stem(word) for word in words - _FUNCTION_WORDS or words}


def _stem(word: str) -> str:
    ending = next((end for end in ("ing", "ed", "s") if word.endswith(end) and len(word) - len(end) >= 3), "")
    return word.removesuffix(ending).removesuffix("e")


def _f1(first: set[str], second: set[str]) -> float:
    return 2 * len(first & second) / max(1, len(first) + len(second))
