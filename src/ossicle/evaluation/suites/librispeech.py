"""LibriSpeech: read sentences to be repeated word for word, which measures how exactly an ear hears."""

from collections.abc import Iterator

from ossicle.errors import DataError
from ossicle.evaluation.suite import Item, Suite
from ossicle.evaluation.suites.hub_tables import format_table_name, read_audio, read_published_rows, read_text

LIBRISPEECH = "openslr/librispeech_asr"
SUBSETS = ("clean", "other")
"""The two test sets: speakers who are easy to recognize, and speakers who are not."""
INSTRUCTION = "Repeat word for word what I said. Say nothing else."
MAX_NEW_TOKENS = 256
"""The longest test sentence, 35 seconds, has some 90 words."""


def open_librispeech(part: str, data: str | None) -> Suite:
    """Returns LibriSpeech's test sets, or "librispeech/clean" or "librispeech/other" alone, to be repeated by the LLM.

    In all three columns this is the word error rate of an LLM that is asked to repeat, not that of an ASR model. An
    LLM that corrects a sentence or adds a phrase makes errors, even if it reads the true transcript. Transcripts are
    published in capitals and turned into sentences here.

    Raises:
        DataError: no such test set, or data that differs from the published form

    Source: Panayotov et al., ICASSP 2015, doi 10.1109/ICASSP.2015.7178964.
    """
    subset = part.removeprefix("test.")
    if part and subset not in SUBSETS:
        raise DataError(
            f"librispeech has no test set {part!r}; expected {' or '.join(SUBSETS)}, or none for both"
        )
    items = [
        item for name in ((subset,) if part else SUBSETS) for item in _read_items(data or LIBRISPEECH, name)
    ]
    return Suite(
        name=f"librispeech/{subset}" if part else "librispeech",
        items=tuple(items),
        description="LibriSpeech's test sets, to be repeated word for word (Panayotov et al. 2015): the word error rate"
        " of an LLM that repeats, not of an ASR model.",
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _read_items(source: str, subset: str) -> Iterator[Item]:
    table = format_table_name(source, subset, "test")
    rows = read_published_rows(source, config=subset, split="test", columns=("id", "audio", "text"))
    for number, row in enumerate(rows, start=1):
        row_name = f"{table}, row {number}"
        text = read_text(row, "text", row_name).capitalize() + "."
        yield Item(
            id=read_text(row, "id", row_name),
            audio=read_audio(row, "audio", row_name, source),
            text=text,
            instruction=INSTRUCTION,
            answer=text,
            group=f"test.{subset}",
            rule="wer",
        )
