"""Scores of answers: against the libraries that define them, by laws, and on what people and LLMs really write."""

import random
import sys
from collections.abc import Sequence

import jiwer
import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from ossicle.errors import DataError
from ossicle.evaluation.scoring import RULES, translation
from ossicle.evaluation.scoring.numerals import convert_number_words
from ossicle.evaluation.scoring.qa import is_equivalent
from ossicle.evaluation.scoring.reasoning import extract_final_answer
from ossicle.evaluation.scoring.translation import count_ngrams
from ossicle.evaluation.scoring.wer import count_word_errors
from ossicle.evaluation.statistics import METRICS, ItemScore, bootstrap_score
from ossicle.evaluation.suite import Item

WORDS = "the a cat dog sat ran on under mat house , . ! small old very and never it".split()
HANZI = list("你好世界我们在这里，。是不人大中")


def item(answer: str | None = None, **fields: object) -> Item:
    return Item(id="1", audio=b"", text="something", answer=answer, **fields)  # ty: ignore[invalid-argument-type]


def number(metric: str, marks: Sequence[ItemScore]) -> float:
    """What a metric makes of the sums of marks."""
    return float(METRICS[metric].aggregate(np.array([np.sum(marks, axis=0)]), np.array([len(marks)]))[0])


def corpus(
    seed: int, words: Sequence[str], glue: str, most: int = 12, n: int = 30
) -> tuple[list[str], list[str]]:
    """Answers and references that share some words; a few answers are empty."""
    rng = random.Random(seed)
    references = [[rng.choice(words) for _ in range(rng.randint(1, most))] for _ in range(n)]
    answers = [
        [word if rng.random() < 0.8 else rng.choice(words) for word in reference if rng.random() < 0.9]
        for reference in references
    ]
    answers[0] = []
    return [glue.join(answer) for answer in answers], [glue.join(reference) for reference in references]


@pytest.mark.parametrize(
    ("said", "digits"),
    [
        ("twenty one", "21"),
        ("one hundred and five men", "105 men"),
        ("five thousand three hundred twenty one", "5321"),
        ("nineteen hundred", "1900"),
        ("1.5 million", "1500000"),
        ("six hundred thousand", "600000"),
        ("seven and eight", "7 and 8"),
        ("the third man of the 21st century", "the 3 man of the 21 century"),
        ("hundred years and a million", "hundred years and a million"),
        ("9007199254740993", "9007199254740993"),
        ("ten 10", "10 10"),
    ],
)
def test_number_words_are_read_as_digits(said: str, digits: str) -> None:
    assert " ".join(convert_number_words(said.split())) == digits


@given(st.integers(0, 999_999_999))
def test_a_number_in_digits_stays_what_it_is(number: int) -> None:
    assert convert_number_words([str(number)]) == [str(number)]
    assert convert_number_words(["about", str(number), "people"]) == ["about", str(number), "people"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The capital of France is Paris.", "Paris"),
        ("Obama", "Barack Obama"),
        ("It was founded in nineteen hundred.", "1900"),
        ("About 2 million people live there.", "2,000,000"),
        ("Prince Charles", "Charles , Prince of Wales"),
        ("It is Charles III, who was the Prince of Wales.", "Charles , Prince of Wales"),
        ("New York", "New York City"),
        ("On the 15th of April 1947.", "April 15, 1947"),
        ("São Paulo, Brazil", "Sao Paulo"),
        ("It's twenty-one.", "21"),
        ("50%", "50 percent"),
        ("In the U.S.", "US"),
        ("Yes, it is.", "YES"),
        ("No, there is no evidence for a yes.", "no"),
        ("It's not in Spain; it is Lisbon.", "Lisbon"),
    ],
)
def test_equivalent_answers(answer: str, expected: str) -> None:
    assert is_equivalent(answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("South Korea", "North Korea"),
        ("Michelle Obama", "Barack Obama"),
        ("University of California, Berkeley", "University of California, Los Angeles"),
        ("1946", "1947"),
        ("In 1947.", "April 15, 1947"),
        ("It is not Paris.", "Paris"),
        ("Parisian", "Paris"),
        ("No, that is wrong; yes would be too.", "yes"),
        ("I don't know.", "Paris"),
        ("Albert is one, and a long while after him there came Einstein.", "Albert Einstein"),
        ("", "Paris"),
        ("...", "Paris"),
    ],
)
def test_answers_that_are_not_equivalent(answer: str, expected: str) -> None:
    assert not is_equivalent(answer, expected)


@given(st.lists(st.sampled_from("paris 1947 barack obama river green three old tower".split()), min_size=1))
def test_an_answer_is_equivalent_to_itself_also_within_a_sentence(words: list[str]) -> None:
    answer = " ".join(words)
    assert is_equivalent(answer.title() + "!", answer)
    assert is_equivalent(f"Well, that would be {answer}, I believe.", answer)


def test_any_of_the_published_answers_will_do() -> None:
    one = item("Thames", rubric={"answers": ["Thames", "River Thames", "the Isis"]})
    assert RULES["panda"].score([one, one, item("Thames")], ["The Isis.", "Rhine", "Thames"], None) == [
        (1.0,),
        (0.0,),
        (1.0,),
    ]
    assert "not the published classifier" in " ".join(RULES["panda"].description.split())


