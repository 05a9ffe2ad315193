"""The stages of an evaluation: what the model is asked about all items, and how the answers are scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ossicle.audio.waveform import AudioSource
from ossicle.evaluation.audio_model import AudioModel, ChoiceModel, Message, build_user_turn, has_words
from ossicle.evaluation.fidelity import ContinuationScorer, Fidelity, compute_fidelity_batch
from ossicle.evaluation.scoring import RULES, Judge, Rule
from ossicle.evaluation.stage_runner import StageRunner
from ossicle.evaluation.statistics import ItemScore
from ossicle.evaluation.suite import Item, Suite
from ossicle.evaluation.text_normalization import strip_thoughts

T = TypeVar("T")
Transcribe = Callable[[list[AudioSource]], list[str]]
LoadSound = Callable[[Item], AudioSource]
"""Returns the sound of an item, clean or corrupted."""
STAGES = (
    "checking audio",
    "embedding audio",
    "answering text",
    "transcribing",
    "answering transcripts",
    "answering audio",
    "scoring text",
    "scoring cascade",
    "scoring ear",
    "comparing reactions",
)
"""The stages of an evaluation in their order, as its progress callback receives them. For each corruption, the stages of
transcripts and of answers to audio are run again."""


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Runs the stages of an evaluation; each method returns its results by the items' ids."""

    model: AudioModel
    suite: Suite
    runner: StageRunner
    transcribe: Transcribe | None = None
    """The cascade's ASR model; by default the encoder's own decoder."""
    judge: Judge | None = None
    generate_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """They replace the suite's own settings."""

    def answer_texts(self, stage: str, texts: Mapping[str, str]) -> dict[str, str]:
        """Returns the LLM's answers to texts that replace the sounds; empty for a turn without words."""
        turns = {item.id: build_user_turn(item, text=texts[item.id]) for item in self.suite.items}
        with_words = {name: turn for name, turn in turns.items() if has_words(turn)}
        answers = self._answer(stage, self.model.read_batch, with_words, lambda turn: turn)
        return {name: answers.get(name, "") for name in turns}

    def answer_audio(self, stage: str, load_sound: LoadSound) -> dict[str, str]:
        """Returns the LLM's answers to the sounds."""
        items = {item.id: item for item in self.suite.items}
        return self._answer(
            stage, self.model.chat_batch, items, lambda item: build_user_turn(item, sound=load_sound(item))
        )

    def transcribe_audio(self, stage: str, load_sound: LoadSound) -> dict[str, str]:
        """Returns the cascade's transcripts."""
        transcribe = self.transcribe or self.model.transcribe
        items = {item.id: item for item in self.suite.items}
        return self.runner.run(stage, lambda batch: transcribe([load_sound(item) for item in batch]), items)

    def count_audio_tokens(self, stage: str) -> dict[str, int]:
        """Returns the number of audio tokens of each clean sound."""
        sounds = {item.id: item.audio for item in self.suite.items}
        return self.runner.run(
            stage, lambda batch: [len(tokens) for tokens in self.model.hear(batch)], sounds
        )

    def score(self, stage: str, answers: Mapping[str, str], items: Sequence[Item]) -> dict[str, ItemScore]:
        """Returns the scores of answers, each by its item's own rule."""
        scores: dict[str, Any] = {}
        for name in dict.fromkeys(item.rule for item in items):

            def score_batch(batch: list[tuple[Item, str]], rule: Rule = RULES[name]) -> list[ItemScore]:
                items = [replace(item, answer=strip_thoughts(item.answer or "") or None) for item, _ in batch]
                return rule.score(items, [strip_thoughts(answer) for _, answer in batch], self.judge)

            inputs = {item.id: (item, answers[item.id]) for item in items if item.rule == name}
            scores |= self.runner.run(stage, score_batch, inputs)
        return {item.id: tuple(scores[item.id]) for item in items}

    def compare_reactions(
        self, stage: str, transcripts: Mapping[str, str]
    ) -> dict[str, dict[str, Fidelity | None]]:
        """Returns how close "ear" and "cascade" come to reading; empty if the model cannot score continuations."""
        model = self.model
        if not isinstance(model, ContinuationScorer):
            return {}

        def compare(batch: list[Item]) -> list[dict[str, Any]]:
            text_turns = [build_user_turn(item, text=item.text) for item in batch]
            transcript_turns = [build_user_turn(item, text=transcripts[item.id]) for item in batch]
            turns = {
                "ear": [build_user_turn(item) for item in batch],
                "cascade": [turn if has_words(turn) else None for turn in transcript_turns],
            }
            results = compute_fidelity_batch(model, text_turns, turns)
            return [{system: one and one.to_json() for system, one in both.items()} for both in results]

        stored = self.runner.run(stage, compare, {item.id: item for item in self.suite.items})
        return {
            name: {system: one and Fidelity.from_json(one) for system, one in both.items()}
            for name, both in stored.items()
        }

    def _answer(
        self,
        stage: str,
        generate: Callable[..., list[str]],
        inputs: Mapping[str, T],
        build_turn: Callable[[T], list[Message]],
    ) -> dict[str, str]:
        """Returns generated answers, and the most likely choice for items that have choices.

        Args:
            build_turn: is called for one batch at a time, so that only its corrupted sounds are in memory
        """
        choices = {item.id: item.choices for item in self.suite.items}
        limits = {} if self.suite.max_new_tokens is None else {"max_new_tokens": self.suite.max_new_tokens}
        generate_kwargs = limits | dict(self.generate_kwargs)
        answers: dict[str, str] = {}
        for words in dict.fromkeys(choices[name] for name in inputs):

            def answer_batch(batch: list[T], words: tuple[str, ...] = words) -> list[str]:
                turns = [build_turn(one) for one in batch]
                if not words:
                    return generate(turns, **generate_kwargs)
                assert isinstance(self.model, ChoiceModel), "items with choices need a model that can choose"
                return [words[index] for index in self.model.choose_batch(turns, words)]

            with_words = {name: one for name, one in inputs.items() if choices[name] == words}
            answers |= self.runner.run(stage, answer_batch, with_words)
        return answers
