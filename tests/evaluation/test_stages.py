"""Evaluations that are stopped and go on, conditions, groups of several metrics, choices, reports side by side."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_evaluate import FakeEar, items_of, named, tone
from test_report import answered

from ossicle.errors import CheckpointError, ConfigError, DataError
from ossicle.evaluation import (
    Corruption,
    EvaluationSettings,
    Item,
    Suite,
    evaluate,
    open_suite,
    read_report,
    write_report,
)
from ossicle.evaluation.journal import Journal
from ossicle.evaluation.report.error_analysis import find_hard_words, group_errors
from ossicle.evaluation.score_table import build_group_mean_table, build_score_table
from ossicle.evaluation.statistics import METRICS, bootstrap_difference, bootstrap_score

SAID = ["one", "two", "three", "four", "five"]


class Counting(FakeEar):
    """Counts what it is asked, and is stopped by hand after so many batches."""

    def __init__(self, *arguments: Any, stops_after: int = 10**6, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.left = stops_after

    def chat_batch(self, conversations: list, /, **generate_kwargs: object) -> list[str]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().chat_batch(conversations, **generate_kwargs)


def suite_of(said: Sequence[str], **fields: Any) -> Suite:
    return Suite(name="numbers", items=items_of([*said], **fields))


# Going on


def test_a_stopped_evaluation_goes_on_with_what_is_left(tmp_path: Path) -> None:
    how = EvaluationSettings(batch_size=2, journal=tmp_path / "answers")
    with pytest.raises(KeyboardInterrupt):
        evaluate(Counting(SAID, stops_after=1), suite_of(SAID), how, identity="one ear")
    again = Counting(SAID)
    report = evaluate(again, suite_of(SAID), how, identity="one ear")
    heard = [conversation for way, conversation in again.asked if way == "hear"]
    assert [named(turn[0]["content"][0]["audio"]) for turn in heard] == [2, 3, 4]
    assert not any(way == "read" for way, _ in again.asked)
    assert report.items == evaluate(FakeEar(SAID), suite_of(SAID)).items
    assert (
        evaluate(Counting(SAID, stops_after=0), suite_of(SAID), how, identity="one ear").items == report.items
    )


@pytest.mark.parametrize("other", ["another ear", "other items", "other options"])
def test_answers_of_another_evaluation_are_not_taken_over(tmp_path: Path, other: str) -> None:
    how = EvaluationSettings(batch_size=2, journal=tmp_path / "answers")
    with pytest.raises(KeyboardInterrupt):
        evaluate(Counting(SAID, stops_after=1), suite_of(SAID), how, identity="one ear")
    again = Counting(SAID)
    suite = suite_of(SAID, instruction="Go on.") if other == "other items" else suite_of(SAID)
    how = replace(how, generate_kwargs={"max_new_tokens": 3}) if other == "other options" else how
    evaluate(again, suite, how, identity="another ear" if other == "another ear" else "one ear")
    assert sum(way == "hear" for way, _ in again.asked) == len(SAID)


def test_a_line_that_was_cut_short_is_as_if_never_written(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    journal = Journal(path, "same")
    journal.add("hearing", {"a": 1, "b": 2})
    path.write_text(path.read_text()[:-5])
    again = Journal(path, "same")
    assert again.results("hearing", ["a", "b"]) == {"a": 1}
    again.add("hearing", {"b": 3})
    assert Journal(path, "same").results("hearing", ["a", "b"]) == {"a": 1, "b": 3}


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("no json\n")
    with pytest.raises(CheckpointError, match=r"answers, which keeps the answers .* remove it, or write"):
        Journal(tmp_path / "answers", "same")


def test_a_name_that_is_no_suite_is_told_which_there_are() -> None:
    with pytest.raises(DataError, match=r"no suite 'pocketx'; expected one of pocket, .*voicebench"):
        open_suite("pocketx")


# Conditions


class Deaf(FakeEar):
    """Hears only what is as it was; in noise, nothing it knows."""

    def transcribe(self, sources: list, /) -> list[str]:
        return [self._known(sound, self.written) for sound in sources]

    def chat_batch(self, conversations: list, /, **generate_kwargs: object) -> list[str]:
        return [
            f"You said {self._known(turn[0]['content'][0]['audio'], self.heard)}." for turn in conversations
        ]

    def _known(self, sound: np.ndarray, words: list[str]) -> str:
        is_known = any(np.array_equal(sound, tone(number)) for number in range(len(words)))
        return words[named(sound)] if is_known else "noise"


def test_cascade_and_ear_are_asked_again_under_each_condition(tmp_path: Path) -> None:
    conditions = (Corruption(kind="white noise", level=0.0), Corruption(kind="silence after", level=0.5))
    report = evaluate(Deaf(SAID), suite_of(SAID), EvaluationSettings(corruptions=conditions))
    assert report.overall.ear.value == report.overall.cascade.value == 1.0
    assert [condition for condition, _ in report.robustness] == [*conditions]
    for _, table in report.robustness:
        assert (table.text_ceiling.value, table.cascade.value, table.ear.value) == (1.0, 0.0, 0.0)
        assert table.wer == 1.0
    written = write_report(report, tmp_path)
    assert read_report(written.json).robustness == report.robustness
    stored = json.loads(written.json.read_text())["robustness"]
    assert [row["corruption"] for row in stored] == ["white noise, 0 dB", "silence after, 0.5 s"]
    assert "When the sound is not clean" in written.html.read_text()


def test_babble_needs_a_suite_of_several(tmp_path: Path) -> None:
    how = EvaluationSettings(corruptions=(Corruption(kind="babble", level=10.0),))
    with pytest.raises(DataError, match="voice"):
        evaluate(Deaf(SAID[:2]), suite_of(SAID[:2]), how)


# Numbers of several kinds


def test_a_suite_may_be_the_mean_of_its_groups() -> None:
    items = (
        *items_of(SAID, group="many"),
        Item(id="x", audio=tone(0), text="one", group="few", answer="No."),
    )
    suite = Suite(name="groups", items=items, overall="groups")
    report = evaluate(FakeEar(SAID), suite)
    assert report.overall.ear.value == pytest.approx((1.0 + 0.0) / 2)
    assert report.overall.metric.name == "mean"
    low, high = report.overall.ear.ci95
    assert low <= 0.5 <= high
    assert report.overall == build_group_mean_table([list(report.items[:5]), list(report.items[5:])])


def test_scores_of_different_metrics_cannot_be_combined() -> None:
    words = answered(1, rule="wer", scores=dict.fromkeys(("text", "cascade", "ear"), (1.0, 4.0)))
    with pytest.raises(DataError, match="right and wer, which cannot be combined"):
        build_score_table([answered(0), words])


def test_error_rates_are_of_sums_and_paired() -> None:
    metric = METRICS["wer"]
    marks, others = [(1.0, 2.0), (0.0, 8.0)], [(2.0, 2.0), (1.0, 8.0)]
    assert bootstrap_score(metric, marks).value == 0.1
    gap = bootstrap_difference(metric, marks, others)
    assert gap.value == pytest.approx(-0.2)
    assert gap.ci95[0] <= gap.value <= gap.ci95[1] <= 0
    assert metric.is_correct((0.0, 8.0))
    assert not metric.is_correct((1.0, 8.0))


class Choosing(FakeEar):
    """Chooses the first of the words in its hearing, the last in its reading."""

    def choose_batch(self, conversations: list, choices: Sequence[str], /) -> list[int]:
        first = [turn[0]["content"][0]["type"] == "audio" for turn in conversations]
        return [0 if hears else len(choices) - 1 for hears in first]


def test_an_item_with_choices_is_answered_by_one_of_them() -> None:
    suite = suite_of(["one"], choices=("sad", "happy"), answer="sad", rule="label")
    (item,) = evaluate(Choosing(["one"]), suite).items
    assert (item.text_answer, item.cascade_answer, item.ear_answer) == ("happy", "happy", "sad")
    assert (item.ear_correct, item.text_correct) == (True, False)


def test_what_has_to_be_judged_is_refused_without_a_judge() -> None:
    suite = suite_of(["one"], rule="rated", rubric={"question": "one"})
    ear = FakeEar(["one"])
    with pytest.raises(ConfigError, match="answers that need a judge"):
        evaluate(ear, suite)
    assert ear.asked == []


def test_another_recogniser_writes_for_the_cascade() -> None:
    report = evaluate(
        FakeEar(["one"]), suite_of(["one"]), EvaluationSettings(transcribe=lambda sounds: ["won"])
    )
    assert report.items[0].transcript == "won"
    assert "ASR model of the cascade" in report.about


# Mistakes, and reports side by side


def test_mistakes_are_sorted_by_who_else_is_wrong() -> None:
    items = (
        answered(0, ear=False, cascade=False, read=False),
        answered(1, ear=False, cascade=False),
        answered(2, ear=False),
        answered(3),
    )
    found = group_errors(items)
    assert [[item.id for item in kind.items] for kind in found] == [["0000"], ["0001"], ["0002"]]
    assert [kind.title.split(":")[0] for kind in group_errors(items[2:])] == ["Wrong by ear alone"]


def test_a_word_that_goes_wrong_more_often_is_found() -> None:
    items = [answered(n, ear=n % 3 != 0, text="a duck" if n % 3 == 0 else "a cow") for n in range(30)]
    (word,) = find_hard_words(items)
    assert (word.text, word.n_wrong, word.n) == ("duck", 10, 10)
    assert find_hard_words([answered(0)]) == ()
