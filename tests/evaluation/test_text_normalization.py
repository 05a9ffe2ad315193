"""Which answers are correct, and how many words of a transcript are wrong."""

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossicle.evaluation.text_normalization import (
    compute_word_error_rate,
    is_correct,
    normalize_text,
    strip_thoughts,
)


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
        ("50 %", "50%"),
        ("$ 5", "$5."),
        ("the co\u00adoperative", "the cooperative"),
        ("\u0dc1\u0dca\u200d\u0dbb\u0dd3", "\u0dc1\u0dca\u0dbb\u0dd3"),
        ("\ufeffyes", "yes\u200e"),
        ("two\u200bwords", "two words"),
    ],
)
def test_answers_that_differ_in_punctuation_or_case_are_correct(answer: str, expected: str) -> None:
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
def test_answers_that_differ_in_words_are_wrong(answer: str, expected: str) -> None:
    assert not is_correct(answer, expected)


@given(st.text())
def test_normalization_is_idempotent_and_every_text_equals_itself(text: str) -> None:
    assert normalize_text(normalize_text(text)).split() == normalize_text(text).split()
    assert is_correct(text, text)


def test_the_word_error_rate_is_computed_over_all_words() -> None:
    references, transcripts = ["Say the word.", "It's hot!"], ["say a word", "its"]
    assert compute_word_error_rate(references, transcripts) == 2 / 5
    assert compute_word_error_rate(references, transcripts) == jiwer.wer(
        ["say the word", "its hot"], ["say a word", "its"]
    )
    assert compute_word_error_rate([], []) == 0


@pytest.mark.parametrize(
    "answer",
    [
        "Paris",
        "<think>\nFrance, so Lyon?\n</think>\n\nParis",
        "<think></think>Paris",
        "<seed:think>France</seed:think>Paris",
        "[THINK]France, so Lyon?[/THINK]\nParis",
        "France, so Lyon?◁/think▷Paris",
        "<reasoning>\nFrance\n</reasoning>\nParis",
        "so it is Lyon, no</think>Paris",
        "<thinking>a <b> c</thinking> Paris ",
        "<think>a</think><think>b</think>Paris",
        "<THINK>a</THINK>Paris",
    ],
)
def test_thoughts_are_no_part_of_an_answer(answer: str) -> None:
    assert strip_thoughts(answer) == "Paris"


def test_a_thought_that_was_cut_off_leaves_no_answer() -> None:
    assert strip_thoughts("<think>Paris, or") == ""
