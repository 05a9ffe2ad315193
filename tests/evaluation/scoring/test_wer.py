"""Word errors equal those of jiwer, after Whisper's normalization."""

import jiwer
import pytest
from support.scoring import aggregate, build_item, draw_corpus

from ossicle.evaluation.scoring import RULES
from ossicle.evaluation.scoring.wer import count_word_errors


@pytest.mark.parametrize("seed", range(4))
def test_summed_word_errors_give_jiwers_rate(seed: int) -> None:
    plain = "cat dog house river green walked seldom yellow".split()
    answers, references = draw_corpus(seed, plain, " ")
    scores = [count_word_errors(a, r) for a, r in zip(answers, references, strict=True)]
    assert aggregate("wer", scores) == pytest.approx(jiwer.wer(references, answers), abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "reference", "scores"),
    [
        ("Mister Smith's twenty-one.", "MR SMITH'S 21", (0, 4)),  # "smith is", as Whisper reads it
        ("He won't, um, go.", "HE WILL NOT GO", (0, 4)),
        ("The color of the gray theater", "THE COLOUR OF THE GREY THEATRE", (0, 6)),
        ("neighboring honorable", "NEIGHBOURING HONOURABLE", (0, 2)),
        ("You said: the house", "THE HOUSE", (2, 2)),
        ("", "TWO WORDS", (2, 2)),
        ("hello", "UM", (1, 0)),
    ],
)
def test_words_are_compared_after_whispers_normalization(
    answer: str, reference: str, scores: tuple[int, int]
) -> None:
    assert count_word_errors(answer, reference) == scores


def test_without_an_expected_answer_the_transcript_is_the_reference() -> None:
    assert RULES["wer"].score([build_item()], ["something else"], None) == [(1.0, 1.0)]
