"""IEMOCAP and MELD: which emotion a voice shows, as one word out of a few."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ossicle.errors import DataError
from ossicle.evaluation.suite import Item, Suite
from ossicle.evaluation.suites.hub_tables import format_table_name, read_audio, read_published_rows, read_text


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Where a corpus of emotional speech is published, and its columns and labels."""

    hub_id: str
    split: str
    id_column: str
    text_column: str
    label_column: str
    choices: Mapping[str, str]
    """From published labels to the words that the LLM chooses from."""
    has_other_labels: bool = False
    """Whether there are rows with other labels, which the usual evaluation leaves out."""


IEMOCAP = Corpus(
    hub_id="AbstractTTS/IEMOCAP",
    split="train",
    id_column="file",
    text_column="transcription",
    label_column="major_emotion",
    choices={
        "angry": "Anger",
        "happy": "Happiness",
        "excited": "Happiness",
        "neutral": "Neutral",
        "sad": "Sadness",
    },
    has_other_labels=True,  # frustrated, surprise, fear, disgust, other, and no agreement
)
MELD = Corpus(
    hub_id="ajyy/MELD_audio@refs/convert/parquet",
    split="test",
    id_column="path",
    text_column="text",
    label_column="emotion",
    choices={
        "anger": "Anger",
        "disgust": "Disgust",
        "fear": "Fear",
        "joy": "Joy",
        "neutral": "Neutral",
        "sadness": "Sadness",
        "surprise": "Surprise",
    },
)


def open_iemocap(part: str, data: str | None) -> Suite:
    """Returns IEMOCAP: acted dialogues, four emotions, all five sessions; "excited" counts as happiness, as is usual.

    DiVA's evaluation uses a copy without transcripts, from which no text ceiling can be computed, and reports a
    weighted F1 over labels; this is accuracy.

    Raises:
        DataError: a part is named, or data that differs from the published form

    Source: Busso et al., 2008, doi 10.1007/s10579-008-9076-6; the labels as in SALT-NLP/DiVA-Eval.
    """
    description = "IEMOCAP: which of four emotions an actor's voice shows (Busso et al. 2008); accuracy."
    return _open_corpus("iemocap", part, data, IEMOCAP, description)


def open_meld(part: str, data: str | None) -> Suite:
    """Returns MELD's test split: dialogues of the series Friends, seven emotions.

    DiVA's evaluation reports a weighted F1 over labels; this is accuracy.

    Raises:
        DataError: a part is named, or data that differs from the published form

    Source: Poria et al., MELD, arXiv 1810.02508; the labels as in SALT-NLP/DiVA-Eval.
    """
    description = (
        "MELD: which of seven emotions a voice of a television series shows (Poria et al. 2019, arXiv 1810.02508);"
        " accuracy."
    )
    return _open_corpus("meld", part, data, MELD, description)


def _open_corpus(name: str, part: str, data: str | None, corpus: Corpus, description: str) -> Suite:
    if part:
        raise DataError(f"{name} has no part {part!r}; give the name alone")
    return Suite(name=name, items=tuple(_read_items(data or corpus.hub_id, corpus)), description=description)


def _read_items(source: str, corpus: Corpus) -> Iterator[Item]:
    choices = tuple(dict.fromkeys(corpus.choices.values()))
    instruction = f"Which emotion does my voice show? Answer with one word: {', '.join(choices)}."
    table = format_table_name(source, None, corpus.split)
    columns = (corpus.id_column, "audio", corpus.text_column, corpus.label_column)
    rows = read_published_rows(source, config=None, split=corpus.split, columns=columns)
    for number, row in enumerate(rows, start=1):
        row_name = f"{table}, row {number}"
        label = read_text(row, corpus.label_column, row_name).lower()
        if label not in corpus.choices and corpus.has_other_labels:
            continue
        if label not in corpus.choices:
            raise DataError(
                f"{row_name}: {corpus.label_column} is {label!r}, expected one of {', '.join(corpus.choices)}"
            )
        yield Item(
            id=read_text(row, corpus.id_column, row_name),
            audio=read_audio(row, "audio", row_name, source),
            text=read_text(row, corpus.text_column, row_name),
            instruction=instruction,
            answer=corpus.choices[label],
            rule="label",
            choices=choices,
        )
