"""Asks an LLM the same things three ways: it reads them, it reads their transcripts, it hears them.

It knows the order of the questions and nothing about what answers them: whatever has `Listener`'s methods can be
evaluated. All three ways build the user's turn from the same parts, so that only the sound makes a difference.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ossicle.audio.waveform import SAMPLE_RATE, AudioSource, load_audio
from ossicle.console_progress import ProgressCallback
from ossicle.errors import AudioError, ConfigError, DataError
from ossicle.evaluation.corruptions import Corruption, compute_seed, corrupt, load_babble_voices
from ossicle.evaluation.fidelity import ContinuationScorer, Fidelity, compute_fidelity_batch
from ossicle.evaluation.item_result import SYSTEMS, ItemResult
from ossicle.evaluation.journal import Journal
from ossicle.evaluation.report_data import ASR_MODEL, CorruptedItemResult, CorruptionResult, Report
from ossicle.evaluation.scoring import RULES, Judge, Rule
from ossicle.evaluation.stages import Message, StageRunner, build_item_error
from ossicle.evaluation.statistics import ItemScore
from ossicle.evaluation.suite import Item, Suite, validate_items

Transcribe = Callable[[list[AudioSource]], list[str]]
Hear = Callable[[Item], AudioSource]
"""The sound of an item as it is to be heard."""
_In = TypeVar("_In")
STAGES = (
    "checking sound",
    "hearing",
    "reading text",
    "transcribing",
    "reading transcripts",
    "answering by ear",
    "marking text",
    "marking cascade",
    "marking ear",
    "comparing reactions",
)
"""The stages of an evaluation in their order, as its progress callback receives them. Under each condition, those that
neither read the text nor count audio tokens are run again."""

_REPORTED_PACKAGES = ("ossicle", "torch", "transformers", "numpy", "jiwer", "sacrebleu")


@runtime_checkable
class AudioModel(Protocol):
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


@runtime_checkable
class ChoiceModel(Protocol):
    """What is needed beside it where an answer is the likeliest of a few words."""

    def choose_batch(self, conversations: list[list[Message]], choices: Sequence[str], /) -> list[int]:
        """Which choice the LLM is likeliest to begin its answer to each conversation with."""
        ...


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How a suite is evaluated, beside the ear."""

    batch_size: int = 16
    """Items at a time."""
    corruptions: tuple[Corruption, ...] = ()
    """In which noise, at which speed, ... cascade and ear hear all of it once more."""
    transcribe: Transcribe | None = None
    """The cascade's speech recogniser, if not the encoder's own."""
    judge: Judge | None = None
    """Who says how good answers are, in suites that need somebody to."""
    journal: Path | None = None
    """File to keep answers in, to go on from; whoever writes the report removes it then."""
    generate_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """For `generate`, all three ways alike, such as max_new_tokens."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a batch of nothing."""
        if self.batch_size < 1:
            raise ConfigError(f"evaluation batch_size is {self.batch_size}; it must be at least 1")


def evaluate(
    ear: AudioModel,
    suite: Suite,
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    identity: str = "",
    progress: ProgressCallback | None = None,
    about: Mapping[str, str] | None = None,
    command: str | None = None,
    reuse_from: Report | None = None,
) -> Report:
    """The text ceiling, the cascade and the ear on the same items.

    All sound is opened before anything is computed, so that a bad file does not end a run after hours; none
    is left out.

    Args:
        identity: what tells this ear from any other, for answers that are kept.
        progress: called before and after each batch.
        about: what is evaluated, shown in the report: such as {"ear": ..., "LLM": ...}.
        command: what the user typed; the running program's own command line by default.
        reading: a report of these items by another ear on the same encoder and LLM, whose text ceiling and
            cascade are taken over: they do not depend on the connector.

    Raises:
        DataError: no items, two of one id, sound that cannot be heard, or a text that cannot be asked; the
            message names the item. Or `reading` is about other items.
        ConfigError: a suite that needs a judge, without one
        RequestError: a judge that cannot be asked
    """
    validate_items(suite.items)
    check_judge(suite, settings.judge)
    durations_s, content = _check_sound(suite.items, progress)
    journal = Journal(settings.journal, f"{identity} {content} {_asked_how(suite, settings)}")
    asking = StageRunner(suite.items, batch_size=settings.batch_size, progress=progress, journal=journal)
    asks = _Asks(ear=ear, suite=suite, how=settings, asking=asking)
    items = _answered(asks, durations_s, reuse_from)
    again = tuple(_changed(asks, items, condition) for condition in settings.corruptions)
    return Report(
        suite=suite.name,
        items=items,
        corruption_results=again,
        overall_of=suite.overall,
        command=(_command_line() if command is None else command).encode("utf-8", "replace").decode(),
        versions=_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        about=_about(suite, settings, about or {}),
    )


