"""What is asked, of whom, and what counts as right."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossicle.errors import AudioError, ConfigError, DataError, RequestError
from ossicle.evaluation import STAGES, EvaluationSettings, Item, Report, Suite, load_suite
from ossicle.evaluation import evaluate as evaluated
from ossicle.evaluation.score_table import build_score_table
from ossicle.evaluation.statistics import bootstrap_ci95
from ossicle.evaluation.text_normalization import compute_word_error_rate, is_correct, normalize_text

TONE = (0.1 * np.sin(np.arange(1600) / 5)).astype(np.float32)


def tone(number: int) -> np.ndarray:
    """0.1 s of sound whose first sample names it."""
    return np.concatenate([[np.float32(number / 1000)], TONE[1:]])


def named(sound: object) -> int:
    assert isinstance(sound, np.ndarray)
    return round(float(sound[0]) * 1000)


class FakeEar:
    """Hears what it is told was said, in capitals if asked; fails where it is told to."""

    def __init__(
        self, said: list[str], *, heard: list[str] | None = None, written: list[str] | None = None
    ) -> None:
        self.said, self.heard, self.written = said, heard or said, written or said
        self.asked: list[tuple[str, list]] = []
        self.batch_sizes: list[int] = []

    def hear(self, source: list, /) -> list[torch.Tensor]:
        return [torch.zeros(len(self.said[named(sound)].split()), 4) for sound in source]

    def transcribe(self, sources: list, /) -> list[str]:
        return [self.written[named(sound)] for sound in sources]

    def read_batch(self, conversations: list, /, **generate_kwargs: object) -> list[str]:
        self.asked += [("read", conversation) for conversation in conversations]
        return [self._answer(conversation) for conversation in conversations]

    def chat_batch(self, conversations: list, /, **generate_kwargs: object) -> list[str]:
        self.asked += [("hear", conversation) for conversation in conversations]
        self.batch_sizes.append(len(conversations))
        return [self._answer(conversation) for conversation in conversations]

    def _answer(self, conversation: list) -> str:
        first, *rest = conversation[0]["content"]
        words = first["text"] if first["type"] == "text" else self.heard[named(first["audio"])]
        answer = f"You said {words}."
        return answer.upper() if any("capital" in part["text"] for part in rest) else answer


def items_of(said: list[str], **fields: Any) -> tuple[Item, ...]:
    return tuple(
        Item(**dict[str, Any]({"id": str(i), "audio": tone(i), "text": text} | fields))
        for i, text in enumerate(said)
    )


def evaluate(
    ear: Any,
    items: Sequence[Item],
    *,
    name: str,
    batch_size: int = 16,
    progress: Any = None,
    reading: Report | None = None,
    **options: Any,
) -> Report:
    suite = Suite(name=name, items=tuple(items))
    how = EvaluationSettings(batch_size=batch_size, generate_kwargs=options)
    return evaluated(ear, suite, how, progress=progress, reuse_from=reading)


# What counts as right


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Paris.", "paris"),
        (" The  sky is\nblue ", "The sky is blue."),
        ("c-a-t", "C a t"),
        ("It’s a dog!", "its a dog"),
        ("1,000", "1000"),
        ("twenty-one", "twenty one"),
        ("**Cold**", "Cold."),
        ("¡Adiós!", "adio\u0301s"),
        ("COLD", "COLD."),
        ("?", " ? "),
        ("-3.5", "−3.5"),
    ],
)
def test_right_answers(answer: str, expected: str) -> None:
    assert is_correct(answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Paris", "Rome"),
        ("", "Paris"),
        ("Cold.", "COLD."),
        ("CoLD", "COLD"),
        ("35", "3.5"),
        ("-3", "3"),
        ("2 + 3", "2 3"),
        ("adios", "adiós"),
        ("!", "?"),
        ("", "?"),
        ("The sky is blue", "The sky is"),
    ],
)
def test_wrong_answers(answer: str, expected: str) -> None:
    assert not is_correct(answer, expected)


@given(st.text())
def test_normalising_again_changes_nothing_and_a_text_answers_itself(text: str) -> None:
    assert normalize_text(normalize_text(text)).split() == normalize_text(text).split()
    assert is_correct(text, text)


# How sure a number is


def test_bootstrap_agrees_with_resampling_one_by_one() -> None:
    values = np.array([1] * 40 + [0] * 15 + [-1] * 5)
    rng = np.random.default_rng(1)
    means = values[rng.integers(0, len(values), (20_000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    one_item = 1 / len(values)
    assert bootstrap_ci95(values.tolist(), lower_bound=-1.0) == pytest.approx((low, high), abs=one_item)
    assert bootstrap_ci95(values.tolist(), lower_bound=-1.0) == bootstrap_ci95(
        values.tolist(), lower_bound=-1.0
    )


def test_unanimous_observations_have_the_exact_binomial_interval() -> None:
    # Clopper and Pearson for 20 of 20: (0.025)**(1/20) to 1.
    assert bootstrap_ci95([True] * 20) == pytest.approx((0.8316, 1.0), abs=1e-4)
    assert bootstrap_ci95([False] * 20) == pytest.approx((0.0, 0.1684), abs=1e-4)
    assert bootstrap_ci95([0] * 20, lower_bound=-1.0) == pytest.approx((-0.1684, 0.1684), abs=1e-4)
    assert bootstrap_ci95([]) == (0.0, 1.0)


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=60))
def test_an_interval_stays_in_range_and_holds_the_mean(values: list[int]) -> None:
    low, high = bootstrap_ci95(values, lower_bound=-1.0)
    assert -1 <= low <= high <= 1
    if values:
        assert low <= np.mean(values) <= high


def test_word_error_rate_is_over_all_words() -> None:
    references, transcripts = ["Say the word.", "It's hot!"], ["say a word", "its"]
    assert compute_word_error_rate(references, transcripts) == 2 / 5
    assert compute_word_error_rate(references, transcripts) == jiwer.wer(
        ["say the word", "its hot"], ["say a word", "its"]
    )
    assert compute_word_error_rate([], []) == 0


# The suite's file


@pytest.fixture
def write_suite(tmp_path: Path) -> Callable[..., Path]:
    soundfile.write(tmp_path / "a.wav", TONE, 16_000)

    def write(*lines: object) -> Path:
        path = tmp_path / "suite.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return path

    return write


def test_a_suite_is_read(write_suite: Callable[..., Path]) -> None:
    path = write_suite(
        {"audio": "a.wav", "text": "One\u2028two", "voice": "anna", "duration": 1.5},
        "",
        {
            "audio": "a.wav",
            "text": "Hola",
            "instruction": "Answer in Spanish.",
            "answer": "Sí",
            "id": "x",
            "group": "g",
        },
        {"audio": "a.wav", "text": "Yes", "instruction": None, "answer": None},
    )
    first, second, third = load_suite(path)
    assert (first.id, first.text, first.answer, first.audio) == (
        "0001",
        "One\u2028two",
        None,
        path.parent / "a.wav",
    )
    assert (second.id, second.instruction, second.answer, second.group) == (
        "x",
        "Answer in Spanish.",
        "Sí",
        "g",
    )
    assert (third.id, third.instruction) == ("0004", None)
    assert load_suite(str(path))[0] == first


GOOD = {"audio": "a.wav", "text": "Yes"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON at column 2"),
        ("[1]", "this is a list"),
        ("null", "this is null"),
        ({"text": "Yes"}, "no 'audio'"),
        ({"audio": "a.wav"}, "no 'text'"),
        ({"audio": "b.wav", "text": "Yes"}, "b.wav; paths are relative"),
        ({"audio": "", "text": "Yes"}, "no audio file"),
        (GOOD | {"text": " "}, "give the words"),
        (GOOD | {"text": "..."}, "give the words"),
        (GOOD | {"answer": 4}, "answer is 4, a number; write it as a string"),
        (GOOD | {"answer": ""}, "answer is empty"),
        (GOOD | {"anwser": "No"}, "unknown key 'anwser'; did you mean 'answer'?"),
        (GOOD | {"Instruction": "No"}, "did you mean 'instruction'?"),
        (GOOD | {"id": "0001"}, "item id '0001' is already used"),
    ],
)
def test_a_bad_line_is_named(write_suite: Callable[..., Path], line: object, said: str) -> None:
    path = write_suite(GOOD, line)
    with pytest.raises(DataError) as caught:
        load_suite(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_suite(tmp_path: Path, write_suite: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="no such suite file"):
        load_suite(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no such suite file"):
        load_suite(tmp_path)
    with pytest.raises(DataError, match="not UTF-8"):
        load_suite(tmp_path / "a.wav" if write_suite() else tmp_path)
    with pytest.raises(DataError, match="no items"):
        load_suite(write_suite("", " "))


def test_an_item_that_could_be_heard_only_once_is_refused() -> None:
    with pytest.raises(DataError, match="open file"):
        Item(id="1", audio=io.BytesIO(b"RIFF"), text="Yes")


# The three ways


def test_the_three_ways_and_their_numbers() -> None:
    said = ["one", "two words", "three", "four"]
    ear = FakeEar(
        said, heard=["one", "two words", "three", "five"], written=["one", "too words", "tree", "four"]
    )
    items = items_of(said[:3]) + items_of(said)[3:]
    report = evaluate(ear, items, name="numbers", batch_size=3)
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


def test_without_an_answer_the_llms_own_is_expected() -> None:
    report = evaluate(FakeEar(["one"]), items_of(["one"]), name="own")
    (item,) = report.items
    assert item.is_own_target
    assert item.expected == "You said one."
    assert report.overall.text_ceiling.ci95 == (1.0, 1.0)
    assert report.n_own_targets == 1

    measured = evaluate(FakeEar(["one"]), items_of(["one"], answer="Something."), name="given")
    assert measured.overall.text_ceiling.value == 0
    assert measured.overall.of_ceiling is None
    assert measured.overall.kept is None
    assert measured.n_own_targets == 0


def test_all_three_get_the_same_turn_but_for_the_sound() -> None:
    instruction = "Answer in capital letters."
    ear = FakeEar(["one"], written=["won"])
    report = evaluate(ear, items_of(["one"], instruction=instruction, answer="YOU SAID ONE"), name="turns")
    turns = [(how, conversation[0]["role"], conversation[0]["content"]) for how, conversation in ear.asked]
    beside = {"type": "text", "text": instruction}
    assert turns[0] == ("read", "user", [{"type": "text", "text": "one"}, beside])
    assert turns[1] == ("read", "user", [{"type": "text", "text": "won"}, beside])
    how, role, (sound, rest) = turns[2]
    assert (how, role, sound["type"], rest) == ("hear", "user", "audio", beside)
    assert report.items[0].text_correct
    assert report.instructions is None, "all of them have one"


def test_generation_settings_reach_all_three() -> None:
    seen: list[dict] = []

    class Recording(FakeEar):
        def read_batch(self, conversations: list, /, **generate_kwargs: object) -> list[str]:
            seen.append(generate_kwargs)
            return super().read_batch(conversations)

        def chat_batch(self, conversations: list, /, **generate_kwargs: object) -> list[str]:
            seen.append(generate_kwargs)
            return super().chat_batch(conversations)

    evaluate(Recording(["one"]), items_of(["one"]), name="kwargs", max_new_tokens=7)
    assert seen == [{"max_new_tokens": 7}] * 3


def test_an_empty_transcript_is_not_asked_about() -> None:
    ear = FakeEar(["one", "two"], written=["  ", "two"])
    report = evaluate(ear, items_of(["one", "two"]), name="empty")
    assert [item.cascade_answer for item in report.items] == ["", "You said two."]
    assert report.overall.wer == 0.5
    beside = evaluate(FakeEar(["one"], written=[""]), items_of(["one"], instruction="Go on."), name="beside")
    assert beside.items[0].cascade_answer == "You said ."


def test_numbers_do_not_depend_on_the_batch() -> None:
    said = ["one", "two", "three", "four", "five"]
    ear = FakeEar(said, heard=["one", "2", "three", "4", "five"])
    reports = [evaluate(ear, items_of(said), name="batches", batch_size=size) for size in (1, 2, 99)]
    assert reports[0].items == reports[1].items == reports[2].items


def test_progress_counts_every_stage_to_its_end() -> None:
    calls: list[tuple[str, int, int]] = []
    evaluate(
        FakeEar(["one", "two", "three"]),
        items_of(["one", "two", "three"]),
        name="progress",
        batch_size=2,
        progress=lambda stage, n_done, n: calls.append((stage, n_done, n)),
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert tuple(stages) == STAGES[:-1], "an ear that cannot tell its reactions has none compared"
    for stage in stages:
        counts = [n_done for name, n_done, _ in calls if name == stage]
        assert counts == sorted(counts)
        assert counts[-1] == 3


def test_bad_sound_ends_the_evaluation_before_anything_is_asked(tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"this is no sound at all")
    ear = FakeEar(["one"])
    with pytest.raises(DataError, match=r"item 'bad'.*broken\.wav"):
        evaluate(ear, [*items_of(["one"]), Item(id="bad", audio=broken, text="two")], name="bad")
    assert ear.asked == []
    with pytest.raises(DataError, match="item '0'"):
        evaluate(ear, items_of(["one"], audio=np.zeros(0, np.float32)), name="empty sound")


def test_what_the_ear_refuses_is_named(tmp_path: Path) -> None:
    class ShortEar(FakeEar):
        def hear(self, source: list, /) -> list[torch.Tensor]:
            if any(named(sound) == 1 for sound in source):
                raise AudioError("9 s of sound; at most 6 s fit")
            return super().hear(source)

    class PoliteEar(FakeEar):
        def read_batch(self, conversations: list, /, **generate_kwargs: object) -> list[str]:
            if any(conversation[0]["content"][0]["text"] == "two" for conversation in conversations):
                raise RequestError("text holds a control token")
            return super().read_batch(conversations)

    said = ["one", "two", "three"]
    with pytest.raises(DataError, match="item '1': 9 s of sound"):
        evaluate(ShortEar(said), items_of(said), name="long")
    with pytest.raises(DataError, match="item '1': text holds"):
        evaluate(PoliteEar(said), items_of(said), name="control")


def test_what_cannot_be_evaluated() -> None:
    ear = FakeEar(["one"])
    with pytest.raises(DataError, match="no items"):
        evaluate(ear, [], name="none")
    with pytest.raises(DataError, match="item id '0' is used twice"):
        evaluate(ear, items_of(["one"]) * 2, name="twice")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        evaluate(ear, items_of(["one"]), name="batch", batch_size=0)
    with pytest.raises(DataError, match="no items were evaluated"):
        Report(suite="none", items=())


def test_groups_and_instructions_have_tables_of_their_own() -> None:
    said = ["one", "two", "three", "four"]
    ear = FakeEar(said, heard=["one", "2", "three", "4"])
    items = (
        items_of(said, group="seen")[:2]
        + items_of(said, group="unseen", instruction="Go on.")[2:3]
        + items_of(said)[3:]
    )
    report = evaluate(ear, items, name="groups")
    assert {name: (table.n, table.ear.value) for name, table in report.groups.items()} == {
        "seen": (2, 0.5),
        "unseen": (1, 1.0),
        "other": (1, 0.0),
    }
    assert report.instructions == build_score_table(report.items[2:3])
    ungrouped = evaluate(ear, items_of(said), name="none")
    assert ungrouped.groups == {}
    assert ungrouped.instructions is None


# Suites in a table, and two ears on the same items


def parquet_suite(path: Path, **changes: Any) -> Path:
    encoded = io.BytesIO()
    soundfile.write(encoded, TONE, 16_000, format="WAV")
    row = {"audio": {"bytes": encoded.getvalue(), "path": "a.wav"}, "text": "hello", "skill": "x"} | changes
    pq.write_table(pa.Table.from_pylist([row, row]), path)
    return path


def test_a_parquet_suite_carries_its_sound(tmp_path: Path) -> None:
    first, second = load_suite(parquet_suite(tmp_path / "suite.parquet", answer="hi", group="a"))
    assert (first.id, second.id, first.text, first.answer, first.group) == (
        "0001",
        "0002",
        "hello",
        "hi",
        "a",
    )
    assert first.instruction is None
    assert isinstance(first.audio, bytes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": None}, "row 1: no 'text'"),
        ({"text": 5}, "row 1: text is 5, a number"),
        ({"audio": "a.wav"}, "row 1: audio holds no bytes"),
        ({"anwser": "hi"}, "did you mean 'answer'"),
        ({"id": "same"}, "row 2: item id 'same' is already used"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=r"suite\.parquet") as refused:
        load_suite(parquet_suite(tmp_path / "suite.parquet", **changes))
    assert said in str(refused.value)


def test_parquet_files_that_are_no_suite(tmp_path: Path) -> None:
    path = tmp_path / "suite.parquet"
    path.write_text("no table")
    with pytest.raises(DataError, match="not a parquet file"):
        load_suite(path)
    pq.write_table(pa.table({"audio": [b"x"]}), path)
    with pytest.raises(DataError, match="no column 'text'"):
        load_suite(path)


def test_a_second_ear_takes_over_what_was_read() -> None:
    items = items_of(["hello", "bye"])
    reading = evaluate(FakeEar(["hello", "bye"], written=["hello", "by"]), items, name="first")
    second = FakeEar(["hello", "bye"], heard=["hello", "die"])
    report = evaluate(second, items, name="second", reading=reading)
    assert {how for how, _ in second.asked} == {"hear"}
    assert [item.ear_answer for item in report.items] == ["You said hello.", "You said die."]
    for name in ("text_answer", "transcript", "cascade_answer"):
        assert [getattr(item, name) for item in report.items] == [
            getattr(item, name) for item in reading.items
        ]
    with pytest.raises(DataError, match="other items"):
        evaluate(FakeEar(["hello"]), items_of(["hello"]), name="third", reading=reading)
