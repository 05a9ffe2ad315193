"""Spoken questions of fact, answered from what the LLM knows: SD-QA in eleven accents, and HeySQuAD's human voices."""

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
"""SD-QA's columns of sound, and where their speakers are from."""
INSTRUCTION = "Answer in one short sentence."
MAX_NEW_TOKENS = 64
"""As in the published evaluation."""


def open_sdqa(part: str, data: str | None) -> Suite:
    """SD-QA: questions of TyDi QA read out by speakers of eleven kinds of English, or of one of them ("sd-qa/usa").

    As in DiVA's evaluation: the dev split, questions with an answer, a short sentence asked for. A recording that is
    missing in a row is left out.

    Raises:
        DataError: no such accent, or data that is not as published

    Source: Faisal et al., SD-QA, arXiv 2109.12072; SALT-NLP/DiVA-Eval.
    """
    if part and part not in ACCENTS:
        raise DataError(
            f"sd-qa has no accent {part!r}; expected one of {', '.join(ACCENTS)}, or none for all"
        )
    return Suite(
        name=f"sd-qa/{part}" if part else "sd-qa",
        items=tuple(_sdqa_items(data or SDQA, (part,) if part else tuple(ACCENTS))),
        description="SD-QA: questions of fact in accents of English, answered without a source"
        " (Faisal et al. 2021, arXiv 2109.12072).",
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _sdqa_items(place: str, accents: tuple[str, ...]) -> Iterator[Item]:
    where = format_table_name(place, None, "dev")
    rows = read_published_rows(
        place, config=None, split="dev", columns=("id", "question", "answers", *accents)
    )
    for number, row in enumerate(rows, start=1):
        name = f"{where}, row {number}"
        answers = _answers(row["answers"], name)
        for accent in accents:
            if answers and row[accent] is not None:
                yield Item(
                    id=f"{row['id']}-{accent}",
                    audio=read_audio(row, accent, name, place),
                    text=read_text(row, "question", name),
                    instruction=INSTRUCTION,
                    answer=answers[0],
                    group=ACCENTS[accent],
                    rule="panda",
                    rubric={"answers": answers},
                )


def open_heysquad(part: str, data: str | None) -> Suite:
    """HeySQuAD: questions of SQuAD read out by many people, asked without the passage that answers them.

    As in DiVA's evaluation: the validation split, questions that have an answer, no context, a short sentence asked
    for. SQuAD's questions were written beside a passage, so that some cannot be answered without it.

    Raises:
        DataError: a part is named, or data that is not as published

    Source: Wu et al., HeySQuAD, arXiv 2304.13689; SALT-NLP/DiVA-Eval.
    """
    if part:
        raise DataError(f"heysquad has no part {part!r}; give the name alone")
    return Suite(
        name="heysquad",
        items=tuple(_heysquad_items(data or HEYSQUAD)),
        description="HeySQuAD: questions of SQuAD by human voices, answered without their passage (Wu et al. 2023, arXiv"
        " 2304.13689).",
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _heysquad_items(place: str) -> Iterator[Item]:
    where = format_table_name(place, None, "validation")
    rows = read_published_rows(
        place, config=None, split="validation", columns=("id", "audio", "question", "answers")
    )
    for number, row in enumerate(rows, start=1):
        name = f"{where}, row {number}"
        if answers := _answers(row["answers"], name):
            yield Item(
                id=f"{number:04d}-{row['id']}",  # one question may have been read by several people
                audio=read_audio(row, "audio", name, place),
                text=read_text(row, "question", name),
                instruction=INSTRUCTION,
                answer=answers[0],
                rule="panda",
                rubric={"answers": answers},
            )


def _answers(value: Any, name: str) -> list[str]:
    """Each different answer once: a list of texts, or of {"text"}, or {"text": texts}; none where there is no answer.

    Raises:
        DataError: something else
    """
    found = value.get("text") if isinstance(value, dict) else value
    found = [answer.get("text") if isinstance(answer, dict) else answer for answer in found or ()]
    if not all(isinstance(answer, str) for answer in found):
        raise DataError(f"{name}: answers is {str(value)[:80]}, expected a list of texts; download it again")
    return list(dict.fromkeys(answer.strip() for answer in found if answer.strip()))
