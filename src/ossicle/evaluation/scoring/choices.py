"""Which of several lettered options a free answer settles on; it knows answers, not what was asked."""

import re
from collections.abc import Sequence

from ossicle.evaluation.scoring.rule import Judge, Rule
from ossicle.evaluation.statistics import METRICS, ItemScore
from ossicle.evaluation.suite import Item

LETTERS = "ABCD"
"""The options of a question that names no others."""

_DECORATION = re.compile(r"\\(?:boxed|text|textbf|mathbf|mathrm)\b|\\[()\[\]]|[*_`{}$]")
"""What markdown and LaTeX put around a letter."""
_EMPHASISED = re.compile(r"(?:\*+|_+|\{)\s*([A-Z])\s*(?:\*+|_+|\})")
_AFTER = r"(?!\w|['’]\w)"
"""What is behind a letter that is no part of a word: anything but more of the word."""
_OPENING = r"[\s\"'“”‘’(\[<]*"
_NOUN = r"(?:(?:the\s+)?(?:option|choice|letter|answer|sentence)\b)?"
_SAYS = (
    r"(?:\b(?:answer|option|choice|one|sentence|order)\b[^.!?\n:]{0,80}?"
    r"(?:\b(?:is|be|was|are)\b|['’]s\b|[:=])(?:\s+(?:likely|probably|clearly|therefore|most\s+likely|definitely))?"
    r"|\banswer\b"
    r"|\b(?:i(?:['’]d| would| will)?|we(?:['’]d| would)?)\s+(?:say|choose|select|pick|go\s+with|go\s+for)\b"
    r"|\b(?:is|be)\s+(?:option|choice|letter)\b|\bin\s+(?:option|sentence)\b)"
)
"""What comes right before a letter that is meant as the answer."""
_PRAISED = (
    r"\s*\)?\s*(?:correctly\s+|clearly\s+)?(?:is|would\s+be|seems|has|follows|uses|appears)\b(?!\s*(?:not|n['’]t|in))"
    r"[^.!?\n]{0,40}?\b(?:correct|best|better|right|proper|typical|standard|accurate|logical|closest|answer)\b"
)
"""What comes after one: "B is the best answer"."""
_DISMISSED = (
    r"[\"'”’)\]]*\s+(?:is|are|was|would\s+be)(?:\s+not\b|n['’]t\b|\s+(?:\w+\s+)?(?:wrong|incorrect|false)\b)"
)
"""What comes after one that is not: "answer A is wrong"."""
_ORDINALS = ("first", "second", "third", "fourth", "fifth")


def chosen_letter(answer: str, letters: str = LETTERS) -> str | None:
    """The letter of the option that an answer settles on, a capital; None where none can be made out.

    In this order: an answer that is a letter, or begins with one that is set off ("B) ..."); the last letter that is
    said to be the answer ("the answer is (b)", "I would choose option C", "B is correct", "the second option is
    correct"); the only letter of an option that occurs at all, set off from the words. "A" as an article is none.
    An answer that names several options and says of none that it is right has not settled.

    Source: the kinds of phrase that VoiceBench's evaluator looks for (Chen et al., arXiv 2410.17196). It takes the
    first of them by a fixed list and guesses where there is none; here the last one said counts, and no guess.
    """
    text = " ".join(_DECORATION.sub(" ", _EMPHASISED.sub(r"(\1)", answer)).split())
    own = rf"[{letters}]"
    begins = re.match(
        rf"{_OPENING}(?:option\s+)?({own})(?:[\s.,:;)\]\"'”’]*$|[.,:;)\]]|\s+because\b)", text, re.I
    )
    if begins and not _lists_all(text, letters):
        return begins[1].upper()
    said = [found for found in _statements(text, own) if _is_letter(found, text)]
    if said:
        return max(said, key=lambda found: found.start(1))[1].upper()
    if (ordinal := _ordinal(text, letters)) is not None:
        return ordinal
    set_off = {
        found[1].upper()
        for found in re.finditer(
            rf"(?<!\w)(?<!\w['’])(?:option\s+|[\"“'‘(\[])?({own})(?=[.,:;)\]\"”'’](?!\w)|\s\(|$)", text, re.I
        )
        if found[0] not in ("a", "i")
    }
    return set_off.pop() if len(set_off) == 1 else None


def _lists_all(text: str, letters: str) -> bool:
    """Whether a text reads out the options, one after the other."""
    return re.search(".*?".join(rf"(?<!\w){letter}[.:)]" for letter in letters[:3]), text) is not None


def _statements(text: str, own: str) -> list[re.Match[str]]:
    """Where a letter is said to be the answer; some of these are articles."""
    before = rf"{_SAYS}\s*[:=]?\s*{_NOUN}{_OPENING}({own}){_AFTER}"
    after = rf"(?<!\w)(?<!\w['’]){_OPENING}({own}){_PRAISED}"
    return [*re.finditer(before, text, re.I), *re.finditer(after, text, re.I)]


def _is_letter(found: re.Match[str], text: str) -> bool:
    """Whether a letter is not called wrong, and if it is an "a", whether it is an option and no article."""
    letter, rest = found[1], text[found.end(1) :]
    if re.match(_DISMISSED, rest, re.I):
        return False
    if letter not in "aA":
        return True
    if re.match(r"[\s\"'”’)\]]*(?:$|[.,:;()\]\"”!?-])", rest):
        return True
    follows_noun = re.search(
        r"(?:option|choice|letter|sentence)\s*[\"'“‘(\[]*$", text[: found.start(1)], re.I
    )
    is_reasoned = re.match(r"\s+(?:because|since|as|for|due|is|would|has|follows|uses)\b", rest, re.I)
    return bool(follows_noun or (is_reasoned and letter == "A"))


def _ordinal(text: str, letters: str) -> str | None:
    """The option that is called right by its place: "the second option is correct"."""
    places = "|".join(_ORDINALS[: len(letters)])
    noun = r"(?:option|choice|sentence|one|answer)"
    before = rf"{_SAYS}\s*(?:in\s+)?(?:the\s+)?({places})\s+{noun}\b"
    after = rf"\b({places})\s+{noun}{_PRAISED}"
    found = [*re.finditer(before, text, re.I), *re.finditer(after, text, re.I)]
    if not found:
        return None
    return letters[_ORDINALS.index(max(found, key=lambda each: each.start(1))[1].lower())]


def _mark(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[ItemScore]:
    return [
        (float(chosen_letter(answer, item.rubric.get("letters", LETTERS)) == item.answer),)
        for item, answer in zip(items, answers, strict=True)
    ]


CHOICE = Rule(
    name="choice",
    metric=METRICS["right"],
    about="Right means the expected option: the letter that the answer settles on. An answer from which no letter can"
    " be read is wrong.",
    mark=_mark,
)
