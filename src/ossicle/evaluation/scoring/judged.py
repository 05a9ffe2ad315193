"""Answers that a judge has to read: ratings from 1 to 5, and whether an answer agrees with a reference.

It knows what is asked of a judge and how the reply is read, not who judges. The scales are VoiceBench's (Chen et al.,
arXiv 2410.17196), the wording is ours; its judge was gpt-4o-mini, asked three times at temperature 0.5, ours is asked
once and greedily. Numbers by different judges or wordings are no comparison.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ossicle.errors import ConfigError, RequestError
from ossicle.evaluation.scoring.qa import PANDA, expected_answers
from ossicle.evaluation.scoring.rule import Judge, Judgement, Rule
from ossicle.evaluation.statistics import METRICS, ItemScore
from ossicle.evaluation.suite import Item

Scale = Literal["rating", "verdict"]
MOST_POINTS = 5
_MAX_SHOWN = 200
"""Characters of a reply that a message shows."""

_SYSTEM = (
    "You judge what voice assistants answer. You are strict and fair, and you keep to the form you are given."
)
_RATING = """\
Somebody spoke to a voice assistant, and it answered. Here is what was said to it, and its answer, both as text.

[What was said]
{asked}

[Answer]
{answer}

How good is this answer to what was said? Choose a whole number:
1 = wrong, beside the point, or no answer to it at all
2 = on the subject, but inaccurate or incomplete: it answers a part, or is largely about something else
3 = on the subject and mostly accurate, but not concise: it goes into things that do not help
4 = on the subject, accurate and concise: clear, with nothing needless
5 = outstanding: precisely what was wanted, accurate, complete, and no more than that

Reply with a single line, "Rating: " and the number."""
_VERDICT = """\
[Question]
{asked}

[Correct answer]
{reference}

[Answer to be checked]
{answer}

Given the question and its correct answer, is the answer to be checked correct?
Reply with a single line, "Verdict: yes" or "Verdict: no"."""
_FORMS: dict[Scale, tuple[str, re.Pattern[str], re.Pattern[str]]] = {
    "rating": (
        '"Rating: " and a whole number from 1 to 5',
        re.compile(r"\brating\W{1,6}([1-5])(?![\d]|\.\d)", re.I),
        re.compile(r"[\W_]*([1-5])(?:\s*/\s*5)?[\W_]*"),
    ),
    "verdict": (
        '"Verdict: yes" or "Verdict: no"',
        re.compile(r"\bverdict\W{1,6}(yes|no)\b", re.I),
        re.compile(r"[\W_]*(yes|no)[\W_]*", re.I),
    ),
}
"""By scale: what a reply has to be, where it stands behind its label, and how it looks without one."""


@dataclass(frozen=True, kw_only=True)
class Question(Judgement):
    """What a judge is asked about an answer: as text for a model, and in its parts for a rule."""

    scale: Scale
    asked: str
    answer: str
    references: tuple[str, ...] = ()
    """Answers that would be right, where some are known."""


def rating_of(item: Item, answer: str) -> Question:
    """The question how good an answer is, from 1 to 5."""
    asked = _asked(item)
    prompt = _RATING.format(asked=asked, answer=answer)
    return Question(system=_SYSTEM, prompt=prompt, scale="rating", asked=asked, answer=answer)


def verdict_of(item: Item, answer: str) -> Question:
    """The question whether an answer agrees with one of the item's expected answers."""
    asked, references = _asked(item), tuple(expected_answers(item))
    prompt = _VERDICT.format(asked=asked, reference=", or: ".join(references), answer=answer)
    return Question(
        system=_SYSTEM, prompt=prompt, scale="verdict", asked=asked, answer=answer, references=references
    )


def _asked(item: Item) -> str:
    return " ".join(filter(None, (item.text, item.instruction)))


def read_reply(reply: str, scale: Scale) -> float | None:
    """What a judge's reply comes to, 1 to 5 points, or 1 for yes and 0 for no; None where it cannot be read.

    The last thing said behind the label counts: a judge that thinks aloud may repeat the scale before.
    """
    _, labelled, bare = _FORMS[scale]
    said = labelled.findall(reply)
    if not said and (alone := bare.fullmatch(reply.strip())):
        said = [alone[1]]
    if not said:
        return None
    return float(said[-1]) if scale == "rating" else float(said[-1].lower() == "yes")


def _judged(judge: Judge | None, items: Sequence[Item], questions: Sequence[Question]) -> list[float]:
    """What the judge says to each question; to an empty answer, what nobody has to be asked for.

    Raises:
        ConfigError: no judge
        RequestError: a judge whose reply cannot be read, even when asked again; the message names the item
    """
    if judge is None:
        raise ConfigError(
            f"rule {items[0].rule!r} needs a judge: name an endpoint, a local LLM, or the offline rule"
        )
    values = {
        place: 1.0 if question.scale == "rating" else 0.0
        for place, question in enumerate(questions)
        if not question.answer.strip()
    }
    replies: dict[int, str] = {}
    for ask in (lambda question: question, _again):
        open_places = [place for place in range(len(questions)) if place not in values]
        said = judge.judge([ask(questions[place]) for place in open_places]) if open_places else []
        replies |= zip(open_places, said, strict=True)
        for place in open_places:
            if (value := read_reply(replies[place], questions[place].scale)) is not None:
                values[place] = value
    for place, question in enumerate(questions):
        if place not in values:
            raise RequestError(
                f"item {items[place].id!r}: the judge, {judge.name}, replied {replies[place][:_MAX_SHOWN]!r}, also when"
                f" asked again; expected {_FORMS[question.scale][0]}: take another judge"
            )
    return [values[place] for place in range(len(questions))]


def _again(question: Question) -> Question:
    form, _, _ = _FORMS[question.scale]
    return replace(
        question, prompt=f"{question.prompt}\n\nNothing else can be read: reply with {form} alone."
    )


def _mark_rating(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[ItemScore]:
    questions = [rating_of(item, answer) for item, answer in zip(items, answers, strict=True)]
    return [(points / MOST_POINTS,) for points in _judged(judge, items, questions)]


def _mark_agreement(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[ItemScore]:
    questions = [verdict_of(item, answer) for item, answer in zip(items, answers, strict=True)]
    by_rule = PANDA.mark(items, answers, None)
    return [
        ((is_right + says_yes) / 2,)
        for (is_right,), says_yes in zip(by_rule, _judged(judge, items, questions), strict=True)
    ]


RATED = Rule(
    name="rated",
    metric=METRICS["rating"],
    about="A judge rates each answer from 1 to 5 on VoiceBench's scale, in our own words; 5 points are 100 %, so that"
    " the worst possible is 20 %.",
    mark=_mark_rating,
    is_judged=True,
)
AGREED = Rule(
    name="panda and judge",
    metric=METRICS["right"],
    about="The mean of two verdicts, as VoiceBench has it for SD-QA: of fixed rules after PEDANTS, in place of its"
    " published classifier, and of a judge who compares the answer with the published one.",
    mark=_mark_agreement,
    is_judged=True,
)
