"""A label has to be given exactly."""

from support.scoring import build_item

from ossicle.evaluation.scoring import RULES


def test_a_label_has_to_be_the_word_itself() -> None:
    items = [build_item("Anger", choices=("Anger", "Joy"))] * 3
    assert RULES["label"].score(items, ["anger", "Joy", "Anger."], None) == [(1.0,), (0.0,), (1.0,)]
