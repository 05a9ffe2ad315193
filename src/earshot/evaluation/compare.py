"""Asks an LLM the same things three ways: it reads them, it reads their transcripts, it hears them.

It knows the order of the questions and nothing about what answers them: whatever has `Listener`'s four
methods can be evaluated. All three ways build the user's turn from the same parts, so that only the sound
makes a difference.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from earshot.audio import SAMPLE_RATE, AudioSource, load_audio
from earshot.errors import AudioError, ConfigError, DataError, EarshotError, RequestError
from earshot.evaluation.results import Answered, Report
from earshot.evaluation.suite import Item, check_items

Message = dict[str, Any]
Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how many items it has done, and how many there are."""

STAGES = (
    "checking sound",
    "hearing",
    "reading text",
    "transcribing",
    "reading transcripts",
    "answering by ear",
)
"""What an evaluation goes through, in this order, as `Progress` names it."""

_REPORTED_PACKAGES = ("earshot", "torch", "transformers", "numpy", "jiwer")

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@runtime_checkable
class Listener(Protocol):
    """The part of an ear that an evaluation needs; answers are greedy."""

    def hear(self, source: list[AudioSource], /) -> list[Float[Tensor, "Q D"]]:
        """The audio tokens of each sound."""
        ...

    def transcribe(self, sources: list[AudioSource], /) -> list[str]:
        """What the encoder's own ASR decoder writes for each sound."""
        ...

    def read_batch(self, conversations: list[list[Message]], /, **generate_kwargs: Any) -> list[str]:
        """The stock LLM's answers to conversations of text."""
        ...

    def chat_batch(self, conversations: list[list[Message]], /, **generate_kwargs: Any) -> list[str]:
        """The LLM's answers to conversations with sound in them."""
        ...


def evaluate(
    ear: Listener,
    items: Sequence[Item],
    *,
    name: str,
    batch_size: int = 16,
    progress: Progress | None = None,
    about: Mapping[str, str] | None = None,
    command: str | None = None,
    reading: Report | None = None,
    **generate_kwargs: Any,
) -> Report:
    """The text ceiling, the cascade and the ear on the same items.

    All sound is opened before anything is computed, so that a bad file does not end a run after hours; none
    is left out.

    Args:
        name: the suite's, for the report.
        progress: called before and after each batch.
        about: what is evaluated, shown in the report: such as {"ear": ..., "LLM": ...}.
        command: what the user typed; the running program's own command line by default.
        reading: a report of these items by another ear on the same encoder and LLM, whose text ceiling and
            cascade are taken over: they do not depend on the connector.
        generate_kwargs: passed to all three alike, such as max_new_tokens.

    Raises:
        DataError: no items, two of one id, sound that cannot be heard, or a text that cannot be asked; the
            message names the item. Or `reading` is about other items.
        ConfigError: a batch size below 1.
    """
    items = tuple(items)
    check_items(items)
    if batch_size < 1:
        raise ConfigError(f"evaluation batch_size is {batch_size}; it must be at least 1")
    durations_s = _check_sound(items, progress)
    run = _Run(items=items, batch_size=batch_size, progress=progress)
    columns = _ask(ear, run, reading, generate_kwargs)
    answered = tuple(
        Answered(
            id=item.id,
            text=item.text,
            instruction=item.instruction,
            group=item.group,
            expected=columns["text_answer"][index] if item.answer is None else item.answer,
            is_own_target=item.answer is None,
            duration_s=durations_s[index],
            audio=item.audio,
            **{name: column[index] for name, column in columns.items()},
        )
        for index, item in enumerate(items)
    )
    return Report(
        suite=name,
        items=answered,
        command=(_command_line() if command is None else command).encode("utf-8", "replace").decode(),
        versions=_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        about=dict(about or {}),
    )


def _ask(
    ear: Listener, run: "_Run", reading: Report | None, generate_kwargs: dict[str, Any]
) -> dict[str, list[Any]]:
    """What an `Answered` knows from the ear, by the names of its fields, for every item."""

    def hears(batch: list[list[Message]]) -> list[str]:
        return ear.chat_batch(batch, **generate_kwargs)

    sounds = [item.audio for item in run.items]
    n_audio_tokens = run("hearing", lambda batch: [len(rows) for rows in ear.hear(batch)], sounds)
    read = _read(ear, run, generate_kwargs) if reading is None else _taken_over(reading, run.items)
    ear_answers = run("answering by ear", hears, [_turn(item) for item in run.items])
    return {"n_audio_tokens": n_audio_tokens, **read, "ear_answer": ear_answers}


