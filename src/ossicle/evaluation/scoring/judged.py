"""Scores of answers that a judge has to read: ratings from 1 to 5, and agreement with a reference.

This file knows what a judge is asked and how its reply is parsed, not who judges. The scales are VoiceBench's (Chen et
al., arXiv 2410.17196); the wording is ours. VoiceBench's judge was gpt-4o-mini, asked three times at temperature 0.5;
ours is asked once and greedily. Numbers by different judges or wordings are not comparable.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ossicle.errors import ConfigError, RequestError
from ossicle.evaluation.scoring.base import Judge, JudgeRequest, Rule
from ossicle.evaluation.scoring.qa import PANDA, read_expected_answers
from ossicle.evaluation.statistics import METRICS, ItemScore
from ossicle.evaluation.suite import Item

Scale = Literal["rating", "verdict"]
MAX_RATING = 5
_MAX_SHOWN_CHARS = 200
"""Longest part of a reply that an error message quotes, in characters."""

_SYSTEM_PROMPT = (
    "You judge what voice assistants answer. You are strict and fair, and you keep to the form you are given."
)
_RATING_PROMPT = """\
Somebody spoke to a voice assistant, and it answered. Here is what was said to it, and its answer, both as text.

[What was said]
{question}

[Answer]
{answer}

How good is this answer to what was said? Choose a whole number:
1 = wrong, beside the point, or no answer to it at all
2 = on the subject, but inaccurate or incomplete: it answers a part, or is largely about something else
3 = on the subject and mostly accurate, but not concise: it goes into things that do not help
4 = on the subject, accurate and concise: clear, with nothing needless
5 = outstanding: precisely what was wanted, accurate, complete, and no more than that

Reply with a single line, "Rating: " and the number."""
_VERDICT_PROMPT = """\
[Question]
{question}

[Correct answer]
{reference}

[Answer to be checked]
{answer}

Given the question and its correct answer, is the answer to be checked correct?
Reply with a single line, "Verdict: yes" or "Verdict: no"."""
_REPLY_FORMS: dict[Scale, tuple[str, re.Pattern[str], re.Pattern[str]]] = {
    "rating": (
        '"Rating: " and a whole number from 1 to 5',
        re.compile(
            r"\brating\W{1,6}(?:1\s*(?:[-\u2013\u2014]|to)\s*5\W{1,6})?"  # the scale, repeated
            r"([1-5])(?!\d|\.\d|\s*(?:[-\u2013\u2014]|to\b)\s*\d)",
            re.I,
        ),
        re.compile(r"[\W_]*([1-5])(?:\s*/\s*5)?[\W_]*"),
    ),
    "verdict": (
        '"Verdict: yes" or "Verdict: no"',
        re.compile(r"\bverdict\W{1,6}(yes|no)\b", re.I),
        re.compile(r"[\W_]*(yes|no)[\W_]*", re.I),
    ),
}
"""By scale: the expected form in words, the pattern after its label, and the pattern of a bare reply."""


@dataclass(frozen=True, kw_only=True)
class JudgeQuestion(JudgeRequest):
    """A request about one answer: as prompts for a model, and in its parts for a rule."""

    scale: Scale
    question: str
    """The transcript and the instruction that were answered."""
    answer: str
    references: tuple[str, ...] = ()
    """Correct answers, where some are known."""


def build_rating_question(item: Item, answer: str) -> JudgeQuestion:
    """Returns the question how good an answer is, from 1 to 5."""
    question = _join_question(item)
    return JudgeQuestion(
        system=_SYSTEM_PROMPT,
        prompt=_RATING_PROMPT.format(question=question, answer=answer),
        scale="rating",
        question=question,
        answer=answer,
    )


def build_verdict_question(item: Item, answer: str) -> JudgeQuestion:
    """Returns the question whether an answer agrees with one of the item's expected answers."""
    question, references = _join_question(item), tuple(read_expected_answers(item))
    return JudgeQuestion(
        system=_SYSTEM_PROMPT,
        prompt=_VERDICT_PROMPT.format(question=question, reference=", or: ".join(references), answer=answer),
        scale="verdict",
        question=question,
        answer=answer,
        references=references,
    )