@pytest.mark.parametrize(
    ("tokenizer", "words", "glue"), [("13a", WORDS, " "), ("zh", HANZI, ""), ("char", HANZI, "")]
)
@pytest.mark.parametrize("seed", range(4))
def test_summed_up_marks_are_sacrebleus_corpus_score(
    tokenizer: str, words: list[str], glue: str, seed: int
) -> None:
    answers, references = corpus(seed, words, glue)
    marks = [count_ngrams(a, r, tokenizer) for a, r in zip(answers, references, strict=True)]
    whole = sacrebleu.corpus_bleu(answers, [references], tokenize=tokenizer)
    assert number("bleu", marks) == pytest.approx(whole.score, abs=1e-9)
    assert whole.score > 5  # it compares more than zeros

    drawn = np.random.default_rng(seed).integers(0, len(answers), (5, len(answers)))
    for rows in drawn:
        again = sacrebleu.corpus_bleu(
            [answers[row] for row in rows], [[references[row] for row in rows]], tokenize=tokenizer
        )
        assert number("bleu", [marks[row] for row in rows]) == pytest.approx(again.score, abs=1e-9)


@pytest.mark.parametrize(
    ("answers", "references"),
    [
        (["a b"], ["a b"]),  # no four-gram in it
        (["x y z w"], ["a b c d"]),
        (["", "a b c d"], ["a b", "a b c d"]),
        (["a b c x y z"], ["a b c d e f"]),  # orders without a match
        (["a b c d"] * 3, ["a b c d e f g h"] * 3),  # too short
    ],
)
def test_the_edges_of_bleu_are_sacrebleus(answers: list[str], references: list[str]) -> None:
    marks = [count_ngrams(a, r) for a, r in zip(answers, references, strict=True)]
    whole = sacrebleu.corpus_bleu(answers, [references])
    assert number("bleu", marks) == pytest.approx(whole.score, abs=1e-9)


def test_the_bleu_rule_reads_the_tokenizer_from_the_rubric_and_its_interval_holds_the_score() -> None:
    answers, references = corpus(0, HANZI, "")
    items = [item(reference, rubric={"tokenize": "zh"}) for reference in references]
    marks = RULES["bleu"].score(items, answers, None)
    whole = sacrebleu.corpus_bleu(answers, [references], tokenize="zh").score
    found = bootstrap_score(RULES["bleu"].metric, marks)
    assert found.value == pytest.approx(whole, abs=1e-9)
    assert found.ci95[0] < whole < found.ci95[1]


def test_without_sacrebleu_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    translation.load_sacrebleu.cache_clear()
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(DataError, match=r"pip install 'ossicle\[benchmarks\]'"):
        count_ngrams("a", "b")


@pytest.mark.parametrize("seed", range(4))
def test_summed_up_word_marks_are_jiwers_rate(seed: int) -> None:
    plain = "cat dog house river green walked seldom yellow".split()
    answers, references = corpus(seed, plain, " ")
    marks = [count_word_errors(a, r) for a, r in zip(answers, references, strict=True)]
    assert number("wer", marks) == pytest.approx(jiwer.wer(references, answers), abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "reference", "marks"),
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
def test_words_are_compared_as_whisper_normalises_them(
    answer: str, reference: str, marks: tuple[int, int]
) -> None:
    assert count_word_errors(answer, reference) == marks


def test_where_no_answer_is_expected_the_spoken_words_are_to_be_repeated() -> None:
    assert RULES["wer"].score([item()], ["something else"], None) == [(1.0, 1.0)]


@pytest.mark.parametrize(
    ("answer", "expected", "found"),
    [
        ("The argument is not deductively valid.", "valid", "invalid"),
        ("Therefore, the argument is deductively invalid.", "valid", "invalid"),
        ("The argument isn't valid.", "invalid", "invalid"),
        ("Invalid. To be valid it would need more.", "valid", "invalid"),
        ("It would be valid if all were so. So it is not valid.", "valid", "invalid"),
        ("**Answer:** 7", "7", "7"),
        ("3 pianos and 2 drums, for a total of five instruments.", "5", "5"),
        ("I count 3 pianos, 2 drums. That makes 5.", "5", "5"),
        ("So 3 + 4 = 7, which is more than 6.", "7", "7"),
        ("So you have 3 pianos, 2 drums, which is 5.", "5", "5"),
        (r"\boxed{12}", "12", "12"),
        ("Twelve", "12", "12"),
        ("I cannot say.", "valid", None),
        ("", "7", None),
    ],
)
def test_what_an_answer_comes_to(answer: str, expected: str, found: str | None) -> None:
    assert extract_final_answer(answer, expected) == found
    marks = RULES["final"].score([item(expected)], [answer], None)
    assert marks == [(float(found == expected),)]


def test_a_label_is_the_word_itself() -> None:
    items = [item("Anger", choices=("Anger", "Joy"))] * 3
    assert RULES["label"].score(items, ["anger", "Joy", "Anger."], None) == [(1.0,), (0.0,), (1.0,)]
