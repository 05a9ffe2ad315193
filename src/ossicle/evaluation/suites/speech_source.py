"""Any local source of transcribed speech as a suite: the LLM's own answer to the transcript is what is expected."""

from ossicle.data.dataset import open_speech
from ossicle.evaluation.suite import Item, Suite


def open_speech_suite(source: str) -> Suite:
    """Returns the rows of a source, written as in data.source of a recipe, as items.

    Raises:
        DataError: no such source, or a row that is invalid: leaving it out would change what is measured
    """
    dataset = open_speech([source])
    utterances = (dataset[row] for row in range(len(dataset)))
    items = tuple(
        Item(id=f"{number:04d}", audio=utterance.audio, text=utterance.text)
        for number, utterance in enumerate(utterances, 1)
    )
    return Suite(
        name=source, items=items, description=f"Transcribed speech: {dataset.source_ranges[0].label}."
    )
