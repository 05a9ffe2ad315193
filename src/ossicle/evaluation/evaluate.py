"""Evaluates an ear on a suite: the LLM reads the text, it reads a transcript (the cascade), and it hears the sound.

This module knows the order of the stages and how a report is put together from their results.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ossicle.audio.speech import load_speech
from ossicle.audio.waveform import SAMPLE_RATE, AudioSource, load_audio
from ossicle.console_progress import ProgressCallback
from ossicle.errors import AudioError, ConfigError, DataError
from ossicle.evaluation.audio_model import AudioModel
from ossicle.evaluation.corruptions import Corruption, compute_seed, corrupt, load_babble_voices
from ossicle.evaluation.item_result import SYSTEMS, ItemResult
from ossicle.evaluation.journal import Journal
from ossicle.evaluation.report_data import ASR_MODEL, CorruptedItemResult, CorruptionResult, Report
from ossicle.evaluation.scoring import RULES, Judge
from ossicle.evaluation.stage_runner import StageRunner, build_item_error
from ossicle.evaluation.stages import Stages, Transcribe
from ossicle.evaluation.suite import Item, Suite, validate_items
from ossicle.evaluation.text_normalization import strip_thoughts

_REPORTED_PACKAGES = ("ossicle", "torch", "transformers", "numpy", "jiwer", "sacrebleu")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How a suite is evaluated."""

    batch_size: int = 16
    """Items per batch."""
    corruptions: tuple[Corruption, ...] = ()
    """Noise, speeds, ... under which cascade and ear are evaluated again."""
    transcribe: Transcribe | None = None
    """The cascade's ASR model; by default the encoder's own decoder."""
    judge: Judge | None = None
    """Rates answers, in suites that need a judge."""
    journal: Path | None = None
    """File that keeps the answers, so that a stopped evaluation can be resumed; delete it after writing the report."""
    generate_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `generate` for all three systems, such as max_new_tokens."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a batch size below 1."""
        if self.batch_size < 1:
            raise ConfigError(f"evaluation batch_size is {self.batch_size}; expected at least 1")


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
    """Returns the report on the text ceiling, the cascade and the ear on the same items.

    All sound is opened before anything is computed, so that an unreadable file does not end a run after hours.

    Args:
        identity: distinguishes this ear from any other, for the answers in the journal.
        progress: called before and after each batch.
        about: what is evaluated, shown in the report: such as {"ear": ..., "LLM": ...}.
        command: the user's command line; by default that of the running program.
        reuse_from: a report on these items for another ear with the same encoder and LLM; its text ceiling and
            cascade are reused, under its corruptions too, as they do not depend on the connector.

    Raises:
        DataError: no items, two items with one id, sound that cannot be opened, or a text that cannot be sent to the
            LLM; the message names the item. Or `reuse_from` is about other items.
        ConfigError: a suite that needs a judge, without one
        RequestError: a judge that does not answer
    """
    validate_items(suite.items)
    check_judge(suite, settings.judge)
    durations_s, content_hash = _check_audio(suite.items, progress)
    described = f"{_describe_settings(suite, settings)} {_get_versions()}"
    journal = Journal(settings.journal, f"{identity} {content_hash} {described}")
    runner = StageRunner(suite.items, batch_size=settings.batch_size, progress=progress, journal=journal)
    stages = Stages(
        model=ear,
        suite=suite,
        runner=runner,
        transcribe=settings.transcribe,
        judge=settings.judge,
        generate_kwargs=settings.generate_kwargs,
    )
    items = _evaluate_clean(stages, durations_s, reuse_from)
    corrupted = tuple(
        _evaluate_corrupted(stages, items, corruption, reuse_from) for corruption in settings.corruptions
    )
    return Report(
        suite=suite.name,
        items=items,
        corruption_results=corrupted,
        overall_of=suite.overall,
        command=(_get_command_line() if command is None else command).encode("utf-8", "replace").decode(),
        versions=_get_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        about=_describe_subject(suite, settings, about or {}),
    )


