"""Spoken factual questions, answered from the LLM's own knowledge: SD-QA in eleven accents, and HeySQuAD."""

from collections.abc import Iterator
from typing import Any

from ossicle.errors import DataError
from ossicle.evaluation.suite import Item, Suite
from ossicle.evaluation.suites.hub_tables import format_table_name, read_audio, read_published_rows, read_text

SDQA, HEYSQUAD = "WillHeld/SD-QA", "yijingwu/HeySQuAD_human"
ACCENTS = {
    "usa": "United States",
    "gbr": "Great Britain",
    "aus": "Australia",
    "nzl": "New Zealand",
    "irl": "Ireland",
    "zaf": "South Africa",
    "nga": "Nigeria",
    "kenya": "Kenya",
    "ind_n": "Northern India",
    "ind_s": "Southern India",
    "phl": "Philippines",
}
"""SD-QA's sound columns, and the regions of their speakers."""
INSTRUCTION = "Answer in one short sentence."
MAX_NEW_TOKENS = 64
"""As in the published evaluation."""


def open_sdqa(part: str, data: str | None) -> Suite:
    """Returns SD-QA: questions of TyDi QA read in eleven accents of English, or in one of them ("sd-qa/usa").

    As in DiVA's evaluation, these are the questions of the dev split that have an answer, and the instruction asks for
    a short sentence. Recordings that are missing in a row are left out.

    Raises:
        DataError: no such accent, or data that differs from the published form

    Source: Faisal et al., SD-QA, arXiv 2109.12072; SALT-NLP/DiVA-Eval.
    """
    if part and part not in ACCENTS:
        raise DataError(
            f"sd-qa has no accent {part!r}; expected one of {', '.join(ACCENTS)}, or none for all"
        )
    return Suite(
        name=f"sd-qa/{part}" if part else "sd-qa",
        items=tuple(_read_sdqa_items(data or SDQA, (part,) if part else tuple(ACCENTS))),
        description="SD-QA: factual questions in accents of English, answered without a source"
        " (Faisal et al. 2021, arXiv 2109.12072).",
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _read_sdqa_items(source: str, accents: tuple[str, ...]) -> Iterator[Item]:
    table = format_table_name(source, None, "dev")
    rows = read_published_rows(
        source, config=None, split="dev", columns=("id", "question", "answers", *accents)
    )
    for number, row in enumerate(rows, start=1):
        row_name = f"{table}, row {number}"
        answers = _parse_answers(row["answers"], row_name)
        for accent in accents:
            if answers and row[accent] is not None:
                yield Item(
                    id=f"{row['id']}-{accent}",
                    audio=read_audio(row, accent, row_name, source),
                    text=read_text(row, "question", row_name),
                    instruction=INSTRUCTION,
                    answer=answers[0],
                    group=ACCENTS[accent],
                    rule="panda",
                    rubric={"answers": answers},
                )


def open_heysquad(part: str, data: str | None) -> Suite:
    """Returns HeySQuAD: questions of SQuAD read by many people, asked without the passage that answers them.

    As in DiVA's evaluation, these are the questions of the validation split that have an answer, without context, and
    the instruction asks for a short sentence. SQuAD's questions were written about a passage, so some cannot be
    answered without it.

    Raises:
        DataError: a part is named, or data that differs from the published form

    Source: Wu et al., HeySQuAD, arXiv 2304.13689; SALT-NLP/DiVA-Eval.
    """
    if part:
        raise DataError(f"heysquad has no part {part!r}; give the name alone")
    return Suite(
        name="heysquad",
        items=tuple(_read_heysquad_items(data or HEYSQUAD)),
        description="HeySQuAD: questions of SQuAD in human voices, answered without their passage (Wu et al. 2023,"
        " arXiv 2304.13689).",
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _read_heysquad_items(source: str) -> Iterator[Item]:
    table = format_table_name(source, None, "validation")
    rows = read_published_rows(
        source, config=None, split="validation", columns=("id", "audio", "question", "answers")
    )
    for number, row in enumerate(rows, start=1):
        row_name = f"{table}, row {number}"
        if answers := _parse_answers(row["answers"], row_name):
            yield Item(
                id=f"{number:04d}-{row['id']}",  # one question may have been read by several people
                audio=read_audio(row, "audio", row_name, source),
                text=read_text(row, "question", row_name),
                instruction=INSTRUCTION,
                answer=answers[0],
                rule="panda",
                rubric={"answers": answers},
            )


def _parse_answers(value: Any, row_name: str) -> list[str]:
    """Returns the distinct answers of a list of texts, a list of {"text": text}, or {"text": texts}.

    Raises:
        DataError: a value of another form
    """
    answers = value.get("text") if isinstance(value, dict) else value
    answers = [answer.get("text") if isinstance(answer, dict) else answer for answer in answers or ()]
    if not all(isinstance(answer, str) for answer in answers):
        raise DataError(
            f"{row_name}: answers is {str(value)[:80]}, expected a list of texts; download it again"
        )
    return list(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
