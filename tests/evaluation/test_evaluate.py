"""The three systems get the same turns, and each stage is complete."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.fake_ear import FakeEar, build_items, build_suite, evaluate_items, make_tone, read_tone

from ossicle.errors import AudioError, ConfigError, DataError, RequestError
from ossicle.evaluation import (
    STAGES,
    Corruption,
    EvaluationSettings,
    Item,
    Report,
    evaluate,
    read_report,
    write_report,
)

SPOKEN = ["one", "two", "three", "four", "five"]


def test_three_systems_are_measured_on_the_same_items() -> None:
    spoken = ["one", "two words", "three", "four"]
    ear = FakeEar(
        spoken, heard=["one", "two words", "three", "five"], written=["one", "too words", "tree", "four"]
    )
    items = build_items(spoken[:3]) + build_items(spoken)[3:]
    report = evaluate_items(ear, items, batch_size=3)
    assert [item.ear_correct for item in report.items] == [True, True, True, False]
    assert [item.cascade_correct for item in report.items] == [True, False, False, True]
    assert report.overall.ear.value == 0.75
    assert report.overall.cascade.value == 0.5
    assert report.overall.difference.value == 0.25
    assert report.overall.wer == 2 / 5
    assert [item.n_audio_tokens for item in report.items] == [1, 2, 1, 1]
    assert [item.duration_s for item in report.items] == pytest.approx([0.1] * 4)
    assert ear.batch_sizes == [3, 1]
    assert set(report.versions) >= {"python", "ossicle", "torch"}


def test_without_an_expected_answer_the_answer_to_the_text_is_expected() -> None:
    report = evaluate_items(FakeEar(["one"]), build_items(["one"]))
    (item,) = report.items
    assert item.is_own_target
    assert item.expected == "You said one."
    assert report.overall.text_ceiling.ci95 == (1.0, 1.0)
    assert report.n_own_targets == 1

    measured = evaluate_items(FakeEar(["one"]), build_items(["one"], answer="Something."))
    assert measured.overall.text_ceiling.value == 0
    assert measured.overall.of_ceiling is None
    assert measured.overall.kept is None
    assert measured.n_own_targets == 0


def test_a_thought_that_was_cut_off_is_no_answer_to_expect() -> None:
    """Nothing is left of it to compare with, and nothing equals nothing."""

    class ThinkingEar(FakeEar):
        def _answer(self, conversation: list) -> str:
            return f"<think>\nOkay, {super()._answer(conversation)}"

    report = evaluate_items(ThinkingEar(["one", "two"], heard=["eight", "nine"]), build_items(["one", "two"]))
    assert report.overall.ear.value == report.overall.cascade.value == 0


def test_turns_differ_only_in_the_sound() -> None:
    instruction = "Answer in capital letters."
    ear = FakeEar(["one"], written=["won"])
    report = evaluate_items(ear, build_items(["one"], instruction=instruction, answer="YOU SAID ONE"))
    turns = [
        (method, conversation[0]["role"], conversation[0]["content"]) for method, conversation in ear.requests
    ]
    instruction_part = {"type": "text", "text": instruction}
    assert turns[0] == ("read", "user", [{"type": "text", "text": "one"}, instruction_part])
    assert turns[1] == ("read", "user", [{"type": "text", "text": "won"}, instruction_part])
    method, role, (sound, rest) = turns[2]
    assert (method, role, sound["type"], rest) == ("hear", "user", "audio", instruction_part)
    assert report.items[0].text_correct
    assert report.instructions is None, "every item has an instruction"


def test_generate_kwargs_reach_all_three_systems() -> None:
    calls: list[dict] = []

    class Recording(FakeEar):
        def read_batch(self, conversations: list, /, **generate_kwargs: object) -> list[str]:
            calls.append(generate_kwargs)
            return super().read_batch(conversations)

        def chat_batch(self, conversations: list, /, **generate_kwargs: object) -> list[str]:
            calls.append(generate_kwargs)
            return super().chat_batch(conversations)

    evaluate_items(Recording(["one"]), build_items(["one"]), max_new_tokens=7)
    assert calls == [{"max_new_tokens": 7}] * 3


def test_an_empty_transcript_is_not_sent_to_the_llm() -> None:
    ear = FakeEar(["one", "two"], written=["  ", "two"])
    report = evaluate_items(ear, build_items(["one", "two"]))
    assert [item.cascade_answer for item in report.items] == ["", "You said two."]
    assert report.overall.wer == 0.5
    instructed = evaluate_items(FakeEar(["one"], written=[""]), build_items(["one"], instruction="Go on."))
    assert instructed.items[0].cascade_answer == "You said ."


def test_results_do_not_depend_on_the_batch_size() -> None:
    spoken = ["one", "two", "three", "four", "five"]
    ear = FakeEar(spoken, heard=["one", "2", "three", "4", "five"])
    reports = [evaluate_items(ear, build_items(spoken), batch_size=size) for size in (1, 2, 99)]
    assert reports[0].items == reports[1].items == reports[2].items


def test_progress_is_reported_for_every_stage_until_it_is_done() -> None:
    calls: list[tuple[str, int, int]] = []
    evaluate_items(
        FakeEar(["one", "two", "three"]),
        build_items(["one", "two", "three"]),
        batch_size=2,
        progress=lambda stage, n_done, n: calls.append((stage, n_done, n)),
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert tuple(stages) == STAGES[:-1], "the last stage needs a model that can score continuations"
    for stage in stages:
        counts = [n_done for name, n_done, _ in calls if name == stage]
        assert counts == sorted(counts)
        assert counts[-1] == 3


def test_unreadable_sound_is_an_error_before_any_request(tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"this is no sound at all")
    ear = FakeEar(["one"])
    with pytest.raises(DataError, match=r"item 'bad'.*broken\.wav"):
        evaluate_items(ear, [*build_items(["one"]), Item(id="bad", audio=broken, text="two")])
    assert ear.requests == []
    with pytest.raises(DataError, match="item '0'"):
        evaluate_items(ear, build_items(["one"], audio=np.zeros(0, np.float32)))


def test_an_item_that_the_model_refuses_is_named(tmp_path: Path) -> None:
    class ShortEar(FakeEar):
        def hear(self, source: list, /) -> list[torch.Tensor]:
            if any(read_tone(sound) == 1 for sound in source):
                raise AudioError("9 s of sound; at most 6 s fit")
            return super().hear(source)

    class StrictEar(FakeEar):
        def read_batch(self, conversations: list, /, **generate_kwargs: object) -> list[str]:
            if any(conversation[0]["content"][0]["text"] == "two" for conversation in conversations):
                raise RequestError("text holds a control token")
            return super().read_batch(conversations)

    spoken = ["one", "two", "three"]
    with pytest.raises(DataError, match="item '1': 9 s of sound"):
        evaluate_items(ShortEar(spoken), build_items(spoken))
    with pytest.raises(DataError, match="item '1': text holds"):
        evaluate_items(StrictEar(spoken), build_items(spoken))


def test_invalid_items_and_settings_are_errors() -> None:
    ear = FakeEar(["one"])
    with pytest.raises(DataError, match="no items"):
        evaluate_items(ear, [])
    with pytest.raises(DataError, match="item id '0' is used twice"):
        evaluate_items(ear, build_items(["one"]) * 2)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        evaluate_items(ear, build_items(["one"]), batch_size=0)
    with pytest.raises(DataError, match="no items were evaluated"):
        Report(suite="none", items=())


def test_text_answers_and_transcripts_are_reused_for_a_second_ear() -> None:
    items = build_items(["hello", "bye"])
    first = evaluate_items(FakeEar(["hello", "bye"], written=["hello", "by"]), items)
    second = FakeEar(["hello", "bye"], heard=["hello", "die"])
    report = evaluate_items(second, items, reuse_from=first)
    assert {method for method, _ in second.requests} == {"hear"}
    assert [item.ear_answer for item in report.items] == ["You said hello.", "You said die."]
    for name in ("text_answer", "transcript", "cascade_answer"):
        assert [getattr(item, name) for item in report.items] == [getattr(item, name) for item in first.items]
    with pytest.raises(DataError, match="other items"):
        evaluate_items(FakeEar(["hello"]), build_items(["hello"]), reuse_from=first)


class CleanOnlyEar(FakeEar):
    """Recognizes clean sound alone; any other sound is "noise"."""

    def transcribe(self, sources: list, /) -> list[str]:
        return [self._recognize(sound, self.written) for sound in sources]

    def chat_batch(self, conversations: list, /, **generate_kwargs: object) -> list[str]:
        return [
            f"You said {self._recognize(turn[0]['content'][0]['audio'], self.heard)}."
            for turn in conversations
        ]

    def _recognize(self, sound: np.ndarray, words: list[str]) -> str:
        is_known = any(np.array_equal(sound, make_tone(number)) for number in range(len(words)))
        return words[read_tone(sound)] if is_known else "noise"


def test_cascade_and_ear_are_evaluated_again_for_each_corruption(tmp_path: Path) -> None:
    corruptions = (Corruption(kind="white noise", level=0.0), Corruption(kind="silence after", level=0.5))
    report = evaluate(CleanOnlyEar(SPOKEN), build_suite(SPOKEN), EvaluationSettings(corruptions=corruptions))
    assert report.overall.ear.value == report.overall.cascade.value == 1.0
    assert [corruption for corruption, _ in report.robustness] == [*corruptions]
    for _, table in report.robustness:
        assert (table.text_ceiling.value, table.cascade.value, table.ear.value) == (1.0, 0.0, 0.0)
        assert table.wer == 1.0
    written = write_report(report, tmp_path)
    assert read_report(written.json).robustness == report.robustness
    stored = json.loads(written.json.read_text())["robustness"]
    assert [row["corruption"] for row in stored] == ["white noise, 0 dB", "silence after, 0.5 s"]
    assert "When the sound is not clean" in written.html.read_text()


def test_babble_needs_a_suite_with_several_items() -> None:
    settings = EvaluationSettings(corruptions=(Corruption(kind="babble", level=10.0),))
    with pytest.raises(DataError, match="voice"):
        evaluate(CleanOnlyEar(SPOKEN[:2]), build_suite(SPOKEN[:2]), settings)


class ChoosingEar(FakeEar):
    """Chooses the first word after hearing, the last one after reading."""

    def choose_batch(self, conversations: list, choices: Sequence[str], /) -> list[int]:
        has_audio = [turn[0]["content"][0]["type"] == "audio" for turn in conversations]
        return [0 if is_audio else len(choices) - 1 for is_audio in has_audio]


def test_the_answer_to_an_item_with_choices_is_one_of_them() -> None:
    suite = build_suite(["one"], choices=("sad", "happy"), answer="sad", rule="label")
    (item,) = evaluate(ChoosingEar(["one"]), suite).items
    assert (item.text_answer, item.cascade_answer, item.ear_answer) == ("happy", "happy", "sad")
    assert (item.ear_correct, item.text_correct) == (True, False)


def test_a_suite_that_needs_a_judge_is_an_error_without_one() -> None:
    suite = build_suite(["one"], rule="rated", rubric={"question": "one"})
    ear = FakeEar(["one"])
    with pytest.raises(ConfigError, match="answers that need a judge"):
        evaluate(ear, suite)
    assert ear.requests == []


def test_the_cascade_can_use_another_asr_model() -> None:
    report = evaluate(
        FakeEar(["one"]), build_suite(["one"]), EvaluationSettings(transcribe=lambda sounds: ["won"])
    )
    assert report.items[0].transcript == "won"
    assert "ASR model of the cascade" in report.about