def check_judge(suite: Suite, judge: Judge | None) -> None:
    """Refuse to begin what cannot be marked.

    Raises:
        ConfigError: a suite that needs a judge, without one
    """
    judged = sorted({item.rule for item in suite.items if RULES[item.rule].needs_judge})
    if judged and judge is None:
        raise ConfigError(
            f"suite {suite.name} has answers that somebody has to judge ({', '.join(judged)}): name a model behind an"
            " OpenAI-compatible address, a local LLM, or the offline rule (ossicle eval --judge)"
        )


def build_user_turn(
    item: Item, *, text: str | None = None, sound: AudioSource | None = None
) -> list[Message]:
    """The user's turn about an item: with a text in the place of its sound, or with sound, its own by default."""
    spoken = (
        {"type": "audio", "audio": item.audio if sound is None else sound}
        if text is None
        else {"type": "text", "text": text}
    )
    beside = [] if item.instruction is None else [{"type": "text", "text": item.instruction}]
    return [{"role": "user", "content": [spoken, *beside]}]


@dataclass(frozen=True, kw_only=True)
class _Asks:
    """The stages of an evaluation: each gives what was found, by the items' ids."""

    ear: AudioModel
    suite: Suite
    how: EvaluationSettings
    asking: StageRunner

    def read(self, stage: str, texts: Mapping[str, str]) -> dict[str, str]:
        """The LLM's answers to texts in the place of the sounds; to no words at all, none."""
        turns = {item.id: build_user_turn(item, text=texts[item.id]) for item in self.suite.items}
        asked = {name: said for name, said in turns.items() if _has_words(said)}
        answers = self._answers(stage, self.ear.read_batch, asked, lambda said: said)
        return {name: answers.get(name, "") for name in turns}

    def heard(self, stage: str, sound: Hear) -> dict[str, str]:
        """The LLM's answers to the sounds."""
        items = {item.id: item for item in self.suite.items}
        return self._answers(
            stage, self.ear.chat_batch, items, lambda item: build_user_turn(item, sound=sound(item))
        )

    def transcribed(self, stage: str, sound: Hear) -> dict[str, str]:
        """What the cascade's speech recogniser writes."""
        write = self.how.transcribe or self.ear.transcribe
        items = {item.id: item for item in self.suite.items}
        return self.asking(stage, lambda batch: write([sound(item) for item in batch]), items)

    def n_audio_tokens(self, stage: str) -> dict[str, int]:
        """How many rows the LLM is given for each sound."""
        sounds = {item.id: item.audio for item in self.suite.items}
        return self.asking(stage, lambda batch: [len(rows) for rows in self.ear.hear(batch)], sounds)

    def _answers(
        self,
        stage: str,
        answer: Callable[..., list[str]],
        asked: Mapping[str, _In],
        made: Callable[[_In], list[Message]],
    ) -> dict[str, str]:
        """Free answers, and the likeliest choice where an item has some.

        Args:
            made: a turn of what is asked, when its batch comes up: changed sound need not all be there at once
        """
        choices = {item.id: item.choices for item in self.suite.items}
        own = {} if self.suite.max_new_tokens is None else {"max_new_tokens": self.suite.max_new_tokens}
        options = own | dict(self.how.generate_kwargs)
        found: dict[str, str] = {}
        for words in dict.fromkeys(choices[name] for name in asked):

            def call(batch: list[_In], words: tuple[str, ...] = words) -> list[str]:
                turns = [made(each) for each in batch]
                if not words:
                    return answer(turns, **options)
                assert isinstance(self.ear, ChoiceModel), "items with choices need an ear that can choose"
                return [words[chosen] for chosen in self.ear.choose_batch(turns, words)]

            some = {name: each for name, each in asked.items() if choices[name] == words}
            found |= self.asking(stage, call, some)
        return found

    def marked(self, stage: str, answers: Mapping[str, str], items: Sequence[Item]) -> dict[str, ItemScore]:
        """The marks of some answers, each by its item's own rule."""
        found: dict[str, Any] = {}
        for name in dict.fromkeys(item.rule for item in items):

            def mark(batch: list[tuple[Item, str]], rule: Rule = RULES[name]) -> list[ItemScore]:
                return rule.score([item for item, _ in batch], [said for _, said in batch], self.how.judge)

            some = {item.id: (item, answers[item.id]) for item in items if item.rule == name}
            found |= self.asking(stage, mark, some)
        return {item.id: tuple(found[item.id]) for item in items}

    def near(self, transcripts: Mapping[str, str]) -> dict[str, dict[str, Fidelity | None]]:
        """How near hearing, and reading a transcript, come to reading; nothing by an ear that cannot tell."""
        ear = self.ear
        if not isinstance(ear, ContinuationScorer):
            return {}

        def compared(batch: list[Item]) -> list[dict[str, Any]]:
            read = [build_user_turn(item, text=item.text) for item in batch]
            written = [build_user_turn(item, text=transcripts[item.id]) for item in batch]
            ways = {
                "ear": [build_user_turn(item) for item in batch],
                "cascade": [said if _has_words(said) else None for said in written],
            }
            found = compute_fidelity_batch(ear, read, ways)
            return [{way: one and one.to_json() for way, one in both.items()} for both in found]

        stored = self.asking("comparing reactions", compared, {item.id: item for item in self.suite.items})
        return {
            name: {way: one and Fidelity.from_json(one) for way, one in both.items()}
            for name, both in stored.items()
        }


