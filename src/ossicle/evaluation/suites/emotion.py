"""Which emotion a voice shows, one word of a few: IEMOCAP and MELD."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ossicle.errors import DataError
from ossicle.evaluation.suite import Item, Suite
from ossicle.evaluation.suites.hub_tables import format_table_name, read_audio, read_published_rows, read_text


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Where a corpus of emotions is, and what it calls them."""

    place: str
    split: str
    id: str
    """Column that names the recording; text and label alike."""
    text: str
    label: str
    words: Mapping[str, str]
    """From published labels to the words among which the LLM chooses."""
    has_others: bool = False
    """Whether there are rows of other labels, which the usual evaluation leaves out."""


IEMOCAP = Corpus(
    place="AbstractTTS/IEMOCAP",
    split="train",
    id="file",
    text="transcription",
    label="major_emotion",
    words={
        "angry": "Anger",
        "happy": "Happiness",
        "excited": "Happiness",
        "neutral": "Neutral",
        "sad": "Sadness",
    },
    has_others=True,  # frustrated, surprise, fear, disgust, other, and where the raters did not agree
)
MELD = Corpus(
    place="ajyy/MELD_audio@refs/convert/parquet",
    split="test",
    id="path",
    text="text",
    label="emotion",
    words={
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
    """IEMOCAP: acted dialogues, four emotions, all five sessions; "excited" counts as happiness, as is usual.

    DiVA's evaluation takes a copy without transcripts, which leaves the text ceiling nothing to read, and reports a
    weighted F1 over labels; this is accuracy.

    Raises:
        DataError: a part is named, or data that is not as published

    Source: Busso et al., 2008, doi 10.1007/s10579-008-9076-6; the labels as in SALT-NLP/DiVA-Eval.
    """
    about = "IEMOCAP: which of four emotions an actor's voice shows (Busso et al. 2008); accuracy."
    return _suite("iemocap", part, data, IEMOCAP, about)


def open_meld(part: str, data: str | None) -> Suite:
    """MELD: dialogues of the series Friends, seven emotions, the test split. Accuracy, where DiVA has a weighted F1.

    Raises:
        DataError: a part is named, or data that is not as published

    Source: Poria et al., MELD, arXiv 1810.02508; the labels as in SALT-NLP/DiVA-Eval.
    """
    about = "MELD: which of seven emotions a voice of a television series shows (Poria et al. 2019, arXiv"
    return _suite("meld", part, data, MELD, about + " 1810.02508); accuracy.")


def _suite(name: str, part: str, data: str | None, corpus: Corpus, about: str) -> Suite:
    if part:
        raise DataError(f"{name} has no part {part!r}; give the name alone")
    return Suite(name=name, items=tuple(_items(data or corpus.place, corpus)), description=about)


def _items(place: str, corpus: Corpus) -> Iterator[Item]:
    choices = tuple(dict.fromkeys(corpus.words.values()))
    instruction = f"Which emotion does my voice show? Answer with one word: {', '.join(choices)}."
    where = format_table_name(place, None, corpus.split)
    columns = (corpus.id, "audio", corpus.text, corpus.label)
    rows = read_published_rows(place, config=None, split=corpus.split, columns=columns)
    for number, row in enumerate(rows, start=1):
        name = f"{where}, row {number}"
        label = read_text(row, corpus.label, name).lower()
        if label not in corpus.words and corpus.has_others:
            continue
        if label not in corpus.words:
            raise DataError(f"{name}: {corpus.label} is {label!r}, expected one of {', '.join(corpus.words)}")
        yield Item(
            id=read_text(row, corpus.id, name),
            audio=read_audio(row, "audio", name, place),
            text=read_text(row, corpus.text, name),
            instruction=instruction,
            answer=corpus.words[label],
            rule="label",
            choices=choices,
        )
