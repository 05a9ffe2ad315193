"""Errors are grouped by which systems are wrong, and by words."""

from support.reports import build_item_result

from ossicle.evaluation.report.error_analysis import find_hard_words, group_errors


def test_errors_are_grouped_by_the_systems_that_are_wrong() -> None:
    items = (
        build_item_result(0, ear=False, cascade=False, read=False),
        build_item_result(1, ear=False, cascade=False),
        build_item_result(2, ear=False),
        build_item_result(3),
    )
    groups = group_errors(items)
    assert [[item.id for item in group.items] for group in groups] == [["0000"], ["0001"], ["0002"]]
    assert [group.title.split(":")[0] for group in group_errors(items[2:])] == ["Wrong by ear alone"]


def test_words_that_go_wrong_more_often_are_found() -> None:
    items = [
        build_item_result(n, ear=n % 3 != 0, text="a duck" if n % 3 == 0 else "a cow") for n in range(30)
    ]
    (word,) = find_hard_words(items)
    assert (word.text, word.n_wrong, word.n) == ("duck", 10, 10)
    assert find_hard_words([build_item_result(0)]) == ()
