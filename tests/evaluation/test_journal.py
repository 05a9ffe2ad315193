"""A stopped evaluation resumes with the items that are left."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_ear import FakeEar, build_suite, read_tone

from ossicle.errors import CheckpointError
from ossicle.evaluation import (
    EvaluationSettings,
    evaluate,
)
from ossicle.evaluation.journal import Journal

SPOKEN = ["one", "two", "three", "four", "five"]


class InterruptedEar(FakeEar):
    """Raises KeyboardInterrupt after a number of batches with sound."""

    def __init__(self, spoken: list[str], *, n_batches: int) -> None:
        super().__init__(spoken)
        self.n_left = n_batches

    def chat_batch(self, conversations: list, /, **generate_kwargs: object) -> list[str]:
        if not self.n_left:
            raise KeyboardInterrupt
        self.n_left -= 1
        return super().chat_batch(conversations, **generate_kwargs)


def test_a_stopped_evaluation_resumes_with_the_remaining_items(tmp_path: Path) -> None:
    settings = EvaluationSettings(batch_size=2, journal=tmp_path / "answers")
    with pytest.raises(KeyboardInterrupt):
        evaluate(InterruptedEar(SPOKEN, n_batches=1), build_suite(SPOKEN), settings, identity="one ear")
    again = FakeEar(SPOKEN)
    report = evaluate(again, build_suite(SPOKEN), settings, identity="one ear")
    heard = [conversation for method, conversation in again.requests if method == "hear"]
    assert [read_tone(turn[0]["content"][0]["audio"]) for turn in heard] == [2, 3, 4]
    assert not any(method == "read" for method, _ in again.requests)
    assert report.items == evaluate(FakeEar(SPOKEN), build_suite(SPOKEN)).items
    assert (
        evaluate(InterruptedEar(SPOKEN, n_batches=0), build_suite(SPOKEN), settings, identity="one ear").items
        == report.items
    )


@pytest.mark.parametrize("other", ["another ear", "other items", "other options"])
def test_answers_of_another_evaluation_are_discarded(tmp_path: Path, other: str) -> None:
    settings = EvaluationSettings(batch_size=2, journal=tmp_path / "answers")
    with pytest.raises(KeyboardInterrupt):
        evaluate(InterruptedEar(SPOKEN, n_batches=1), build_suite(SPOKEN), settings, identity="one ear")
    again = FakeEar(SPOKEN)
    suite = build_suite(SPOKEN, instruction="Go on.") if other == "other items" else build_suite(SPOKEN)
    settings = (
        replace(settings, generate_kwargs={"max_new_tokens": 3}) if other == "other options" else settings
    )
    evaluate(again, suite, settings, identity="another ear" if other == "another ear" else "one ear")
    assert sum(method == "hear" for method, _ in again.requests) == len(SPOKEN)


def test_two_evaluations_with_one_journal_do_not_mix(tmp_path: Path) -> None:
    one, other = (Journal(tmp_path / "answers", name) for name in ("one ear", "another ear"))
    one.add("read", {"1": "of one"})
    other.add("read", {"2": "of another"})
    again = Journal(tmp_path / "answers", "another ear")
    assert again.get_results("read", ["1", "2"]) == {"2": "of another"}


def test_a_torn_last_line_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    journal = Journal(path, "same")
    journal.add("embedding audio", {"a": 1, "b": 2})
    path.write_text(path.read_text()[:-5])
    again = Journal(path, "same")
    assert again.get_results("embedding audio", ["a", "b"]) == {"a": 1}
    again.add("embedding audio", {"b": 3})
    assert Journal(path, "same").get_results("embedding audio", ["a", "b"]) == {"a": 1, "b": 3}


def test_a_damaged_journal_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("no json\n")
    with pytest.raises(CheckpointError, match=r"answers, which keeps the answers .* remove it, or write"):
        Journal(tmp_path / "answers", "same")
