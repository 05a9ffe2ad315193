"""Reads the conclusion of a reasoned answer: yes or no, one of two options, a verdict on an argument, or a number.

Published leaderboards let a model read the answer; here fixed rules read the phrasings that occur.
"""

import re
from collections.abc import Mapping, Sequence

from ossicle.evaluation.scoring.base import Rule, score_each
from ossicle.evaluation.scoring.multiple_choice import extract_choice
from ossicle.evaluation.scoring.numerals import convert_number_words
from ossicle.evaluation.statistics import METRICS
from ossicle.evaluation.suite import Item
from ossicle.evaluation.text_normalization import normalize_text

BBH_LETTERS = {"hyperbaton": "AB"}
"""The tasks that ask for an option, with their letters; all others ask for yes or no."""

_NEGATION = r"(?:\bnot\b|n['’]t\b|\bcannot\b|\bnever\b|\bno longer\b)"
_BACK_AT_START = (
    r"(?:return\w*|(?:back|end\w*\s+up|are|be|am|is|position\s+is)\s+(?:\w+\s+){0,3}?(?:at|to|in|where|on))"
    r"[^.!?\n]{0,40}?\b(?:start\w*|began|origin\w*)\b"
)
_PHRASES: Mapping[str, tuple[str, str]] = {
    "navigate": (
        rf"{_NEGATION}[^.!?\n]{{0,30}}?{_BACK_AT_START}"
        rf"|{_NEGATION}\s+(?:\w+\s+){{0,2}}?(?:at|facing|in|on)\s+(?:\w+\s+){{1,2}}?(?:start\w*|origin\w*)"
        r"|\b(?:away|far|steps?)\s+from\s+(?:the|your|my|our)\s+start\w*",
        _BACK_AT_START,
    ),
    "sports_understanding": (
        rf"\bimplausible\b|\bunlikely\b(?:\s+to\s+be\s+\w+)?|\bimpossible\b"
        rf"|{_NEGATION}\s+(?:\w+\s+){{0,3}}?(?:plausible|possible|realistic|accurate|make sense)",
        r"\bplausible\b|\bpossible\b|\brealistic\b|\bmakes\s+sense\b|\blikely\s+(?:to\s+be\s+)?true\b",
    ),
    "web_of_lies": (
        rf"{_NEGATION}\s+(?:\w+\s+){{0,2}}?(?:tell\w*\s+the\s+truth|true)"
        r"|\blies\b|\blying\b|\b(?:tells?|says?)\s+(?:a\s+|the\s+)?lie\b",
        r"\b(?:tell\w*|telling)\s+the\s+truth\b|\btruthful\b",
    ),
}
"""By task, patterns that say "no" and "yes" in other words."""
BBH_TASKS = (*BBH_LETTERS, *_PHRASES)
"""The tasks of BIG-Bench Hard that VoiceBench has as speech."""

_YES_OR_NO = r"(yes|no|true|false)\b"
_ANSWER_CUE = re.compile(
    r"\b(?:answer|conclusion|verdict|answer\s+with)\b[^.!?\n]{0,60}?(?:\b(?:is|be|would)\b|[:=\s])\s*[\"'“‘(\[]*"
    + _YES_OR_NO
    + r"|\bi\s+(?:would|will|['’]d)\s+(?:say|answer)[\s:,]*(?:that\s+)?[\"'“‘]*"
    + _YES_OR_NO,
    re.I,
)
_OPENING_YES_OR_NO = re.compile(r"[\W_]*" + _YES_OR_NO + r"(?=\W*$|\s*[.,:;!\n—–-])", re.I)
_CLOSING_YES_OR_NO = re.compile(r"\b(yes|no)[\W_]*$", re.I)


def extract_conclusion(answer: str, task: str) -> str | None:
    """Returns the conclusion of an answer to a task's question: "yes", "no", "A" or "B"; None if there is none to read.

    Yes and no are looked for in this order: the last one that is called the answer; the one that the answer begins
    with; the one that it ends with; the last phrase that implies one in this task, such as "you are back where you
    started".

    Source: the kinds of phrase that VoiceBench's evaluator looks for, by the task in the item's id (Chen et al., arXiv
    2410.17196; Suzgun et al., arXiv 2210.09261). VoiceBench guesses if it finds no phrase; here that is no conclusion.
    """
    if task in BBH_LETTERS:
        return extract_choice(answer, BBH_LETTERS[task])
    text = re.sub(r"\\(?:boxed|text|textbf)\b|[*_`{}$\\]", " ", answer)
    if cued := list(_ANSWER_CUE.finditer(text)):
        return _to_yes_or_no(next(filter(None, cued[-1].groups())))
    if edge := _OPENING_YES_OR_NO.match(text) or _CLOSING_YES_OR_NO.search(text):
        return _to_yes_or_no(edge[1])
    no_matches, yes_matches = (list(re.finditer(pattern, text, re.I)) for pattern in _PHRASES[task])
    denied_spans = [match.span() for match in no_matches]
    affirmed_ends = [
        match.end()
        for match in yes_matches
        if not any(begin < match.end() and match.start() < end for begin, end in denied_spans)
    ]
    last_no, last_yes = max((end for _, end in denied_spans), default=-1), max(affirmed_ends, default=-1)
    return None if last_no == last_yes else "yes" if last_yes > last_no else "no"


