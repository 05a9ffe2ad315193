"""Equivalence of answers, on what people and LLMs really write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scoring import build_item

from ossicle.evaluation.scoring import RULES
from ossicle.evaluation.scoring.qa import is_equivalent


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
def test_an_answer_is_equivalent_to_itself_and_within_a_sentence(words: list[str]) -> None:
    answer = " ".join(words)
    assert is_equivalent(answer.title() + "!", answer)
    assert is_equivalent(f"Well, that would be {answer}, I believe.", answer)


def test_any_published_answer_is_right() -> None:
    item = build_item("Thames", rubric={"answers": ["Thames", "River Thames", "the Isis"]})
    assert RULES["panda"].score(
        [item, item, build_item("Thames")], ["The Isis.", "Rhine", "Thames"], None
    ) == [
        (1.0,),
        (0.0,),
        (1.0,),
    ]
    assert "not the published classifier" in " ".join(RULES["panda"].description.split())
