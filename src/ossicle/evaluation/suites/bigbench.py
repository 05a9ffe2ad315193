"""Spoken puzzles that take several steps of thought: Big Bench Audio."""

from collections.abc import Iterator

from ossicle.errors import DataError
from ossicle.evaluation.scoring.reasoning import VALIDITY_VERDICTS
from ossicle.evaluation.suite import Item, Suite
from ossicle.evaluation.suites.hub_tables import format_table_name, read_audio, read_published_rows, read_text

BIG_BENCH_AUDIO = "fixie-ai/big_bench_audio"
"""ArtificialAnalysis/big_bench_audio with its transcripts, which the text ceiling reads."""
CATEGORIES = ("formal_fallacies", "navigate", "object_counting", "web_of_lies")
MAX_NEW_TOKENS = 512
"""Room to think aloud."""


def open_bigbench(part: str, data: str | None) -> Suite:
    """Big Bench Audio: a thousand questions of BIG-Bench Hard read out, or one of their four categories.

    The question is all in the sound, with no instruction beside it. Published leaderboards let a model compare the
    answer with the official one; here rules find its conclusion.

    Raises:
        DataError: no such category, or data that is not as published

    Source: Artificial Analysis, Big Bench Audio, 2024, after Suzgun et al., arXiv 2210.09261.
    """
    if part and part not in CATEGORIES:
        raise DataError(f"bigbenchaudio has no category {part!r}; expected one of {', '.join(CATEGORIES)}")
    return Suite(
        name=f"bigbenchaudio/{part}" if part else "bigbenchaudio",
        items=tuple(item for item in _items(data or BIG_BENCH_AUDIO) if not part or item.group == part),
        description="Big Bench Audio: questions of BIG-Bench Hard in synthetic speech (Artificial Analysis 2024, after"
        " Suzgun et al. 2022, arXiv 2210.09261).",
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _items(place: str) -> Iterator[Item]:
    where = format_table_name(place, None, "train")
    columns = ("audio", "category", "official_answer", "transcript")
    rows = read_published_rows(place, config=None, split="train", columns=columns)
    for number, row in enumerate(rows, start=1):
        name = f"{where}, row {number}"
        category, answer = read_text(row, "category", name), read_text(row, "official_answer", name).lower()
        if category not in CATEGORIES:
            raise DataError(f"{name}: category is {category!r}, expected one of {', '.join(CATEGORIES)}")
        is_yes_or_no = answer in ("yes", "no")
        if not (is_yes_or_no or answer in VALIDITY_VERDICTS or answer.isdecimal()):
            raise DataError(
                f"{name}: official_answer is {answer[:80]!r}, expected yes, no, valid, invalid or a number"
            )
        yield Item(
            id=f"{number:04d}",
            audio=read_audio(row, "audio", name, place),
            text=read_text(row, "transcript", name),
            answer=answer,
            group=category,
            rule="bbh" if is_yes_or_no else "final",
            rubric={"task": category} if is_yes_or_no else {},
        )