def _to_yes_or_no(word: str) -> str:
    return "yes" if word.lower() in ("yes", "true") else "no"


VALIDITY_VERDICTS = ("valid", "invalid")
"""The two verdicts on an argument; any other expected answer is a number."""

_RESULT_CUES = frozenset("answer conclusion total altogether = equals".split())
"""Words that are directly followed by a result."""
_VERDICT_CUES = _RESULT_CUES | frozenset("therefore thus so hence conclude overall finally".split())
"""Words that are followed by a verdict; after "so", numbers may still be added up."""
_NEGATION_WORDS = frozenset("not isnt never nor cannot".split())
_MAX_WORDS_AFTER_NEGATION = 2
"""Words that may stand between a "not" and the verdict that it negates: "not a valid", "not deductively valid"."""
_MARKUP = re.compile(r"[*_`#\\{}$]|\bboxed\b|\btext\b")
_ANY_RESULT_CUE = re.compile(rf"\b(?:{'|'.join(sorted(_RESULT_CUES - {'='}))})\b|=", re.IGNORECASE)
_CLOSING_TOTAL = re.compile(r"(?:total|altogether)\s*[:(.;!?\n]", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[:;,!?()\n]|\.(?!\d)")
_SIGNS = re.compile(r"[=+\u00d7]")


def extract_final_answer(answer: str, expected: str) -> str | None:
    """Returns an answer's result, of the same kind as the expected one: "valid" or "invalid", or a number in digits.

    The result is the first such word after the last cue ("the answer is", "in total"), or the number before a total
    that a list follows ("5 in total: 2 apples and 3 pears"). Without a cue it is a verdict that the answer opens with,
    or else the last such word. None if the answer has no such word.
    """
    text = _SIGNS.sub(r" \g<0> ", _MARKUP.sub(" ", answer))
    words = _split_words(text)
    is_verdict = expected.strip().casefold() in VALIDITY_VERDICTS
    if not is_verdict and (total := _find_total_before_list(text)) is not None:
        return total
    results = [
        index
        for index, word in enumerate(words)
        if (word in VALIDITY_VERDICTS if is_verdict else _is_number(word))
    ]
    if not results:
        return None
    cue_words = _VERDICT_CUES if is_verdict else _RESULT_CUES
    cues = [index for index, word in enumerate(words) if word in cue_words and index < results[-1]]
    if cues:
        chosen = next(index for index in results if index > cues[-1])
    else:
        chosen = results[0] if is_verdict and results[0] == 0 else results[-1]
    return _resolve_negation(words, chosen) if is_verdict else words[chosen]


def _split_words(text: str) -> list[str]:
    return convert_number_words(normalize_text(text).split())


def _find_total_before_list(text: str) -> str | None:
    """Returns the number before a "total" that ends its clause and is followed by several numbers, which it adds up."""
    cues = list(_ANY_RESULT_CUE.finditer(text))
    if not cues or not (closing := _CLOSING_TOTAL.match(text, cues[-1].start())):
        return None
    (*_, clause) = _CLAUSE_END.split(text[: closing.start()])
    totals = list(filter(_is_number, _split_words(clause)))
    n_following = sum(map(_is_number, _split_words(text[closing.end() :])))
    return totals[-1] if totals and n_following > 1 else None


def _resolve_negation(words: Sequence[str], index: int) -> str:
    """Returns the verdict at an index, or the opposite one if it is negated ("not valid")."""
    is_negated = any(
        word in _NEGATION_WORDS for word in words[max(0, index - 1 - _MAX_WORDS_AFTER_NEGATION) : index]
    )
    return VALIDITY_VERDICTS[VALIDITY_VERDICTS.index(words[index]) ^ is_negated]


def _is_number(word: str) -> bool:
    return word.isascii() and word.replace(".", "", 1).isdecimal()


def matches_final_answer(answer: str, expected: str) -> bool:
    """Whether an answer's result is the expected one."""
    expected_words = convert_number_words(normalize_text(expected).split())
    return len(expected_words) == 1 and extract_final_answer(answer, expected) == expected_words[0]


def _is_expected_conclusion(item: Item, answer: str) -> bool:
    return extract_conclusion(answer, item.rubric["task"]) == item.answer


def _is_expected_result(item: Item, answer: str) -> bool:
    return matches_final_answer(answer, item.answer or "")


BBH = Rule(
    name="bbh",
    metric=METRICS["right"],
    description="Right means that the answer concludes as expected: yes or no, or one of two options. An answer without"
    " a readable conclusion is wrong.",
    score=score_each(_is_expected_conclusion),
)
FINAL = Rule(
    name="final",
    metric=METRICS["right"],
    description="Right means that the answer gives the official result: valid or invalid, or a number. Fixed rules find"
    " it in the text; the published leaderboard asks a model.",
    score=score_each(_is_expected_result),
)
