"""Reads from a free answer which of several lettered options it chooses; it knows answers, not questions."""

import re

from ossicle.evaluation.scoring.base import Rule, score_each
from ossicle.evaluation.statistics import METRICS
from ossicle.evaluation.suite import Item

DEFAULT_LETTERS = "ABCD"
"""The options of a question whose rubric names none."""

_DECORATION = re.compile(r"\\(?:boxed|text|textbf|mathbf|mathrm)\b|\\[()\[\]]|[*_`{}$]")
"""Markup that markdown and LaTeX put around a letter."""
_EMPHASIZED = re.compile(r"(?:\*+|_+|\{)\s*([A-Z])\s*(?:\*+|_+|\})")
_LETTER_END = r"(?!\w|['’]\w)"
"""Follows a letter that stands alone: anything that does not continue a word."""
_OPENING = r"[\s\"'“”‘’(\[<]*"
_NOUN = r"(?:(?:the\s+)?(?:option|choice|letter|answer|sentence)\b)?"
_ANSWER_CUE = (
    r"(?:\b(?:answer|option|choice|one|sentence|order)\b[^.!?\n:]{0,80}?"
    r"(?:\b(?:is|be|was|are)\b|['’]s\b|[:=])(?:\s+(?:likely|probably|clearly|therefore|most\s+likely|definitely))?"
    r"|\banswer\b"
    r"|\b(?:i(?:['’]d| would| will)?|we(?:['’]d| would)?)\s+(?:say|choose|select|pick|go\s+with|go\s+for)\b"
    r"|\b(?:is|be)\s+(?:option|choice|letter)\b|\bin\s+(?:option|sentence)\b)"
)
"""Phrases right before a letter that is meant as the answer."""
_CALLED_RIGHT = (
    r"\s*\)?\s*(?:correctly\s+|clearly\s+)?(?:is|would\s+be|seems|has|follows|uses|appears)\b(?!\s*(?:not|n['’]t|in))"
    r"[^.!?\n]{0,40}?\b(?:correct|best|better|right|proper|typical|standard|accurate|logical|closest|answer)\b"
)
"""Phrases after a letter that is meant as the answer: "B is the best answer"."""
_CALLED_WRONG = (
    r"[\"'”’)\]]*\s+(?:is|are|was|would\s+be)(?:\s+not\b|n['’]t\b|\s+(?:\w+\s+)?(?:wrong|incorrect|false)\b)"
)
"""Phrases after a letter that is not meant: "answer A is wrong"."""
_ORDINALS = ("first", "second", "third", "fourth", "fifth")


def extract_choice(answer: str, letters: str = DEFAULT_LETTERS) -> str | None:
    """Returns the letter of the option that an answer chooses, as a capital; None if it cannot be determined.

    Tried in this order: an answer that is a letter, or begins with one that is set off ("B) ..."); the last letter that
    the answer calls the answer ("the answer is (b)", "I would choose option C", "B is correct", "the second option is
    correct"); the only option letter in the answer that is set off from the words. "A" as an article does not count.
    An answer that names several options and calls none of them right chooses none.

    Source: the kinds of phrase that VoiceBench's evaluator looks for (Chen et al., arXiv 2410.17196). VoiceBench takes
    the first phrase of a fixed list that occurs, and guesses if none does. Here the last phrase counts; there is no
    guess.
    """
    text = " ".join(_DECORATION.sub(" ", _EMPHASIZED.sub(r"(\1)", answer)).split())
    letter_class = rf"[{letters}]"
    opening = re.match(
        rf"{_OPENING}(?:option\s+)?({letter_class})(?:[\s.,:;)\]\"'”’]*$|[.,:;)\]]|\s+because\b)", text, re.I
    )
    if opening and not _lists_options(text, letters):
        return opening[1].upper()
    statements = [match for match in _find_statements(text, letter_class) if _is_option_letter(match, text)]
    if statements:
        return max(statements, key=lambda match: match.start(1))[1].upper()
    if (by_ordinal := _extract_ordinal_choice(text, letters)) is not None:
        return by_ordinal
    set_off = {
        match[1].upper()
        for match in re.finditer(
            rf"(?<!\w)(?<!\w['’])(?:option\s+|[\"“'‘(\[])?({letter_class})(?=[.,:;)\]\"”'’](?!\w)|\s\(|$)",
            text,
            re.I,
        )
        if match[0] not in ("a", "i")
    }
    return set_off.pop() if len(set_off) == 1 else None


def _lists_options(text: str, letters: str) -> bool:
    """Whether a text lists the options, one after the other."""
    return re.search(".*?".join(rf"(?<!\w){letter}[.:)]" for letter in letters[:3]), text) is not None


def _find_statements(text: str, letter_class: str) -> list[re.Match[str]]:
    """Returns the matches where a letter is called the answer; in some of them the letter is an article."""
    before = rf"{_ANSWER_CUE}\s*[:=]?\s*{_NOUN}{_OPENING}({letter_class}){_LETTER_END}"
    after = rf"(?<!\w)(?<!\w['’]){_OPENING}({letter_class}){_CALLED_RIGHT}"
    return [*re.finditer(before, text, re.I), *re.finditer(after, text, re.I)]


def _is_option_letter(match: re.Match[str], text: str) -> bool:
    """Whether a letter is not called wrong and, if it is an "a", names an option and is not an article."""
    letter, rest = match[1], text[match.end(1) :]
    if re.match(_CALLED_WRONG, rest, re.I):
        return False
    if letter not in "aA":
        return True
    if re.match(r"[\s\"'”’)\]]*(?:$|[.,:;()\]\"”!?-])", rest):
        return True
    follows_noun = re.search(
        r"(?:option|choice|letter|sentence)\s*[\"'“‘(\[]*$", text[: match.start(1)], re.I
    )
    is_reasoned = re.match(r"\s+(?:because|since|as|for|due|is|would|has|follows|uses)\b", rest, re.I)
    return bool(follows_noun or (is_reasoned and letter == "A"))


def _extract_ordinal_choice(text: str, letters: str) -> str | None:
    """Returns the letter of the option that is called right by its position: "the second option is correct"."""
    ordinals = "|".join(_ORDINALS[: len(letters)])
    noun = r"(?:option|choice|sentence|one|answer)"
    before = rf"{_ANSWER_CUE}\s*(?:in\s+)?(?:the\s+)?({ordinals})\s+{noun}\b"
    after = rf"\b({ordinals})\s+{noun}{_CALLED_RIGHT}"
    matches = [*re.finditer(before, text, re.I), *re.finditer(after, text, re.I)]
    if not matches:
        return None
    return letters[_ORDINALS.index(max(matches, key=lambda match: match.start(1))[1].lower())]


def _is_expected_choice(item: Item, answer: str) -> bool:
    return extract_choice(answer, item.rubric.get("letters", DEFAULT_LETTERS)) == item.answer


CHOICE = Rule(
    name="choice",
    metric=METRICS["right"],
    description="Right means that the answer chooses the expected option. An answer from which no letter can be read is"
    " wrong.",
    score=score_each(_is_expected_choice),
)