def check_judge(suite: Suite, judge: Judge | None) -> None:
    """Checks that there is a judge if the suite needs one.

    Raises:
        ConfigError: a suite that needs a judge, without one
    """
    judged = sorted({item.rule for item in suite.items if RULES[item.rule].needs_judge})
    if judged and judge is None:
        raise ConfigError(
            f"suite {suite.name} has answers that need a judge ({', '.join(judged)}): give --judge a model behind an"
            " OpenAI-compatible address, a local LLM, or offline"
        )


def _evaluate_clean(
    stages: Stages, durations_s: Sequence[float], reuse_from: Report | None
) -> tuple[ItemResult, ...]:
    """Returns the results of all items on clean sound."""
    items = stages.suite.items
    n_audio_tokens = stages.count_audio_tokens("embedding audio")
    if reuse_from is None:
        text_answers = stages.answer_texts("answering text", {item.id: item.text for item in items})
        transcripts = stages.transcribe_audio("transcribing", _get_clean_sound)
        cascade_answers = stages.answer_texts("answering transcripts", transcripts)
    else:
        text_answers, transcripts, cascade_answers = _reuse_answers(reuse_from, items)
    ear_answers = stages.answer_audio("answering audio", _get_clean_sound)
    answers = {"text": text_answers, "cascade": cascade_answers, "ear": ear_answers}
    targets = _fill_own_targets(items, text_answers)
    scores = {system: stages.score(f"scoring {system}", answers[system], targets) for system in SYSTEMS}
    fidelity = stages.compare_reactions("comparing reactions", transcripts)
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
            text_answer=text_answers[item.id],
            transcript=transcripts[item.id],
            cascade_answer=cascade_answers[item.id],
            ear_answer=ear_answers[item.id],
            scores={system: scores[system][item.id] for system in SYSTEMS},
            fidelity=fidelity.get(item.id),
            n_audio_tokens=n_audio_tokens[item.id],
            duration_s=duration_s,
            audio=item.audio,
        )
        for item, target, duration_s in zip(items, targets, durations_s, strict=True)
    )


def _evaluate_corrupted(
    stages: Stages, items: Sequence[ItemResult], corruption: Corruption, reuse_from: Report | None
) -> CorruptionResult:
    """Returns the results of cascade and ear on corrupted sound; the expected answers are those for clean sound."""
    suite_items = stages.suite.items

    def load_corrupted(item: Item) -> np.ndarray:
        seed = compute_seed(item.id, corruption)
        voices = load_babble_voices(item, suite_items, seed) if corruption.kind == "babble" else ()
        return corrupt(load_audio(item.audio), corruption, seed=seed, voices=voices)

    name = corruption.name
    if (reused := _reuse_corrupted_answers(reuse_from, corruption)) is None:
        transcripts = stages.transcribe_audio(f"{name}: transcribing", load_corrupted)
        cascade_answers = stages.answer_texts(f"{name}: answering transcripts", transcripts)
    else:
        transcripts, cascade_answers = reused
    answers = {
        "cascade": cascade_answers,
        "ear": stages.answer_audio(f"{name}: answering audio", load_corrupted),
    }
    targets = _fill_own_targets(suite_items, {item.id: item.text_answer for item in items})
    scores = {
        system: stages.score(f"{name}: scoring {system}", answers[system], targets) for system in answers
    }
    return CorruptionResult(
        corruption=corruption,
        items=tuple(
            CorruptedItemResult(
                transcript=transcripts[item.id],
                cascade_answer=answers["cascade"][item.id],
                ear_answer=answers["ear"][item.id],
                scores={system: scores[system][item.id] for system in answers},
            )
            for item in suite_items
        ),
    )


def _has_own_target(item: Item) -> bool:
    """Whether the LLM's own answer to the text is the expected answer."""
    return item.answer is None and not item.rubric


