"""Big Bench Audio: spoken questions that need several steps of reasoning."""

from collections.abc import Iterator

from ossicle.errors import DataError
from ossicle.evaluation.scoring.reasoning import VALIDITY_VERDICTS
from ossicle.evaluation.suite import Item, Suite
from ossicle.evaluation.suites.hub_tables import format_table_name, read_audio, read_published_rows, read_text

BIG_BENCH_AUDIO = "fixie-ai/big_bench_audio"
"""ArtificialAnalysis/big_bench_audio with its transcripts, which the text ceiling reads."""
CATEGORIES = ("formal_fallacies", "navigate", "object_counting", "web_of_lies")
MAX_NEW_TOKENS = 512
"""Leaves room for reasoning before the answer."""


def open_bigbench(part: str, data: str | None) -> Suite:
    """Returns Big Bench Audio: a thousand questions of BIG-Bench Hard as speech, or one of their four categories.

    The sound holds the whole question; there is no written instruction. Published leaderboards let a model compare the
    answer with the official one; here rules find its conclusion.

    Raises:
        DataError: no such category, or data that differs from the published form

    Source: Artificial Analysis, Big Bench Audio, 2024, after Suzgun et al., arXiv 2210.09261.
    """
    if part and part not in CATEGORIES:
        raise DataError(f"bigbenchaudio has no category {part!r}; expected one of {', '.join(CATEGORIES)}")
    return Suite(
        name=f"bigbenchaudio/{part}" if part else "bigbenchaudio",
        items=tuple(item for item in _read_items(data or BIG_BENCH_AUDIO) if not part or item.group == part),
        description="Big Bench Audio: questions of BIG-Bench Hard in synthetic speech (Artificial Analysis 2024, after"
        " Suzgun et al. 2022, arXiv 2210.09261).",
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _read_items(source: str) -> Iterator[Item]:
    table = format_table_name(source, None, "train")
    columns = ("audio", "category", "official_answer", "transcript")
    rows = read_published_rows(source, config=None, split="train", columns=columns)
    for number, row in enumerate(rows, start=1):
        row_name = f"{table}, row {number}"
        category, answer = (
            read_text(row, "category", row_name),
            read_text(row, "official_answer", row_name).lower(),
        )
        if category not in CATEGORIES:
            raise DataError(f"{row_name}: category is {category!r}, expected one of {', '.join(CATEGORIES)}")
        is_yes_or_no = answer in ("yes", "no")
        if not (is_yes_or_no or answer in VALIDITY_VERDICTS or answer.isdecimal()):
            raise DataError(
                f"{row_name}: official_answer is {answer[:80]!r}, expected yes, no, valid, invalid or a number"
            )
        yield Item(
            id=f"{number:04d}",
            audio=read_audio(row, "audio", row_name, source),
            text=read_text(row, "transcript", row_name),
            answer=answer,
            group=category,
            rule="bbh" if is_yes_or_no else "final",
            rubric={"task": category} if is_yes_or_no else {},
        )