def _answered(asks: _Asks, durations_s: Sequence[float], reading: Report | None) -> tuple[ItemResult, ...]:
    items = asks.suite.items
    n_audio_tokens = asks.n_audio_tokens("hearing")
    if reading is None:
        texts = asks.read("reading text", {item.id: item.text for item in items})
        transcripts = asks.transcribed("transcribing", _as_it_is)
        cascade = asks.read("reading transcripts", transcripts)
    else:
        texts, transcripts, cascade = _taken_over(reading, items)
    answers = {"text": texts, "cascade": cascade, "ear": asks.heard("answering by ear", _as_it_is)}
    targets = _with_targets(items, texts)
    marks = {way: asks.marked(f"marking {way}", answers[way], targets) for way in SYSTEMS}
    near = asks.near(transcripts)
    return tuple(
        ItemResult(
            id=item.id,
            text=item.text,
            instruction=item.instruction,
            group=item.group,
            expected=target.answer or "",
            is_own_target=_has_own_target(item),
            rule=item.rule,
            rubric=dict(item.rubric),
            text_answer=texts[item.id],
            transcript=transcripts[item.id],
            cascade_answer=cascade[item.id],
            ear_answer=answers["ear"][item.id],
            scores={way: marks[way][item.id] for way in SYSTEMS},
            fidelity=near.get(item.id),
            n_audio_tokens=n_audio_tokens[item.id],
            duration_s=duration_s,
            audio=item.audio,
        )
        for item, target, duration_s in zip(items, targets, durations_s, strict=True)
    )


def _has_own_target(item: Item) -> bool:
    """Whether the LLM's own answer to the text is what is expected."""
    return item.answer is None and not item.rubric


