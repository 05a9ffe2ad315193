"""Evaluates how ears hear the manner of speaking: `python -m tools.pocket.manner_exam EAR [EAR ...]`.

`ossicle eval EAR --suite pocket-manner` prints text ceiling, cascade and ear by manner. This adds what only this suite
needs: the LLM's answers to the words with the true tag, to the ASR transcript with the true tag, and to the ear's own
transcript, and the form in which each manner was answered. Case matters: a plain question answered in capitals is
wrong.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

import ossicle
from ossicle.ear import Ear
from ossicle.evaluation import Item, load_suite
from ossicle.evaluation.statistics import bootstrap_ci95
from ossicle.evaluation.text_normalization import compute_word_error_rate, is_correct
from tools.pocket.manner import MANNER_TAGS, append_tag

_BATCH_SIZE = 16


def classify_form(answer: str) -> str:
    """Returns the form of an answer: capitals, one word or sentence."""
    if answer.isupper():
        return "capitals"
    return "one word" if len(answer.split()) == 1 else "sentence"


def is_correct_in_form(answer: str, item: Item) -> bool:
    """Whether an answer is correct and has the form that the manner asks for."""
    expected = str(item.answer)
    return is_correct(answer, expected) and answer.isupper() == expected.isupper()


def answer_texts(ear: Ear, texts: Sequence[str]) -> list[str]:
    """Returns the LLM's answers to texts; an empty answer for an empty text."""
    turns = [[{"role": "user", "content": text}] for text in texts if text.strip()]
    answers = iter(_run_in_batches(ear.read_batch, turns))
    return [next(answers) if text.strip() else "" for text in texts]


def answer_audio(ear: Ear, items: Sequence[Item]) -> list[str]:
    """Returns the ear's answers to the items' audio."""
    parts = [[{"type": "audio", "audio": item.audio}] for item in items]
    return _run_in_batches(ear.chat_batch, [[{"role": "user", "content": part}] for part in parts])


def _run_in_batches(call: Callable[[list], list[str]], inputs: Sequence) -> list[str]:
    starts = range(0, len(inputs), _BATCH_SIZE)
    return [made for start in starts for made in call(list(inputs[start : start + _BATCH_SIZE]))]


def answer_text_variants(
    ear: Ear, items: Sequence[Item], transcripts: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yields names and LLM answers for the true words and for the transcripts, each without and with the true tag."""
    for name, texts in (("words", [item.text for item in items]), ("transcript", transcripts)):
        with_tags = [append_tag(text, str(item.group)) for text, item in zip(texts, items, strict=True)]
        yield name, answer_texts(ear, texts)
        yield f"{name} with the true tag", answer_texts(ear, with_tags)


def _format_word_error_rates(transcripts: Sequence[str], items: Sequence[Item]) -> Iterator[str]:
    for manner in MANNER_TAGS:
        of_manner = [
            (item.text, transcript)
            for item, transcript in zip(items, transcripts, strict=True)
            if item.group == manner
        ]
        references, written = zip(*of_manner, strict=True)
        yield f"{compute_word_error_rate(references, written):.1%} {manner}"


def _build_table_row(name: str, answers: Sequence[str], items: Sequence[Item]) -> list[str]:
    cells = [name]
    for manner in MANNER_TAGS:
        of_manner = [(a, item) for a, item in zip(answers, items, strict=True) if item.group == manner]
        right = [is_correct_in_form(answer, item) for answer, item in of_manner]
        low, high = bootstrap_ci95(right)
        forms = Counter(classify_form(answer) for answer, _ in of_manner)
        cells.append(
            f"{sum(right) / len(right):.1%} ({low:.1%} to {high:.1%}), n {len(right)}\n"
            + ", ".join(f"{n} {kind}" for kind, n in forms.most_common())
        )
    return cells


def main(ear_paths: Sequence[str]) -> None:
    """Prints the table of all ears and text variants."""
    console, items = Console(width=150), load_suite("pocket-manner")
    table = Table("correct, 95 % interval, and forms of the answers", *MANNER_TAGS)
    ears = {name: ossicle.load(name) for name in ear_paths}
    reader = next(iter(ears.values()))  # all ears have the same base models
    sounds = [item.audio for item in items]
    transcripts = _run_in_batches(reader.transcribe, sounds)
    for name, answers in answer_text_variants(reader, items, transcripts):
        table.add_row(*_build_table_row(name, answers, items))
    for name, ear in ears.items():
        table.add_row(*_build_table_row(name, answer_audio(ear, items), items))
        table.add_row(
            *_build_table_row(
                f"{name}: its own transcript as text",
                answer_texts(ear, _run_in_batches(ear.transcribe_audio_tokens, sounds)),
                items,
            )
        )
    console.print(table)
    console.print(
        "word error rates of the transcripts:", ", ".join(_format_word_error_rates(transcripts, items))
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.pocket.manner_exam", description=__doc__)
    parser.add_argument("ears", nargs="+", metavar="EAR", help="an ear's folder or a run's, or pocket/ear")
    main(parser.parse_args().ears)