def _join_question(item: Item) -> str:
    return " ".join(filter(None, (item.text, item.instruction)))


def parse_reply(reply: str, scale: Scale) -> float | None:
    """Returns the value of a judge's reply: 1 to 5 points, or 1 for yes and 0 for no; None if it has another form.

    The last value after the label counts, because a judge that thinks aloud may repeat the scale first.
    """
    _, labeled_form, bare_form = _REPLY_FORMS[scale]
    values = labeled_form.findall(reply)
    if not values and (bare := bare_form.fullmatch(reply.strip())):
        values = [bare[1]]
    if not values:
        return None
    return float(values[-1]) if scale == "rating" else float(values[-1].lower() == "yes")


def _ask_judge(judge: Judge | None, items: Sequence[Item], questions: Sequence[JudgeQuestion]) -> list[float]:
    """Returns the judge's value for each question. Empty answers get the lowest value without asking.

    Raises:
        ConfigError: no judge
        RequestError: a judge whose reply cannot be parsed, twice in a row; the message names the item
    """
    if judge is None:
        raise ConfigError(
            f"rule {items[0].rule!r} needs a judge: name an endpoint, a local LLM, or the offline rule"
        )
    values = {
        index: 1.0 if question.scale == "rating" else 0.0
        for index, question in enumerate(questions)
        if not question.answer.strip()
    }
    replies: dict[int, str] = {}
    for build_request in (lambda question: question, _build_retry):
        pending = [index for index in range(len(questions)) if index not in values]
        new_replies = judge.judge([build_request(questions[index]) for index in pending]) if pending else []
        replies |= zip(pending, new_replies, strict=True)
        for index in pending:
            if (value := parse_reply(replies[index], questions[index].scale)) is not None:
                values[index] = value
    for index, question in enumerate(questions):
        if index not in values:
            raise RequestError(
                f"item {items[index].id!r}: the judge, {judge.name}, was asked twice and replied"
                f" {replies[index][:_MAX_SHOWN_CHARS]!r}; expected {_REPLY_FORMS[question.scale][0]};"
                " take another judge"
            )
    return [values[index] for index in range(len(questions))]


def _build_retry(question: JudgeQuestion) -> JudgeQuestion:
    form, _, _ = _REPLY_FORMS[question.scale]
    return replace(
        question, prompt=f"{question.prompt}\n\nNothing else can be read: reply with {form} alone."
    )


def _build_questions(
    build: Callable[[Item, str], JudgeQuestion], items: Sequence[Item], answers: Sequence[str]
) -> list[JudgeQuestion]:
    return [build(item, answer) for item, answer in zip(items, answers, strict=True)]


def _score_ratings(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[ItemScore]:
    questions = _build_questions(build_rating_question, items, answers)
    return [(points / MAX_RATING,) for points in _ask_judge(judge, items, questions)]


def _score_agreement(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[ItemScore]:
    questions = _build_questions(build_verdict_question, items, answers)
    by_rule = PANDA.score(items, answers, None)
    verdicts = _ask_judge(judge, items, questions)
    return [((is_right + verdict) / 2,) for (is_right,), verdict in zip(by_rule, verdicts, strict=True)]


RATED = Rule(
    name="rated",
    metric=METRICS["rating"],
    description="A judge rates each answer from 1 to 5 on VoiceBench's scale, in our own words. 5 points are 100 %, so"
    " the worst possible number is 20 %.",
    score=_score_ratings,
    needs_judge=True,
)
AGREED = Rule(
    name="panda and judge",
    metric=METRICS["right"],
    description="The mean of two verdicts, as VoiceBench has it for SD-QA: one by fixed rules after PEDANTS, in place"
    " of its published classifier, and one by a judge who compares the answer with the published one.",
    score=_score_agreement,
    needs_judge=True,
)