def _fill_own_targets(items: Sequence[Item], text_answers: Mapping[str, str]) -> list[Item]:
    """Returns the items, with the LLM's own answer to the text where the suite has no expected answer.

    A thought that was cut off is no answer: nothing follows it that a system could get right.
    """
    return [
        replace(item, answer=text_answers[item.id])
        if _has_own_target(item) and strip_thoughts(text_answers[item.id])
        else item
        for item in items
    ]


def _get_clean_sound(item: Item) -> AudioSource:
    return item.audio


def _reuse_answers(
    report: Report, items: Sequence[Item]
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Returns another report's answers to texts, its transcripts, and its answers to transcripts.

    Raises:
        DataError: the report is about other items.
    """

    def list_keys(rows: Sequence[Item] | Sequence[ItemResult]) -> list[tuple[str, str, str | None]]:
        return [(row.id, row.text, row.instruction) for row in rows]

    if list_keys(report.items) != list_keys(items):
        raise DataError(
            f"the report of {report.suite!r} to reuse answers from is about other items; evaluate without it"
        )
    text_answers, transcripts, cascade_answers = (
        {item.id: getattr(item, name) for item in report.items}
        for name in ("text_answer", "transcript", "cascade_answer")
    )
    return text_answers, transcripts, cascade_answers


def _reuse_corrupted_answers(
    report: Report | None, corruption: Corruption
) -> tuple[dict[str, str], dict[str, str]] | None:
    """Returns another report's transcripts and answers to them under a corruption; None if it has none."""
    if report is None:
        return None
    by_corruption = {result.corruption: result.items for result in report.corruption_results}
    if corruption not in by_corruption:
        return None
    results = dict(zip((item.id for item in report.items), by_corruption[corruption], strict=True))
    transcripts = {name: result.transcript for name, result in results.items()}
    return transcripts, {name: result.cascade_answer for name, result in results.items()}


def _check_audio(items: Sequence[Item], progress: ProgressCallback | None) -> tuple[list[float], str]:
    """Returns the duration of each item's sound in seconds, and a hash of all items with their sound.

    Raises:
        DataError: sound that cannot be opened.
    """
    durations_s, digest = [], blake2b(digest_size=12)
    for index, item in enumerate(items):
        try:
            samples = load_speech(item.audio)
        except AudioError as error:
            raise build_item_error(item, error) from error
        durations_s.append(len(samples) / SAMPLE_RATE)
        fields = (item.id, item.text, item.instruction, item.answer, item.rule, item.rubric, item.choices)
        digest.update(repr(fields).encode())
        digest.update(samples.tobytes())
        if progress:
            progress("checking audio", index + 1, len(items))
    return durations_s, digest.hexdigest()


def _describe_settings(suite: Suite, settings: EvaluationSettings) -> str:
    """Returns the settings that answers depend on, for the journal's fingerprint."""
    judge, asr = getattr(settings.judge, "name", None), getattr(settings.transcribe, "name", None)
    return repr((sorted(settings.generate_kwargs.items()), suite.max_new_tokens, judge, asr))


def _describe_subject(suite: Suite, settings: EvaluationSettings, about: Mapping[str, str]) -> dict[str, str]:
    """Returns what was evaluated, for the report: the caller's entries, the suite, ASR model and judge."""
    entries = {"suite": suite.description} if suite.description else {}
    if settings.transcribe is not None:
        entries[ASR_MODEL] = str(getattr(settings.transcribe, "name", settings.transcribe))
    if settings.judge is not None and any(RULES[item.rule].needs_judge for item in suite.items):
        entries["judge"] = settings.judge.name
    return {**about, **entries}


def _get_command_line() -> str:
    """Returns the command line as the user typed it, as far as the program can know, without the program's own path."""
    program = Path(sys.argv[0])
    typed = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return shlex.join([*typed.split(), *sys.argv[1:]])


def _get_versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for package in _REPORTED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
