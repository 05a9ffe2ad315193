"""The 25 kinds of instruction in IFEval, each with a check that an answer passes or not; it knows no suites or scores.

Source of all of them: Zhou et al., "Instruction-Following Evaluation for Large Language Models", arXiv 2311.07911, whose
definitions the checks follow, quirks included, so that numbers can be compared. Where that is not so, the check says.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ossicle.errors import DataError
from ossicle.evaluation.scoring.ifeval.language import LANGUAGES, is_in
from ossicle.evaluation.scoring.ifeval.words import n_capital_words, n_sentences, n_words

Arguments = Mapping[str, Any]
"""What an instruction names: the words, numbers and relations that the answer is held to."""

_RELATIONS: Mapping[str, Callable[[float, float], bool]] = {
    "less than": lambda n, wanted: n < wanted,
    "at least": lambda n, wanted: n >= wanted,
}
_FIXED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ENDS_FIRST_WORD = re.compile(r"[.,?!'\"]")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of instruction: what it names, and whether an answer follows it."""

    names: tuple[str, ...] = ()
    """The arguments that it has; without one of them it cannot be checked."""
    follows: Callable[[str, Arguments], bool]


def _compared(
    count: Callable[[str, Arguments], float], number: str, relation: str
) -> Callable[[str, Arguments], bool]:
    """A check that counts something in the answer and holds it against a number, by a relation."""
    return lambda answer, given: _RELATIONS[given[relation]](count(answer, given), given[number])


def _n_keyword(answer: str, given: Arguments) -> int:
    """How often a keyword occurs, within other words too."""
    return len(re.findall(re.escape(given["keyword"].strip()), answer, re.IGNORECASE))


def _has_keywords(answer: str, given: Arguments) -> bool:
    return all(keyword.lower() in answer.lower() for keyword in given["keywords"])


def _avoids_words(answer: str, given: Arguments) -> bool:
    """Only whole words are forbidden."""
    words = (re.escape(word) for word in given["forbidden_words"])
    return not any(re.search(rf"(?<!\w){word}(?!\w)", answer, re.IGNORECASE) for word in words)


def _n_letter(answer: str, given: Arguments) -> int:
    """How often a character occurs; the published check draws another one where it is not a letter."""
    return answer.lower().count(given["letter"].strip().lower())


def _has_paragraphs(answer: str, given: Arguments) -> bool:
    """Paragraphs between *** dividers, of which one may stand before the first and one after the last."""
    pieces = [piece.strip() for piece in answer.split("***")]
    inner = pieces[1:-1]
    return all(inner) and sum(map(bool, pieces)) == given["num_paragraphs"]


def _nth_paragraph_begins(answer: str, given: Arguments) -> bool:
    """Paragraphs between empty lines; the first word of one counts up to its first punctuation."""
    pieces = [piece.strip() for piece in answer.split("\n\n")]
    n, nth = sum(map(bool, pieces)), int(given["nth_paragraph"])
    if n != given["num_paragraphs"] or not 1 <= nth <= n or not pieces[nth - 1]:
        return False
    word = pieces[nth - 1].split()[0].lstrip("'").lstrip('"')
    return _ENDS_FIRST_WORD.split(word)[0].lower() == given["first_word"].strip().lower()


def _has_placeholders(answer: str, given: Arguments) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= given["num_placeholders"]


def _has_postscript(answer: str, given: Arguments) -> bool:
    """The marker anywhere, in any case; a space may follow its full stops."""
    marker = re.escape(given["postscript_marker"].strip().lower()).replace(r"\.", r"\.\s?")
    return re.search(marker, answer.lower()) is not None


def _has_bullets(answer: str, given: Arguments) -> bool:
    """Exactly so many lines that begin with "-", or with a "*" that is not doubled."""
    lines = [line.lstrip() for line in answer.split("\n")]
    n = sum(line.startswith("-") or re.match(r"\*[^*]", line) is not None for line in lines)
    return n == given["num_bullets"]


def _has_highlights(answer: str, given: Arguments) -> bool:
    """So many stretches between single or between double asterisks, neither empty nor across lines."""
    between = [*re.findall(r"\*([^\n*]*)\*", answer), *re.findall(r"\*\*([^\n*]*)\*\*", answer)]
    return sum(bool(text.strip()) for text in between) >= given["num_highlights"]


def _has_sections(answer: str, given: Arguments) -> bool:
    """So many headings such as "Section 3"; the key that names the word is spelt so in the data."""
    heading = re.escape(given["section_spliter"].strip())
    return len(re.findall(rf"{heading}\s?\d+", answer)) >= given["num_sections"]


def _is_json(answer: str, given: Arguments) -> bool:
    """JSON alone, or between the ticks that markdown has for it."""
    inner = re.sub(r"^```(?:json|Json|JSON)?|```$", "", answer.strip()).strip()
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


def _has_title(answer: str, given: Arguments) -> bool:
    return any(title.strip("<> \t") for title in re.findall(r"<<([^\n]+)>>", answer))


def _is_fixed(answer: str, given: Arguments) -> bool:
    return any(fixed in answer for fixed in _FIXED_ANSWERS)


