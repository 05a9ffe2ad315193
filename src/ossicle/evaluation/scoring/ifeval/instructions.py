"""The 25 kinds of instruction in IFEval, each with a check that an answer passes or fails.

Source: Zhou et al., "Instruction-Following Evaluation for Large Language Models", arXiv 2311.07911. The checks follow
its definitions, quirks included, so that numbers are comparable. A check that differs says so.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ossicle.errors import DataError
from ossicle.evaluation.scoring.ifeval.counting import count_capital_words, count_sentences, count_words
from ossicle.evaluation.scoring.ifeval.language import LANGUAGES, is_in_language

Arguments = Mapping[str, Any]
"""The arguments of an instruction: words, numbers and relations that the answer has to meet."""

_RELATIONS: Mapping[str, Callable[[float, float], bool]] = {
    "less than": lambda n, required: n < required,
    "at least": lambda n, required: n >= required,
}
_FIXED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FIRST_WORD_END = re.compile(r"[.,?!'\"]")


@dataclass(frozen=True, kw_only=True)
class InstructionKind:
    """A kind of instruction: its arguments, and the check of an answer."""

    argument_names: tuple[str, ...] = ()
    """Its arguments, all of them required."""
    follows: Callable[[str, Arguments], bool]


def _compare_count(
    count: Callable[[str, Arguments], float], number: str, relation: str
) -> Callable[[str, Arguments], bool]:
    """Returns a check that counts something in the answer and compares it with a number, by a relation."""
    return lambda answer, arguments: _RELATIONS[arguments[relation]](
        count(answer, arguments), arguments[number]
    )


def _count_keyword(answer: str, arguments: Arguments) -> int:
    """Returns how often a keyword occurs, also within other words."""
    return len(re.findall(re.escape(arguments["keyword"].strip()), answer, re.IGNORECASE))


def _has_keywords(answer: str, arguments: Arguments) -> bool:
    return all(keyword.lower() in answer.lower() for keyword in arguments["keywords"])


def _avoids_words(answer: str, arguments: Arguments) -> bool:
    """Whether no forbidden word occurs as a whole word."""
    words = (re.escape(word) for word in arguments["forbidden_words"])
    return not any(re.search(rf"(?<!\w){word}(?!\w)", answer, re.IGNORECASE) for word in words)


def _count_letter(answer: str, arguments: Arguments) -> int:
    """Returns how often a character occurs. The published check draws another one if it is not a letter."""
    return answer.lower().count(arguments["letter"].strip().lower())


def _has_paragraphs(answer: str, arguments: Arguments) -> bool:
    """Counts paragraphs between *** dividers; one divider may precede the first paragraph and one follow the last."""
    paragraphs = [part.strip() for part in answer.split("***")]
    inner = paragraphs[1:-1]
    return all(inner) and sum(map(bool, paragraphs)) == arguments["num_paragraphs"]


def _nth_paragraph_starts(answer: str, arguments: Arguments) -> bool:
    """Counts paragraphs between empty lines; the first word ends at its first punctuation."""
    paragraphs = [part.strip() for part in answer.split("\n\n")]
    n, nth = sum(map(bool, paragraphs)), int(arguments["nth_paragraph"])
    if n != arguments["num_paragraphs"] or not 1 <= nth <= n or not paragraphs[nth - 1]:
        return False
    word = paragraphs[nth - 1].split()[0].lstrip("'").lstrip('"')
    return _FIRST_WORD_END.split(word)[0].lower() == arguments["first_word"].strip().lower()


def _has_placeholders(answer: str, arguments: Arguments) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= arguments["num_placeholders"]


def _has_postscript(answer: str, arguments: Arguments) -> bool:
    """Looks for the marker anywhere, in any case; a space may follow its periods."""
    marker = re.escape(arguments["postscript_marker"].strip().lower()).replace(r"\.", r"\.\s?")
    return re.search(marker, answer.lower()) is not None


def _has_bullets(answer: str, arguments: Arguments) -> bool:
    """Counts lines that begin with "-" or with a single "*"; their number has to be exact."""
    lines = [line.lstrip() for line in answer.split("\n")]
    n = sum(line.startswith("-") or re.match(r"\*[^*]", line) is not None for line in lines)
    return n == arguments["num_bullets"]


def _has_highlights(answer: str, arguments: Arguments) -> bool:
    """Counts spans between single or between double asterisks that are not empty and stay within a line."""
    spans = [*re.findall(r"\*([^\n*]*)\*", answer), *re.findall(r"\*\*([^\n*]*)\*\*", answer)]
    return sum(bool(text.strip()) for text in spans) >= arguments["num_highlights"]


def _has_sections(answer: str, arguments: Arguments) -> bool:
    """Counts headings such as "Section 3". The data spells the key "section_spliter"."""
    heading = re.escape(arguments["section_spliter"].strip())
    return len(re.findall(rf"{heading}\s?\d+", answer)) >= arguments["num_sections"]


def _is_json(answer: str, arguments: Arguments) -> bool:
    """Whether the answer is JSON alone, or in a markdown code block."""
    content = re.sub(r"^```(?:json|Json|JSON)?|```$", "", answer.strip()).strip()
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _has_title(answer: str, arguments: Arguments) -> bool:
    return any(title.strip("<> \t") for title in re.findall(r"<<([^\n]+)>>", answer))


def _has_fixed_answer(answer: str, arguments: Arguments) -> bool:
    return any(fixed in answer for fixed in _FIXED_ANSWERS)


def _has_two_answers(answer: str, arguments: Arguments) -> bool:
    """Whether two different answers stand between ****** dividers; one divider may precede and one follow them."""
    parts = [part.strip() for part in answer.split("******")]
    inner, answers = parts[1:-1], [part for part in parts if part]
    return all(inner) and len(answers) == 2 and answers[0] != answers[1]


def _repeats_prompt(answer: str, arguments: Arguments) -> bool:
    return answer.strip().lower().startswith(arguments["prompt_to_repeat"].strip().lower())


def _ends_with(answer: str, arguments: Arguments) -> bool:
    return answer.strip().strip('"').lower().endswith(arguments["end_phrase"].strip().lower())


def _is_quoted(answer: str, arguments: Arguments) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


INSTRUCTION_KINDS: Mapping[str, InstructionKind] = {
    "keywords:existence": InstructionKind(argument_names=("keywords",), follows=_has_keywords),
    "keywords:frequency": InstructionKind(
        argument_names=("keyword", "frequency", "relation"),
        follows=_compare_count(_count_keyword, "frequency", "relation"),
    ),
    "keywords:forbidden_words": InstructionKind(argument_names=("forbidden_words",), follows=_avoids_words),
    "keywords:letter_frequency": InstructionKind(
        argument_names=("letter", "let_frequency", "let_relation"),
        follows=_compare_count(_count_letter, "let_frequency", "let_relation"),
    ),
    "language:response_language": InstructionKind(
        argument_names=("language",),
        follows=lambda answer, arguments: is_in_language(answer, arguments["language"]),
    ),
    "length_constraints:number_sentences": InstructionKind(
        argument_names=("num_sentences", "relation"),
        follows=_compare_count(lambda answer, _: count_sentences(answer), "num_sentences", "relation"),
    ),
    "length_constraints:number_paragraphs": InstructionKind(
        argument_names=("num_paragraphs",), follows=_has_paragraphs
    ),
    "length_constraints:number_words": InstructionKind(
        argument_names=("num_words", "relation"),
        follows=_compare_count(lambda answer, _: count_words(answer), "num_words", "relation"),
    ),
    "length_constraints:nth_paragraph_first_word": InstructionKind(
        argument_names=("num_paragraphs", "nth_paragraph", "first_word"), follows=_nth_paragraph_starts
    ),
    "detectable_content:number_placeholders": InstructionKind(
        argument_names=("num_placeholders",), follows=_has_placeholders
    ),
    "detectable_content:postscript": InstructionKind(
        argument_names=("postscript_marker",), follows=_has_postscript
    ),
    "detectable_format:number_bullet_lists": InstructionKind(
        argument_names=("num_bullets",), follows=_has_bullets
    ),
    "detectable_format:constrained_response": InstructionKind(follows=_has_fixed_answer),
    "detectable_format:number_highlighted_sections": InstructionKind(
        argument_names=("num_highlights",), follows=_has_highlights
    ),
    "detectable_format:multiple_sections": InstructionKind(
        argument_names=("section_spliter", "num_sections"), follows=_has_sections
    ),
    "detectable_format:json_format": InstructionKind(follows=_is_json),
    "detectable_format:title": InstructionKind(follows=_has_title),
    "combination:two_responses": InstructionKind(follows=_has_two_answers),
    "combination:repeat_prompt": InstructionKind(
        argument_names=("prompt_to_repeat",), follows=_repeats_prompt
    ),
    "startend:end_checker": InstructionKind(argument_names=("end_phrase",), follows=_ends_with),
    "startend:quotation": InstructionKind(follows=_is_quoted),
    "change_case:capital_word_frequency": InstructionKind(
        argument_names=("capital_frequency", "capital_relation"),
        follows=_compare_count(
            lambda answer, _: count_capital_words(answer), "capital_frequency", "capital_relation"
        ),
    ),
    "change_case:english_capital": InstructionKind(
        follows=lambda answer, _: answer.isupper() and is_in_language(answer, "en")
    ),
    "change_case:english_lowercase": InstructionKind(
        follows=lambda answer, _: answer.islower() and is_in_language(answer, "en")
    ),
    "punctuation:no_comma": InstructionKind(follows=lambda answer, _: "," not in answer),
}
"""All kinds, by their names in the published data."""


def follows_instruction(answer: str, name: str, arguments: Arguments) -> bool:
    """Whether an answer follows an instruction that `check_instruction` accepts; an empty answer does not."""
    return bool(answer.strip()) and INSTRUCTION_KINDS[name].follows(answer, arguments)


def check_instruction(name: str, arguments: Arguments) -> None:
    """Refuses an instruction that cannot be checked.

    Raises:
        DataError: an unknown kind, or an argument that is missing or of the wrong type; the caller adds the position
    """
    if name not in INSTRUCTION_KINDS:
        raise DataError(f"instruction {name!r} is none of IFEval's kinds: {', '.join(INSTRUCTION_KINDS)}")
    for argument in INSTRUCTION_KINDS[name].argument_names:
        value = arguments.get(argument)
        expected, is_valid = _expected_value(argument)
        if not is_valid(value):
            raise DataError(f"instruction {name!r}: {argument} is {value!r}, expected {expected}")


def _expected_value(argument: str) -> tuple[str, Callable[[Any], bool]]:
    """Returns the valid values of an argument, in words and as a check."""
    if "relation" in argument:
        return " or ".join(map(repr, _RELATIONS)), _RELATIONS.__contains__
    if argument == "language":
        return f"one of {', '.join(LANGUAGES)}", LANGUAGES.__contains__
    if "num" in argument or "frequency" in argument or argument == "nth_paragraph":
        return "a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    if argument in ("keywords", "forbidden_words"):
        return "a list of words", _is_word_list
    return "a text", lambda value: isinstance(value, str) and bool(value.strip())


def _is_word_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) and word for word in value)
