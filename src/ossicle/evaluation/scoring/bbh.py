"""What a reasoned answer concludes, yes or no or one of two options: VoiceBench's part of BIG-Bench Hard."""

import re
from collections.abc import Mapping, Sequence

from ossicle.evaluation.scoring.choices import chosen_letter
from ossicle.evaluation.scoring.rule import Judge, Rule
from ossicle.evaluation.statistics import METRICS, ItemScore
from ossicle.evaluation.suite import Item

CHOICES = {"hyperbaton": "AB"}
"""The tasks that ask for an option, and their letters; all others ask for yes or no."""

_NOT = r"(?:\bnot\b|n['’]t\b|\bcannot\b|\bnever\b|\bno longer\b)"
_BACK = (
    r"(?:return\w*|(?:back|end\w*\s+up|are|be|am|is|position\s+is)\s+(?:\w+\s+){0,3}?(?:at|to|in|where|on))"
    r"[^.!?\n]{0,40}?\b(?:start\w*|began|origin\w*)\b"
)
_PHRASES: Mapping[str, tuple[str, str]] = {
    "navigate": (
        rf"{_NOT}[^.!?\n]{{0,30}}?{_BACK}"
        rf"|{_NOT}\s+(?:\w+\s+){{0,2}}?(?:at|facing|in|on)\s+(?:\w+\s+){{1,2}}?(?:start\w*|origin\w*)"
        r"|\b(?:away|far|steps?)\s+from\s+(?:the|your|my|our)\s+start\w*",
        _BACK,
    ),
    "sports_understanding": (
        rf"\bimplausible\b|\bunlikely\b(?:\s+to\s+be\s+\w+)?|\bimpossible\b"
        rf"|{_NOT}\s+(?:\w+\s+){{0,3}}?(?:plausible|possible|realistic|accurate|make sense)",
        r"\bplausible\b|\bpossible\b|\brealistic\b|\bmakes\s+sense\b|\blikely\s+(?:to\s+be\s+)?true\b",
    ),
    "web_of_lies": (
        rf"{_NOT}\s+(?:\w+\s+){{0,2}}?(?:tell\w*\s+the\s+truth|true)|\blies\b|\blying\b|\b(?:tells?|says?)\s+(?:a\s+|the\s+)?lie\b",
        r"\b(?:tell\w*|telling)\s+the\s+truth\b|\btruthful\b",
    ),
}
"""By task, how a "no" and a "yes" are said in other words."""
TASKS = (*CHOICES, *_PHRASES)
"""The tasks of BIG-Bench Hard that are spoken in VoiceBench."""

_VERDICT = r"(yes|no|true|false)\b"
_CUE = re.compile(
    r"\b(?:answer|conclusion|verdict|answer\s+with)\b[^.!?\n]{0,60}?(?:\b(?:is|be|would)\b|[:=\s])\s*[\"'“‘(\[]*"
    + _VERDICT
    + r"|\bi\s+(?:would|will|['’]d)\s+(?:say|answer)[\s:,]*(?:that\s+)?[\"'“‘]*"
    + _VERDICT,
    re.I,
)
_FIRST = re.compile(r"[\W_]*" + _VERDICT + r"(?=\W*$|\s*[.,:;!\n—–-])", re.I)
_LAST = re.compile(r"\b(yes|no)[\W_]*$", re.I)


def concluded(answer: str, task: str) -> str | None:
    """What an answer to a question of a task concludes: "yes", "no", "A" or "B"; None where that cannot be made out.

    For yes and no, in this order: the last one said to be the answer; the one that the answer begins with; the one it
    ends with; the last thing it says of the task's own matter, such as "you are back where you started".

    Source: the kinds of phrase that VoiceBench's evaluator looks for, by the task in the item's id (Chen et al., arXiv
    2410.17196; Suzgun et al., arXiv 2210.09261). It guesses where it finds none; here that is no answer.
    """
    if task in CHOICES:
        return chosen_letter(answer, CHOICES[task])
    text = re.sub(r"\\(?:boxed|text|textbf)\b|[*_`{}$\\]", " ", answer)
    if said := list(_CUE.finditer(text)):
        return _yes_or_no(next(filter(None, said[-1].groups())))
    if found := _FIRST.match(text) or _LAST.search(text):
        return _yes_or_no(found[1])
    no, yes = (list(re.finditer(pattern, text, re.I)) for pattern in _PHRASES[task])
    denied = [match.span() for match in no]
    affirmed = [
        match.end()
        for match in yes
        if not any(begin < match.end() and match.start() < end for begin, end in denied)
    ]
    last_no, last_yes = max((end for _, end in denied), default=-1), max(affirmed, default=-1)
    return None if last_no == last_yes else "yes" if last_yes > last_no else "no"


def _yes_or_no(word: str) -> str:
    return "yes" if word.lower() in ("yes", "true") else "no"


def _mark(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[ItemScore]:
    return [
        (float(concluded(answer, item.rubric["task"]) == item.answer),)
        for item, answer in zip(items, answers, strict=True)
    ]


BBH = Rule(
    name="bbh",
    metric=METRICS["right"],
    about="Right means the expected conclusion, yes or no or one of two options, as it can be read from the answer. An"
    " answer from which none can be read is wrong.",
    mark=_mark,
)