def _has_two_answers(answer: str, given: Arguments) -> bool:
    """Two that differ between ****** dividers, of which one may stand before the first and one after the last."""
    pieces = [piece.strip() for piece in answer.split("******")]
    inner, said = pieces[1:-1], [piece for piece in pieces if piece]
    return all(inner) and len(said) == 2 and said[0] != said[1]


def _repeats_prompt(answer: str, given: Arguments) -> bool:
    return answer.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


def _ends_with(answer: str, given: Arguments) -> bool:
    return answer.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def _is_quoted(answer: str, given: Arguments) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


KINDS: Mapping[str, Kind] = {
    "keywords:existence": Kind(names=("keywords",), follows=_has_keywords),
    "keywords:frequency": Kind(
        names=("keyword", "frequency", "relation"), follows=_compared(_n_keyword, "frequency", "relation")
    ),
    "keywords:forbidden_words": Kind(names=("forbidden_words",), follows=_avoids_words),
    "keywords:letter_frequency": Kind(
        names=("letter", "let_frequency", "let_relation"),
        follows=_compared(_n_letter, "let_frequency", "let_relation"),
    ),
    "language:response_language": Kind(
        names=("language",), follows=lambda answer, given: is_in(answer, given["language"])
    ),
    "length_constraints:number_sentences": Kind(
        names=("num_sentences", "relation"),
        follows=_compared(lambda answer, _: n_sentences(answer), "num_sentences", "relation"),
    ),
    "length_constraints:number_paragraphs": Kind(names=("num_paragraphs",), follows=_has_paragraphs),
    "length_constraints:number_words": Kind(
        names=("num_words", "relation"),
        follows=_compared(lambda answer, _: n_words(answer), "num_words", "relation"),
    ),
    "length_constraints:nth_paragraph_first_word": Kind(
        names=("num_paragraphs", "nth_paragraph", "first_word"), follows=_nth_paragraph_begins
    ),
    "detectable_content:number_placeholders": Kind(names=("num_placeholders",), follows=_has_placeholders),
    "detectable_content:postscript": Kind(names=("postscript_marker",), follows=_has_postscript),
    "detectable_format:number_bullet_lists": Kind(names=("num_bullets",), follows=_has_bullets),
    "detectable_format:constrained_response": Kind(follows=_is_fixed),
    "detectable_format:number_highlighted_sections": Kind(names=("num_highlights",), follows=_has_highlights),
    "detectable_format:multiple_sections": Kind(
        names=("section_spliter", "num_sections"), follows=_has_sections
    ),
    "detectable_format:json_format": Kind(follows=_is_json),
    "detectable_format:title": Kind(follows=_has_title),
    "combination:two_responses": Kind(follows=_has_two_answers),
    "combination:repeat_prompt": Kind(names=("prompt_to_repeat",), follows=_repeats_prompt),
    "startend:end_checker": Kind(names=("end_phrase",), follows=_ends_with),
    "startend:quotation": Kind(follows=_is_quoted),
    "change_case:capital_word_frequency": Kind(
        names=("capital_frequency", "capital_relation"),
        follows=_compared(lambda answer, _: n_capital_words(answer), "capital_frequency", "capital_relation"),
    ),
    "change_case:english_capital": Kind(follows=lambda answer, _: answer.isupper() and is_in(answer, "en")),
    "change_case:english_lowercase": Kind(follows=lambda answer, _: answer.islower() and is_in(answer, "en")),
    "punctuation:no_comma": Kind(follows=lambda answer, _: "," not in answer),
}
"""Every kind, by its name in the published data."""


def follows(answer: str, name: str, arguments: Arguments) -> bool:
    """Whether an answer follows an instruction that `check_instruction` has nothing against; an empty one does not."""
    return bool(answer.strip()) and KINDS[name].follows(answer, arguments)


def check_instruction(name: str, arguments: Arguments) -> None:
    """Refuse an instruction that no answer could be held to.

    Raises:
        DataError: an unknown kind, or an argument that is missing or not of its type; without the place
    """
    if name not in KINDS:
        raise DataError(f"instruction {name!r} is none of IFEval's kinds: {', '.join(KINDS)}")
    for argument in KINDS[name].names:
        given = arguments.get(argument)
        expected, is_such = _expected(argument)
        if not is_such(given):
            raise DataError(f"instruction {name!r}: {argument} is {given!r}, expected {expected}")


def _expected(argument: str) -> tuple[str, Callable[[Any], bool]]:
    """What an argument has to be, in words and as a check."""
    if "relation" in argument:
        return " or ".join(map(repr, _RELATIONS)), _RELATIONS.__contains__
    if argument == "language":
        return f"one of {', '.join(LANGUAGES)}", LANGUAGES.__contains__
    if "num" in argument or "frequency" in argument or argument == "nth_paragraph":
        return "a number", lambda given: isinstance(given, int | float) and not isinstance(given, bool)
    if argument in ("keywords", "forbidden_words"):
        return "a list of words", _is_words
    return "a text", lambda given: isinstance(given, str) and bool(given.strip())


def _is_words(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(word, str) and word for word in given)
