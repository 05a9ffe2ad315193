"""Conclusions and results are read from reasoned answers."""

import pytest
from support.scoring import build_item

from ossicle.evaluation.scoring import RULES
from ossicle.evaluation.scoring.reasoning import extract_conclusion, extract_final_answer


@pytest.mark.parametrize(
    ("task", "conclusion", "answer"),
    [
        ("hyperbaton", "A", "The correct adjective order is in option A."),
        ("hyperbaton", "B", "Option B has the correct adjective order."),
        ("hyperbaton", "B", "The correct sentence is (B)."),
        ("hyperbaton", "A", "The first sentence has the correct adjective order."),
        ("hyperbaton", None, "Both are fine."),
        ("navigate", "no", "No, you do not return."),
        ("navigate", "yes", "Let's see. So the answer is yes."),
        ("navigate", "no", "You are not back at the starting point."),
        ("navigate", "yes", "After that you end up back at the starting point."),
        ("navigate", "no", "We walk 3 steps. Hence you don't return to the starting point."),
        ("navigate", "yes", "We walk. You'll end up right back where you started."),
        ("navigate", "yes", "**Answer:** Yes"),
        ("navigate", "no", "The final position is not directly at the starting point."),
        ("sports_understanding", "yes", "The sentence is plausible."),
        ("sports_understanding", "no", "The sentence is not plausible."),
        ("sports_understanding", "no", "That is an implausible statement"),
        ("sports_understanding", "no", "The sentence is unlikely to be true"),
        ("sports_understanding", "yes", "The sentence is likely true"),
        ("sports_understanding", "no", "The answer is no, he plays basketball"),
        ("web_of_lies", "no", "Therefore Bob does not tell the truth."),
        ("web_of_lies", "yes", "Ann lies. Bob says Ann lies. So Bob tells the truth."),
        ("web_of_lies", "no", "The answer is \\boxed{\\text{No}}"),
        ("web_of_lies", "no", "Ann tells the truth, so Bob must be lying"),
        ("web_of_lies", None, "Nobody knows"),
        ("web_of_lies", None, ""),
    ],
)
def test_the_conclusion_of_an_answer(task: str, conclusion: str | None, answer: str) -> None:
    assert extract_conclusion(answer, task) == conclusion


@pytest.mark.parametrize(
    ("answer", "expected", "result"),
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
        ("You have 5 fruits in total: 2 apples and 3 pears.", "5", "5"),
        ("There are **five** in total:\n1. an apple\n2. a pear", "5", "5"),
        ("That makes 7 altogether (3 pianos, 4 drums).", "7", "7"),
        ("I have 2 apples and 3 pears. In total: 5", "5", "5"),
        ("2 and 3 give a total: 5.", "5", "5"),
        ("5 in total: 2 and 3. So the answer is 6.", "6", "6"),
        ("I cannot say.", "valid", None),
        ("", "7", None),
    ],
)
def test_the_result_of_an_answer(answer: str, expected: str, result: str | None) -> None:
    assert extract_final_answer(answer, expected) == result
    scores = RULES["final"].score([build_item(expected)], [answer], None)
    assert scores == [(float(result == expected),)]