def _read(ear: Listener, run: "_Run", generate_kwargs: dict[str, Any]) -> dict[str, list[str]]:
    """The answers to the texts, the transcripts and the answers to those."""

    def reads(batch: list[list[Message]]) -> list[str]:
        return ear.read_batch(batch, **generate_kwargs)

    def reads_if_any(batch: list[list[Message]]) -> list[str]:
        return _answers_if_any(reads, batch)

    text_answers = run("reading text", reads, [_turn(item, text=item.text) for item in run.items])
    transcripts = run("transcribing", ear.transcribe, [item.audio for item in run.items])
    transcribed = [_turn(item, text=words) for item, words in zip(run.items, transcripts, strict=True)]
    return {
        "text_answer": text_answers,
        "transcript": transcripts,
        "cascade_answer": run("reading transcripts", reads_if_any, transcribed),
    }


def _taken_over(reading: Report, items: Sequence[Item]) -> dict[str, list[str]]:
    """What another report's `_read` found."""

    def asked(rows: Sequence[Item] | Sequence[Answered]) -> list[tuple[str, str, str | None]]:
        return [(row.id, row.text, row.instruction) for row in rows]

    if asked(reading.items) != asked(items):
        raise DataError(
            f"the report of {reading.suite!r} to read from is about other items; evaluate without"
        )
    names = ("text_answer", "transcript", "cascade_answer")
    return {name: [getattr(item, name) for item in reading.items] for name in names}


def _turn(item: Item, *, text: str | None = None) -> list[Message]:
    """The user's turn about an item: with a text in the place of its sound, or with the sound itself."""
    spoken = {"type": "audio", "audio": item.audio} if text is None else {"type": "text", "text": text}
    beside = [] if item.instruction is None else [{"type": "text", "text": item.instruction}]
    return [{"role": "user", "content": [spoken, *beside]}]


def _answers_if_any(
    reads: Callable[[list[list[Message]]], list[str]], turns: list[list[Message]]
) -> list[str]:
    """The answers to the turns that have words, and an empty one to a turn of none."""
    has_words = [any(part["text"].strip() for part in turn[-1]["content"]) for turn in turns]
    spoken = [turn for turn, is_asked in zip(turns, has_words, strict=True) if is_asked]
    answers = iter(reads(spoken) if spoken else [])
    return [next(answers) if is_asked else "" for is_asked in has_words]


def _check_sound(items: Sequence[Item], progress: Progress | None) -> list[float]:
    """The seconds of each item's sound.

    Raises:
        DataError: sound that cannot be opened.
    """
    durations_s = []
    for index, item in enumerate(items):
        try:
            durations_s.append(len(load_audio(item.audio)) / SAMPLE_RATE)
        except AudioError as error:
            raise _refused(item, error) from error
        if progress:
            progress("checking sound", index + 1, len(items))
    return durations_s


def _refused(item: Item, error: EarshotError) -> DataError:
    is_named = not isinstance(item.audio, str | Path) or str(item.audio) in str(error)
    where = "" if is_named else f" ({item.audio})"
    return DataError(f"item {item.id!r}{where}: {error}; or take the item out of the suite")


class _Run:
    """Calls a batched function over all items, with progress, and names the item that is refused."""

    def __init__(self, *, items: tuple[Item, ...], batch_size: int, progress: Progress | None) -> None:
        self.items = items
        self.batch_size = batch_size
        self.progress = progress or (lambda stage, n_done, n: None)

    def __call__(
        self, stage: str, call: Callable[[list[_In]], list[_Out]], inputs: Sequence[_In]
    ) -> list[_Out]:
        outputs: list[_Out] = []
        self.progress(stage, 0, len(inputs))
        for start in range(0, len(inputs), self.batch_size):
            batch = list(inputs[start : start + self.batch_size])
            try:
                made = call(batch)
            except (AudioError, RequestError) as error:
                raise self._first_refused(call, batch, start, error) from error
            assert len(made) == len(batch), f"{stage}: {len(made)} results for {len(batch)} items"
            outputs += made
            self.progress(stage, len(outputs), len(inputs))
        return outputs

    def _first_refused(
        self, call: Callable[[list[_In]], list[_Out]], batch: list[_In], start: int, error: EarshotError
    ) -> DataError:
        """The error of a batch as that of the item in it that is refused alone too."""
        for offset, single in enumerate(batch):
            try:
                call([single])
            except (AudioError, RequestError) as own:
                return _refused(self.items[start + offset], own)
        return _refused(self.items[start], error)


def _command_line() -> str:
    """What the user typed, as far as the program can know, without the machine's paths to itself."""
    program = Path(sys.argv[0])
    typed = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return shlex.join([*typed.split(), *sys.argv[1:]])


def _versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for package in _REPORTED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