def _with_targets(items: Sequence[Item], texts: Mapping[str, str]) -> list[Item]:
    """The items, those without an expected answer with the LLM's own to their text."""
    return [
        replace(item, answer=texts[item.id]) if _has_own_target(item) and texts[item.id].strip() else item
        for item in items
    ]


def _changed(asks: _Asks, items: Sequence[ItemResult], condition: Corruption) -> CorruptionResult:
    """Cascade and ear once more, on changed sound; what is expected is what it was."""
    suite = asks.suite.items

    def sound(item: Item) -> np.ndarray:
        seed = compute_seed(item.id, condition)
        voices = load_babble_voices(item, suite, seed) if condition.kind == "babble" else ()
        return corrupt(load_audio(item.audio), condition, seed=seed, voices=voices)

    at = condition.name
    transcripts = asks.transcribed(f"{at}: transcribing", sound)
    answers = {
        "cascade": asks.read(f"{at}: reading transcripts", transcripts),
        "ear": asks.heard(f"{at}: answering by ear", sound),
    }
    targets = _with_targets(suite, {item.id: item.text_answer for item in items})
    marks = {way: asks.marked(f"{at}: marking {way}", answers[way], targets) for way in answers}
    return CorruptionResult(
        corruption=condition,
        items=tuple(
            CorruptedItemResult(
                transcript=transcripts[item.id],
                cascade_answer=answers["cascade"][item.id],
                ear_answer=answers["ear"][item.id],
                scores={way: marks[way][item.id] for way in answers},
            )
            for item in suite
        ),
    )


def _as_it_is(item: Item) -> AudioSource:
    return item.audio


def _taken_over(
    reading: Report, items: Sequence[Item]
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """The answers to texts, the transcripts and the answers to those, as another report found them."""

    def asked(rows: Sequence[Item] | Sequence[ItemResult]) -> list[tuple[str, str, str | None]]:
        return [(row.id, row.text, row.instruction) for row in rows]

    if asked(reading.items) != asked(items):
        raise DataError(
            f"the report of {reading.suite!r} to read from is about other items; evaluate without"
        )
    texts, transcripts, cascade = (
        {item.id: getattr(item, name) for item in reading.items}
        for name in ("text_answer", "transcript", "cascade_answer")
    )
    return texts, transcripts, cascade


def _has_words(conversation: list[Message]) -> bool:
    return any(part["text"].strip() for part in conversation[-1]["content"])


def _check_sound(items: Sequence[Item], progress: ProgressCallback | None) -> tuple[list[float], str]:
    """The seconds of each item's sound, and a hash of all that is asked.

    Raises:
        DataError: sound that cannot be opened.
    """
    durations_s, digest = [], blake2b(digest_size=12)
    for index, item in enumerate(items):
        try:
            samples = load_audio(item.audio)
        except AudioError as error:
            raise build_item_error(item, error) from error
        durations_s.append(len(samples) / SAMPLE_RATE)
        about = (item.id, item.text, item.instruction, item.answer, item.rule, item.rubric, item.choices)
        digest.update(repr(about).encode())
        digest.update(samples.tobytes())
        if progress:
            progress("checking sound", index + 1, len(items))
    return durations_s, digest.hexdigest()


def _asked_how(suite: Suite, how: EvaluationSettings) -> str:
    judge, asr = getattr(how.judge, "name", None), getattr(how.transcribe, "name", None)
    return repr((sorted(how.generate_kwargs.items()), suite.max_new_tokens, judge, asr))


def _about(suite: Suite, how: EvaluationSettings, about: Mapping[str, str]) -> dict[str, str]:
    more = {"suite": suite.description} if suite.description else {}
    if how.transcribe is not None:
        more[ASR_MODEL] = str(getattr(how.transcribe, "name", how.transcribe))
    if how.judge is not None and any(RULES[item.rule].needs_judge for item in suite.items):
        more["judge"] = how.judge.name
    return {**about, **more}


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
