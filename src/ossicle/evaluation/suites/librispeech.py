"""Read sentences to be repeated word for word: LibriSpeech, as a measure of how exactly an ear hears."""

from collections.abc import Iterator

from ossicle.errors import DataError
from ossicle.evaluation.suite import Item, Suite
from ossicle.evaluation.suites.hub_tables import format_table_name, read_audio, read_published_rows, read_text

LIBRISPEECH = "openslr/librispeech_asr"
SUBSETS = ("clean", "other")
"""The two test sets: speakers who are easy to recognise, and those who are not."""
INSTRUCTION = "Repeat word for word what I said. Say nothing else."
MAX_NEW_TOKENS = 256
"""The longest test sentence, 35 seconds, has some 90 words."""


def open_librispeech(part: str, data: str | None) -> Suite:
    """LibriSpeech's test sets, or "librispeech/clean" or "librispeech/other" alone, repeated by the LLM.

    This is the word error rate of an LLM that is told to repeat, in all three columns, not that of a recogniser: an
    LLM that mends a sentence or adds a phrase is charged for it, also where it reads the true transcript. Transcripts,
    published in capitals, are read as sentences.

    Raises:
        DataError: no such test set, or data that is not as published

    Source: Panayotov et al., ICASSP 2015, doi 10.1109/ICASSP.2015.7178964.
    """
    subset = part.removeprefix("test.")
    if part and subset not in SUBSETS:
        raise DataError(
            f"librispeech has no test set {part!r}; expected {' or '.join(SUBSETS)}, or none for both"
        )
    items = [item for name in ((subset,) if part else SUBSETS) for item in _items(data or LIBRISPEECH, name)]
    return Suite(
        name=f"librispeech/{subset}" if part else "librispeech",
        items=tuple(items),
        description="LibriSpeech's test sets, to be repeated word for word (Panayotov et al. 2015): the word error rate"
        " of an LLM that repeats, not of an ASR model.",
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _items(place: str, subset: str) -> Iterator[Item]:
    where = format_table_name(place, subset, "test")
    rows = read_published_rows(place, config=subset, split="test", columns=("id", "audio", "text"))
    for number, row in enumerate(rows, start=1):
        name = f"{where}, row {number}"
        text = read_text(row, "text", name).capitalize() + "."
        yield Item(
            id=read_text(row, "id", name),
            audio=read_audio(row, "audio", name, place),
            text=text,
            instruction=INSTRUCTION,
            answer=text,
            group=f"test.{subset}",
            rule="wer",
        )
