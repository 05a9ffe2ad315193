"""The chosen option is read from free answers."""

import pytest

from ossicle.evaluation.scoring.multiple_choice import extract_choice


@pytest.mark.parametrize(
    ("letter", "answer"),
    [
        ("B", "B"),
        ("B", " (b) "),
        ("B", "B) because it floats"),
        ("C", "The answer is C."),
        ("C", "The correct answer is **C) water**"),
        ("A", "The correct answer is: A. Puppies learn"),
        ("A", "The answer is (a)."),
        ("A", "The answer is A because it is."),
        ("A", "I'd say a."),
        ("D", "The answer to the question is: \n\n**D**: foo"),
        ("B", "I would choose option B."),
        ("B", "At first I'd say A, but the correct answer is B."),
        ("B", "The answer is not A. The answer is B"),
        ("C", "the answer is \\( \\boxed{\\text{C}} \\)"),
        ("B", "B is the best answer"),
        ("B", 'The correct answer is option "B", sleeping.'),
        ("B", "Option B would be the right one."),
        ("B", "The second option is correct."),
        ("D", "It would be D) moons."),
        ("C", "Well, so I think that leads to C."),
        ("A", "A. one, since B. is wrong"),
        ("C", "the answer is 'C'"),
        ("C", "It is likely **C**"),
        ("B", "Answer A is wrong, so it has to be B."),
        ("D", "D because of the rain"),
        (None, "Answer A is wrong."),
        (None, "It could be A, B, C, or D."),
        (None, "The answer is a good conductor."),
        (None, "A scorpion is an animal."),
        (None, "A. one B. two C. three D. four"),
        (None, "It is either B. or C."),
        (None, "I do not know."),
        (None, "Water, as it boils"),
        (None, ""),
    ],
)
def test_the_option_that_an_answer_chooses(letter: str | None, answer: str) -> None:
    assert extract_choice(answer) == letter


def test_only_the_given_letters_count() -> None:
    assert extract_choice("The answer is D.", "AB") is None
    assert extract_choice("The answer is E.", "ABCDE") == "E"
